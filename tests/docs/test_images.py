"""The pictures of the documentation can be drawn by any renderer."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

PICTURES = sorted((Path(__file__).parents[2] / "docs" / "images").glob("*.svg"))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_refers_only_to_what_it_defines(picture: Path) -> None:
    text = picture.read_text()
    defined = {element.get("id") for element in ElementTree.fromstring(text).iter()}
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= defined


def test_the_last_line_of_the_report_lies_inside_of_its_frame() -> None:
    text = next(picture for picture in PICTURES if picture.name == "report.svg").read_text()
    (top,) = re.findall(r'<g transform="translate\(9, (\d+)\)"', text)
    bottom = max(float(y) for y in re.findall(r'<text [^>]*\by="([\d.]+)"', text))
    (frame,) = re.findall(r'<rect fill="#292929"[^>]*\bheight="([\d.]+)"', text)
    assert "clip-path" not in text
    assert int(top) + bottom + 8 <= float(frame)  # letters reach 6 below the line
    assert "hint:" in text
