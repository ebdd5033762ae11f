"""The state of a conversation: its apps, the values it keeps, and the order in which instances of an index were seen."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from driver import App, Host
from driver_match import Unknown

_INSTANCE = re.compile(r"([A-Z])/(\d+)(?:\.(\d+))?$")


def parts(text: str) -> tuple[str, int, int | None]:
    """Parses `A/0.2`: app A, index 0, the second instance seen of it."""
    found = _INSTANCE.match(text)
    assert found is not None, f"no instance: {text!r}"
    return found[1], int(found[2]), int(found[3]) if found[3] else None


@dataclass
class Known:
    """``apps``: by letter. ``kept``: the values of `keep` and `note`."""

    host: Host
    apps: dict[str, App] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    _seen: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    _ports: dict[str, int] = field(default_factory=dict)
    _routes: dict[str, str] = field(default_factory=dict)

    def lookup(self, name: str) -> Any:
        """The value of a variable. Unknown: it has no value yet."""
        if name == "dea":
            return self.host.dea
        try:
            if "." not in name:
                return self.kept[name]
            what, _, key = name.rpartition(".")
            if key in ("id", "v1", "v2"):
                return getattr(self.apps[what], key)
            instance = self.instance(what)
            return instance if key == "instance" else self._routes[instance]
        except LookupError:
            raise Unknown(name) from None

    def instance(self, text: str) -> str:
        """The id of `A/0`, the first one seen, or of `A/0.2`. LookupError."""
        letter, index, number = parts(text)
        return self._seen[letter, index][(number or 1) - 1]

    def port(self, text: str) -> int:
        return self._ports[self.instance(text)]

    def app(self, app_id: str | None) -> App | None:
        return next((app for app in self.apps.values() if app.id == app_id), None)

    def letter(self, app_id: str) -> str:
        return next(letter for letter, app in self.apps.items() if app.id == app_id)

    def is_meant(self, told: dict[str, Any], name: str, state: str, version: str | None) -> bool:
        """True if this reply of find.droplet is of `A/0` (any instance of the index) or `A/0.2` (the second one seen)."""
        letter, index, number = parts(name)
        if (told["droplet"], told["index"], told["state"]) != (self.apps[letter].id, index, state):
            return False
        if number is not None and told["instance"] != self.instance(name):
            return False
        return version in (None, told["version"])

    def learn(self, told: dict[str, Any]) -> None:
        """Learns from a reply of find.droplet. A route message does not name its instance, but the port does."""
        instance, seen = told["instance"], self._seen[self.letter(told["droplet"]), told["index"]]
        if instance not in seen:
            seen.append(instance)
        if (port := told.get("stats", {}).get("port")) is not None:
            self._ports[instance] = port
            for one in self.host.peer.on("router.register"):
                if (one.body["app"], one.body["port"]) == (told["droplet"], port):
                    self._routes[instance] = one.body["private_instance_id"]

    def standing(self, told: dict[str, Any]) -> tuple[str, str, int]:
        """An instance as an `end` lists it: app, version (or `crashed`, or the state if it is neither running nor crashed), index."""
        letter = self.letter(told["droplet"])
        if told["state"] == "CRASHED":
            return letter, "crashed", told["index"]
        app = self.apps[letter]
        version = {app.v1: "v1", app.v2: "v2"}.get(told["version"], told["version"])
        return letter, version if told["state"] == "RUNNING" else told["state"], told["index"]
