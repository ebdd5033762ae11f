#!/usr/bin/env bash
# `make vm-test`: boots Debian's 6.1 kernel under QEMU and runs tests/vm/inside.sh there, on this machine's own root
# file system (read-only, what is written stays in the VM). Emulated, without KVM: a few minutes.
#
#   tests/vm/run.sh [PYTEST ARGUMENT...]     instead of the default choice of tests
set -euo pipefail
cd "$(dirname "$0")/../.."
vm=${GARRISON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/garrison}/vm
boot_timeout_s=${GARRISON_VM_TIMEOUT_S:-1500}

say() { printf 'vm-test: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# packages -> installs what boots a VM: program, and the package that brings it
packages() {
    local need=() program package
    while read -r program package; do
        command -v "$program" >/dev/null || need+=("$package")
    done <<-'END'
	qemu-system-x86_64 qemu-system-x86
	busybox busybox-static
	depmod kmod
	udevadm udev
	END
    [ ${#need[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "not root; install these packages: ${need[*]}"
    say "installing system packages: ${need[*]}"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}"; } \
        >"$vm/apt.log" 2>&1 || { tail -n 20 "$vm/apt.log" >&2; die "could not install: ${need[*]}"; }
}

# kernel -> unpacks Debian's generic kernel (the cloud one has no 9p) below $vm/kernel and prints its version
kernel() {
    local version package part
    version=$(cat "$vm/kernel/.ready" 2>/dev/null || true)
    if [ -z "$version" ]; then
        package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-6\.1\./ { print $2; exit }')
        [ -n "$package" ] || die "apt knows no linux-image-6.1 (is this Debian 12? try apt-get update)"
        say "fetching $package"
        part=$(mktemp -d "$vm/kernel.XXXXXX")
        (cd "$part" && apt-get download -q "$package") >"$vm/apt.log" 2>&1 ||
            { cat "$vm/apt.log" >&2; die "could not download: $package"; }
        dpkg -x "$part/$package"_*.deb "$part/root"
        version=${package#linux-image-}
        depmod -b "$part/root" "$version"
        printf '%s\n' "$version" >"$part/root/.ready"
        rm -rf "$vm/kernel"
        mv "$part/root" "$vm/kernel"
        rm -rf "$part"
    fi
    printf '%s\n' "$version"
}

# launcher -> virtme-ng in an environment of its own: the project does not need it
launcher() {
    local ready=$vm/venv/.ready
    cmp -s tests/vm/requirements.txt "$ready" && return 0
    say "installing virtme-ng"
    rm -rf "$vm/venv"
    /usr/bin/python3 -m venv "$vm/venv"
    "$vm/venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r tests/vm/requirements.txt
    cp tests/vm/requirements.txt "$ready"
}

[ "$(uname -m)" = x86_64 ] || die "only x86_64 is tried so far, this is $(uname -m)"
mkdir -p "$vm"
packages
version=$(kernel)
launcher

say "booting $version (emulated)"
# Through a pipe: QEMU opens its output anew, and would begin a file again. The terminal is not handed over.
exec 3> >(exec cat)
printer=$!
PATH=$vm/venv/bin:$PATH timeout "$boot_timeout_s" vng --run "$vm/kernel/boot/vmlinuz-$version" --force-9p --disable-kvm \
    --memory 2G --cpus 2 --exec "$(printf '%q ' "$PWD/tests/vm/inside.sh" "$@")" </dev/null >&3 2>&3 &
booted=$!
exec 3>&-
trap 'kill "$booted" 2>/dev/null || true' EXIT # timeout hands it on to its whole group, QEMU included
status=0
wait "$booted" || status=$?
wait "$printer" || true
[ "$status" != 124 ] || say "not done within $boot_timeout_s s"
exit "$status"
