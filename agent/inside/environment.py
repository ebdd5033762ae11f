"""Builds the environment of apps and stagings. Pure. docs/apps.md, "Variables", describes it for users.

No shell evaluates the variables. The original DEA put user variables into a script in double quotes: `$HOME/logs` worked, but
a password with a `$` was damaged. Here only the names in `EXPANDED` and the user's earlier variables are expanded.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from agent.bus.messages import Service, StartMessage
from agent.inside.start import HOME as HOME
from container.spec import SpecError

#: The longest variable `NAME=VALUE` with its NUL, in bytes (execve(2), MAX_ARG_STRLEN).
VARIABLE_BYTES = 32 * os.sysconf("SC_PAGE_SIZE")
BASE_ENVIRONMENT = (("USER", "vcap"), ("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"))
_RELATIONAL = {
    "mysql": "mysql2",
    "mysql2": "mysql2",
    "postgres": "postgres",
    "postgresql": "postgres",
    "db2": "ibmdb",
    "informix": "ibmdb",
}

#: The variables of the agent's own that a user's variable may refer to.
EXPANDED = frozenset({"HOME", "TMPDIR", "PORT", "VCAP_APP_PORT"})
_NAME = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
#: Left out, since they would change how the start script's bash works. The original could not set them either: bash refuses
#: to assign them.
_SHELL_ONLY = re.compile(r"SHELLOPTS\Z|BASHOPTS\Z|BASH_FUNC_")


def vcap_services(services: Sequence[Service]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for service in services:
        values = {
            "name": service.name,
            "label": service.label,
            "tags": service.tags,
            "plan": None if service.plan is UNSET else service.plan,
            "plan_option": service.plan_option,
            "credentials": service.credentials,
            "syslog_drain_url": service.syslog_drain_url,
        }
        kept = {key: value for key, value in values.items() if value is not None and value is not False}
        found.setdefault(service.label, []).append(kept)
    return found


def database_url(services: Sequence[Service]) -> str | None:
    """The URI of the first relational service. Empty: there are services, but none is relational. None: no services."""
    for service in services:
        credentials = service.credentials
        uri = credentials.get("uri") if isinstance(credentials, Mapping) else None
        if isinstance(uri, str):
            scheme = uri.partition("://")[0]
            if scheme in _RELATIONAL:
                return _RELATIONAL[scheme] + uri[len(scheme) :]
    return "" if services else None


def vcap_application(
    message: StartMessage, *, instance_id: str, version: str, started_at_s: float, port: int | None
) -> dict[str, Any]:
    started = time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime(started_at_s))
    return {
        **(message.vcap_application or {}),
        "application_id": message.app,
        "application_version": version,
        "instance_id": instance_id,
        "instance_index": message.index,
        "host": "0.0.0.0",  # noqa: S104  (what the app is told to listen on)
        "port": port,
        "started_at": started,
        "started_at_timestamp": int(started_at_s),
        "start": started,
        "state_timestamp": int(started_at_s),
    }


def user_variables(env: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Name and value of each `NAME=VALUE` word; without a `=` the value is empty.

    Words without a name or with a NUL byte are left out, and so are the variables of `_SHELL_ONLY`.
    """
    for word in env:
        name, _, value = word.partition("=")
        if name and "\0" not in word and not _SHELL_ONLY.match(name):
            yield name, value


def expand(pairs: Iterable[tuple[str, str]], known: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Replace `$NAME` and `${NAME}` where NAME is in ``known`` or is an earlier pair; every other `$` stays as it is.

    SpecError: a value is longer than the kernel passes to a program. It is checked after each replacement, since variables
    that each contain the one before twice grow exponentially.
    """
    values = dict(known)
    for name, text in pairs:
        parts: list[str] = []
        size, at = len(name), 0
        for found in _NAME.finditer(text):
            value = values.get(found[1] or found[2], found[0])
            size += found.start() - at + len(value)
            if size > VARIABLE_BYTES:
                raise SpecError(
                    f"env.{name}", f"expected at most {VARIABLE_BYTES} bytes after its variables are expanded"
                )
            parts += (text[at : found.start()], value)
            at = found.end()
        values[name] = "".join((*parts, text[at:]))
        yield name, values[name]


def with_user_variables(pairs: Sequence[tuple[str, str]], env: Iterable[str]) -> tuple[str, ...]:
    """The agent's variables, then the user's, expanded. SpecError: see `expand`."""
    known = {name: value for name, value in pairs if name in EXPANDED}
    return merge([*pairs, *expand(user_variables(env), known)])


def merge(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """`NAME=VALUE` words. If a name occurs twice, the later value takes the place of the first."""
    return tuple(f"{name}={value}" for name, value in dict(pairs).items())


def too_long(words: Iterable[str], limit_bytes: int) -> str | None:
    """Names the first variable that is too long for the kernel (execve(2), E2BIG), without its value. None: there is none."""
    for word in words:
        if (size := len(word.encode(errors="surrogateescape"))) >= limit_bytes:
            return (
                f"environment: {word.partition('=')[0]} has {size} bytes, expected fewer than {limit_bytes}"
            )
    return None


def app_environment(
    message: StartMessage,
    *,
    instance_id: str,
    version: str,
    started_at_s: float,
    local_ip: str,
    host_port: int | None,
    container_port: int | None,
) -> tuple[str, ...]:
    """The environment of an instance, in the order of the original DEA; the user's variables come last (docs/apps.md, "Variables").

    SpecError: see `expand`.
    """
    application = vcap_application(
        message, instance_id=instance_id, version=version, started_at_s=started_at_s, port=container_port
    )
    pairs: list[tuple[str, str]] = [
        *BASE_ENVIRONMENT,
        ("VCAP_APPLICATION", json.dumps(application)),
        ("VCAP_SERVICES", json.dumps(vcap_services(message.services))),
        ("MEMORY_LIMIT", f"{message.limits.mem}m"),
    ]
    if (url := database_url(message.services)) is not None:
        pairs.append(("DATABASE_URL", url))
    pairs += [
        ("HOME", f"{HOME}/app"),
        ("TMPDIR", f"{HOME}/tmp"),  # noqa: S108  (the app's own)
        ("VCAP_APP_HOST", "0.0.0.0"),  # noqa: S104  (inside)
        ("VCAP_APP_PORT", str(container_port or "")),
        ("PORT", str(container_port or "")),
        ("CF_INSTANCE_INDEX", str(message.index)),
        ("CF_INSTANCE_IP", local_ip),
        ("CF_INSTANCE_PORT", str(host_port or "")),
        ("CF_INSTANCE_ADDR", f"{local_ip}:{host_port or ''}"),
        ("CF_INSTANCE_PORTS", json.dumps([{"external": host_port, "internal": container_port}])),
    ]
    return with_user_variables(pairs, message.env or ())


def staging_environment(
    message: StartMessage | None,
    *,
    environment: Sequence[str],
    services: Sequence[Service],
    memory_mb: int,
    timeout_s: float,
    tmpdir: str,
) -> tuple[str, ...]:
    """The environment of a staging. STAGING_TIMEOUT is in seconds, with a decimal point. SpecError: see `expand`."""
    application = (message.vcap_application or {}) if message is not None else {}
    pairs: list[tuple[str, str]] = [
        *BASE_ENVIRONMENT,
        ("HOME", HOME),
        ("TMPDIR", tmpdir),
        ("VCAP_APPLICATION", json.dumps(application)),
        ("VCAP_SERVICES", json.dumps(vcap_services(services))),
        ("MEMORY_LIMIT", f"{memory_mb}m"),
    ]
    if (url := database_url(services)) is not None:
        pairs.append(("DATABASE_URL", url))
    pairs.append(("STAGING_TIMEOUT", str(float(timeout_s))))
    return with_user_variables(pairs, environment)
