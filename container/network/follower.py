"""Notices what others do to the links of living containers, and mends it where that is possible.

The kernel reports every change of an interface (`LinkWatch`), so nothing is polled. A host's end that was set down, or lost
its address, is set up again. A pair that was deleted, renamed or moved cannot be brought back without the container's
own help: its container is reported as broken.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from container.aio import Background, Log
from container.network.link import Link, LinkReport, Links
from container.network.netlink import answered, asking, attribute, attributes

DELETED: Final = "its network link was deleted"
RENAMED: Final = "its network link was renamed"
REPLACED: Final = "its network link was replaced by another interface"
_GETLINK, _GETNSID = 18, 90
_IFINFO_BYTES, _IFNAME, _LINK, _LINK_NETNSID = 16, 3, 5, 37
_NSID, _NSID_PID = 1, 2
_FAR_INDEX: Final = 2  # of eth0: `Links.add` asks for it


@dataclass(slots=True)
class _Followed:
    link: Link
    index: int
    on_lost: Callable[[str], bool]
    mending: bool = False


class LinkFollower:
    """Follows links from `follow` on. `on_report` gets what `LinkWatch` reports."""

    def __init__(self, links: Links, background: Background, log: Log) -> None:
        self._links, self._background, self._log = links, background, log
        self._followed: dict[int, _Followed] = {}

    def follow(
        self, link: Link, pid: int, on_lost: Callable[[str], bool], *, is_new: bool
    ) -> Callable[[], None]:
        """Calls ``on_lost`` in the running loop when ``link`` no longer is that of the container whose pid 1 is ``pid``.

        Its argument says what has happened; it returns whether that is damage, and not the container's own end.
        ``is_new``: the link was made by this manager just now, so it need not be compared with the container's namespace.
        Returns the idempotent function that ends it.
        """
        loop = asyncio.get_running_loop()
        try:
            index = socket.if_nametoindex(link.interface)
            why = "" if is_new or _leads_to(link.interface, pid) else REPLACED
        except OSError:
            index, why = 0, DELETED
        if why:
            return loop.call_soon(self._lose, _Followed(link, index, on_lost), why).cancel
        self._followed[index] = one = _Followed(link, index, on_lost)
        if not is_new:  # it may have been set down while nobody looked
            self._mend(one)

        def end() -> None:
            if self._followed.get(index) is one:
                del self._followed[index]

        return end

    def on_report(self, report: LinkReport | None) -> None:
        """None: reports were lost, so every link is looked at."""
        if report is None:
            for one in tuple(self._followed.values()):
                self._look(one)
            return
        if (found := self._followed.get(report.index)) is None:
            return
        if report.is_deleted:
            self._lose(found, DELETED)
        elif report.name and report.name != found.link.interface:
            self._lose(found, RENAMED)
        elif not report.is_up:  # set down, or an address is gone
            self._mend(found)

    def _look(self, one: _Followed) -> None:
        try:
            name = socket.if_indextoname(one.index)
        except OSError:
            self._lose(one, DELETED)
            return
        if name != one.link.interface:
            self._lose(one, RENAMED)
        else:
            self._mend(one)

    def _lose(self, one: _Followed, why: str) -> None:
        self._followed.pop(one.index, None)
        if one.on_lost(why):
            self._log.warning("container_broken", link=one.link.link_id, why=why)

    def _mend(self, one: _Followed) -> None:
        if not one.mending:
            one.mending = True
            self._background.start(self._mend_now(one), name=f"mend-{one.link.link_id}")

    async def _mend_now(self, one: _Followed) -> None:
        try:
            await self._links.mend(one.link, one.index)
        except OSError as e:
            if e.errno != errno.ENODEV:  # it goes with its container, or was deleted: that is reported too
                self._log.warning("link_not_mended", link=one.link.link_id, error=str(e))
        else:
            self._log.info("link_set_up_again", link=one.link.link_id)
        finally:
            one.mending = False


def _leads_to(interface: str, pid: int) -> bool:
    """Whether the far end of the interface is eth0 of that process. OSError: there is none of that name."""
    with asking(socket.NETLINK_ROUTE) as asker:
        wanted = bytes(_IFINFO_BYTES) + attribute(_IFNAME, interface.encode() + b"\0")
        found = attributes(answered(asker, _GETLINK, 0, wanted, f"link {interface}")[_IFINFO_BYTES:])
        body = struct.pack("=B3x", socket.AF_UNSPEC) + attribute(_NSID_PID, struct.pack("=I", pid))
        namespace = attributes(answered(asker, _GETNSID, 0, body, f"network namespace of {pid}")[4:])
    far = struct.unpack("=I", found[_LINK])[0] if len(found.get(_LINK, b"")) == 4 else 0
    return far == _FAR_INDEX and _LINK_NETNSID in found and found[_LINK_NETNSID] == namespace.get(_NSID)
