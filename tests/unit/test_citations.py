"""The check of cited documents, which `make lint` runs over the repository."""

from __future__ import annotations

from pathlib import Path

import citations
import pytest

pytestmark = pytest.mark.unit

DOCS = {path.resolve() for path in (citations.ROOT / "docs").glob("*.md")}
HERE = citations.ROOT / "agent" / "example.py"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# see docs/bus.md", None),
        ('# see docs/bus.md, "Barrier"', None),
        ('"""As (docs/protocol.md, "Find\n    request")."""', None),
        ("# see bus.md", None),
        ("# see dea-bus.md 1.5", "dea-bus.md is not in the repository"),
        ("# (house.md, isolation)", "house.md is not in the repository"),
        ("# see design/bus.md", "design/bus.md is not in the repository"),
        ('# see docs/bus.md, "Barriers"', 'docs/bus.md has no heading "Barriers"'),
        ("# a /30 (Warden B.5)", "Warden B.5: expected a document of the repository"),
        ("shutil.copy(path, '*.md')", None),
    ],
)
def test_a_citation_resolves_or_is_named(text: str, what: str | None) -> None:
    """A file of the repository, and a heading of that file."""
    found = list(citations.wrong(HERE, text, DOCS))
    assert found == ([] if what is None else [f"agent/example.py:1: {what}"])


def test_links_of_documents_are_followed() -> None:
    """Also those within one, by their anchors."""
    page = citations.ROOT / "docs" / "bus.md"
    text = "[a](protocol.md) [b](protocol.md#find-request) [c](protocol.md#nowhere) [d](absent/page) [e](https://x/y.md)"
    found = list(citations.wrong(page, text, DOCS))
    assert found == [
        "docs/bus.md:1: link to protocol.md#nowhere, which does not exist",
        "docs/bus.md:1: link to absent/page, which does not exist",
    ]


def test_headings_are_read_without_their_marks(tmp_path: Path) -> None:
    """Code marks are no part of what is cited."""
    page = tmp_path / "page.md"
    page.write_text("# A `page`\n\n## 2. The socket\n\ntext # not one\n")
    assert citations.headings(page) == ["A page", "2. The socket"]
