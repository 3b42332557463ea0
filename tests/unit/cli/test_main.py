"""All commands: unreadable checkpoints, start-up, terminals and pipes."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import templax as tx
from helpers import run_cli, run_python

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


RUN = "orbax-0.12.8-manager/ckpt"


def test_a_manager_root_says_what_to_open(template_file):
    result = run_cli("check", "orbax-0.12.8-manager/ckpt", template_file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: orbax-0.12.8-manager/ckpt holds 2 steps; the latest committed step is 20; hint:"
        ' open "orbax-0.12.8-manager/ckpt/20/ema" or "orbax-0.12.8-manager/ckpt/20/state"\n'
    )


@pytest.mark.parametrize("path", ["nothing/here", ".", "orbax-0.12.8-manager/ckpt/10"])
def test_an_unreadable_checkpoint_is_one_line_and_exit_code_2(path, tmp_path):
    template = tmp_path / "t.json"
    template.write_bytes(b'{"templax_template": 1, "leaves": []}')
    for arguments in (
        ["ls", path],
        ["check", path, template],
        ["template", path],
        ["verify", path],
    ):
        result = run_cli(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_lfs_pointers_and_missing_dot_files_are_named(tmp_path):
    pointer = tmp_path / "ckpt"
    shutil.copytree(DEFAULT, pointer)
    (pointer / "manifest.ocdbt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    )
    result = run_cli("ls", pointer)
    assert result.exit_code == 2
    assert "LFS" in result.stderr
    lost = tmp_path / "lost"
    shutil.copytree("orbax-0.12.8-noocdbt/ckpt", lost, ignore=shutil.ignore_patterns(".z*"))
    result = run_cli("ls", lost)
    assert result.exit_code == 2
    assert ".zarray" in result.stderr


def run_command(*arguments, **environment):
    """Runs the command in a process of its own."""
    return run_python("-m", "templax", *arguments, **environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", DEFAULT],
        ["check", DEFAULT, "TEMPLATE"],
        ["template", DEFAULT],
        ["verify", DEFAULT],
        ["steps", RUN],
        ["prune", RUN, "--keep", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_do_not_import_jax(arguments, template_file):
    """Inspecting a checkpoint needs no devices and should not wait for imports."""
    arguments = [str(template_file) if a == "TEMPLATE" else a for a in arguments]
    code = f"""
import sys
from templax.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"jax", "jaxlib", "rich", "orbax", "tensorstore"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_output_is_coloured_only_if_asked():
    plain = run_command("ls", DEFAULT)
    assert plain.returncode == 0
    assert "\x1b" not in plain.stdout
    coloured = run_command("ls", DEFAULT, FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[1m" in coloured.stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.stdout) == plain.stdout
    red = run_command("ls", "damaged-uncommitted/ckpt", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[31m\x1b[1m  UNCOMMITTED: " in red.stdout


@pytest.mark.parametrize(
    ("environment", "styled"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_colour_follows_the_conventions_for_terminals(environment, styled):
    """`NO_COLOR`, `FORCE_COLOR` and `TERM=dumb`, on a pseudo-terminal."""
    inherited = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment = inherited | {"TERM": "xterm-256color"} | environment
    main, other = os.openpty()
    command = [sys.executable, "-m", "templax", "ls", "--depth", "1", DEFAULT]
    done = subprocess.run(command, stdout=other, stderr=other, env=environment, check=False)
    os.close(other)
    text = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.returncode == 0
    assert ("\x1b[1m" in text) == styled
    assert text.replace("\x1b[1m", "").replace("\x1b[0m", "").startswith(DEFAULT)


def test_a_name_that_the_terminal_cannot_encode_is_escaped():
    done = run_command("ls", "orbax-0.12.8-special/ckpt", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xe9 " in done.stdout


def test_a_closed_pipe_prints_no_traceback():
    command = f"{sys.executable} -m templax ls --flat --all {DEFAULT} | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""


def test_version_and_help():
    assert run_cli("--version").output == f"templax, version {tx.__version__}\n"
    for command in ("ls", "check", "template", "demo"):
        assert command in run_cli("--help").output
        assert run_cli(command, "-h").exit_code == 0
