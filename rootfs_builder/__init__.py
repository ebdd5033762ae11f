"""Root file systems of containers ("stacks"): built from the host's own packages, kept as plain directories.

    apt.py      the host's apt sources and settings for a suite, as text: no mirror is named here
    recipes.py  busybox, debian: how the tree of each is made
    stack.py    a built stack on disk: manifest, versions, the atomic swap

All functions block, `build` for up to a minute; an event loop calls them in a thread.
"""

from rootfs_builder.recipes import RECIPES, build, default_stacks_dir
from rootfs_builder.stack import BuildError, Manifest, Stack, find_stack, list_stacks, prune

__all__ = [
    "RECIPES",
    "BuildError",
    "Manifest",
    "Stack",
    "build",
    "default_stacks_dir",
    "find_stack",
    "list_stacks",
    "prune",
]
