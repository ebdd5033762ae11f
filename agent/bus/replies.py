"""Replies to `dea.find.droplet` and to staging requests. Texts from outside are shortened when a reply is made (bounds.py)."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from agent.bus.bounds import ERROR_BYTES, LABEL_BYTES, cut


class Usage(Struct, frozen=True):
    time: str
    cpu: float
    mem: int
    disk: int


class Stats(Struct, frozen=True):
    name: str
    uris: tuple[str, ...]
    host: str
    port: int | None
    uptime: int
    mem_quota: int
    disk_quota: int
    fds_quota: int
    usage: Usage

    def __post_init__(self) -> None:
        cut(self, LABEL_BYTES, "name")


class FindReply(Struct, frozen=True):
    dea: str
    droplet: str
    version: str
    instance: str
    index: int
    state: str
    state_timestamp: float
    staged: str
    stats: Stats | UnsetType = UNSET


class StagingReply(Struct, frozen=True):
    """Any message to the inbox of a staging request."""


class StagingReply1(StagingReply, frozen=True):
    task_id: str
    task_streaming_log_url: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        cut(self, ERROR_BYTES, "error")


class StagingRefused(StagingReply, frozen=True):
    """The only reply to a refused staging; also replaces the second reply after a stop."""

    task_id: str
    error: str

    def __post_init__(self) -> None:
        cut(self, ERROR_BYTES, "error")


class ErrorInfo(Struct, frozen=True):
    type: str
    message: str

    def __post_init__(self) -> None:
        cut(self, LABEL_BYTES, "type")
        cut(self, ERROR_BYTES, "message")


class StagingReply2(StagingReply, frozen=True):
    task_id: str
    app_id: str
    detected_buildpack: str | None = None
    buildpack_key: str | None = None
    droplet_sha1: str | None = None
    detected_start_command: str | None = None
    procfile: dict[str, str] | None = None
    error: str | UnsetType = UNSET
    error_info: ErrorInfo | UnsetType = UNSET

    def __post_init__(self) -> None:
        cut(self, LABEL_BYTES, "detected_buildpack", "buildpack_key")
        cut(self, ERROR_BYTES, "error")
