"""Settings of the original DEA that this agent lacks or names otherwise, so that a DEA's file gets useful messages.

A setting in `NO_EFFECT` is ignored, with a note that gives the reason. A setting in `ELSEWHERE` makes the file refused, with
the new name: without it the agent would run with a default, for instance on the wrong bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agent.config_file import ConfigError

_RATIO: Final = (
    "the kept output of crashes is limited by instance.output_limit_bytes and crash_lifetime_secs, and below "
    "resources.low_water_mb this host accepts no new starts"
)
NO_EFFECT: Final[dict[str, str]] = {
    "cc_url": "the agent sends no HTTP requests to the Cloud Controller: each staging message lists the admin buildpacks, "
    "and every result is published on the bus",
    "hooks": "files of the host are not run inside containers; post_setup_hook is shell text that runs before each app starts",
    "crash_block_usage_ratio_threshold": _RATIO,
    "crash_inode_usage_ratio_threshold": _RATIO,
    "pid_filename": "the process that starts the agent knows its pid; a lock on base_dir prevents a second agent",
    "warden_socket": "the agent creates containers itself",
    "directory_server": "files of instances are not served by HTTP; `garrison logs` and `garrison shell` reach them on the host",
    "hm9000": "heartbeats are published on the bus (dea.heartbeat)",
    "ssl": "there is no HTTPS server: staging requests are received on the bus",
    "service_name": "there is no HTTPS server: staging requests are received on the bus",
    "dea_ruby": "no Ruby is needed inside containers",
    "loggregator": "the host keeps the output of apps; `garrison logs` shows it",
    "status": "the DEA itself dropped varz and healthz; `base_dir/agent.sock` reports the agent's state",
    "logging.syslog": "the log goes to stderr or to logging.file",
    "instance.bandwidth_limit": "bandwidth is not limited",
    "staging.bandwidth_limit": "bandwidth is not limited",
    "staging.environment": "the DEA itself did not use it",
}
ELSEWHERE: Final[dict[str, str]] = {
    "nats_servers": "nats.servers",
    "nats_uri": "nats.servers",
    "evacuation_delay_secs": "evacuation_bail_out_time_in_seconds",
}
KNOWN: Final = {**NO_EFFECT, **ELSEWHERE}


def _has(values: dict[Any, Any], key_path: str) -> bool:
    *above, last = key_path.split(".")
    for name in above:
        below = values.get(name)
        if not isinstance(below, dict):
            return False
        values = below
    return last in values


def moved(values: dict[Any, Any]) -> Iterator[ConfigError]:
    for key, now in ELSEWHERE.items():
        if _has(values, key):
            yield ConfigError(key, f"a setting of the DEA; use {now}")


def without_effect(values: dict[Any, Any]) -> Iterator[ConfigError]:
    for key, why in NO_EFFECT.items():
        if _has(values, key):
            yield ConfigError(key, f"has no effect here: {why}")
