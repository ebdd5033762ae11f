"""Finds what a configuration names and this host lacks: directories, files, network interfaces. Changes nothing."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config_file import ConfigError
from agent.stacks import no_stack

if TYPE_CHECKING:
    from agent.config import Settings


def lacking(settings: Settings) -> Iterator[ConfigError]:
    """An error for each missing thing. None of them keeps the agent from starting (`ReadConfig.doubts`)."""
    for number, stack in enumerate(settings.stacks):
        if (why := no_stack(stack.package_path)) is not None:
            yield ConfigError(f"stacks[{number}].package_path", why)
    yield from _base(settings.base_dir)
    yield from _bus_files(settings)
    for number, bind in enumerate(settings.bind_mounts):
        if not bind.src_path.exists():
            yield ConfigError(f"bind_mounts[{number}].src_path", f"there is no {bind.src_path}")
    if (file := settings.logging.file) is not None:
        if file.is_dir():
            yield ConfigError("logging.file", f"{file} is a directory")
        elif not file.absolute().parent.is_dir():
            yield ConfigError("logging.file", f"there is no directory {file.absolute().parent}")
    for number, name in enumerate(settings.network.uplinks):
        try:
            socket.if_nametoindex(name)
        except OSError:
            yield ConfigError(f"network.uplinks[{number}]", f"there is no interface {name}")


def _base(base_dir: Path) -> Iterator[ConfigError]:
    """The agent creates base_dir at its first start, so only what exists of its path must be a directory."""
    there = next(path for path in (base_dir, *base_dir.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        yield ConfigError("base_dir", f"{there} is not a directory")


def _bus_files(settings: Settings) -> Iterator[ConfigError]:
    from agent.bus import credentials

    nats, tls = settings.nats, settings.nats.tls
    looks: list[tuple[str, Path | None, Callable[[Path], object]]] = [
        ("nats.credentials_file", nats.credentials_file, credentials.read_credentials),
        ("nats.nkey_seed_file", nats.nkey_seed_file, credentials.read_seed),
    ]
    if tls is not None:
        looks.append(
            ("nats.tls.ca_file", tls.ca_file, lambda path: ssl.create_default_context(cafile=str(path)))
        )
        looks.append(("nats.tls.key_file", tls.key_file, Path.read_bytes))
        looks.append(("nats.tls.cert_file", tls.cert_file, lambda path: credentials.load_chain(tls)))
    for key, path, look in looks:
        if path is None:
            continue
        try:
            look(path)
        except FileNotFoundError:
            yield ConfigError(
                key, f"there is no {path}" if not path.exists() else "a file that belongs to it is missing"
            )
        except ssl.SSLError as e:
            yield ConfigError(key, f"{path}: {e.reason or 'it contains no certificate or key'}")
        except OSError as e:
            yield ConfigError(key, f"{path}: {e.strerror or e}")
        except ValueError as e:
            yield ConfigError(key, f"{e}")
