"""The processes of an instance, by name.

The app is the process `WEB`. Each process is a job of the instance's container. The job's id is in the container and in snapshots,
so it remains the id that former releases used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.depot import AgentJob
from container import ExitStatus

#: The app itself. Its end is the instance's end.
WEB: Final = "web"
#: Process to the id of its job.
JOB_IDS: Final[Mapping[str, str]] = {WEB: "app"}


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """One process of an instance, running or ended."""

    name: str
    job: AgentJob

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None: it is running."""
        return self.job.status

    @property
    def is_running(self) -> bool:
        return self.job.status is None


def found_processes(jobs: Mapping[str, AgentJob]) -> dict[str, Process]:
    """The processes in a container that a former agent made. Jobs that are no process of the instance are left out. Pure."""
    return {name: Process(name, jobs[job_id]) for name, job_id in JOB_IDS.items() if job_id in jobs}
