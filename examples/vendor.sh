#!/usr/bin/env bash
# Fills examples/*/vendor with the wheels that each vendor.txt pins, for the Python of the debian stack (3.11).
# Staging then needs no network. Does nothing where the wheels are there already.
set -euo pipefail
cd "$(dirname "$0")"
python=../.venv/bin/python
[ -x "$python" ] || python=python3
machine=$(uname -m)

for list in */vendor.txt; do
    vendor=$(dirname "$list")/vendor
    stamp=$vendor/.complete
    sum=$(printf '%s %s\n' "$machine" "$(sha256sum <"$list")")
    [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ] || continue
    printf 'vendor: fetching wheels for %s\n' "$(dirname "$list")" >&2
    rm -rf "$vendor.new"
    "$python" -m pip download -q --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
        --implementation cp --python-version 3.11 --platform "manylinux2014_$machine" --platform "manylinux_2_28_$machine" \
        -d "$vendor.new" -r "$list"
    printf '%s\n' "$sum" >"$vendor.new/.complete"
    rm -rf "$vendor"
    mv "$vendor.new" "$vendor"
done
