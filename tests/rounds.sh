#!/usr/bin/env bash
# Runs the kernel and the bus room ROUNDS times (default 10), both at once, beside a program that keeps one core busy. What
# fails here and not alone depends on time. Prints a line a run; the output of each is in OUT (default: a new directory).
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-10}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
sh -c 'while :; do :; done' &
busy=$!
trap 'kill $busy' EXIT

# room NAME ROUND -> 0: green
room() {
    local began=$SECONDS status=0
    .venv/bin/python -m pytest -q "tests/$1" >"$out/$1.$2" 2>&1 || status=$?
    printf '%s round %s %-6s %s (%s s): %s\n' "$(date +%T)" "$2" "$1" \
        "$([ "$status" = 0 ] && echo green || echo RED)" "$((SECONDS - began))" "$(tail -n 1 "$out/$1.$2")"
    return "$status"
}

red=0
for round in $(seq "$rounds"); do
    room kernel "$round" &
    kernel=$!
    room bus "$round" || red=$((red + 1))
    wait "$kernel" || red=$((red + 1))
done
echo "$((2 * rounds)) runs, $red red; output in $out"
[ "$red" = 0 ]
