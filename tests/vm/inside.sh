#!/usr/bin/env bash
# What runs inside the VM of run.sh, as root. Its exit status is the VM's.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1 HOME=/root

# Nothing loads modules on demand here, and one that is missing shall be named.
modprobe brd rd_nr=1 rd_size=1200000 || true # KiB, filled as it is used
missing=()
for module in brd loop ext4 overlay veth nf_tables nft_ct nft_chain_nat nft_masq nft_fib_inet nft_reject_inet \
    nf_conntrack_netlink; do
    modprobe "$module" 2>/dev/null || missing+=("$module")
done
[ ${#missing[@]} -eq 0 ] || { echo "vm: modules that this kernel lacks: ${missing[*]}" >&2; exit 1; }

# Layers want a file system that takes idmapped mounts, uppers one that overlay can write on: neither 9p nor, on 6.1, tmpfs.
# A memory disk, because the test host lets go of loop mounts that were there before it.
mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=1,nodiscard /dev/ram0
mount /dev/ram0 /var/tmp
chmod 1777 /var/tmp
# As today's distributions mount it.
mount -o remount,nsdelegate /sys/fs/cgroup

# The contract of v2, weights and what is seen of it inside, one whole life, and what was seen to differ in this kernel's network.
[ $# -gt 0 ] || set -- tests/kernel/test_cgroups_*.py tests/kernel/test_limits_cgroups.py \
    tests/kernel/test_limits_containers.py::test_one_whole_life \
    tests/kernel/test_network_ports.py::test_a_container_leaves_no_conversation_behind
exec .venv/bin/python -m pytest -p no:cacheprovider --basetemp=/var/tmp/pytest --timeout=600 "$@"
