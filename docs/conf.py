"""Sphinx: the pages of `docs/`, and the reference that it builds from the docstrings.

python -m sphinx -W --keep-going -b html docs docs/_build
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.addnodes import pending_xref

import templax

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

project = "templax"
version = release = templax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_show_copyright = False

# Links to a heading, such as `restore.md#casts`, as GitHub spells them.
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

DOCS = Path(__file__).parent


def unlink_repository_files(app: Sphinx, doctree: nodes.document) -> None:
    """Leaves the text alone of a link to a file outside `docs/`, such as `../README.md`.

    Such links work in a clone; the built pages have no target for them. A link to a file that does
    not exist stays an error.
    """
    for link in list(doctree.findall(pending_xref)):
        # MyST gives the whole path of a Markdown file, and other targets as the page spells them.
        target = DOCS / str(link.get("refdoc", "")) / ".." / str(link.get("reftarget", ""))
        target = Path(os.path.normpath(target))
        exists = target.exists() or target.with_suffix(".md").exists()
        if exists and not target.is_relative_to(DOCS):
            link.replace_self(link.children)


def read_inline_code_as_markdown(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Turns the Markdown of a docstring, `code` and *args, into reStructuredText, in place.

    Examples are left as they are.
    """
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.strip() != "" and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            line = re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))", _literal, line)
            lines[i] = re.sub(r"^(\s*)\*(\w+), \*\*(\w+):", r"\1\*\2, \*\*\3:", line)


def _literal(match: re.Match[str]) -> str:
    # Markup that a letter follows, as in `Leaf`s, needs an escaped space to end.
    return f"``{match[1]}``" + ("\\ " if match[2] else "")


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", unlink_repository_files)
    # Before napoleon, which has the default priority of 500.
    app.connect("autodoc-process-docstring", read_inline_code_as_markdown, priority=400)


# Attributes of several classes are called `path`: a reference to one of them is plain text.
suppress_warnings = ["ref.python"]
