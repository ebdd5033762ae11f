"""The agent's credentials: passwords, keys and certificates are read anew at each connect, and are never logged."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nkeys
import pytest
from servers import Host, NatsServer, nats_server, until

from agent.bus import credentials
from agent.bus.credentials import Address
from agent.bus.wire import BusError, Connection
from agent.config import NatsSettings, TlsSettings

pytestmark = pytest.mark.bus
PASSWORD = "p@ss:w/rd#?"
LOGIN = f'authorization {{ user: garrison, password: "{PASSWORD}" }}'

MakeHost = Callable[..., Host]


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[MakeHost]:
    async with AsyncExitStack() as stack:

        def make(url: str, **settings: Any) -> Host:
            host = Host([url], tmp_path / "outbox", settings=settings)
            stack.push_async_callback(host.stop)
            host.run()
            return host

        yield make


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server that wants a user and a password with every sign that a URL could trip over."""
    async with nats_server(tmp_path, LOGIN) as server:
        yield server


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("nats://h:4222", Address("nats://h:4222")),
        ("h:4222", Address("nats://h:4222")),
        ("h", Address("nats://h")),
        ("tls://u:p@h:4222", Address("tls://h:4222", "u", "p")),
        ("nats://u:p%40%2F%3A@h", Address("nats://h", "u", "p@/:")),
        ("nats://u:p@ss/#?://@h:1", Address("nats://h:1", "u", "p@ss/#?://")),
        ("u:p://x@h:1", Address("nats://h:1", "u", "p://x")),
        ("nats://token@[::1]:4222", Address("nats://[::1]:4222", "token", None)),
    ],
)
def test_a_server_is_an_address_and_who_we_are(server: str, address: Address) -> None:
    """Nothing of the user information stays in what is logged."""
    assert credentials.address(server) == address


async def test_user_and_password_by_setting(locked: NatsServer, hosts: MakeHost) -> None:
    """As they are, nothing to escape."""
    host = hosts(locked.url, user="garrison", password=PASSWORD)
    await until(lambda: host.bus.connected, "connected")


async def test_user_and_password_in_the_url(locked: NatsServer, hosts: MakeHost) -> None:
    """Escaped as URLs are, which nats-py takes literally."""
    host = hosts(f"nats://garrison:p%40ss%3Aw%2Frd%23%3F@127.0.0.1:{locked.port}")
    await until(lambda: host.bus.connected, "connected")


@pytest.mark.parametrize("where", ["url", "settings"])
async def test_a_wrong_password_is_logged_without_it_and_tried_again(
    locked: NatsServer, hosts: MakeHost, where: str
) -> None:
    """The line says what and which; when the server comes to know the password the agent is in."""
    if where == "url":
        host = hosts(f"nats://garrison:guessed-wrong@127.0.0.1:{locked.port}")
    else:
        host = hosts(locked.url, user="garrison", password="guessed-wrong")
    await until(lambda: host.logged("bus_unreachable"), "it is told")
    line = host.logged("bus_unreachable")[0]
    assert "Authorization Violation" in line["error"]
    assert line["server"] == locked.url

    await locked.kill()
    await locked.start(LOGIN.replace(PASSWORD, "guessed-wrong"))

    await until(lambda: host.bus.connected, "connected")
    assert "guessed-wrong" not in repr(host.lines)


async def test_a_wrong_password_is_always_reported_as_such(locked: NatsServer) -> None:
    """However the server's answer and its end fall in with what we write."""
    settings = NatsSettings(user="garrison", password="guessed-wrong")
    for _ in range(100):
        with pytest.raises(BusError, match="Authorization Violation"):
            await Connection.open(settings, locked.url, "test", lambda _arrived: None, lambda _error: None)


class Key:
    """An nkey, made here."""

    def __init__(self, kind: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._pair.sign(data)
        return signature


def token(issuer: Key, subject: Key, kind: str, **claims: Any) -> str:
    """A JWT as a NATS operator writes it."""
    body = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject.public,
        "name": kind,
        "nats": {"type": kind, "version": 2, **claims},
    }
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    parts = [_plain(json.dumps(one).encode()) for one in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    return ".".join((*parts, _plain(issuer.sign(".".join(parts).encode()))))


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def credentials_text(jwt: str, seed: bytes) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


async def test_an_nkey_file_is_read_anew_at_each_connect(tmp_path: Path, hosts: MakeHost) -> None:
    """Not there, not a key, the right one; then server and file change together."""
    first, second = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    path = tmp_path / "agent.nk"

    def only(key: Key) -> str:
        return f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}"

    async with nats_server(tmp_path, only(first)) as server:
        host = hosts(server.url, nkey_seed_file=path)
        await until(lambda: host.logged("bus_unreachable"), "a missing file is told")
        assert str(path) in host.lines[0]["error"]
        path.write_text("SUSOMETHINGELSE")
        await until(lambda: len(host.logged("bus_unreachable")) == 2, "a file that is no key is told")
        path.write_bytes(first.seed + b"\n")
        await until(lambda: host.bus.connected, "connected with the first")

        await server.kill()
        path.write_bytes(second.seed)
        await server.start(only(second))

        await until(lambda: host.connects == 2, "connected with the second")
        assert first.seed.decode() not in repr(host.lines)
        assert second.seed.decode() not in repr(host.lines)


async def test_a_credentials_file_half_written_is_reported_and_read_again(
    tmp_path: Path, hosts: MakeHost
) -> None:
    """nats-py's own reader turns for ever on a file without a JWT; the whole agent stood still."""
    operator, account, user = (
        Key(nkeys.PREFIX_BYTE_OPERATOR),
        Key(nkeys.PREFIX_BYTE_ACCOUNT),
        Key(nkeys.PREFIX_BYTE_USER),
    )
    unlimited = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}
    config = (
        f"operator: {token(operator, operator, 'operator')}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {token(operator, account, 'account', limits=unlimited)} }}\n"
    )
    whole = credentials_text(token(account, user, "user", subs=-1, data=-1, payload=-1), user.seed)
    path = tmp_path / "agent.creds"
    async with nats_server(tmp_path, config) as server:
        path.write_text(whole.partition("\n")[0] + "\n")
        host = hosts(server.url, credentials_file=path)
        await until(lambda: host.logged("bus_unreachable"), "a missing JWT is told")
        assert "BEGIN NATS USER JWT" in host.lines[0]["error"]
        path.write_text(whole[: whole.index("-----BEGIN USER")])
        await until(lambda: "SEED" in host.logged("bus_unreachable")[-1]["error"], "a missing seed is told")

        path.write_text(whole)

        await until(lambda: host.bus.connected, "connected")
        assert user.seed.decode() not in repr(host.lines)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; the good one has signed a server and an agent."""
    place = tmp_path_factory.mktemp("pki")

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=place, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    for name in ("ca", "other"):
        openssl("req", "-x509", *curve, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-subj", f"/CN={name}", "-days", "2")  # fmt: skip
    (place / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "agent"):
        openssl(
            "req", *curve, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    openssl("ec", "-in", "agent.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")
    return place


def tls(pki: Path) -> str:
    return f'tls {{ cert_file: "{pki}/server.pem", key_file: "{pki}/server.key", ca_file: "{pki}/ca.pem", verify: true }}'


async def test_tls_with_our_own_authority_and_a_certificate_of_the_agent(
    tmp_path: Path, pki: Path, hosts: MakeHost
) -> None:
    """Both sides show theirs."""
    async with nats_server(tmp_path, tls(pki)) as server:
        settings = TlsSettings(pki / "ca.pem", pki / "agent.pem", pki / "agent.key")
        host = hosts(server.url, tls=settings)
        await until(lambda: host.bus.connected, "connected")
        for connects in range(2, 7):
            await server.kill()
            await until(lambda: not host.bus.connected, "the death is seen")
            await server.start()
            await until(lambda: host.bus.connected, "connected again")
            assert host.connects == connects


async def test_a_tls_connection_that_has_ended_is_closed_all_the_same(tmp_path: Path, pki: Path) -> None:
    """Thrown away twice, as the sender and the connection's own life do; asyncio's TLS transport raises then."""
    async with nats_server(tmp_path, tls(pki)) as server:
        settings = NatsSettings(tls=TlsSettings(pki / "ca.pem", pki / "agent.pem", pki / "agent.key"))
        connection = await Connection.open(settings, server.url, "test", lambda _: None, print)
        await connection.barrier()
        await connection.close()
        await connection.close()


@pytest.mark.parametrize(
    ("ca", "cert", "key", "why"),
    [
        ("other.pem", "agent.pem", "agent.key", "CERTIFICATE_VERIFY_FAILED"),
        ("missing.pem", "agent.pem", "agent.key", "No such file"),
        ("ca.pem", "missing.pem", "agent.key", "No such file"),
        ("ca.pem", "agent.pem", "ca.key", "KEY_VALUES_MISMATCH"),
        ("ca.pem", "agent.pem", "locked.key", "PEM lib"),
        ("ca.pem", None, None, ""),
    ],
    ids=[
        "other authority",
        "no authority",
        "no certificate",
        "other key",
        "locked key",
        "no certificate set",
    ],
)
async def test_an_error_of_tls_is_reported_and_tried_again(
    tmp_path: Path, pki: Path, hosts: MakeHost, ca: str, cert: str | None, key: str | None, why: str
) -> None:
    """The agent lives; with a key that needs a passphrase nobody is asked on a terminal."""
    settings = TlsSettings(pki / ca, pki / cert if cert else None, pki / key if key else None)
    async with nats_server(tmp_path, tls(pki)) as server:
        host = hosts(server.url, tls=settings)
        await until(lambda: host.logged("bus_unreachable"), "it is told")
        assert why in host.lines[0]["error"]
        assert not host.bus.connected


def test_a_fresh_set_of_options_holds_one_server_only() -> None:
    """What a cluster tells of its members is not followed: the list is the operator's."""
    made = credentials.options(NatsSettings(), credentials.address("nats://u:p@h:1"))
    assert made == {"servers": ["nats://h:1"], "user": "u", "password": "p"}
