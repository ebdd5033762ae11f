"""Settings of the DEA that mean nothing here, and what takes their place: known, so that a file of its is not a riddle.

Those in `NO_EFFECT` are ignored, with a note. Those in `ELSEWHERE` would be missed, so the file is refused with their new name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agent.config_file import ConfigError

_RATIO: Final = (
    "kept output of crashes is bounded by instance.output_limit_bytes and crash_lifetime_secs, and below "
    "resources.low_water_mb this host takes no new starts"
)
NO_EFFECT: Final[dict[str, str]] = {
    "cc_url": "nothing is asked of the Cloud Controller by HTTP: admin buildpacks come with each staging message, "
    "and every result leaves on the bus",
    "hooks": "files of the host are not run inside containers; post_setup_hook is shell text that runs before each app starts",
    "crash_block_usage_ratio_threshold": _RATIO,
    "crash_inode_usage_ratio_threshold": _RATIO,
    "pid_filename": "the supervisor that starts the agent knows its process; base_dir is locked against a second one",
    "warden_socket": "containers are made by the agent itself",
    "directory_server": "files of instances are not served by HTTP; `garrison logs` and `garrison shell` reach them on the host",
    "hm9000": "heartbeats leave on the bus (dea.heartbeat)",
    "ssl": "there is no HTTPS server: stagings come on the bus",
    "service_name": "there is no HTTPS server: stagings come on the bus",
    "dea_ruby": "no Ruby is needed inside of containers",
    "loggregator": "output of apps is kept by the host: `garrison logs`",
    "status": "the DEA itself dropped varz and healthz; `base_dir/agent.sock` tells the agent's state",
    "logging.syslog": "the log goes to stderr or to logging.file",
    "instance.bandwidth_limit": "bandwidth is not limited",
    "staging.bandwidth_limit": "bandwidth is not limited",
    "staging.environment": "the DEA itself left it unused",
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
            yield ConfigError(key, f"is {now} here")


def without_effect(values: dict[Any, Any]) -> Iterator[ConfigError]:
    for key, why in NO_EFFECT.items():
        if _has(values, key):
            yield ConfigError(key, f"has no effect here: {why}")
