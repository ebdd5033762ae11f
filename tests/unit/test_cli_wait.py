"""How the command line follows a document that changes: it waits where the peer can, and is never in a hurry."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent.cli import reach, trouble, ui, wait

pytestmark = pytest.mark.unit


class Server(ThreadingHTTPServer):
    """Answers each request with the newest document. ``number``: of changes; None: a peer that has no long poll."""

    daemon_threads = True

    def __init__(self, number: int | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.number = number
        self.document: Any = []
        self.asked: list[dict[str, str]] = []
        self.changed = threading.Condition()

    def change(self, document: Any) -> None:
        with self.changed:
            self.document = document
            if self.number is not None:
                self.number += 1
            self.changed.notify_all()

    def peer(self) -> reach.Peer:
        port = self.server_address[1]
        return reach.Peer(
            lambda timeout_s: http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s),
            {}, "the peer", "",
        )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, query = self.server, dict(parse_qsl(urlsplit(self.path).query))
        server.asked.append(query)
        with server.changed:
            if server.number is not None and "after" in query:
                server.changed.wait_for(
                    lambda: str(server.number) != query["after"], timeout=float(query["wait_s"])
                )
            body = json.dumps(server.document).encode()
            self.send_response(200)
            if server.number is not None:
                self.send_header("X-Garrison-Changes", str(server.number))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=[0, None], ids=["with a long poll", "of an earlier release"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(request.param)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def instance(state: str) -> dict[str, Any]:
    return {"instance": "i", "name": "hello", "index": 0, "state": state}


def row(state: str) -> dict[str, Any]:
    return {
        "name": "hello", "instances": 1, "running": int(state == "RUNNING"), "previous_running": 0,
        "instance_states": {"0": state}, "waiting": {}, "crash": None,
    }  # fmt: skip


def test_a_stop_is_waited_for(server: Server) -> None:
    """With a long poll by two or three requests, otherwise by some in a second."""
    server.document = [instance("STOPPING")]
    timer = threading.Timer(0.3, server.change, ([],))
    began = time.monotonic()
    timer.start()
    wait.wait_stopped(server.peer(), "hello", 30)
    spent = time.monotonic() - began
    timer.join()
    assert spent >= 0.3
    assert len(server.asked) <= (2 if server.number is not None else 2 + spent / reach.PERIOD_S)


def test_a_stop_that_is_not_in_time_is_a_failure(server: Server) -> None:
    """Without a request more than needed."""
    server.document = [instance("STOPPING")]
    with pytest.raises(ui.Failure, match="is not stopped after 1 s"):
        wait.wait_stopped(server.peer(), "hello", 1)
    assert len(server.asked) <= 5


def test_a_start_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is asked once a second what it knows of an instance that starts."""
    monkeypatch.setattr(trouble.Watch, "_request", lambda _self, _indexes: None)
    server.document = row("STARTING")
    timer = threading.Timer(0.3, server.change, (row("RUNNING"),))
    timer.start()
    found = wait.wait_running(server.peer(), server.peer(), "hello", 30, "Starting")
    timer.join()
    assert found["running"] == 1


def test_what_changes_without_end_is_asked_for_at_a_measured_pace(server: Server) -> None:
    """A peer whose number is another one each time does not keep two processors busy."""
    changing = reach.Changing(server.peer(), "/")
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        changing.read(10 if server.number is not None else 0)
        server.change([])
    spent = time.monotonic() - began
    gap_s = reach.GAP_S if server.number is not None else reach.PERIOD_S
    assert len(server.asked) <= spent / gap_s + 2
