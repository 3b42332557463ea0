"""Text from files can't forge a line of a report, an error or a log, nor control a terminal."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import templax as tx
from helpers import run_cli
from templax import errors
from templax.cli.main import main

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
EVIL = f"w{BREAKS}error: forged\x1b[2J\x9b2J\u202e\u2066\u200f\0"


def assert_harmless(text: str) -> None:
    """No line begins with what the name says, and nothing but line feeds is unprintable."""
    assert text.replace("\n", "").isprintable(), text
    assert not any(line.lstrip().startswith("error: forged") for line in text.splitlines())


def write_safetensors(path: Path, names: list[str], metadata: dict[str, str] | None = None) -> Path:
    tensors: dict[str, Any] = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    header = json.dumps(tensors | ({} if metadata is None else {"__metadata__": metadata})).encode()
    data = np.arange(len(names), dtype=np.float32).tobytes()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


ERRORS = [name for name in errors.__all__ if issubclass(getattr(errors, name), errors.TemplaxError)]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_one_harmless_line(name: str) -> None:
    kind = getattr(errors, name)
    plain = name in ("TemplaxError", "SourceError", "UsageError", "MissingPackage", "MappingError")
    error = kind(EVIL) if plain else kind(EVIL, leaf=EVIL, file=EVIL, hint=EVIL)
    assert str(error).isprintable()
    assert plain or (error.what.isprintable() and error.leaf == EVIL)


def test_a_leaf_name_forges_no_line_of_any_report(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", [EVIL, "v"], {EVIL: EVIL})
    catalog = tx.open(path)
    wanted = {"v": np.zeros(2, np.float32), EVIL + "2": np.zeros(1, np.float32)}
    match = tx.check(path, wanted)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, wanted)
    ignoring = {"v": np.zeros(1, np.float32)}
    texts = [
        str(catalog),
        str(match),
        str(caught.value),
        str(tx.plan(path, ignoring, extra="ignore")),
        str(tx.check(path, ignoring, extra="ignore")),
        str(tx.check(path, {EVIL: np.zeros(1, np.int32)}, extra="ignore", cast="exact")),
        str(tx.verify(path)),
        *map(str, match.mismatches),
    ]
    for text in texts:
        assert_harmless(text)


def test_a_cast_warning_and_the_log_have_harmless_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", [EVIL])
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO, "templax"):
        warnings.simplefilter("always")
        tx.restore(path, {EVIL: np.zeros(1, np.float16)})
    assert_harmless(str(caught[0].message))
    assert_harmless(caplog.messages[-1])


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["ls", "--flat"], ["verify"], ["template"], ["check", "t.json"], ["plan", "t.json"]],
)
def test_no_command_prints_a_control_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_safetensors(tmp_path / "m.safetensors", [EVIL, "v"], {EVIL: EVIL})
    tx.save_template({"v": np.zeros(3, np.float32), EVIL + "2": np.zeros(1, np.float32)}, "t.json")
    command, *rest = arguments
    result = run_cli(command, "m.safetensors", *rest)
    assert_harmless(result.output)
    assert result.exit_code in (0, 1)
    colored = CliRunner().invoke(main, ["--color", "always", command, "m.safetensors", *rest])
    assert "\x1b[2J" not in colored.output
    assert all(part.startswith(tuple("0123456789")) for part in colored.output.split("\x1b[")[1:])


def test_a_template_with_such_names_is_the_same_when_it_is_read(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", [EVIL, "é", "v"])
    assert run_cli("template", path, "-o", tmp_path / "t.json").exit_code == 0
    assert run_cli("check", path, tmp_path / "t.json").exit_code == 0
    assert "é" in (tmp_path / "t.json").read_text()


def test_a_hint_for_a_shell_has_no_control_character(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", [f"{EVIL}.a", f"{EVIL}.b"])
    tx.save_template({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "t")
    result = run_cli("check", path, tmp_path / "t")
    assert "hint: in Python, at=" in result.stdout
    assert_harmless(result.stdout)


def test_names_of_files_and_directories_are_harmless(tmp_path: Path) -> None:
    run = tmp_path / "run"
    name = EVIL.replace("\0", "").replace("/", "")
    (run / f"{name}").mkdir(parents=True)
    tx.save(run / "5" / name, {"w": np.ones(2, np.float32)})
    tx.save(run / f"{name}_7", {"w": np.ones(2, np.float32)})
    for arguments in (["ls", run], ["steps", run], ["ls", run / "5"], ["ls", run / f"{name}_8"]):
        result = run_cli(*arguments)
        assert (result.stdout + result.stderr).replace("\n", "").isprintable()
        assert "error: forged" not in [line.strip() for line in result.output.splitlines()]


def test_json_is_json_whatever_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    saved = {"loss": float("nan"), "deep": [float("inf"), {"x": -float("inf")}], "t": EVIL}
    tx.save(tmp_path / "c", {"w": np.ones(2, np.float32)}, metadata=saved)
    result = run_cli("ls", "--json", tmp_path / "c")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(result.stdout, parse_constant=refuse)
    assert found["metadata"]["custom_metadata"]["deep"] == [None, {"x": None}]
    assert result.stdout.isascii()
