"""From a Create request to the container that it asks for. Looks at the host's paths."""

from __future__ import annotations

from pathlib import Path

from container.spec import Access, BindMount, ContainerSpec, Limits
from container.warden import messages as m
from container.warden.errors import WardenError, text_of


def container_spec(request: m.CreateRequest, default_rootfs: Path) -> ContainerSpec:
    """WardenError: a path of the request is not there; SpecError: a value cannot be."""
    rootfs = Path(text_of(request.rootfs)) if request.rootfs else default_rootfs
    if not rootfs.is_absolute() or not rootfs.is_dir():
        raise WardenError(f"rootfs {rootfs} not found")
    binds = []
    for one in request.bind_mounts:
        source = Path(text_of(one.src_path))
        if not source.exists():
            raise WardenError(f"Source path for bind mount does not exist: {source}")
        access = Access.READ_WRITE if one.mode is m.BindMode.RW else Access.READ_ONLY
        binds.append(BindMount(source.resolve(), text_of(one.dst_path), access))
    return ContainerSpec(
        layers=(rootfs,),
        binds=tuple(binds),
        address=text_of(request.network) if request.network else None,
        limits=Limits(),
    )
