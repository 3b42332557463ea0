"""The pages of the documentation: links, what is reachable, and words that people look for."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ENTRANCES = [README, DOCS / "index.md"]
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [
    *PAGES,
    *sorted(ROOT.glob("*.md")),
    *sorted(p for name in ("benchmarks", "examples") for p in (ROOT / name).glob("*.md")),
]

_FENCE = re.compile(r"^```.*?^```\n?", re.MULTILINE | re.DOTALL)
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", text)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of each relative link of a page."""
    for link in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page.read_text()))):
        if "://" not in link and not link.startswith("mailto:"):
            file, _, anchor = link.partition("#")
            yield ((page.parent / file).resolve() if file else page), anchor


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    found: set[str] = set()
    for heading in headings(text):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        names = (f"{anchor}-{n}" if n else anchor for n in itertools.count())
        found.add(next(name for name in names if name not in found))
    return found


def children(page: Path) -> Iterator[Path]:
    """The pages that a page leads to, by links and by the `toctree` of Sphinx."""
    for file, _ in links(page):
        yield file
    for body in _TOCTREE.findall(page.read_text()):
        for line in body.splitlines():
            if line and not line.startswith(":"):
                yield from page.parent.glob(f"{line.strip()}.md")


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        if anchor:
            assert anchor in anchors(file.read_text()), (page_id(file), anchor)


def test_the_check_of_links_sees_links_and_anchors() -> None:
    assert (DOCS / "tutorial.md", "") in list(links(README))
    assert anchors("## In a table: `n` of m, it's [x](y.md)!\n") == {"in-a-table-n-of-m-its-x"}
    assert anchors("# A\n# A\n```\n# B\n```\n") == {"a", "a-1"}


def test_every_page_is_reachable_from_the_readme_or_the_index() -> None:
    seen: set[Path] = set()
    pending = [page for page in ENTRANCES if page.exists()]
    while pending:
        page = pending.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            pending += children(page)
    assert [page_id(page) for page in PAGES if page not in seen] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_page_begins_with_its_only_title(page: Path) -> None:
    text = page.read_text()
    titles = re.findall(r"^# .+$", prose(text), re.MULTILINE)
    assert len(titles) == 1
    assert text.startswith(titles[0])


@pytest.mark.parametrize("page", [README, *PAGES], ids=page_id)
def test_python_blocks_that_are_not_doctests_are_python(page: Path) -> None:
    """Doctests run; the other blocks, which need a model of yours, are at least parsed."""
    for indent, block in re.findall(
        r"^( *)```python\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        if ">>>" not in block:
            ast.parse("\n".join(line.removeprefix(indent) for line in block.splitlines()))


WORDS = [
    "encoder only", "resume", "async", "preemption", "progress", "EMA", "GPU", "TPU",
    "multi-host", "convert", "PyTorch", "NFS", "S3", "delete a step", "contribute a format",
    "Orbax", "NNX", "Equinox", "Optax", "Linen", "Windows", "macOS",
]  # fmt: skip
"""What people type into a search box."""


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_people_look_for_is_in_a_heading(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    assert [h for page in PAGES for h in headings(page.read_text()) if pattern.search(h)]
