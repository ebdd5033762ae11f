"""Builds the last reply to a staging request from its result. Pure (docs/protocol.md, "Staging replies")."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from agent.bus import messages as m
from agent.cause import public
from agent.staging.buildpacks import StagingFailed
from agent.staging.task import Staged


def public_failure(failed: StagingFailed, paths: Iterable[str]) -> StagingFailed:
    """The failure without secrets and without ``paths`` of the host, since developers read it."""
    named = tuple(paths)
    return StagingFailed(public(failed.error, named), failed.kind, public(failed.message, named))


def failure_reply(message: m.StagingStart, failed: StagingFailed) -> m.StagingReply2:
    """``error_info`` is set only for a kind of failure that the Cloud Controller knows."""
    reply = m.StagingReply2(message.task_id, message.app_id, error=failed.error)
    if failed.kind is None:
        return reply
    info = m.ErrorInfo(failed.kind, failed.message or failed.error)
    return structs.replace(reply, error_info=info)


def success_reply(message: m.StagingStart, staged: Staged, *, with_checksum: bool) -> m.StagingReply2:
    """Given a checksum, the controller assumes that this host has started index 0, and starts the other instances itself.
    Without one it starts all instances on other hosts."""
    outcome = staged.outcome
    reply = m.StagingReply2(
        message.task_id,
        message.app_id,
        outcome.detected_name,
        outcome.buildpack.key,
        staged.sha1 if with_checksum else None,
        outcome.start_command,
        outcome.processes,
    )
    return reply if staged.upload_error is None else structs.replace(reply, error=staged.upload_error)
