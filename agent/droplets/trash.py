"""Removal aside: a rename now, the work later. Deep trees are no problem (an app may make thousands of levels)."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def throw_away(path: Path, trash_dir: Path) -> None:
    """Out of sight at once; :func:`empty` removes it. Idempotent."""
    target = trash_dir / f"{path.name}.{os.urandom(6).hex()}"
    try:
        path.rename(target)
    except FileNotFoundError:
        return


def remove_tree(path: Path) -> None:
    """Without recursion: subdirectories are lifted to the top first, so that no path grows."""
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
    """Blocking; for a thread, and one at a time. OSError: of the first tree that would not go; the others went."""
    failed: OSError | None = None
    for entry in sorted(trash_dir.iterdir()):
        try:
            remove_tree(entry)
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed
