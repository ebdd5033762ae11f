"""What the types of a configuration cannot say, what a host lacks, what the DEA had: each is told, and no secret is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nkeys
import pytest

from agent.cli.reach import _UnixConnection
from agent.config import Settings, check, load, read
from agent.config_original import ELSEWHERE, NO_EFFECT
from agent.config_rules import is_domain
from agent.http.control import _private_socket

pytestmark = pytest.mark.unit


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(f"base_dir: /b\n{text}\n")
    return path


def told(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    return [(one.key_path, one.message) for one in check(written(tmp_path, text))]


#: A line of the file, the key that is named, words of the message.
WRONG: dict[str, tuple[str, str, str]] = {
    "a pool of ports past the end": ("port: {pool_start_port: 65000, pool_size: 1000}", "port.pool_size", "end at 65999"),
    "a pool of ports that is empty": ("port: {pool_start_port: 65100}", "port.pool_start_port", "above 65000"),
    "more ports than there are": ("port: {pool_size: 70000}", "port.pool_size", "at most 65535"),
    "a pool of ids past the end": ("user: {pool_start_uid: 4000000000, pool_size: 16384}", "user.pool_size", "4294967294"),
    "a bus by HTTP": ("nats: {servers: ['http://h:4222']}", "nats.servers[0]", "nats://"),
    "a bus by HTTPS": ("nats: {servers: ['nats://h', 'https://h']}", "nats.servers[1]", "'https://h'"),
    "a bus without a host": ("nats: {servers: ['nats://']}", "nats.servers[0]", "HOST:PORT"),
    "a bus with a bad port": ("nats: {servers: ['nats://h:99999']}", "nats.servers[0]", "HOST:PORT"),
    "two buses in one": ("nats: {servers: ['nats://a:1,nats://b:2']}", "nats.servers[0]", "HOST:PORT"),
    "a bus with a path": ("nats: {servers: ['nats://h:1/x']}", "nats.servers[0]", "HOST:PORT"),
    "a bus twice": ("nats: {servers: ['nats://h:1', 'nats://h:1']}", "nats.servers", "twice"),
    "a password without a user": ("nats: {password: x}", "nats.password", "nats.user"),
    "two seeds": ("nats: {credentials_file: /a, nkey_seed_file: /b}", "nats.nkey_seed_file", "credentials_file"),
    "a key without its certificate": ("nats: {tls: {key_file: /k}}", "nats.tls.key_file", "cert_file"),
    "a grace longer than the deadline": ("instance: {stop_grace_s: 40}", "instance.stop_grace_s", "shutdown.deadline_s (30 s)"),
    "a grace as long as the deadline": ("shutdown: {deadline_s: 10}", "instance.stop_grace_s", "(10 s)"),
    "a drain longer than the deadline": ("instance: {drain_s: 25}", "instance.stop_grace_s", "got 36 s"),
    "shares": ("instance: {min_cpu_share_limit: 300}", "instance.min_cpu_share_limit", "max_cpu_share_limit"),
    "a mark above the disk": ("resources: {disk_mb: 4096, low_water_mb: 4096}", "resources.low_water_mb", "no app would ever"),
    "stagings without memory": ("resources: {memory_mb: 512}", "staging.memory_limit_mb", "1024 is more"),
    "stagings without disk": ("resources: {disk_mb: 2000}", "staging.disk_limit_mb", "2048 is more"),
    "a domain with a scheme": ("domain: http://example.org", "domain", "expected a domain"),
    "a domain with a port": ("domain: 'example.org:80'", "domain", "expected a domain"),
    "a domain that is an address": ("domain: 10.0.0.1", "domain", "expected a domain"),
    "a domain that is nothing": ("domain: ''", "domain", "expected a domain"),
    "a domain with a star": ("domain: '*.example.org'", "domain", "expected a domain"),
    "no address": ("local_ip: 0.0.0.0", "local_ip", "IPv4 address of a host"),
    "a wrong address": ("local_ip: 10.0.0.300", "local_ip", "'10.0.0.300'"),
    "a pool on loopback": ("network: {pool_network: 127.0.0.0/16}", "network.pool_network", "overlaps 127.0.0.0/8"),
    "a pool of all": ("network: {pool_network: 0.0.0.0/0}", "network.pool_network", "/8"),
    "a pool for multicast": ("network: {pool_network: 224.0.0.0/16}", "network.pool_network", "overlaps"),
    "a name server on loopback": ("network: {dns_servers: [127.0.0.53]}", "network.dns_servers[0]", "reached from a container"),
    "a name server by IPv6": ("network: {dns_servers: ['::1']}", "network.dns_servers[0]", "'::1'"),
    "a name server in the pool": ("network: {dns_servers: [10.254.0.9]}", "network.dns_servers[0]", "pool_network"),
    "a search list of URLs": ("network: {dns_search: ['http://a']}", "network.dns_search[0]", "a domain"),
    "options in one word": ("network: {dns_options: ['ndots:2 rotate']}", "network.dns_options[0]", "one word"),
    "an uplink that is ours": ("network: {uplinks: [w-x-0]}", "network.uplinks[0]", "name of an interface"),
    "a stack by a relative path": ("stacks: [{name: a, package_path: a}]", "stacks[0].package_path", "absolute"),
    "a bind from nowhere": ("bind_mounts: [{src_path: a}]", "bind_mounts[0].src_path", "absolute"),
    "a bind to above": ("bind_mounts: [{src_path: /a, dst_path: /a/../..}]", "bind_mounts[0].dst_path", "without '..'"),
    "a bind over all": ("bind_mounts: [{src_path: /a, dst_path: /}]", "bind_mounts[0].dst_path", "absolute"),
    "a hook with a NUL": ('post_setup_hook: "a\\0b"', "post_setup_hook", "NUL"),
    "a level that is none": ("logging: {level: loud}", "logging.level", "one of debug, info, warning, error, got 'loud'"),
    "a level of the DEA": ("logging: {level: warn}", "logging.level", "did you mean warning?"),
    "a format that is none": ("logging: {format: xml}", "logging.format", "one of auto, json, console, got 'xml'"),
    "a mode that is none": ("bind_mounts: [{src_path: /a, mode: rx}]", "bind_mounts[0].mode", "one of ro, rw, got 'rx'"),
    "a publisher that is none": ("network: {publish_ports_to: me}", "network.publish_ports_to", "one of everybody, host"),
    "for ever": ("intervals: {heartbeat: .inf}", "intervals.heartbeat", "<= 31536000"),
    "no number": ("intervals: {heartbeat: .nan}", "intervals.heartbeat", "> 0"),
    "more than there is": ("resources: {memory_mb: 99999999999999999}", "resources.memory_mb", "<="),
    "a key twice": ("index: 1\nindex: 2", "index", "duplicate key, first in line 2"),
    "a section twice": ("staging: {enabled: true}\nstaging: {nproc_limit: 9}", "staging", "duplicate key, first in line 2"),
    "a key of a section twice": ("staging:\n  enabled: true\n  enabled: false", "staging.enabled", "duplicate key, first in line 3"),
    "a key of a list's section twice": ("stacks:\n- {name: a, name: b, package_path: /a}", "stacks[0].name", "duplicate"),
    "a date that is none": ("domain: 2001-99-99", "", "date"),
    "itself": ("stacks: &x [*x]", "", "contains itself"),
    "depth": ("stacks: " + "[" * 3000 + "]" * 3000, "", "depth"),
    "a key that is none": ("? [a]\n: b", "", "a key that is a list"),
    "no servers": ("nats: {servers: []}", "nats.servers", "length >= 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_key(tmp_path: Path, case: str) -> None:
    """And nothing else is."""
    text, key, words = WRONG[case]
    found = told(tmp_path, text)
    assert [where for where, _ in found] == [key]
    assert words in found[0][1]


def test_a_base_dir_may_be_longer_than_the_path_of_a_socket(tmp_path: Path) -> None:
    """unix(7) ends at 107 bytes; the agent and those who ask it go by the directory's descriptor."""
    base = tmp_path / ("b" * 100) / ("c" * 100)
    base.mkdir(parents=True)
    (tmp_path / "config.yml").write_text(f"base_dir: {base}\n")
    assert check(tmp_path / "config.yml") == ()
    with _private_socket(load(tmp_path / "config.yml").control_socket) as listening:
        listening.listen()
        connection = _UnixConnection(base / "agent.sock", 5)
        connection.connect()
        connection.close()


RIGHT = (
    "port: {pool_start_port: 64536, pool_size: 1000}",
    "port: {pool_start_port: 65000}",
    "nats: {servers: ['tls://u:p%40@h:4222', 'h', 'h:4222', '[::1]:4222', 'nats://[fd00::1]', 'wss://h:443']}",
    "nats: {user: u, password: p}",
    "instance: {stop_grace_s: 28.5}",
    "domain: apps.Example-1.org",
    "resources: {memory_mb: 512, memory_overcommit_factor: 2}",
    "resources: {memory_mb: 512}\nstaging: {enabled: false}",
    "network: {dns_search: [corp.example, 'a.'], dns_options: ['ndots:2'], uplinks: [eth0.100]}",
    "x: &x {}\nstaging: {<<: {enabled: true}, enabled: false}".partition("\n")[2],
)


def test_values_that_contradict_each_other_keep_no_agent_from_its_apps(tmp_path: Path) -> None:
    """They were accepted before, and an update must not end at them; the check refuses them all the same."""
    path = written(tmp_path, "instance: {stop_grace_s: 60}\nresources: {memory_mb: 512, disk_mb: 512}")
    assert load(path).instance.stop_grace_s == 60
    assert len(check(path)) == 4
    path = written(
        tmp_path,
        "index: 1\nindex: 2\ndomain: my_apps.example\nnetwork: {dns_servers: [127.0.0.53]}\n"
        "nats: {servers: ['nats://h:1', 'nats://h:1'], password: x, tls: {key_file: /k}}",
    )
    assert load(path).index == 2
    assert sorted(one.key_path for one in check(path)) == [
        "domain", "index", "nats.password", "nats.servers", "nats.tls.key_file", "network.dns_servers[0]",
    ]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_is_not_told(tmp_path: Path, text: str) -> None:
    """The neighbours of what is wrong."""
    assert told(tmp_path, text) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", True), ("a" * 63, True), ("a" * 64, False), ("-a", False), ("a..b", False), ("a_b", False),
     ("a.", False), (".".join(["a" * 49] * 5), True), (".".join(["a" * 50] * 5), False), ("a b", False)],
)  # fmt: skip
def test_which_names_are_domains(name: str, expected: bool) -> None:
    """RFC 1123: labels of at most 63, and 253 in all."""
    assert is_domain(name) is expected


SECRET = "hunter2"
#: Each has the secret where something else belongs, or in something that is wrong.
LEAKS = (
    f"nats: {{password: [{SECRET}]}}",
    f"nats: {{password: {{a: {SECRET}}}}}",
    "nats: {password: 7777777}",
    f"nats: [{{password: {SECRET}}}]",
    f"nats: nats://u:{SECRET}@h",
    f"nats: {SECRET}",
    f"nats: {{servers: 'nats://u:{SECRET}@h'}}",
    f"nats: {{servers: {{a: {SECRET}}}}}",
    f"nats: {{servers: ['http://u:{SECRET}@h']}}",
    f"nats: {{servers: ['u:{SECRET}@h:99999']}}",
    f"nats: {{servers: ['nats://u:{SECRET}@h:1', 'nats://u:{SECRET}@h:1']}}",
    f"nats: {{servers: [[{SECRET}]]}}",
    f"nats: {{credentials_file: [{SECRET}]}}",
    f"nats: {{nkey_seed_file: {{a: {SECRET}}}}}",
    f"nats: {{user: u, password: *{SECRET}}}",
    f"nats: {{user: u, password: !{SECRET} x}}",
    f"nats: {{user: u, password: !!{SECRET} x}}",
    f"nats: {{user: u, password: %{SECRET}}}",
    f"nats: {{user: u, password: '{SECRET}}}",
    f"nats: {{user: u, password: @{SECRET}}}",
    f"nats:\n  user: u\n  password: {SECRET}: x",
    f"nats: {{passwrod: {SECRET}}}",
    f"domain: https://u:{SECRET}@h",
    f"index: u:{SECRET}@h",
    f"post_setup_hook: [export TOKEN={SECRET}]",
    f"cc_url: https://u:{SECRET}@h",
)


@pytest.mark.parametrize("text", LEAKS)
def test_no_message_has_a_secret(tmp_path: Path, text: str) -> None:
    """A wrong type is told by its kind alone, a URL without its user part, a mistake of YAML without its text."""
    found = read(written(tmp_path, text))
    said = repr((found.errors, found.doubts, found.notes))
    assert found.errors or found.doubts or found.notes
    assert SECRET not in said
    assert "7777777" not in said


# -- what this host has not --------------------------------------------------------------------------------------------


def lacks(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    path = tmp_path / "config.yml"
    path.write_text(text if text.startswith("base_dir") else f"base_dir: {tmp_path}/base\n{text}\n")
    assert check(path) == (), "the file itself is right"
    return [(one.key_path, one.message) for one in read(path, on_this_host=True).doubts]


def made(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_stack_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nor one whose directory is empty, a file, or whose tree is missing below its manifest."""
    (tmp_path / "empty").mkdir()
    made(tmp_path / "file")
    made(tmp_path / "torn/manifest.json")
    made(tmp_path / "plain/bin/sh")
    made(tmp_path / "ours/manifest.json")
    made(tmp_path / "ours/rootfs/bin/sh")
    names = ("gone", "empty", "file", "torn", "plain", "ours")
    stacks = ", ".join(f"{{name: {name}, package_path: {tmp_path / name}}}" for name in names)
    found = lacks(tmp_path, f"stacks: [{stacks}]")
    assert [key for key, _ in found] == [f"stacks[{number}].package_path" for number in range(4)]
    assert [f"{tmp_path / name}" in message for (_, message), name in zip(found, names, strict=False)] == [
        True
    ] * 4


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=test", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


def test_files_of_the_bus_are_tried(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Missing, unreadable as what they should be, or not of one another."""
    key, cert = certificate
    seed = nkeys.encode_seed(b"\x01" * 32, nkeys.PREFIX_BYTE_USER)
    good_seed, bad = made(tmp_path / "seed", seed.decode() + "\n"), made(tmp_path / "bad", "nothing\n")
    assert lacks(tmp_path, f"nats: {{nkey_seed_file: {good_seed}}}") == []
    assert lacks(tmp_path, f"nats: {{tls: {{ca_file: {cert}, cert_file: {cert}, key_file: {key}}}}}") == []
    for text, keys in (
        (f"nats: {{tls: {{ca_file: {tmp_path}/none}}}}", ["nats.tls.ca_file"]),
        (f"nats: {{tls: {{ca_file: {bad}}}}}", ["nats.tls.ca_file"]),
        (f"nats: {{tls: {{ca_file: {tmp_path}}}}}", ["nats.tls.ca_file"]),
        (f"nats: {{tls: {{cert_file: {tmp_path}/none, key_file: {key}}}}}", ["nats.tls.cert_file"]),
        (f"nats: {{tls: {{cert_file: {cert}}}}}", ["nats.tls.cert_file"]),
        (f"nats: {{tls: {{cert_file: {cert}, key_file: {bad}}}}}", ["nats.tls.cert_file"]),
        (f"nats: {{tls: {{cert_file: {cert}, key_file: {tmp_path}/none}}}}", ["nats.tls.key_file", "nats.tls.cert_file"]),
        (f"nats: {{credentials_file: {tmp_path}/none}}", ["nats.credentials_file"]),
        (f"nats: {{credentials_file: {bad}}}", ["nats.credentials_file"]),
        (f"nats: {{nkey_seed_file: {tmp_path}/none}}", ["nats.nkey_seed_file"]),
        (f"nats: {{nkey_seed_file: {bad}}}", ["nats.nkey_seed_file"]),
    ):  # fmt: skip
        found = lacks(tmp_path, text)
        assert sorted(where for where, _ in found) == sorted(keys), (text, found)
        assert all(str(tmp_path) in message or "belongs to it" in message for _, message in found), found
        assert "nothing" not in repr(found), "what stands in a file of keys is not told"


def test_other_places_that_are_not_there_are_told(tmp_path: Path) -> None:
    """Directories for binds and the log, interfaces, and a base that cannot become a directory."""
    file = made(tmp_path / "file")
    assert lacks(tmp_path, f"bind_mounts: [{{src_path: {tmp_path}/none}}, {{src_path: {file}}}]") == [
        ("bind_mounts[0].src_path", f"there is no {tmp_path}/none")
    ]
    assert lacks(tmp_path, f"logging: {{file: {tmp_path}/none/log}}")[0][0] == "logging.file"
    assert lacks(tmp_path, f"logging: {{file: {tmp_path}}}")[0][0] == "logging.file"
    assert lacks(tmp_path, f"logging: {{file: {tmp_path}/log}}") == []
    assert lacks(tmp_path, "network: {uplinks: [nosuchlink0]}")[0][0] == "network.uplinks[0]"
    assert lacks(tmp_path, f"base_dir: {file}/base\n") == [("base_dir", f"{file} is not a directory")]
    assert lacks(tmp_path, f"base_dir: {file}\n") == [("base_dir", f"{file} is not a directory")]
    assert lacks(tmp_path, f"base_dir: {tmp_path}/not/yet\n") == []


# -- the original's settings -------------------------------------------------------------------------------------------


def nested(key_path: str, value: str = "{}") -> str:
    for name in reversed(key_path.split(".")):
        value = f"{{{name}: {value}}}" if name != key_path.split(".")[0] else f"{name}: {value}"
    return value


@pytest.mark.parametrize("key", NO_EFFECT)
def test_a_setting_of_the_dea_without_effect_is_told_and_is_no_mistake(tmp_path: Path, key: str) -> None:
    """With the reason; the rest of the file holds."""
    path = written(tmp_path, f"{nested(key)}\nindex: 7")
    found = read(path)
    assert found.errors == ()
    assert [(one.key_path, one.line) for one in found.notes] == [(key, 2)]
    assert NO_EFFECT[key] in found.notes[0].message
    assert load(path).index == 7


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_setting_of_the_dea_with_another_name_here_is_refused_with_that(tmp_path: Path, key: str) -> None:
    """It would be missed: the agent would look for its bus on this host."""
    assert told(tmp_path, f"{key}: x") == [(key, f"a setting of the DEA; use {ELSEWHERE[key]}")]


def test_no_setting_is_both_known_and_without_effect() -> None:
    """A table that forgets to lose a row would hide a setting."""
    assert not {*NO_EFFECT, *ELSEWHERE} & {*Settings.__struct_fields__}


def test_the_sample_of_the_dea_is_read(tmp_path: Path) -> None:
    """Every key of config/dea.yml but the bus's: told or taken over, none unknown."""
    sample = """
        domain: vcap.me
        nats: {servers: ['nats://localhost:4222/']}
        resources: {memory_mb: 2048, memory_overcommit_factor: 2, disk_mb: 2048, disk_overcommit_factor: 2}
        pid_filename: /tmp/dea_ng/dea_ng.pid
        warden_socket: /tmp/warden.sock
        evacuation_bail_out_time_in_seconds: 900
        default_health_check_timeout: 60
        index: 0
        intervals: {heartbeat: 10, advertise: 5}
        staging:
          {enabled: true, memory_limit_mb: 1024, disk_limit_mb: 2048, disk_inode_limit: 200000, cpu_limit_shares: 512,
           max_staging_duration: 900, environment: {PATH: /usr/bin}}
        instance:
          {disk_inode_limit: 200000, memory_to_cpu_share_ratio: 8, max_cpu_share_limit: 256, min_cpu_share_limit: 1,
           nproc_limit: 1024}
        dea_ruby: /usr/bin/ruby
        placement_properties: {zone: CRAZY_TOWN}
        stacks: [{name: lucid64, package_path: /tmp/rootfs}]
        hooks: {before_start: /a, after_start: /b, before_stop: /c, after_stop: /d}
        crash_block_usage_ratio_threshold: 0.8
        crash_inode_usage_ratio_threshold: 0.8
        cc_url: https://u:p@api.vcap.me
        status: {user: u, password: p, port: 80}
        directory_server: {protocol: http, v2_port: 1234, file_api_port: 1235}
        hm9000: {listener_uri: 'https://h', key_file: /k, cert_file: /c, ca_file: /a}
    """.replace("\n        ", "\n")
    found = read(written(tmp_path, sample))
    assert found.errors == ()
    assert len(found.notes) == 11
