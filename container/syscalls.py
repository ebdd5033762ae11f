"""Numbers of the system calls that a profile names, in each table that a kernel of ours answers by. Pure data.

x86_64 and aarch64 kernels also answer to 32-bit programs (i386, and arm's EABI), by tables with other numbers. Sources: the kernel's
headers (asm/unistd_64.h, asm/unistd_32.h, asm-generic/unistd.h) and arch/arm/tools/syscall.tbl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Columns of NUMBERS.
TABLES: Final = ("x86_64", "i386", "aarch64", "arm")
#: seccomp(2), linux/audit.h: how a filter tells the tables apart.
AUDIT_ARCH: Final[Mapping[str, int]] = {
    "x86_64": 0xC000003E,
    "i386": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
#: What a kernel of that machine answers by: its own table first.
OF_MACHINE: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("x86_64", "i386"),
    "aarch64": ("aarch64", "arm"),
}
#: arm's private calls lie far above all others: breakpoint, cacheflush, set_tls.
PRIVATE: Final[Mapping[str, tuple[int, ...]]] = {"arm": (0xF0001, 0xF0002, 0xF0005)}

#: name: its number in each of TABLES; None: that table has no such call.
NUMBERS: Final[Mapping[str, tuple[int | None, int | None, int | None, int | None]]] = {
    "_sysctl": (156, 149, None, 149),
    "acct": (163, 51, 89, 51),
    "add_key": (248, 286, 217, 309),
    "bpf": (321, 357, 280, 386),
    "clock_settime": (227, 264, 112, 262),
    "clock_settime64": (None, 404, None, 404),
    "clone": (56, 120, 220, 120),
    "clone3": (435, 435, 435, 435),
    "create_module": (174, 127, None, None),
    "delete_module": (176, 129, 106, 129),
    "fanotify_init": (300, 338, 262, 367),
    "finit_module": (313, 350, 273, 379),
    "fsconfig": (431, 431, 431, 431),
    "fsmount": (432, 432, 432, 432),
    "fsopen": (430, 430, 430, 430),
    "fspick": (433, 433, 433, 433),
    "get_kernel_syms": (177, 130, None, None),
    "get_mempolicy": (239, 275, 236, 320),
    "init_module": (175, 128, 105, 128),
    "io_uring_enter": (426, 426, 426, 426),
    "io_uring_register": (427, 427, 427, 427),
    "io_uring_setup": (425, 425, 425, 425),
    "ioctl": (16, 54, 29, 54),
    "ioperm": (173, 101, None, None),
    "iopl": (172, 110, None, None),
    "kcmp": (312, 349, 272, 378),
    "kexec_file_load": (320, None, 294, 401),
    "kexec_load": (246, 283, 104, 347),
    "keyctl": (250, 288, 219, 311),
    "listmount": (458, 458, 458, 458),
    "lookup_dcookie": (212, 253, 18, 249),
    "mbind": (237, 274, 235, 319),
    "migrate_pages": (256, 294, 238, 400),
    "mount": (165, 21, 40, 21),
    "mount_setattr": (442, 442, 442, 442),
    "move_mount": (429, 429, 429, 429),
    "move_pages": (279, 317, 239, 344),
    "nfsservctl": (180, 169, 42, 169),
    "open_by_handle_at": (304, 342, 265, 371),
    "open_tree": (428, 428, 428, 428),
    "perf_event_open": (298, 336, 241, 364),
    "personality": (135, 136, 92, 136),
    "pidfd_getfd": (438, 438, 438, 438),
    "pivot_root": (155, 217, 41, 218),
    "process_madvise": (440, 440, 440, 440),
    "query_module": (178, 167, None, None),
    "quotactl": (179, 131, 60, 131),
    "quotactl_fd": (443, 443, 443, 443),
    "reboot": (169, 88, 142, 88),
    "request_key": (249, 287, 218, 310),
    "set_mempolicy": (238, 276, 237, 321),
    "set_mempolicy_home_node": (450, 450, 450, 450),
    "setdomainname": (171, 121, 162, 121),
    "sethostname": (170, 74, 161, 74),
    "setns": (308, 346, 268, 375),
    "settimeofday": (164, 79, 170, 79),
    "socket": (41, 359, 198, 281),
    "socketcall": (None, 102, None, None),
    "statmount": (457, 457, 457, 457),
    "stime": (None, 25, None, None),
    "swapoff": (168, 115, 225, 115),
    "swapon": (167, 87, 224, 87),
    "sysfs": (139, 135, None, 135),
    "syslog": (103, 103, 116, 103),
    "umount": (None, 22, None, None),
    "umount2": (166, 52, 39, 52),
    "unshare": (272, 310, 97, 337),
    "uselib": (134, 86, None, 86),
    "userfaultfd": (323, 374, 282, 388),
    "ustat": (136, 62, None, 62),
    "vhangup": (153, 111, 58, 111),
    "vm86": (None, 166, None, None),
    "vm86old": (None, 113, None, None),
}


def number(name: str, table: str) -> int | None:
    return NUMBERS[name][TABLES.index(table)]
