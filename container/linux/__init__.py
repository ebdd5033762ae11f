"""System calls that Python 3.11 does not wrap. The only folder that calls libc (tests/unit/test_linux_seam.py).

Each function makes one system call and raises an OSError that names the file or the call. It decides nothing: callers choose
the flags and interpret errors. All numbers are those of the kernel's uapi headers. Only the standard library is imported, so
that a short-lived process can use this folder too.

docs/network.md, "Netlink by hand", compares with pyroute2, which could do some of this.
"""

from __future__ import annotations

from container.linux.bpf import attach_device_program, load_device_program
from container.linux.files import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    mount_id,
    openat2,
    preallocate,
    sync_file_system,
)
from container.linux.inotify import (
    IN_IGNORED,
    IN_MODIFY,
    IN_Q_OVERFLOW,
    inotify_add,
    inotify_events,
    inotify_open,
    inotify_remove,
)
from container.linux.iptables import legacy_table_size
from container.linux.loop import loop_device
from container.linux.mounts import (
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MS_NOATIME,
    MS_NODEV,
    MS_NOSUID,
    clone_mount,
    mount,
    mount_detached,
    set_mount_attributes,
    unmount,
)
from container.linux.processes import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    become_subreaper,
    die_with_parent,
    drop_bounding_set,
    drop_capabilities,
    install_filter,
    name_thread,
    set_dumpable,
    set_no_new_privileges,
    unshare,
)

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "IN_IGNORED",
    "IN_MODIFY",
    "IN_Q_OVERFLOW",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MS_NOATIME",
    "MS_NODEV",
    "MS_NOSUID",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "attach_device_program",
    "become_subreaper",
    "clone_mount",
    "die_with_parent",
    "drop_bounding_set",
    "drop_capabilities",
    "inotify_add",
    "inotify_events",
    "inotify_open",
    "inotify_remove",
    "install_filter",
    "legacy_table_size",
    "load_device_program",
    "loop_device",
    "mount",
    "mount_detached",
    "mount_id",
    "name_thread",
    "openat2",
    "preallocate",
    "set_dumpable",
    "set_mount_attributes",
    "set_no_new_privileges",
    "sync_file_system",
    "unmount",
    "unshare",
]
