"""YAML of strangers: plain data or one error, quickly, whatever the text."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agent.plain_yaml import LIMIT_BYTES, LIMIT_NODES, YamlError, load, load_aside, load_map

pytestmark = pytest.mark.unit


class Info(msgspec.Struct, frozen=True):
    start_command: str | None = None


def nested(item: bytes) -> bytes:
    """Eleven anchors, each ten times the one before."""
    return b"a0: &a0 {x: 1}\n" + b"".join(
        b"a%d: &a%d %s\n" % (n, n, item.replace(b"@", b",".join([b"*a%d" % (n - 1)] * 10)))
        for n in range(1, 12)
    )


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (b"", None),
        (b"--- {}\n", None),
        (b"start_command: ~\n", None),
        (b"start_command: ./run\nother: [1, 2]\n", "./run"),
        (
            b"start_command: &c ./run\neffective_procfile: {web: *c}\n",
            "./run",
        ),  # as Ruby writes one text said twice
        (nested(b"[@]") + b"start_command: ./run\n", "./run"),  # shared, not multiplied
        (b"&all {start_command: ./run, all: *all}\n", "./run"),
    ],
)
def test_what_is_plain_data_is_taken(text: bytes, command: str | None) -> None:
    """Unknown keys and aliases included."""
    assert load(text, Info) == Info(command)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (nested(b"{<<: [@]}"), "line 2: merge keys are not supported"),
        (b"!!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        (b"start_command: !!python/name:os.system\n", "could not determine a constructor"),
        (b"[" * 60_000, "nesting depth"),
        (b"{a: " * 10_000, "nesting depth"),
        (b"a: 2001-13-01\n", "ValueError"),
        (b"a: " + b"9" * 5000, "ValueError"),
        (b"a: 0b_\n", "ValueError"),
        (b"? [a]\n: b\n", "unhashable key"),
        (b"[1]\n", "Expected `object`, got `array`"),
        (b"start_command: 12\n", "Expected `str | null`, got `int`"),
        (b"a\0b", "invalid YAML"),
        (b"\xff\xfe\xff", "invalid YAML"),
        (b"{{{", "did not find expected node"),
    ],
)
def test_anything_else_is_one_kind_of_error(text: bytes, why: str) -> None:
    """It names the place and the reason, and repeats nothing of the text."""
    with pytest.raises(YamlError) as refused:
        load(text, Info)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 150


def test_a_document_is_64_kib_at_most() -> None:
    """A parser that is asked for 9 MB takes half a minute; the length is looked at first."""
    line = b"start_command: ./run\n"
    assert load(line + b"#" * (LIMIT_BYTES - len(line)), Info) == Info("./run")
    with pytest.raises(YamlError, match="more than 65536 bytes"):
        load(line + b"#" * (LIMIT_BYTES + 1 - len(line)), Info)


def test_a_document_has_4096_values_at_most() -> None:
    """As many small ones as fit into the bytes hold up a whole process, threads or not."""
    assert len(load(b"- a\n" * (LIMIT_NODES - 1), list[str])) == LIMIT_NODES - 1
    with pytest.raises(YamlError, match="more than 4096 values"):
        load(b"- a\n" * LIMIT_NODES, list[str])


async def test_the_loop_turns_while_a_document_is_read() -> None:
    """The longest document that is taken needs some tens of milliseconds."""
    turns = 0
    reading = asyncio.ensure_future(load_aside(b"- a: b\n" * 1300, list[dict[str, str]]))
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(await reading) == 1300
    assert turns > 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", {}),
        (b"---\n", {}),
        (b"''\n", {}),
        (b"web: ~\nworker: null\nclock:\n", {"web": "", "worker": "", "clock": ""}),
        (b"web: yes\nport: 0x1f\nday: 2001-01-01\n", {"web": "yes", "port": "0x1f", "day": "2001-01-01"}),
        (b"web: a\nweb: b\n", {"web": "b"}),
    ],
)
def test_a_map_of_words(text: bytes, found: dict[str, str]) -> None:
    """Nothing is turned into a number or a date; an empty document is an empty map."""
    assert load_map(text) == found


@pytest.mark.parametrize(("text", "what"), [(b"[web]\n", "a list"), (b"web\n", "a text")])
def test_what_is_no_map_is_refused(text: bytes, what: str) -> None:
    """A Procfile that is none says so, instead of having no processes."""
    with pytest.raises(YamlError, match=f"expected a map, got {what}"):
        load_map(text)
