"""Ids inside and outside of a container, and which ranges of the host are not to be used."""

from __future__ import annotations

from container.host import HostUnfit
from container.pools import IDS_PER_CONTAINER
from wsh.vcap import VCAP_ID


class IdsTaken(HostUnfit):
    """The configured id ranges overlap ids that the host has given to somebody else."""


def host_id(first: int, inside: int) -> int:
    """The host's number of an id inside."""
    assert 0 <= inside < IDS_PER_CONTAINER - 1, "the last id of a range is wshd's own"
    return first + inside


def vcap_host_id(first: int) -> int:
    return host_id(first, VCAP_ID)


def check_ids_free(first: int, count: int, *, passwd: str, subuid: str, subgid: str = "") -> None:
    """Refuse ``count`` ranges from ``first`` when an account or a subordinate range lies in them."""
    last = first + count * IDS_PER_CONTAINER - 1
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) < 4 or not (fields[2].isdigit() and fields[3].isdigit()):
            continue
        if any(first <= int(number) <= last for number in fields[2:4]):
            raise IdsTaken(f"user ids {first}..{last}: account {fields[0]!r} of /etc/passwd lies in them")
    for name, text in (("/etc/subuid", subuid), ("/etc/subgid", subgid)):
        for line in text.splitlines():
            fields = line.split(":")
            if len(fields) != 3 or not (fields[1].isdigit() and fields[2].isdigit()):
                continue
            start, size = int(fields[1]), int(fields[2])
            if size and start <= last and start + size - 1 >= first:
                theirs = f"{start}..{start + size - 1} of {fields[0]!r} in {name}"
                raise IdsTaken(f"user ids {first}..{last}: overlap {theirs}")
