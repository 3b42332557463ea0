"""The files around the package agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pre_commit_runs_the_pinned_versions() -> None:
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    used = re.findall(r"additional_dependencies: \[(.*)\]", hooks)
    assert used
    assert set(used) <= pins


def test_every_required_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    pinned = {re.split(r"[=;]", line)[0] for line in _lines("constraints.txt")}
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in required} - {"templax"}
    assert {_normalize(name) for name in names} <= {_normalize(name) for name in pinned}


def test_every_dependency_has_a_lower_bound() -> None:
    """`nox -s lowest` tests them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounded = [*project["dependencies"], *extras["jax"], *extras["demo"]]
    assert all(">=" in requirement for requirement in bounded if "templax" not in requirement)


def test_jax_comes_with_an_extra_and_with_those_that_need_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [each for each in project["dependencies"] if re.match("jax", each)]
    assert [re.split("[>=]", each)[0] for each in extras["jax"]] == ["jax"]
    for name in ("demo", "docs"):
        assert "templax[jax]" in extras[name]
    assert "templax[demo]" in extras["test"]


def test_changelog_fragments_are_named_for_their_kind() -> None:
    fragments = {file.name for file in (ROOT / "changelog.d").iterdir()}
    fragments -= {"README.md", "template.md.jinja"}
    assert all(re.fullmatch(r"[\w-]+\.(added|changed|fixed|removed)\.md", f) for f in fragments)


def _lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
