"""How a command reaches the controller of `garrison up` (over TCP) or an agent (by its control socket). All calls block."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

import click

from agent.cli import ui
from agent.http.long_poll import HEADER, LONGEST_WAIT_S, LongPoll

TIMEOUT_S = 30.0
#: The least time between two requests of `Changing`, however often there is a change.
GAP_S = 0.05
#: The same for a peer of an earlier release, which answers at once.
PERIOD_S = 0.5
DEFAULT_SOCKET = Path("/var/lib/garrison/agent.sock")


def default_state_dir() -> Path:
    if given := os.environ.get("GARRISON_STATE"):
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "garrison"


def state_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        "state_dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_state_dir,
        metavar="DIR",
        help="Where `garrison up` keeps its state [$GARRISON_STATE].",
    )(function)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # A socket path may have at most 107 bytes; the path through the directory's descriptor is always short enough.
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


@dataclass(frozen=True)
class Peer:
    """One HTTP server: a controller or an agent."""

    connect: Callable[[float | None], http.client.HTTPConnection]
    headers: dict[str, str]
    what: str
    hint: str

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Sends JSON and returns the JSON of the answer. Failure: the server refused, with its reason."""
        data = None if body is None else json.dumps(body).encode()
        with self.open(method, path, data, query=query) as response:
            return json.loads(response.read() or b"null")

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        query: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[http.client.HTTPResponse]:
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        connection = self.connect(timeout_s)
        try:
            try:
                connection.request(method, target, body=body, headers=self.headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise ui.Failure(
                    f"cannot reach {self.what}", str(error), self.hint, ui.UNREACHABLE
                ) from error
            if response.status >= 400:
                raise _refusal(response)
            yield response
        finally:
            connection.close()

    def lines(self, method: str, path: str, **query: str) -> Iterator[Any]:
        """The lines of JSON in the answer, each as it arrives, until the server ends it."""
        with self.open(method, path, timeout_s=None, query=query) as response:
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)


class Changing:
    """Reads a document of a peer again whenever it has changed, by long polls (agent/http/long_poll.py)."""

    def __init__(self, peer: Peer, path: str) -> None:
        self._peer, self._path = peer, path
        self._number: str | None = None
        self._not_before_s = 0.0

    def read(self, wait_s: float) -> Any:
        """Returns the document: the first time at once, later after a change or after ``wait_s``, whichever is first."""
        time.sleep(max(0.0, self._not_before_s - time.monotonic()))
        query, wait_s = dict[str, str](), max(0.0, min(LONGEST_WAIT_S, wait_s))
        if self._number is not None:
            query = LongPoll(int(self._number), wait_s).query()
        asked_s = time.monotonic()
        with self._peer.open("GET", self._path, timeout_s=TIMEOUT_S + wait_s, query=query) as response:
            document = json.loads(response.read())
            self._number = response.headers.get(HEADER)
        self._not_before_s = asked_s + (GAP_S if self._number is not None else PERIOD_S)
        return document


class Refusal(ui.Failure):
    """The server refused the request with `http_status`."""

    def __init__(self, why: str, http_status: int) -> None:
        super().__init__(why)
        self.http_status = http_status


def _refusal(response: http.client.HTTPResponse) -> Refusal:
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["error"]
    return Refusal(str(text).strip() or response.reason, response.status)


def _up_file(state_dir: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((state_dir / "up.json").read_text())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ui.Failure("cannot read up.json", str(error), "run as the user of `garrison up`") from error
    assert isinstance(facts, dict)
    return facts


def controller(state_dir: Path) -> Peer:
    facts = _up_file(state_dir)
    if facts is None:
        raise ui.Failure(
            "garrison up does not run", f"{state_dir / 'up.json'} does not exist",
            "start it in another terminal: garrison up", ui.UNREACHABLE,
        )  # fmt: skip
    address = urlsplit(facts["controller"])
    token = base64.b64encode(f"{facts['user']}:{facts['password']}".encode()).decode()
    return Peer(
        lambda timeout_s: http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s),
        {"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        "the controller of garrison up",
        "is it being stopped? start it with: garrison up",
    )


def gateway_port(state_dir: Path) -> int:
    facts = _up_file(state_dir)
    return int(facts["gateway_port"]) if facts else 0


def agent(state_dir: Path, config: Path | None = None, *, has_config: bool = True) -> Peer:
    """The agent of `--config`; without it that of `garrison up`; without both the one in the default base_dir.

    ``has_config``: the command has that option, so that the hint can name it.
    """
    if config is not None:
        from agent.cli.config import load_or_fail

        path = load_or_fail(config).control_socket
    elif facts := _up_file(state_dir):
        path = Path(facts["control_socket"])
    else:
        path = DEFAULT_SOCKET
    return Peer(
        lambda timeout_s: _UnixConnection(path, timeout_s),
        {},
        f"the agent at {path}",
        "is it running? name its configuration with --config, or start one: garrison up"
        if has_config
        else "is it running? garrison up starts it again when it has ended",
    )


def app_or_hint(peer: Peer, name: str) -> dict[str, Any]:
    """The app's row. Failure: there is no such app; the hint has the nearest name."""
    apps = peer.call("GET", "/v1/apps")
    for row in apps:
        if row["name"] == name:
            assert isinstance(row, dict)
            return row
    close = ui.nearest(name, (row["name"] for row in apps))
    raise ui.Failure(
        f"there is no app {name!r}", "", f"did you mean {close}?" if close else "see: garrison apps"
    )


def complete_app(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion. An error would be printed in the middle of the command line, so there is none."""
    try:
        rows = controller(ctx.params.get("state_dir") or default_state_dir()).call("GET", "/v1/apps")
    except (click.ClickException, OSError, ValueError):
        return []
    return [row["name"] for row in rows if row["name"].startswith(incomplete)]


def complete_instance(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: APP/INDEX and handles."""
    try:
        peer = agent(ctx.params.get("state_dir") or default_state_dir(), ctx.params.get("config"))
        rows = peer.call("GET", "/v1/instances")
    except (click.ClickException, click.exceptions.Exit, OSError, ValueError):
        return []
    names = [f"{row['name']}/{row['index']}" for row in rows if row["handle"]]
    names += [row["handle"] for row in rows if row["handle"]]
    return [name for name in names if name.startswith(incomplete)]


def event_bytes(event: dict[str, Any]) -> bytes:
    """The output in one event of a log stream."""
    if "data_base64" in event:
        return base64.b64decode(event["data_base64"])
    return str(event.get("data", event.get("text", ""))).encode(errors="surrogateescape")


def printable(line: bytes) -> str:
    """A line of an app's output for a terminal. Control characters are escaped, so that the app cannot control the terminal."""
    text = line.decode(errors="replace").rstrip("\r")
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
