"""Finds an agent's instances by what the user types: APP/INDEX, or the beginning of a handle or an id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from agent.cli import reach, ui

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ALIVE = ("RUNNING", "STARTING", "EVACUATING", "STOPPING")


def find_app_guid(agent: reach.Peer, name: str, state_dir: Path, config: Path | None) -> str:
    """The guid of the app with this name.

    The controller of `garrison up` knows every app. Without one, the agent knows only the apps that have instances on this
    host; for any other app, such as one whose staging failed, ``name`` must be the guid itself.
    """
    if config is None and (state_dir / "up.json").exists():
        return str(reach.app_or_hint(reach.controller(state_dir), name)["guid"])
    rows = listing(agent)
    for row in rows:
        if name in (row.get("name"), row.get("app")):
            return str(row["app"])
    if _GUID.fullmatch(name):
        return name
    close = ui.nearest(name, {str(row.get("name")) for row in rows})
    raise ui.Failure(f"no instance of {name!r} on this host", "", f"did you mean {close}?" if close else "")


def listing(agent: reach.Peer) -> list[dict[str, Any]]:
    rows = agent.call("GET", "/v1/instances")
    assert isinstance(rows, list)
    return rows


def find(rows: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The one running instance that `wanted` names. Failure: there is none, or more than one."""
    name, slash, index = wanted.partition("/")
    if slash:
        found = [r for r in rows if name in (r.get("name"), r.get("app")) and str(r.get("index")) == index]
    else:
        found = [
            row
            for row in rows
            if any(str(row.get(key) or "").startswith(wanted) for key in ("handle", "instance"))
        ] or [row for row in rows if row.get("name") == wanted]
    alive = [row for row in found if row.get("state") in ALIVE and row.get("handle")]
    # A crashed instance with the same index has no container any more.
    if len(alive) == 1 or (slash and alive):
        return alive[-1]
    names = sorted(f"{row.get('name')}/{row.get('index')}" for row in rows if row.get("state") in ALIVE)
    if alive:
        raise ui.Failure(
            f"{wanted!r} names {len(alive)} instances", "", f"one of: {', '.join(names)}", ui.USAGE
        )
    close = ui.nearest(wanted, names)
    hint = f"did you mean {close}?" if close else f"there are: {', '.join(names) or 'none'}"
    raise ui.Failure(f"no instance {wanted!r} runs on this host", "", hint)
