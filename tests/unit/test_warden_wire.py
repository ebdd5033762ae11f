"""The pure parts of Warden's protocol: frames, messages, numbers, the configuration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.spec import Protocol
from container.warden import codec, limits, netout, syslog
from container.warden import messages as m
from container.warden.config import NetworkKeys, WardenConfigError, log_level, parse, pool_network
from container.warden.errors import WardenError, bytes_of, text_of
from container.warden.frames import BadFrame, FrameReader, pack_frame
from container.warden.jobs import Account, account

pytestmark = pytest.mark.unit


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 40))
def test_frames_arrive_in_any_pieces(messages: list[bytes], size: int) -> None:
    """What is packed comes out, in order, and nothing is left."""
    data = b"".join(map(pack_frame, messages))
    reader, found = FrameReader(), list[bytes]()
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
        while (message := reader.next()) is not None:
            found.append(message)
    assert found == messages


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"+1\r\n",
        b"-1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"\r\n",
        b"67108865\r\n",
        b"123456789",
        b"3\r\nabcde",
        b"\xb2\r\n",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """As soon as it is known; a peer cannot make the reader wait for what never ends."""
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(BadFrame, match="expected "):
        reader.next()


@pytest.mark.parametrize("data", [b"", b"1", b"12345678", b"12345678\r", b"67108864\r\nabc"])
def test_what_may_become_a_frame_is_waited_for(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    assert reader.next() is None


def test_every_message_comes_back_as_it_was() -> None:
    """With all its fields; texts are bytes."""
    for request, response in m.CLASSES.values():
        for cls in filter(None, (request, response)):
            value = example(cls)
            assert codec.decode(cls, codec.encode(value)) == value, cls


def example(cls: type) -> Any:
    """A message with a value in each field."""
    found = {}
    for name, (one, shape) in codec._CODECS[cls].fields.items():
        value: Any
        if shape.cls is not None:
            value = example(shape.cls) if shape.is_message else next(iter(shape.cls))
        else:
            value = {12: b"\xff\x00" + name.encode(), 8: True}.get(shape.kind, shape.number + 1)
        found[one.name] = (value, value) if shape.repeated else value
    return cls(**found)


@given(st.binary(max_size=200), st.sampled_from([m.Message, m.CreateRequest, m.RunRequest, m.NetOutRequest]))
def test_any_bytes_are_a_message_or_an_error(data: bytes, cls: type) -> None:
    """Never another exception."""
    try:
        codec.decode(cls, data)
    except codec.BadMessage:
        return


def test_a_missing_field_is_named() -> None:
    with pytest.raises(
        codec.BadMessage, match=r"^CopyInRequest: required field src_path, dst_path is missing$"
    ):
        codec.decode(m.CopyInRequest, b"\x0a\x01h")


@given(st.binary(max_size=50))
def test_texts_are_bytes_there_and_back(data: bytes) -> None:
    assert bytes_of(text_of(data)) == data


def test_limits_of_a_job_come_from_three_places() -> None:
    """The request is the strongest; the largest number means none."""
    asked = m.ResourceLimits(as_=2**64 - 1, nofile=10)
    found = limits.job_rlimits({"nofile": 20, "nproc": 30}, asked)
    assert (found["nofile"], found["nproc"], found["core"], found["as"]) == (10, 30, 0, -1)
    assert len(found) == 15
    assert limits.job_rlimits({}, None)["nofile"] == 1024
    assert limits.DEFAULT_RLIMITS["nofile"] == 1024


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"byte_limit": 1}, 1024),
        ({"byte_limit": 5000, "byte": 1025}, 2048),
        ({"byte": 1, "byte_hard": 4096}, 4096),
        ({"byte_hard": 1 << 30, "block_limit": 3}, 3072),
        ({"block_limit": 3, "block": 4}, 4096),
        ({"block": 4, "block_hard": 5}, 5120),
        ({"byte_soft": 7, "block_soft": 7}, None),
    ],
)
def test_of_the_names_of_a_disk_limit_the_strongest_counts(
    fields: dict[str, int], wanted: int | None
) -> None:
    assert limits.wanted_disk_bytes(m.DiskLimits(**fields)) == wanted


def test_memory_lines_of_both_kinds_of_cgroup() -> None:
    v1 = limits.memory_stat({"rss": 5, "total_rss": 7, "shmem": 9, "hierarchical_memory_limit": 11}, None)
    assert (v1.rss, v1.total_rss, v1.hierarchical_memory_limit) == (5, 7, 11)
    v2 = limits.memory_stat({"anon": 5, "file": 6, "pgfault": 7, "slab": 8}, 4096)
    assert (v2.rss, v2.total_rss, v2.cache, v2.pgfault, v2.total_pgfault) == (5, 5, 6, 7, 7)
    assert (v2.hierarchical_memory_limit, v2.hierarchical_memsw_limit) == (4096, 4096)


def test_a_permission_is_tcp_unless_it_says_otherwise() -> None:
    rule = netout.egress_rule(m.NetOutRequest(b"h", network=b"192.0.2.0/24", port_range=b"1:2", port=9))
    assert (rule.protocol, rule.networks) == (Protocol.TCP, ("192.0.2.0/24",))
    assert [(one.first, one.last) for one in rule.ports] == [(1, 2)]
    icmp = netout.egress_rule(
        m.NetOutRequest(b"h", network=b"192.0.2.1", protocol=m.NetProtocol.ICMP, icmp_type=-1, icmp_code=3)
    )
    assert (icmp.icmp_type, icmp.icmp_code) == (None, None)
    with pytest.raises(WardenError, match="ports: expected 1 <= first"):
        netout.egress_rule(m.NetOutRequest(b"h", port_range=b"0:99999"))


def test_a_user_of_the_container() -> None:
    """Lines that are none are passed over."""
    passwd = b"broken\nvcap:x:x:1::/a:/b\n\xff\nvcap:x:2000:2001:,:/home/vcap:/bin/sh\nvcap:x:1:1::/:/"
    assert account(passwd, "vcap") == Account("vcap", 2000, "/home/vcap")
    with pytest.raises(WardenError, match="no user nobody"):
        account(passwd, "nobody")


def test_lines_for_syslog() -> None:
    """A tag cannot end its word or begin a line; a long line is cut."""
    lines = syslog.Lines()
    assert lines.feed(b"a\n\nb") == [b"a"]
    assert lines.feed(b"c\n") == [b"bc"]
    assert list(map(len, lines.feed(b"x" * 20000))) == [8192, 8192]
    assert list(map(len, lines.end())) == [20000 - 2 * 8192]
    assert lines.end() == []
    assert syslog.tag_of(b"a b\n[c]:\xff") == b"warden.a_b__c__\xff"


# ---- the configuration -------------------------------------------------------------------------------------------------

LEAST = "server:\n  container_rootfs_path: /r\n  container_depot_path: /d\n"


def test_the_least_configuration_has_wardens_defaults() -> None:
    config, unknown = parse(LEAST.encode(), "f")
    assert (config.server.unix_domain_path, config.server.container_grace_time) == ("/tmp/warden.sock", 300)
    assert (config.server.job_output_limit, config.health_check_server.port) == (10 << 20, 2345)
    assert (pool_network(config.network), log_level(config.logging)) == ("10.254.0.0/24", "info")
    assert unknown == ()


def test_wardens_own_example_is_read() -> None:
    """Keys without a meaning are reported; null is no grace time."""
    text = LEAST + (
        "  container_klass: Warden::Container::Linux\n  container_grace_time: null\n  unix_domain_permissions: 0777\n"
        "  container_rlimits: {nofile: 8192, nproc: 512, as: 4294967296}\n  quota: {disk_quota_enabled: false}\n"
        "  made_up: 1\nlogging: {level: debug2, file: /tmp/w.log}\nnetwork: {pool_start_address: 10.254.0.0, pool_size: 200}\n"
        "user: {pool_start_uid: 10000, pool_size: 256}\nother: {}\n"
    )
    config, unknown = parse(text.encode(), "f")
    assert config.server.container_grace_time is None
    assert config.server.unix_domain_permissions == 0o777
    assert (log_level(config.logging), pool_network(config.network)) == ("debug", "10.254.0.0/22")
    assert unknown == ("server.made_up", "other")


@pytest.mark.parametrize(("size", "prefix"), [(1, 30), (2, 29), (64, 24), (65, 23), (256, 22)])
def test_an_older_pool_is_rounded_up(size: int, prefix: int) -> None:
    assert pool_network(NetworkKeys(pool_start_address="10.0.0.0", pool_size=size)) == f"10.0.0.0/{prefix}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expected `object`"),
        ("server: {}", "container_rootfs_path"),
        ("server: [", "f: "),
        (
            LEAST + "  container_klass: Warden::Container::Insecure\n",
            "container_klass: expected Warden::Container::Linux",
        ),
        (LEAST + "  allow_nested_warden: true\n", "allow_nested_warden"),
        (LEAST + "  container_rlimits: {nofiles: 1}\n", "container_rlimits: no such limit: nofiles"),
        (LEAST + "logging: {syslog: vcap.warden}\n", "logging.syslog"),
        (LEAST + "logging: {level: loud}\n", "logging.level: expected one of"),
        (LEAST + "network: {deny_networks: [10.0.0.0/8]}\n", "network.deny_networks"),
        (LEAST + "  job_output_limit: much\n", "job_output_limit"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(WardenConfigError, match=why):
        parse(text.encode(), "f")
