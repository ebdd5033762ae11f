"""config.yml: good ones load, wrong ones are refused with key path and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import ConfigErrors, Settings, check, load

pytestmark = pytest.mark.unit
SHIPPED = Path(__file__).resolve().parents[2] / "config.yml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_the_default() -> None:
    """What stands in the file is what holds without it."""
    loaded = load(SHIPPED)
    assert loaded == Settings(base_dir=Path("/var/lib/garrison"))


def test_sections_are_merged_key_by_key(tmp_path: Path) -> None:
    """Giving one key of a section does not lose the others (a trap of the original)."""
    loaded = load(written(tmp_path, "base_dir: /b\nstaging: {memory_limit_mb: 64}\n"))
    assert loaded.staging.memory_limit_mb == 64
    assert loaded.staging.cpu_limit_shares == 512


@pytest.mark.parametrize(
    ("text", "key", "line", "words"),
    [
        (
            "base_dir: /b\nresources:\n  memory_mbb: 1\n",
            "resources.memory_mbb",
            3,
            "did you mean resources.memory_mb?",
        ),
        (
            "base_dir: /b\nintervals:\n  heartbeat: 10s\n",
            "intervals.heartbeat",
            3,
            "expected float, got '10s'",
        ),
        ("base_dir: /b\nintervals: {heartbeat: 0}\n", "intervals.heartbeat", 2, "> 0"),
        ("base_dir: b\n", "base_dir", 1, "absolute"),
        ("index: 0\n", "", 0, "base_dir"),
        ("base_dir: /b\nnetwork: {pool_network: 10.0.0.1/16}\n", "network.pool_network", 2, "IPv4"),
        (
            "base_dir: /b\nnetwork:\n  dns_servers:\n  - 9.9.9.9\n  - 8.8.8.0/24\n",
            "network.dns_servers[1]",
            5,
            "'8.8.8.0/24'",
        ),
        (
            "base_dir: /b\nnetwork: {allow_networks: [10.1.2.3/8]}\n",
            "network.allow_networks[0]",
            2,
            "host bits",
        ),
        (
            "base_dir: /b\nstacks:\n- {name: a, package_path: /a}\n- {name: a, package_path: /b}\n",
            "stacks",
            2,
            "twice",
        ),
        ("base_dir: /b\nbind_mounts:\n- {src_path: /a, mode: rx}\n", "bind_mounts[0].mode", 3, "rx"),
        ("base_dir: [\n", "", 2, "YAML"),
        ("- 1\n", "", 0, "mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str, line: int, words: str) -> None:
    """Key path, line, and what was expected."""
    path = written(tmp_path, text)
    errors = check(path)
    assert [(one.key_path, one.line) for one in errors] == [(key, line)]
    assert words in errors[0].message
    with pytest.raises(ConfigErrors):
        load(path)


def test_everything_unknown_is_told_at_once(tmp_path: Path) -> None:
    """An operator mends a file once, not key by key."""
    errors = check(written(tmp_path, "base_dir: /b\nxx: 1\nnats: {serverz: []}\n"))
    assert [one.key_path for one in errors] == ["xx", "nats.serverz"]


def test_every_wrong_value_is_told_at_once(tmp_path: Path) -> None:
    """Also beside unknown keys, and in the order of the file."""
    text = (
        "base_dir: /b\nintervals:\n  heartbeat: 10s\n  stats: -1\nresources: {memory_mbb: 1, memory_mb: x}\n"
    )
    errors = check(written(tmp_path, text))
    assert [(one.key_path, one.line) for one in errors] == [
        ("intervals.heartbeat", 3),
        ("intervals.stats", 4),
        ("resources.memory_mbb", 5),
        ("resources.memory_mb", 5),
    ]
