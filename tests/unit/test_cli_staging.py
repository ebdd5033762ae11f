"""How a push follows the output of its staging: it waits for a staging that has not begun, and not after the staging's end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent.cli import reach, ui
from agent.cli.staging import WAIT_S, LiveOutput

pytestmark = pytest.mark.unit


class Agent(ThreadingHTTPServer):
    """Answers 404 until `begun` is set, and each request waits for it as the control socket does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.begun = threading.Event()
        self.events: list[dict[str, object]] = []
        self.waits_s: list[float] = []

    def peer(self) -> reach.Peer:
        port = self.server_address[1]
        return reach.Peer(
            lambda timeout_s: http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s),
            {}, "the peer", "",
        )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Agent

    def do_GET(self) -> None:
        wait_s = float(dict(parse_qsl(urlsplit(self.path).query))["wait_s"])
        self.server.waits_s.append(wait_s)
        has_begun = self.server.begun.wait(wait_s)
        lines = self.server.events if has_begun else [{"error": "no such staging"}]
        self.send_response(200 if has_begun else 404)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def agent() -> Iterator[Agent]:
    server = Agent()
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


def live(agent: Agent) -> LiveOutput:
    return LiveOutput(agent.peer(), "task", ui.MovingLine(), quiet=False)


def test_a_staging_that_begins_late_is_waited_for(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """The output is shown as soon as there is any, with what the agent has not kept."""
    agent.events = [{"data": "-----> Compiling\nhalf a "}, {"data": "line", "gap_bytes": 2048}]
    output = live(agent)
    output.start()
    time.sleep(WAIT_S * 1.5)
    agent.begun.set()
    output.join(10)
    output.finish()

    shown = capsys.readouterr().err
    assert "-----> Compiling\n" in shown
    assert shown.index("half a \n") < shown.index("are no longer kept)") < shown.index("line\n")
    assert set(agent.waits_s) == {WAIT_S}
    assert len(agent.waits_s) == 2


def test_a_staging_that_never_begins_is_given_up_at_its_end(agent: Agent) -> None:
    """The agent refused it, so the controller reports the failure at once."""
    output = live(agent)
    output.start()
    while not agent.waits_s:
        time.sleep(0.01)
    output.finish()
    assert not output.is_alive()
    assert agent.waits_s == [WAIT_S, 0.0]
