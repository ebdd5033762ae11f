"""The messages that the controller publishes: made from an app's record in the format of the Cloud Controller. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.dev.records import App

# A staging request has at least these limits, as in the Cloud Controller.
MINIMUM_STAGING_MEMORY_MB = 512
MINIMUM_STAGING_DISK_MB = 2048

# Apps may connect to any address outside; the agent still closes the host and the other containers to them.
EGRESS: tuple[Mapping[str, str], ...] = ({"protocol": "all", "destination": "0.0.0.0-255.255.255.255"},)


class ReceivedStagingReply(msgspec.Struct, frozen=True):
    """Either of the two replies to `staging.<id>.start`."""

    task_id: str
    error: str | None = None
    error_info: Mapping[str, Any] | None = None
    droplet_sha1: str | None = None
    detected_buildpack: str | None = None
    detected_start_command: str | None = None


def start_message(
    app: App, index: int, *, droplet_uri: str, version: str, sha1: str | None
) -> dict[str, Any]:
    limits = {"mem": app.memory_mb, "disk": app.disk_mb, "fds": app.fds}
    return {
        "droplet": app.guid,
        "name": app.name,
        "stack": app.stack,
        "uris": app.uris,
        "prod": False,
        "sha1": sha1,
        "executableFile": "deprecated",
        "executableUri": droplet_uri,
        "version": version,
        "services": [],
        "limits": limits,
        "env": [*(f"{key}={value}" for key, value in app.env.items()), "CF_PROCESS_TYPE=web"],
        "cc_partition": "default",
        "console": False,
        "debug": None,
        "start_command": app.command,
        "health_check_timeout": app.health_check_timeout_s,
        "vcap_application": {
            "limits": limits,
            "application_id": app.guid,
            "application_name": app.name,
            "application_uris": app.uris,
            "application_version": version,
            "name": app.name,
            "space_name": "garrison",
            "space_id": "00000000-0000-4000-8000-000000000000",
            "uris": app.uris,
            "users": None,
            "version": version,
        },
        "index": index,
        "egress_network_rules": list(EGRESS),
    }


def staging_message(app: App, *, task_id: str, version: str, base: str, has_cache: bool) -> dict[str, Any]:
    """``base``: the controller's URL with its user and password. All files belong to the version, except the cache that is
    downloaded, which belongs to the app.
    """
    caches = f"{base}/staging/buildpack_cache"
    properties: dict[str, Any] = {
        "services": [],
        "resources": {"memory": app.memory_mb, "disk": app.disk_mb, "fds": app.fds},
        "environment": [*(f"{key}={value}" for key, value in app.env.items()), f"CF_STACK={app.stack}"],
        "meta": {} if app.command is None else {"command": app.command},
    }
    if app.buildpack is not None:
        if "://" in app.buildpack:
            properties["buildpack"] = app.buildpack
            properties["buildpack_git_url"] = app.buildpack
        else:
            properties["buildpack_key"] = app.buildpack
    return {
        "app_id": app.guid,
        "task_id": task_id,
        "stack": app.stack,
        "properties": properties,
        "memory_limit": max(MINIMUM_STAGING_MEMORY_MB, app.memory_mb),
        "disk_limit": max(MINIMUM_STAGING_DISK_MB, app.disk_mb),
        "download_uri": f"{base}/staging/packages/{version}",
        "upload_uri": f"{base}/staging/droplets/{version}/upload",
        "buildpack_cache_download_uri": f"{caches}/{app.guid}/download" if has_cache else None,
        "buildpack_cache_upload_uri": f"{caches}/{version}/upload",
        "start_message": start_message(
            app, 0, droplet_uri=f"{base}/staging/droplets/{version}/download", version=version, sha1=None
        ),
        "admin_buildpacks": [],
        "egress_network_rules": list(EGRESS),
    }
