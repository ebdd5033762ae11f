"""Files where scripts that look into Warden's directories expect them (docs/warden.md, "Files").

Nothing here is read back. The depot's own records are what a restart goes by.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from container.aio import Log
from container.container import Container
from container.spec import EgressRule, PortMapping, Protocol

#: Warden's own place for its cgroup mounts.
CGROUP_LINKS: Final = Path("/tmp/warden/cgroup")  # noqa: S108
_NETMASK: Final = "255.255.255.252"
_PROTOCOLS: Final = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.ICMP: 2, Protocol.ALL: 3}


def write_files(container: Container, rootfs: Path) -> None:
    """Writes `run/wshd.pid` and `etc/config` into the container's directory. OSError."""
    link_id = container.link_id
    config = {
        "id": link_id,
        "network_host_ip": container.host_address or "",
        "network_host_iface": f"w-{link_id}-0",
        "network_container_ip": container.address or "",
        "network_container_iface": f"w-{link_id}-1",
        "network_ifb_iface": f"w-{link_id}-2",
        "network_netmask": _NETMASK,
        "user_uid": str(container.ids_first),
        "rootfs_path": str(rootfs),
        "allow_nested_warden": "false",
    }
    for path, text in (
        ("run/wshd.pid", f"{container.pid}\n"),
        ("etc/config", "".join(f"{name}={shlex.quote(value)}\n" for name, value in config.items())),
    ):
        file = container.directory / path
        file.parent.mkdir(mode=0o755, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))


def snapshot_keys(
    container: Container,
    handle: bytes,
    state: str,
    grace_s: int | None,
    jobs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Warden's keys for `snapshot.json`. Bytes that are not UTF-8 become question marks: JSON has only text."""
    ports = [one for one in container.ports if one.host_port is not None]
    return {
        "state": state,
        "grace_time": grace_s,
        "jobs": dict(jobs),
        "resources": {
            "handle": handle.decode(errors="replace"),
            "container_id": container.link_id,
            "network": str(IPv4Address(container.host_address) - 1) if container.host_address else None,
            "uid": container.ids_first,
            "ports": [one.host_port for one in ports],
            "net_in": [_net_in(one) for one in ports],
            "net_out": [_net_out(one) for one in container.egress],
        },
    }


def _net_in(mapping: PortMapping) -> list[int | None]:
    return [mapping.host_port, mapping.container_port]


def _net_out(rule: EgressRule) -> list[Any]:
    """Network, ports, protocol, ICMP type and code, log."""
    ports = [f"{one.first}:{one.last}" if one.first != one.last else str(one.first) for one in rule.ports]
    network = rule.networks[0] if rule.networks else None
    icmp = [-1 if value is None else value for value in (rule.icmp_type, rule.icmp_code)]
    return [network, ports[0] if ports else None, _PROTOCOLS[rule.protocol], *icmp, rule.log]


class CgroupLinks:
    """Links `SUBSYSTEM/instance-ID` to the cgroups of containers, on cgroup v1. ``top`` None: none are made."""

    def __init__(self, top: Path | None, log: Log) -> None:
        self._top = top
        self._log = log

    def begin(self, alive: Iterable[str]) -> None:
        """Removes the links of containers that are gone. ``alive``: the ids of those that are there."""
        if self._top is None:
            return
        wanted = {f"instance-{link_id}" for link_id in alive}
        for link in self._top.glob("*/instance-*"):
            if link.is_symlink() and link.name not in wanted and not link.exists():
                link.unlink(missing_ok=True)

    def add(self, container: Container) -> None:
        """Makes the links of one container. What cannot be made is logged: nothing depends on it."""
        if self._top is None:
            return
        try:
            for controller, directory in container.v1_cgroups.items():
                for place in (self._top.parent, self._top, self._top / controller):
                    _make_safely(place)
                link = self._top / controller / f"instance-{container.link_id}"
                with contextlib.suppress(FileNotFoundError):
                    link.unlink()
                link.symlink_to(directory)
        except OSError as e:
            self._log.warning("warden_cgroup_links_not_made", handle=container.handle, error=str(e))

    def remove(self, link_id: str) -> None:
        """Removes the links of one container."""
        if self._top is None:
            return
        for place in self._top.glob("*"):
            with contextlib.suppress(OSError):  # the next start looks again
                (place / f"instance-{link_id}").unlink()


def _make_safely(place: Path) -> None:
    """Makes a directory. PermissionError: there is one, or a link, that others may change; /tmp is everybody's."""
    place.mkdir(mode=0o755, exist_ok=True)
    seen = place.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        raise PermissionError(1, "expected a directory that only root may write", str(place))
