"""Removal in two steps: a rename at once, and the work in the background. Trees may have thousands of levels."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def throw_away(path: Path, trash_dir: Path) -> None:
    """Moves a tree out of sight at once; :func:`empty` removes it. Idempotent."""
    target = trash_dir / f"{path.name}.{os.urandom(6).hex()}"
    try:
        path.rename(target)
    except FileNotFoundError:
        return


def remove_tree(path: Path) -> None:
    """Removes a tree without recursion: subdirectories are first moved to the top, so that no path grows."""
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
    """Removes everything in the trash. It blocks: call it in a thread, one at a time. OSError: of the first tree that could not be
    removed, after the others were."""
    failed: OSError | None = None
    for entry in sorted(trash_dir.iterdir()):
        try:
            remove_tree(entry)
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed
