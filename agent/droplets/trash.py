"""Removal of trees in two steps: a rename into the trash at once, the slow removal later. Works for trees of any depth."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def throw_away(path: Path, trash_dir: Path) -> None:
    """Renames a file or tree into the trash; :func:`empty` removes it. Idempotent. Raises OSError."""
    target = trash_dir / f"{path.name}.{os.urandom(6).hex()}"
    try:
        path.rename(target)
    except FileNotFoundError:
        return


def remove_tree(path: Path) -> None:
    """Removes a tree without recursion. Subdirectories are first moved beside the tree, so that no path gets too long: an app can
    make thousands of levels. Raises OSError."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    number = 0
    todo = [path]
    while todo:
        current = todo.pop()
        current.chmod(stat.S_IRWXU)
        lifted = []
        with os.scandir(current) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink()
                    continue
                number += 1
                place = path.parent / f".{path.name}.{number}"
                Path(entry.path).rename(place)
                lifted.append(place)
        current.rmdir()
        todo += lifted


def empty(trash_dir: Path) -> None:
    """Removes everything in the trash. Blocks: call it in a thread, one at a time. A tree that cannot be removed does not stop the
    others; its OSError is raised at the end."""
    failed: OSError | None = None
    for entry in sorted(trash_dir.iterdir()):
        try:
            remove_tree(entry)
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed
