"""The pages of the documentation: links, what is reachable, and words that people look for."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

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


@functools.cache
def find_anchors(page: Path) -> set[str]:
    return anchors(page.read_text())


def children(page: Path) -> Iterator[Path]:
    """The pages that a page leads to, by links and by the `toctree` of Sphinx."""
    for file, _ in links(page):
        yield file
    for body in _TOCTREE.findall(page.read_text()):
        for line in body.splitlines():
            if line and not line.startswith(":"):
                yield from page.parent.glob(f"{line.strip()}.md")


def test_every_relative_link_and_anchor_resolves() -> None:
    found = [(page, file, anchor) for page in LINKED for file, anchor in links(page)]
    for page, file, anchor in found:
        assert file.exists(), (page_id(page), file)
        if anchor:
            assert anchor in find_anchors(file), (page_id(page), page_id(file), anchor)


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


def test_every_page_begins_with_its_only_title() -> None:
    for page in PAGES:
        text = page.read_text()
        titles = re.findall(r"^# .+$", prose(text), re.MULTILINE)
        assert len(titles) == 1, page_id(page)
        assert text.startswith(titles[0]), page_id(page)


def test_python_blocks_that_are_not_doctests_are_python() -> None:
    """Doctests run; the other blocks, which need a model of yours, are at least parsed."""
    for page in [README, *PAGES]:
        for indent, block in re.findall(
            r"^( *)```python\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            if ">>>" not in block:
                lines = [line.removeprefix(indent) for line in block.splitlines()]
                ast.parse("\n".join(lines), filename=page_id(page))


WORDS = [
    "encoder only", "resume", "async", "preemption", "progress", "EMA", "GPU", "TPU",
    "multi-host", "convert", "PyTorch", "NFS", "S3", "delete a step", "contribute a format",
    "Orbax", "NNX", "Equinox", "Optax", "Linen", "Windows", "macOS",
]  # fmt: skip
"""What people type into a search box."""


def test_a_word_that_people_look_for_is_in_a_heading() -> None:
    titles = "\n".join(heading for page in PAGES for heading in headings(page.read_text()))
    for word in WORDS:
        assert re.search(rf"\b{re.escape(word)}\b", titles, re.IGNORECASE), word
