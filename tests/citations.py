"""Checks that every cited document exists, with its heading. `make lint` runs this.

A citation is a path that ends in `.md`, in any file of the repository. A heading in double quotes may follow it
(`docs/bus.md, "Barrier"`); the cited file must have that heading. The file is searched beside the citing one, at the root and
in docs/. A name without a directory may also be in another directory, if only one file has that name. In documents, links are
checked too, with their anchors.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CITATION = re.compile(
    r'(?<![\w*{])((?:\.{0,2}/)?[A-Za-z0-9_][\w./-]*\.md)\b(?:[,;]?\s+(?:[#*/]+\s*)?"([^"\n{]+)")?'
)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([\w-]+))?\)")
#: Citations of specifications that the repository does not contain, so that no reader could follow them.
OUTSIDE = re.compile(r"\b(?:Warden|DEA),? [A-G]\.\d")
#: Files that are not checked, since names of documents in them are data, such as a file of an app in a test.
DATA = {
    "tests/unit/test_buildpacks.py",
    "tests/e2e/test_push.py",
    "CHANGELOG.md",
    "tests/citations.py",
    "tests/unit/test_citations.py",
}
SUFFIXES = {".py", ".c", ".h", ".md", ".toml", ".yml", ".sh", ""}


def headings(path: Path) -> list[str]:
    """The headings of a document, without `#`, backticks and asterisks."""
    found = re.findall(r"^#+ +(.*?) *$", path.read_text(), re.MULTILINE)
    return [re.sub(r"[`*]", "", one) for one in found]


def anchor(heading: str) -> str:
    """The anchor that GitHub and other renderers make of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def find(name: str, beside: Path, files: set[Path]) -> Path | None:
    places = [beside.parent / name, ROOT / name, ROOT / "docs" / name]
    for place in places:
        if place.resolve() in files:
            return place.resolve()
    same = [path for path in files if path.name == name]
    return same[0] if len(same) == 1 and "/" not in name else None


def wrong(path: Path, text: str, files: set[Path]) -> Iterator[str]:
    place = path.relative_to(ROOT)
    text = re.sub(r"\bhttps?://[^\s)]+", lambda url: "-" * len(url[0]), text)
    for match in CITATION.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        target = find(match[1], path, files)
        if target is None:
            yield f"{place}:{line}: {match[1]} is not in the repository"
        elif match[2] is not None and " ".join(match[2].split()) not in headings(target):
            yield f'{place}:{line}: {match[1]} has no heading "{match[2]}"'
    for match in OUTSIDE.finditer(text):
        yield f"{place}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}: expected a document of the repository"
    if path.suffix == ".md":
        for match in LINK.finditer(text):
            if set(match[1]) == {"-"} or match[1].startswith("mailto:"):  # a URL, overwritten above
                continue
            line = text.count("\n", 0, match.start()) + 1
            linked = (path.parent / match[1]).resolve() if match[1] else path
            if not linked.exists():
                yield f"{place}:{line}: link to {match[1]}, which does not exist"
            elif match[2] and match[2] not in {anchor(one) for one in headings(linked)}:
                yield f"{place}:{line}: link to {match[1]}#{match[2]}, which does not exist"


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    files = {(ROOT / name).resolve() for name in names if name.endswith(".md")}
    found: list[str] = []
    for name in names:
        path = ROOT / name
        if name in DATA or name.startswith("tests/fixtures/") or path.suffix not in SUFFIXES:
            continue
        found += wrong(path, path.read_text(errors="replace"), files)
    print("\n".join(found) if found else f"citations: all of {len(names)} files resolve")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
