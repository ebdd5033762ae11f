"""What an app finds in its environment (docs/apps.md, "Variables"), and the limits made from a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.bus.messages import EgressMessage, Service, StartMessage, decode
from agent.config import InstanceSettings, ResourceSettings
from agent.inside.environment import (
    VARIABLE_BYTES,
    app_environment,
    database_url,
    expand,
    merge,
    staging_environment,
    user_variables,
    vcap_services,
)
from agent.inside.limits import cpu_shares, egress_rules, ipv6_left_out
from agent.resources import Capacity, Claim, Short, make_capacity
from container import PortRange, Protocol, SpecError

pytestmark = pytest.mark.unit
MESSAGE = decode(
    StartMessage, (Path(__file__).resolve().parents[1] / "fixtures" / "dea.start.json").read_bytes()
)


def environment() -> dict[str, str]:
    words = app_environment(
        MESSAGE,
        instance_id="i1",
        version="v1",
        started_at_s=1484142500.0,
        local_ip="10.0.0.1",
        host_port=61001,
        container_port=61001,
    )
    return dict(word.split("=", 1) for word in words)


def test_the_variables_of_an_instance() -> None:
    """Each name of the table, with its value."""
    found = environment()
    application = json.loads(found["VCAP_APPLICATION"])
    assert application["instance_index"] == 0
    assert application["started_at"] == "2017-01-11 13:48:20 +0000"
    assert application["space_name"], "what the controller said is kept"
    assert found["MEMORY_LIMIT"] == "512m"
    assert found["DATABASE_URL"].startswith("mysql2://")
    assert found["HOME"] == "/home/vcap/app"
    assert found["PORT"] == found["VCAP_APP_PORT"] == found["CF_INSTANCE_PORT"] == "61001"
    assert found["CF_INSTANCE_ADDR"] == "10.0.0.1:61001"
    assert json.loads(found["CF_INSTANCE_PORTS"]) == [{"external": 61001, "internal": 61001}]


def test_user_variables_are_data() -> None:
    """No shell looks at them: quotes and empty values come through; `$HOME` is the app's."""
    found = environment()
    assert found["GREETING"] == 'hello "world"'
    assert found["LOG_DIR"] == "/home/vcap/app/logs"
    assert found["EMPTY"] == ""


def expanded(*words: str) -> dict[str, str]:
    ours = {"HOME": "/h", "TMPDIR": "/t", "PORT": "8080", "VCAP_APP_PORT": "8080"}
    return dict(expand(user_variables(words), ours))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("$HOME/logs", "/h/logs"),
        ("${HOME}_x:$TMPDIR:$PORT:${VCAP_APP_PORT}", "/h_x:/t:8080:8080"),
        ("http://localhost:$PORT/", "http://localhost:8080/"),
        # whatever else holds a dollar stays whole: passwords, other names, what only a shell knows
        ("pa$$word", "pa$$word"),
        ("s3cr$t", "s3cr$t"),
        (
            "$HOMER $PORTS ${HOME ${HOME:-x} $(id) `id` $PATH $1 $? $",
            "$HOMER $PORTS ${HOME ${HOME:-x} $(id) `id` $PATH $1 $? $",
        ),
        ("$$HOME", "$/h"),
        ("\\$HOME", "\\/h"),
        ("$home $HOMÉ", "$home $HOMÉ"),
        ("$VCAP_SERVICES $USER $VCAP_APPLICATION", "$VCAP_SERVICES $USER $VCAP_APPLICATION"),
    ],
)
def test_four_names_are_expanded_in_a_users_value(value: str, wanted: str) -> None:
    """HOME, TMPDIR, PORT, VCAP_APP_PORT, with or without braces; nothing else is looked at."""
    assert expanded(f"A={value}") == {"A": wanted}


def test_earlier_variables_of_the_user_are_expanded() -> None:
    """Those before, not those behind, and what a value brings in is not looked at again."""
    assert expanded("A=1", "B=$A-${C}", "C=$B$C", "A=$A$A", "D=$A") == {
        "A": "11", "B": "1-${C}", "C": "1-${C}$C", "D": "11",
    }  # fmt: skip
    assert expanded("A=$PATH", "PATH=/x", "B=$A") == {"A": "$PATH", "PATH": "/x", "B": "$PATH"}
    assert expanded("HOME=/mine", "B=$HOME/x") == {"HOME": "/mine", "B": "/mine/x"}


def test_values_that_double_each_other_end() -> None:
    """Forty lines of `$A$A` would be a terabyte."""
    words = ["V0=x" * 8, *(f"V{number + 1}=$V{number}$V{number}" for number in range(40))]
    with pytest.raises(SpecError, match=rf"env\.V\d+: .* {VARIABLE_BYTES} bytes"):
        expanded(*words)


def test_what_would_bend_the_beginning_shell_is_left_out() -> None:
    """Options and functions of a shell by environment; the original's `export` refused them too."""
    assert expanded("SHELLOPTS=noexec", "BASHOPTS=extdebug", "BASH_FUNC_cd%%=() { :; }", "SHELLOPTS_=1") == {
        "SHELLOPTS_": "1"
    }


def test_the_later_of_two_names_wins() -> None:
    """User over system."""
    assert merge([("A", "1"), ("B", "2"), ("A", "3")]) == ("A=3", "B=2")


def test_services_keep_only_what_is_there() -> None:
    """Null and false values are left out, other keys dropped."""
    services = vcap_services(MESSAGE.services)
    assert set(services) == {"p-mysql", "user-provided"}
    assert set(services["p-mysql"][0]) == {"name", "label", "tags", "plan", "credentials"}


def test_database_url_is_empty_without_a_relational_service() -> None:
    """Services but none relational: the empty string; no services: no variable."""
    assert database_url([Service("n", "l", {"uri": "redis://x"})]) == ""
    assert database_url([]) is None


def test_a_staging_gets_its_time_as_the_text_of_a_float() -> None:
    """STAGING_TIMEOUT is "900.0"."""
    words = staging_environment(
        MESSAGE, environment=("A=b",), services=(), memory_mb=1024, timeout_s=900, tmpdir="/t"
    )
    assert "STAGING_TIMEOUT=900.0" in words
    assert "A=b" in words
    assert not any(word.startswith("CF_INSTANCE") for word in words)


@pytest.mark.parametrize(("memory_mb", "shares"), [(4, 1), (64, 8), (2048, 256), (99999, 256)])
def test_cpu_shares_follow_memory_within_limits(memory_mb: int, shares: int) -> None:
    """floor(memory / 8), clamped."""
    assert cpu_shares(memory_mb, InstanceSettings()) == shares


def test_egress_rules_keep_order_with_logged_ones_last() -> None:
    """Ports become ranges; type and code count for icmp only."""
    rules = egress_rules(
        [
            EgressMessage("tcp", "10.0.0.0/8", "80,1000-2000", log=True),
            EgressMessage("udp", "1.1.1.1", "53", type=3),
            EgressMessage("icmp", "0.0.0.0/0", type=8, code=0),
            EgressMessage("all", "9.9.9.9-9.9.9.12"),
        ]
    )
    assert [rule.protocol for rule in rules] == [Protocol.UDP, Protocol.ICMP, Protocol.ALL, Protocol.TCP]
    assert rules[-1].ports == (PortRange(80, 80), PortRange(1000, 2000))
    assert rules[0].icmp_type is None
    assert (rules[1].icmp_type, rules[1].icmp_code) == (8, 0)


@pytest.mark.parametrize(
    "rule",
    [EgressMessage("sctp", "1.1.1.1"), EgressMessage("tcp", "x"), EgressMessage("tcp", "1.1.1.1", "a-b")],
)
def test_a_rule_that_makes_no_sense_fails_the_start(rule: EgressMessage) -> None:
    """With the field's name, for the log."""
    with pytest.raises(SpecError):
        egress_rules([rule])


#: A rule, the networks that are left of it (None: no rule is), and what is said to be left out.
FAMILIES: dict[str, tuple[EgressMessage, tuple[str, ...] | None, tuple[str, ...]]] = {
    "an IPv6 address": (EgressMessage("tcp", "2001:db8::1", "80"), None, ("tcp 2001:db8::1",)),
    "everywhere in IPv6": (EgressMessage("all", "::/0"), None, ("all ::/0",)),
    "an IPv6 range": (EgressMessage("udp", "fd00::1-fd00::9"), None, ("udp fd00::1-fd00::9",)),
    "a link's": (EgressMessage("all", "fe80::1%eth0"), None, ("all fe80::1%eth0",)),
    "an IPv4 address in IPv6": (EgressMessage("all", "::ffff:10.0.0.1"), None, ("all ::ffff:10.0.0.1",)),
    "both": (EgressMessage("tcp", "10.0.0.0/8, ::/0,9.9.9.9"), ("10.0.0.0/8", "9.9.9.9"), ("tcp ::/0",)),
    "ICMP of IPv6": (EgressMessage("icmpv6", "::/0", type=128), None, ("icmpv6 ::/0",)),
    "ICMP of IPv6, anywhere": (EgressMessage("icmpv6"), None, ("icmpv6",)),
    "IPv4": (EgressMessage("tcp", "10.0.0.0/8"), ("10.0.0.0/8",), ()),
    "no destination": (EgressMessage("tcp"), (), ()),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_what_a_rule_says_of_ipv6_is_left_out_and_said(case: str) -> None:
    """And never widens the rule: one of which nothing is left is not one for everywhere."""
    message, networks, left_out = FAMILIES[case]
    others = EgressMessage("udp", "1.1.1.1", "53")
    found = egress_rules([message, others])
    assert [rule.networks for rule in found] == [*([networks] if networks is not None else []), ("1.1.1.1",)]
    assert ipv6_left_out([message, others]) == left_out


@pytest.mark.parametrize("destination", ["::/129", "10.0.0.1-::1", "1:2", "10.0.0.0/8;::/0", "fe80::1%"])
def test_a_destination_of_no_family_is_named(destination: str) -> None:
    """It is a mistake of whoever wrote the rule, so the start fails and says where."""
    with pytest.raises(SpecError, match=r"egress_network_rules\.destination: expected"):
        egress_rules([EgressMessage("tcp", destination)])


def test_what_fits_exactly_fits_and_disk_is_named_first() -> None:
    """What is left equals what is asked for: it fits."""
    left = Capacity(100, 100)
    assert left.lacks(Claim(100, 100)) is None
    assert left.lacks(Claim(101, 101)) is Short.DISK
    assert left.lacks(Claim(101, 100)) is Short.MEMORY
    assert left.left([Claim(150, 0)]).memory_mb == -50, "never clamped"


def test_capacity_follows_the_host_unless_configured() -> None:
    """Never the 16 TiB of the original."""
    assert make_capacity(ResourceSettings(), 10_000, 50_000) == Capacity(9000, 48_976)
    configured = ResourceSettings(memory_mb=2048, memory_overcommit_factor=2, disk_mb=100)
    assert make_capacity(configured, 1, 1) == Capacity(4096, 100)
