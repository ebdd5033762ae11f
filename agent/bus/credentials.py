"""How the agent authenticates itself to a server. Files are read again for each connection, so that a rotated file takes effect.

Each file is read at once and checked before nats-py gets its content. nats-py's own reader loops for ever on a credentials file
without a JWT (for example one that is being written), and it reads JWT and seed at different times.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nkeys
from nats.aio.client import RawCredentials

from agent.config import NatsSettings, TlsSettings

_SCHEME = re.compile(r"(nats|tls|wss?)://(.*)", re.DOTALL)
_CREDENTIALS_PARTS = ("-----BEGIN NATS USER JWT-----\n", "-----BEGIN USER NKEY SEED-----\n")


@dataclass(frozen=True, slots=True)
class Address:
    """A configured server, with its credentials separated from the URL: a log line with the URL cannot contain a password."""

    url: str
    user: str | None = None
    password: str | None = None


def address(server: str) -> Address:
    """Parses ``[SCHEME://][USER[:PASSWORD]@]HOST[:PORT]``; without a scheme it is ``nats``. A user alone is a token."""
    scheme, rest = ("nats", server) if (known := _SCHEME.match(server)) is None else (known[1], known[2])
    information, at, host = rest.rpartition("@")
    url = f"{scheme}://{host}"
    if not at:
        return Address(url)
    user, colon, password = information.partition(":")
    return Address(url, unquote(user), unquote(password) if colon else None)


def options(settings: NatsSettings, server: Address) -> dict[str, Any]:
    """Arguments for nats-py's `connect`. Raises OSError or ValueError for a file that is unreadable or has the wrong content."""
    made: dict[str, Any] = {"servers": [server.url]}
    if settings.user is not None:
        made["user"], made["password"] = settings.user, settings.password or ""
    elif server.password is not None:
        made["user"], made["password"] = server.user, server.password
    elif server.user is not None:
        made["token"] = server.user
    if settings.credentials_file is not None:
        made["user_credentials"] = RawCredentials(read_credentials(settings.credentials_file))
    if settings.nkey_seed_file is not None:
        made["nkeys_seed_str"] = read_seed(settings.nkey_seed_file)
    if settings.tls is not None:
        made["tls"] = _tls(settings.tls)
    return made


def read_credentials(path: Path) -> str:
    """The text of a NATS credentials file. Raises OSError or ValueError (a part is missing, or it is not ASCII)."""
    text = path.read_text("ascii")
    for part in _CREDENTIALS_PARTS:
        _, found, after = text.partition(part)
        if not found or not after.partition("\n")[0]:
            raise ValueError(f"{path}: expected a line after {part.strip()!r}, found none")
    return text


def read_seed(path: Path) -> str:
    """The seed of an nkey. Raises OSError or ValueError. An error text never quotes the content, which is a secret."""
    try:
        seed = path.read_text("ascii").strip()
        nkeys.from_seed(seed.encode())
    except (ValueError, IndexError, nkeys.NkeysError):  # not ASCII, not base32, too short, not a seed
        raise ValueError(f"{path}: expected the seed of an nkey") from None
    return seed


def load_chain(settings: TlsSettings) -> None:
    """Checks that certificate and key can be loaded. Raises OSError, of which ssl.SSLError is a subclass."""
    _load_chain(ssl.create_default_context(), settings)


def _load_chain(context: ssl.SSLContext, settings: TlsSettings) -> None:
    if settings.cert_file is not None:
        # refuses a key with a passphrase; without this argument OpenSSL would ask for it on the terminal
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")


def _tls(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=_text(settings.ca_file))
    _load_chain(context, settings)
    return context


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
