"""Checks that the types of the settings cannot express: invalid values, and values that contradict each other. Pure.

`sensible` finds errors: the agent cannot run with them. `doubtful` finds settings with which it runs, but not as they say;
former releases accepted those, so only `garrison config check` refuses them.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.config_file import ConfigError, masked

if TYPE_CHECKING:
    from agent.config import BindMountSettings, NatsSettings, NetworkSettings, Settings

LAST_PORT = 65535
IDS_PER_CONTAINER = 65536
LAST_ID = 0xFFFF_FFFE
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z", re.IGNORECASE)
_SCHEMES = ("nats", "tls", "ws", "wss")
#: Reserved networks; addresses in them cannot be given to containers.
_NO_POOL = tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))


def sensible(settings: Settings) -> Iterator[ConfigError]:
    """Settings that make the file refused."""
    yield from _places(settings)
    yield from _names(settings)
    yield from _bus(settings.nats)
    yield from _network(settings.network)
    yield from _pools(settings)
    least, most = settings.instance.min_cpu_share_limit, settings.instance.max_cpu_share_limit
    if least > most:
        yield ConfigError(
            "instance.min_cpu_share_limit",
            f"expected at most instance.max_cpu_share_limit ({most}), got {least}",
        )
    for number, bind in enumerate(settings.bind_mounts):
        yield from _bind(f"bind_mounts[{number}]", bind)


def _twice(key: str, words: Iterable[str]) -> Iterator[ConfigError]:
    for word, count in Counter(words).items():
        if count > 1:
            yield ConfigError(key, f"{word!r} is listed twice")


def _places(settings: Settings) -> Iterator[ConfigError]:
    if not settings.base_dir.is_absolute():
        yield ConfigError("base_dir", f"expected an absolute path, got {str(settings.base_dir)!r}")
    for number, stack in enumerate(settings.stacks):
        if not stack.package_path.is_absolute():
            yield ConfigError(f"stacks[{number}].package_path", "expected an absolute path")


def _names(settings: Settings) -> Iterator[ConfigError]:
    yield from _twice("stacks", (stack.name for stack in settings.stacks))
    if settings.local_ip is not None and not _is_host_address(settings.local_ip):
        yield ConfigError("local_ip", f"expected an IPv4 address of a host, got {settings.local_ip!r}")
    if settings.post_setup_hook is not None and "\0" in settings.post_setup_hook:
        yield ConfigError("post_setup_hook", "expected shell text, got a NUL byte in it")


def is_domain(text: str) -> bool:
    """True for a domain whose subdomains are valid host names (RFC 1123); False for an address."""
    return _DOMAIN.match(text) is not None and not re.fullmatch(r"[0-9.]+", text)


def _is_host_address(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (
        address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255")
    )


def _bus(nats: NatsSettings) -> Iterator[ConfigError]:
    for number, server in enumerate(nats.servers):
        if (why := _no_server(server)) is not None:
            yield ConfigError(f"nats.servers[{number}]", f"{why}, got {masked(server)}")


def _doubtful_bus(nats: NatsSettings) -> Iterator[ConfigError]:
    yield from _twice("nats.servers", (masked(server)[1:-1] for server in nats.servers))
    if nats.password is not None and nats.user is None:
        yield ConfigError("nats.password", "has no effect without nats.user")
    if nats.credentials_file is not None and nats.nkey_seed_file is not None:
        yield ConfigError(
            "nats.nkey_seed_file",
            "expected only one of this and nats.credentials_file, which contains a seed too",
        )
    if nats.tls is not None and (nats.tls.key_file is not None) and nats.tls.cert_file is None:
        yield ConfigError("nats.tls.key_file", "has no effect without nats.tls.cert_file")


def _no_server(text: str) -> str | None:
    """Why this cannot be the address of a NATS server; None: it can."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "nats", text
    if scheme not in _SCHEMES:
        return f"expected one of {', '.join(f'{one}://' for one in _SCHEMES)}"
    try:
        parts = urlsplit(f"//{rest.rpartition('@')[2]}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return "expected nats://HOST:PORT"
    if (
        not host
        or re.search(r"[\s,;]", host)
        or port == 0
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
    ):
        return "expected nats://HOST:PORT"
    return None


def _network(network: NetworkSettings) -> Iterator[ConfigError]:
    pool = None
    try:
        pool = ipaddress.IPv4Network(network.pool_network)
    except ValueError as e:
        yield ConfigError("network.pool_network", f"expected an IPv4 network such as 10.254.0.0/16, got {e}")
    if pool is not None and pool.prefixlen > 30:
        yield ConfigError("network.pool_network", "expected a network of at least four addresses (/30)")
    elif pool is not None and pool.prefixlen < 8:
        yield ConfigError("network.pool_network", "expected a network of at most 16777216 addresses (/8)")
    elif (
        pool is not None
        and (taken := next((one for one in _NO_POOL if one.overlaps(pool)), None)) is not None
    ):
        yield ConfigError("network.pool_network", f"{pool} overlaps {taken}, which is reserved")
    for number, word in enumerate(network.allow_networks):
        try:
            ipaddress.IPv4Network(word)
        except ValueError as e:
            yield ConfigError(f"network.allow_networks[{number}]", f"{e}")
    for number, word in enumerate(network.dns_servers):
        try:
            ipaddress.IPv4Address(word)
        except ValueError as e:
            yield ConfigError(f"network.dns_servers[{number}]", f"{e}")
    for number, word in enumerate(network.dns_search or ()):
        if not is_domain(word.removesuffix(".")) and word != ".":
            yield ConfigError(f"network.dns_search[{number}]", f"expected a domain, got {word!r}")
    for number, word in enumerate(network.dns_options or ()):
        if not re.fullmatch(r"[!-~]{1,255}", word):
            yield ConfigError(f"network.dns_options[{number}]", f"expected one word, got {word!r}")
    for number, word in enumerate(network.uplinks):
        if not re.fullmatch(r"[^\s/]{1,15}", word) or word in (".", "..", "lo") or word.startswith("w-"):
            yield ConfigError(
                f"network.uplinks[{number}]", f"expected the name of an interface, got {word!r}"
            )
    yield from _twice("network.uplinks", network.uplinks)


def _doubtful_name_servers(network: NetworkSettings) -> Iterator[ConfigError]:
    """Name servers that containers cannot use."""
    try:
        pool = ipaddress.IPv4Network(network.pool_network)
        servers = [(word, ipaddress.IPv4Address(word)) for word in network.dns_servers]
    except ValueError:
        return  # `_network` reports it as an error
    for number, (word, address) in enumerate(servers):
        if address.is_loopback or not _is_host_address(word):
            yield ConfigError(f"network.dns_servers[{number}]", f"{word} cannot be reached from a container")
        elif address in pool:
            yield ConfigError(
                f"network.dns_servers[{number}]",
                f"{word} lies in network.pool_network, which is the containers' own",
            )


def _pools(settings: Settings) -> Iterator[ConfigError]:
    first, count = settings.port.pool_start_port, settings.port.pool_size
    if first is not None and first + (count or 1) - 1 > LAST_PORT:
        yield ConfigError(
            "port.pool_size",
            f"{count} ports from {first} end at {first + (count or 1) - 1}, above the last port, {LAST_PORT}",
        )
    elif first is not None and count is None and first > 65000:
        yield ConfigError(
            "port.pool_start_port", f"without pool_size the pool ends at 65000; {first} is above 65000"
        )
    elif first is None and count is not None and count > LAST_PORT:
        yield ConfigError("port.pool_size", f"expected at most {LAST_PORT}, got {count}")
    uid, size = settings.user.pool_start_uid, settings.user.pool_size
    if (last := uid + size * IDS_PER_CONTAINER - 1) > LAST_ID:
        yield ConfigError(
            "user.pool_size", f"{size} ranges from {uid} end at {last}, above the last id, {LAST_ID}"
        )


def doubtful(settings: Settings) -> Iterator[ConfigError]:
    """Settings that contradict each other or have no use. The agent runs with them, but cannot do what they say."""
    if not is_domain(settings.domain):
        yield ConfigError(
            "domain", f"expected a domain such as apps.example.org, got {masked(settings.domain)}"
        )
    yield from _doubtful_bus(settings.nats)
    yield from _doubtful_name_servers(settings.network)
    instance, staging, resources = settings.instance, settings.staging, settings.resources
    stop_s = instance.unregister_wait_s + instance.drain_s + instance.stop_grace_s
    if stop_s >= settings.shutdown.deadline_s:
        yield ConfigError(
            "instance.stop_grace_s",
            "expected unregister_wait_s + drain_s + stop_grace_s below shutdown.deadline_s "
            f"({settings.shutdown.deadline_s:g} s), got {stop_s:g} s",
        )
    if resources.disk_mb is not None and resources.low_water_mb >= resources.disk_mb:
        yield ConfigError(
            "resources.low_water_mb",
            f"expected less than resources.disk_mb ({resources.disk_mb}), got {resources.low_water_mb}: "
            "no app would ever start",
        )
    for key, need, has, factor in (
        ("memory_limit_mb", staging.memory_limit_mb, resources.memory_mb, resources.memory_overcommit_factor),
        ("disk_limit_mb", staging.disk_limit_mb, resources.disk_mb, resources.disk_overcommit_factor),
    ):
        if staging.enabled and has is not None and need > has * factor:
            yield ConfigError(
                f"staging.{key}",
                f"{need} is more than this host has ({has * factor:g}): no app could be staged",
            )


def _bind(key: str, bind: BindMountSettings) -> Iterator[ConfigError]:
    if not bind.src_path.is_absolute():
        yield ConfigError(f"{key}.src_path", f"expected an absolute path, got {str(bind.src_path)!r}")
    if bind.dst_path is not None:
        path = PurePosixPath(bind.dst_path)
        if not path.is_absolute() or ".." in path.parts or "\0" in bind.dst_path or len(path.parts) < 2:
            yield ConfigError(
                f"{key}.dst_path", f"expected an absolute path without '..', got {bind.dst_path!r}"
            )
