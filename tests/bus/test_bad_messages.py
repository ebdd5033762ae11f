"""Invalid messages and starts: each leads to one log line and at most one exit message, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from bad_input_kit import (
    SMALL,
    add_file,
    add_special,
    causes_of,
    droplet_with_info,
    exit_of,
    half_made_layers,
    tar_droplet,
    told,
    words_about,
)
from driver import App, Host
from driver_apps import Droplet
from driver_peer import Word

pytestmark = pytest.mark.bus

NO_JSON = (
    b"",
    b"null",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe{}",
    b'{"droplet": "\xff"}',
    b"[" * 5000,
    b'{"droplet":' * 5000,
    b"1e400",
)
ABSENT = object()
NO_START: Mapping[str, tuple[Any, ...]] = {
    "droplet": (ABSENT, None, True, [], {}, "x" * 300, -1),
    "version": (ABSENT, None, 7, "v" * 300),
    "name": (ABSENT, None, []),
    "index": (ABSENT, None, "0", -1, 1.5, 10**12, True),
    "cc_partition": (ABSENT, None, 1),
    "limits": (ABSENT, None, [], {}, {"mem": 1, "disk": 1}, {"mem": "64M", "disk": 1, "fds": 1}),
    "limits.mem": (-1, 10**30, None, 0.5),
    "limits.disk": (-1, 10**30),
    "limits.fds": (-1, 10**30),
    "services": (
        ABSENT,
        None,
        {},
        [{}],
        [{"name": "a", "label": "b"}],
        [{"name": 1, "label": "b", "credentials": 1}],
    ),
    "uris": ("one", [1], [None], {}),
    "env": ("A=b", [1], {"A": "b"}),
    "sha1": (1, []),
    "executableUri": (1, []),
    "health_check_timeout": (-1, "60", 10**30),
    "egress_network_rules": (
        "all",
        [1],
        [{}],
        [{"protocol": 6}],
        [{"protocol": "tcp", "destination": ["a"]}],
    ),
    "instance_id": ("../../../escape", "a/b", "a\n", "x" * 65, "\0", 7),
    "private_instance_id": ("../../../escape", 7),
    "vcap_application": ([], "text"),
    "start_command": (1, ["./run"]),
}


def broken(message: dict[str, Any], field: str, value: Any) -> bytes:
    copy = json.loads(json.dumps(message))
    *path, last = field.split(".")
    place = copy
    for part in path:
        place = place[part]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copy).encode()


async def test_a_message_that_makes_no_sense_costs_one_line_of_the_log(host: Host) -> None:
    """Nothing of it on the bus, nothing registered, and the next good message is obeyed."""
    app = host.make_app("shop")
    start = f"dea.{host.dea}.start"
    good = host.start_message(app)
    words = [
        Word(start, broken(good, field, value)) for field, values in NO_START.items() for value in values
    ]
    for subject in (
        start,
        "dea.stop",
        "dea.update",
        "dea.find.droplet",
        "staging.stop",
    ):
        words += [Word(subject, payload, "nobody.listens") for payload in NO_JSON]
    words += [
        Word.of("dea.stop", {"droplet": app.id, "states": ["ASLEEP"]}),
        Word.of("dea.stop", {"droplet": app.id, "indices": ["0"]}),
        Word.of("dea.update", {"droplet": app.id, "uris": "one"}),
        Word.of("dea.find.droplet", {"droplet": app.id}),  # a question without a reply subject
    ]
    since = host.peer.mark

    await host.peer.burst(words)
    await host.peer.burst([Word(start, json.dumps(good).encode())])
    await host.wait_state(app, "RUNNING")

    refused = host.running.log("bus_message_refused")
    assert len(refused) == len(words)
    assert all(line["error"] for line in refused)
    assert host.running.log("bus_command_failed") == []
    assert not list(host.base_dir.rglob("*escape*"))
    assert "droplet.exited" not in host.peer.subjects(since)
    assert [one["index"] for one in await host.find(app)] == [0]


@dataclass(frozen=True)
class Case:
    """A start that cannot be. ``cause``: what the log must say; ``changes`` of the start message."""

    cause: str
    changes: Mapping[str, Any]
    droplet: Droplet | None = None
    description: str = "failed to start"


def harmless(archive: tarfile.TarFile) -> None:
    add_file(archive, "app/mark", b"x" * 5000)


def dot_dot(archive: tarfile.TarFile) -> None:
    add_file(archive, "app/../../escape", b"x")


def absolute(archive: tarfile.TarFile) -> None:
    add_file(archive, "/escape", b"x")


def through_link(archive: tarfile.TarFile) -> None:
    add_special(archive, "app/out", tarfile.SYMTYPE, "../../../../var/tmp")
    add_file(archive, "app/out/escape", b"x")


def hard_link_through_link(archive: tarfile.TarFile) -> None:
    add_special(archive, "app/out", tarfile.SYMTYPE, "/etc")
    add_special(archive, "app/escape", tarfile.LNKTYPE, "app/out/passwd")


def device(archive: tarfile.TarFile) -> None:
    add_special(archive, "app/null", tarfile.CHRTYPE)


def block_device(archive: tarfile.TarFile) -> None:
    add_special(archive, "app/disk", tarfile.BLKTYPE)


def fifo(archive: tarfile.TarFile) -> None:
    add_special(archive, "staging_info.yml", tarfile.FIFOTYPE)


def too_many_bytes(archive: tarfile.TarFile) -> None:
    add_file(archive, "app/zeros", bytes(SMALL["disk"] * 2 << 20))


def info_is_directory(archive: tarfile.TarFile) -> None:
    add_special(archive, "staging_info.yml", tarfile.DIRTYPE, mode=0o755)


def info_is_circle(archive: tarfile.TarFile) -> None:
    add_special(archive, "staging_info.yml", tarfile.SYMTYPE, "staging_info.yml")


def info_is_secret(archive: tarfile.TarFile) -> None:
    add_special(archive, "staging_info.yml", tarfile.SYMTYPE, "/etc/shadow")


def info_is_device(archive: tarfile.TarFile) -> None:
    add_special(archive, "staging_info.yml", tarfile.SYMTYPE, "/dev/zero")


MERGES = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
)
NO_COMMAND = "missing start command"


def url(scheme_and_rest: str) -> dict[str, Any]:
    return {"executableUri": scheme_and_rest}


def rule(**fields: Any) -> dict[str, Any]:
    return {"egress_network_rules": [{"protocol": "tcp", "destination": "9.9.9.9", **fields}]}


HTTP_ONLY = "expected an http or https URL"
CASES: Mapping[str, Case] = {
    "unknown-stack": Case("stack 'plan9' is not configured", {"stack": "plan9"}),
    "no-stack": Case("stack None is not configured", {"stack": None}),
    "sha1-null": Case("sha1: expected the droplet's checksum, got null", {"sha1": None}),
    "sha1-upper-case": Case("expected 40 hexadecimal digits", {"sha1": "A" * 40}),
    "sha1-no-hex": Case("expected 40 hexadecimal digits", {"sha1": "z" * 40}),
    "sha1-short": Case("expected 40 hexadecimal digits", {"sha1": "a" * 39}),
    "sha1-a-path": Case("expected 40 hexadecimal digits", {"sha1": "../" * 13 + "x"}),
    "sha1-newline": Case("expected 40 hexadecimal digits", {"sha1": "a" * 40 + "\n"}),
    "sha1-mismatch": Case("SHA1 mismatch", {"sha1": "0" * 40}),
    "uri-null": Case("executableUri: expected a URL, got null", {"executableUri": None, "sha1": "1" * 40}),
    "uri-file": Case(HTTP_ONLY, url("file:///etc/passwd")),
    "uri-ftp": Case(HTTP_ONLY, url("ftp://127.0.0.1/droplet")),
    "uri-empty": Case(HTTP_ONLY, url("")),
    "uri-no-host": Case(HTTP_ONLY, url("http:///droplet")),
    "uri-no-port": Case("expected an http or https URL", url("http://127.0.0.1:99999/")),
    "uri-odd-user": Case("expected an http or https URL", url("http://a%3Ab:c@127.0.0.1/")),
    "uri-nobody-there": Case(
        "Response status: unknown, Error: ClientConnectorError", url("http://127.0.0.1:1/")
    ),
    "uri-no-such-host": Case("Response status: unknown, Error: ", url("http://nowhere.invalid/")),
    "no-tar": Case("tar: a checksum is not a number", {}, Droplet(b"<html>not found</html>" * 100)),
    "empty": Case("truncated", {}, Droplet(b"")),
    "gzip-truncated": Case("truncated", {}, Droplet(tar_droplet(harmless).data[:-12])),
    "dot-dot": Case(r"'\.\.' in a name", {}, tar_droplet(dot_dot)),
    "absolute": Case("an absolute name", {}, tar_droplet(absolute)),
    "through-a-link": Case("app/out", {}, tar_droplet(through_link)),
    "hard-link-through-a-link": Case("app/out|app/escape", {}, tar_droplet(hard_link_through_link)),
    "device": Case("a character device", {}, tar_droplet(device)),
    "block-device": Case("a block device", {}, tar_droplet(block_device)),
    "fifo": Case("a FIFO", {}, tar_droplet(fifo)),
    "too-much": Case("more than 33554432 bytes", {}, tar_droplet(too_many_bytes)),
    "no-disk": Case("more than 0 bytes", {"limits": {"disk": 0}}),
    "command-nul": Case("NUL byte", {"start_command": "./run\0x"}),
    "rule-protocol": Case("egress_network_rules.protocol: expected", rule(protocol="gre")),
    "rule-destination": Case(
        "egress_network_rules.destination: expected an IPv4", rule(destination="everywhere")
    ),
    "rule-reversed": Case("expected first <= last", rule(destination="9.9.9.9-1.1.1.1")),
    "rule-ports": Case("egress_network_rules.ports: expected", rule(ports="http")),
    "rule-port-zero": Case("ports", rule(ports="0")),
    "rule-icmp": Case("icmp_type: expected 0..255", rule(protocol="icmp", type=999)),
    "no-command": Case("neither the message nor", {}, droplet_with_info(b"--- {}\n"), NO_COMMAND),
    "command-empty": Case(
        "neither the message nor", {}, droplet_with_info(b"start_command: ''\n"), NO_COMMAND
    ),
    "command-a-list": Case(
        "staging_info.yml: Expected", {}, droplet_with_info(b"start_command: [a]\n"), NO_COMMAND
    ),
    "info-no-yaml": Case("staging_info.yml: line", {}, droplet_with_info(b"{{{"), NO_COMMAND),
    "info-binary": Case("staging_info.yml: ", {}, droplet_with_info(b"\xff\0\xff" * 9), NO_COMMAND),
    "info-python": Case(
        "could not determine a constructor",
        {},
        droplet_with_info(b'start_command: !!python/object/apply:os.system ["touch /escape"]\n'),
        NO_COMMAND,
    ),
    "info-merges": Case("merge keys are not supported", {}, droplet_with_info(MERGES), NO_COMMAND),
    "info-deep": Case("nesting depth", {}, droplet_with_info(b"[" * 60_000), NO_COMMAND),
    "info-month-13": Case("cannot be converted", {}, droplet_with_info(b"a: 2001-13-01\n"), NO_COMMAND),
    "info-huge": Case("more than 65536 bytes", {}, droplet_with_info(b"# " + b"x" * (1 << 20)), NO_COMMAND),
    "info-directory": Case("not a regular file", {}, tar_droplet(info_is_directory), NO_COMMAND),
    "info-circle": Case("[Tt]oo many levels", {}, tar_droplet(info_is_circle), NO_COMMAND),
    "info-secret": Case("staging_info.yml", {}, tar_droplet(info_is_secret), NO_COMMAND),
    "info-device": Case("not on a mount of the container's own", {}, tar_droplet(info_is_device), NO_COMMAND),
}


def start_of(host: Host, app: App, case: Case) -> Word:
    message = host.start_message(
        app, **{**case.changes, "limits": {**SMALL, **case.changes.get("limits", {})}}
    )
    message.update(case.changes if "limits" not in case.changes else {})
    return Word.of(f"dea.{host.dea}.start", message)


async def test_a_start_that_cannot_be_ends_in_one_exit_message_and_leaves_nothing(host: Host) -> None:
    """All at once: none is told another's fault, and a good app among them runs."""
    good = host.make_app("good")
    apps = {name: host.make_app(name, droplet=case.droplet) for name, case in CASES.items()}
    gone = host.make_app("status-404")
    del host.files.files[gone.path]
    apps["status-404"] = gone
    cases = {**CASES, "status-404": Case("HTTP status: 404", {})}
    before, since = host.picture(), host.peer.mark

    await host.peer.burst([start_of(host, apps[name], case) for name, case in cases.items()])
    exits = {name: await exit_of(host, app, since=since) for name, app in apps.items()}
    await host.run(good, limits=SMALL)
    await host.stop(good)
    await host.wait_gone(good)

    assert {name: told(one) for name, one in exits.items()} == {
        name: (case.description, -1) for name, case in cases.items()
    }
    causes = {name: causes_of(host, app) for name, app in apps.items()}
    unexplained = {
        name: causes[name]
        for name, case in cases.items()
        if len(causes[name]) != 1 or not re.search(case.cause, causes[name][0])
    }
    assert unexplained == {}
    assert [
        name for name, app in apps.items() if words_about(host, app, since).count("droplet.exited") != 1
    ] == []
    assert [one.body for one in host.peer.on("router.unregister", since) if one.body["port"] is None] == []
    assert await host.left_since(before) == []
    assert await half_made_layers(host) == []
    assert not list(host.dir.rglob("*escape*"))
