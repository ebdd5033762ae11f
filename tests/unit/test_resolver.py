"""What containers get as their resolv.conf."""

from __future__ import annotations

import pytest

from container.resolver import MAX_WORDS, Resolver, parse, resolver_for

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("configured", "host", "upstreams", "expected"),
    [
        (("9.9.9.9",), "nameserver 8.8.8.8\n", "", (("9.9.9.9",), ())),
        ((), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "", (("8.8.8.8", "8.8.4.4"), ())),
        ((), "nameserver 127.0.0.53\n", "nameserver 10.0.0.2\n", (("10.0.0.2",), ("127.0.0.53",))),
        ((), "nameserver ::1\nnameserver 10.0.0.3\n", "", (("10.0.0.3",), ("::1",))),
        ((), "# nameserver 1.2.3.4\nsearch x\n", "", ((), ())),
        ((), "nameserver fe80::1%eth0\nnameserver nonsense\n", "", ((), ("fe80::1%eth0", "nonsense"))),
        ((), "nameserver 9.9.9.9 # ours\n\tnameserver\t1.1.1.1\n", "", (("9.9.9.9", "1.1.1.1"), ())),
    ],
)
def test_servers(
    configured: tuple[str, ...], host: str, upstreams: str, expected: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """Configured ones win; those that a container cannot reach are left out and said."""
    found, left_out = resolver_for(host, upstreams, servers=configured)
    assert (found.servers, left_out) == expected


HOST = "nameserver 10.0.0.1\nsearch corp.example example\noptions ndots:2 timeout:1\n"
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"

#: The host's file, systemd-resolved's, what is configured; then the search list and the options of a container.
LISTS: dict[str, tuple[str, str, dict[str, tuple[str, ...]], tuple[str, ...], tuple[str, ...]]] = {
    "the host's": (HOST, "", {}, ("corp.example", "example"), ("ndots:2", "timeout:1")),
    "none": ("nameserver 10.0.0.1\n", "", {}, (), ()),
    "a domain": ("nameserver 10.0.0.1\ndomain corp.example\n", "", {}, ("corp.example",), ()),
    "the last of both": ("search a b\ndomain c\n", "", {}, ("c",), ()),
    "the last of both, turned": ("domain c\nsearch a b\n", "", {}, ("a", "b"), ()),
    "options that add up": ("options rotate\noptions ndots:3 rotate\n", "", {}, (), ("rotate", "ndots:3")),
    "with servers configured": (HOST, "", {"servers": ("9.9.9.9",)}, ("corp.example", "example"), ("ndots:2", "timeout:1")),
    "of the list that is used": (STUB, "nameserver 10.0.0.2\nsearch corp\n", {}, ("corp",), ()),
    "of the host where the list has none": (STUB, "nameserver 10.0.0.2\n", {}, ("lan",), ()),
    "configured": (HOST, "", {"search": ("a",), "options": ("use-vc",)}, ("a",), ("use-vc",)),
    "configured away": (HOST, "", {"search": (), "options": ()}, (), ()),
    "a remark behind": ("search a # b\noptions rotate ; edns0\n", "", {}, ("a",), ("rotate",)),
    "nothing behind": ("search a\nsearch\ndomain\n", "", {}, ("a",), ()),
    "control characters": ("search a\x1b[2J b\n", "", {}, ("b",), ()),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_search_list_and_options(case: str) -> None:
    """As resolv.conf(5) has them; what is configured wins, also when it is nothing."""
    host, upstreams, configured, search, options = LISTS[case]
    found, _ = resolver_for(host, upstreams, **configured)
    assert (found.search, found.options) == (search, options)


def test_the_file() -> None:
    """Servers first; a list that is empty has no line."""
    assert Resolver(("9.9.9.9", "1.1.1.1"), ("a", "b"), ("ndots:2",)).text == (
        "nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch a b\noptions ndots:2\n"
    )
    assert Resolver().text == ""
    assert parse(Resolver(("9.9.9.9",), ("a",), ("b",)).text) == Resolver(("9.9.9.9",), ("a",), ("b",))


def test_a_list_is_bounded() -> None:
    """It becomes part of every container's plan."""
    words = " ".join(f"w{number}" for number in range(1000))
    found = parse(f"search {words}\n" + f"options {words}\n" * 2)
    assert (len(found.search), len(found.options)) == (MAX_WORDS, MAX_WORDS)


def test_the_bound_of_a_list_and_that_of_words() -> None:
    """Pinned as a number: glibc takes 6 to 32 by version. `domain` names one domain, whatever stands behind it."""
    assert MAX_WORDS == 32
    found = parse("nameserver 10.0.0.1 10.0.0.2\ndomain a.example b.example\n")
    assert (found.servers, found.search) == (("10.0.0.1",), ("a.example",))
