"""Converts an instance to the values that the container manager takes: its container, and the job of the app. Pure."""

from __future__ import annotations

from pathlib import Path

from agent.config import Settings
from agent.droplets.layers import Layer
from agent.inside.environment import app_environment
from agent.inside.limits import bind_mounts, cpu_shares, egress_rules
from agent.inside.start import start_argv
from agent.instances.instance import Instance
from agent.instances.process import JOB_IDS, WEB
from container import ContainerSpec, JobSpec, Limits, Output, Past, PortMapping
from wsh.units import MIB


def make_spec(instance: Instance, settings: Settings, rootfs: Path, layer: Layer) -> ContainerSpec:
    """The container of an instance. The droplet's bytes count against its disk limit, as in the original. Pure."""
    message = instance.message
    return ContainerSpec(
        layers=(rootfs,),
        home_layers=(layer.path,),
        binds=bind_mounts(settings.bind_mounts),
        limits=Limits(
            memory_bytes=max(1, message.limits.mem) * MIB,
            cpu_shares=cpu_shares(message.limits.mem, settings.instance),
            pids=settings.instance.nproc_limit,
            disk_bytes=max(MIB, message.limits.disk * MIB - layer.bytes),
            disk_inodes=settings.instance.disk_inode_limit,
        ),
        ports=(PortMapping(),),
        egress=egress_rules(message.egress_network_rules or ()),
        properties={"kind": "instance", "instance": instance.private_id},
    )


def make_job(instance: Instance, settings: Settings, local_ip: str, command: str) -> JobSpec:
    message = instance.message
    return JobSpec(
        argv=start_argv(command, settings.post_setup_hook),
        env=instance_environment(instance, local_ip),
        rlimits={"nofile": message.limits.fds} if message.limits.fds else {},
        output=Output(settings.instance.output_limit_bytes, Past.DROP_OLDEST),
        job_id=JOB_IDS[WEB],
    )


def instance_environment(instance: Instance, local_ip: str) -> tuple[str, ...]:
    """The environment of the app, and of a shell beside it. SpecError: a variable is too long. Pure."""
    port = instance.port
    return app_environment(
        instance.message,
        instance_id=instance.id,
        version=instance.version,
        started_at_s=instance.started_at_s,
        local_ip=local_ip,
        host_port=port.host_port if port is not None else None,
        container_port=port.container_port if port is not None else None,
    )
