"""All commands: unreadable checkpoints, start-up, terminals and pipes."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.shell_completion import ShellComplete

import templax as tx
from helpers import mark_slow, run_cli, run_python
from templax.cli.main import COMMANDS, main

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
        ["verify", DEFAULT],
        *mark_slow(["template", DEFAULT], ["steps", RUN], ["prune", RUN, "--keep", "1"]),
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


@pytest.mark.slow
def test_output_is_coloured_only_if_asked():
    plain = run_command("ls", DEFAULT)
    assert plain.returncode == 0
    assert "\x1b" not in plain.stdout
    coloured = run_command("ls", DEFAULT, FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[1m" in coloured.stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.stdout) == plain.stdout
    red = run_command("ls", "damaged-uncommitted/ckpt", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[31m\x1b[1m  UNCOMMITTED: " in red.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "styled"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        *mark_slow(
            ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
            ({"NO_COLOR": ""}, True),
            ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ),
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


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_encode_is_escaped():
    done = run_command("ls", "orbax-0.12.8-special/ckpt", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xe9 " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["ls --json", "--help", *mark_slow("ls --flat --all", "template", "verify", "ls --help")],
)
def test_a_closed_pipe_is_quiet_and_has_the_status_of_a_broken_pipe(command):
    """As `git log | true` has; 1 would say that a check has found something."""
    command = f"{sys.executable} -m templax {command} {DEFAULT} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")


def run_in_shell(command, redirected):
    """Runs a command of the corpus in bash; returns its status and what it wrote."""
    line = f"{sys.executable} -m templax {command} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        f"ls {DEFAULT}",
        "--help",
        *mark_slow(f"ls --json {DEFAULT}", f"template {DEFAULT}", f"steps {RUN}"),
    ],
)
def test_a_closed_standard_output_is_an_error_and_no_finding(command):
    """As `git log >&-` and `ls >&-` have it."""
    error = "error: [Errno 9] standard output is closed\n"
    assert run_in_shell(command, ">&-") == (2, "", error)
    assert run_in_shell(command, "<&- >&- 2>&-") == (2, "", "")


@pytest.mark.slow
def test_what_prints_nothing_does_not_need_a_standard_output(tmp_path):
    path = tmp_path / "want.json"
    assert run_in_shell(f"template {DEFAULT} -o {path}", ">&-") == (0, "", "")
    assert json.loads(path.read_text())["templax_template"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["2>&-", *mark_slow("2> >(true)", "2>/dev/full")])
def test_the_exit_status_does_not_need_a_standard_error(redirected):
    if "full" in redirected and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    status, output, error = run_in_shell(f"ls {DEFAULT}", redirected)
    assert (status, error) == (0, "")
    assert output.startswith(DEFAULT)
    assert run_in_shell("ls none", redirected) == (2, "", "")
    assert run_in_shell("ls --nope", redirected) == (2, "", "")
    status, output, error = run_in_shell("ls none --json", redirected)
    assert (status, json.loads(output)["ok"], error) == (2, False, "")


@pytest.mark.slow
def test_nothing_is_pruned_that_could_not_be_listed(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    steps = sorted(os.listdir(tmp_path / "run"))
    for redirected in (">&-", ">/dev/full", "| true"):
        if redirected == ">/dev/full" and not os.path.exists("/dev/full"):
            continue
        status, _, _ = run_in_shell(f"prune {tmp_path}/run --keep 1 --yes", redirected)
        assert status == (141 if "|" in redirected else 2)
        assert sorted(os.listdir(tmp_path / "run")) == steps


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["ls", "template", "--help"])
def test_a_full_disk_is_an_error_and_no_finding(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "templax", command, DEFAULT],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_an_interrupt_has_a_status_of_its_own(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tx, "verify", interrupt)
    result = run_cli("verify", DEFAULT)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("command", ["ls", "verify", "steps", "check", "plan"])
def test_an_error_is_json_where_json_is_asked_for(command, template_file, tmp_path):
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes((8).to_bytes(8, "little") + b"{broken}")
    wanted = [template_file] if command in ("check", "plan") else []
    for path, kind in ((tmp_path / "none", "NotFound"), (damaged, "Corrupted")):
        result = run_cli(command, path, *wanted, "--json")
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        document = json.loads(result.stdout)
        error = document.pop("error")
        assert document == {"schema": 1, "ok": False}
        assert list(error) == ["type", "what", "leaf", "stored_as", "file", "start", "stop", "hint"]
        assert error["type"] == kind
        assert error["what"] in result.stderr
    assert "8" in str(error["start"])


def test_a_hint_and_other_errors_are_in_the_json():
    result = run_cli("verify", "--json", "orbax-0.12.8-manager/ckpt")
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["hint"].startswith('open "')) == ("UnknownFormat", True)
    result = run_cli("ls", "--json", "hdfs://bucket/ckpt")
    error = json.loads(result.stdout)["error"]
    assert (error["type"], result.exit_code) == ("SourceError", 2)
    assert "`hdfs://` is not served" in error["what"]


@pytest.mark.parametrize(
    ("options", "environment", "styled"),
    [
        (["--color", "always"], {}, True),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        (["--color", "auto"], {}, False),
        (["--color", "auto"], {"FORCE_COLOR": "1"}, True),
    ],
)
def test_the_option_for_colour_decides_before_the_environment(
    options, environment, styled, monkeypatch
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = [("ls", DEFAULT), ("steps", RUN), ("verify", DEFAULT), ("ls", "none")]
    for command, path in calls:
        for arguments in ([*options, command, path], [command, path, *options]):
            result = run_cli(*arguments)
            coloured = "\x1b[" in result.stdout + result.stderr
            assert coloured == styled, arguments
    assert run_cli("--color", "always", "ls", DEFAULT, "--color", "never").stdout == (
        run_cli("ls", DEFAULT, "--color", "never").stdout
    )


def complete(*words, shell="bash"):
    """What a shell is offered after these words: kind and text of each."""
    given, incomplete = list(words[:-1]), words[-1]
    found = ShellComplete(main, {}, "templax", "_TEMPLAX_COMPLETE").get_completions(
        given, incomplete
    )
    return [(item.type, item.value) for item in found]


def test_commands_and_options_are_completed():
    assert complete("") == [("plain", name) for name in COMMANDS]
    assert complete("v") == [("plain", "verify")]
    assert ("plain", "--color") in complete("--")
    assert complete("ls", "--de") == [("plain", "--depth")]
    assert complete("check", "a", "b", "--cast", "") == [
        ("plain", word) for word in ("float", "widen", "exact")
    ]
    assert complete("--color", "a") == [("plain", "auto"), ("plain", "always")]


@pytest.mark.parametrize("command", ["ls", "verify", "template", "check", "plan"])
def test_a_path_is_completed_by_files(command):
    assert complete(command, "") == [("file", "")]
    assert complete(command, "--color", "never", "run/ck") == [("file", "run/ck")]


def test_other_files_and_directories_are_completed():
    assert complete("check", "ckpt", "wan") == [("file", "wan")]
    assert complete("template", "ckpt", "-o", "wan") == [("file", "wan")]
    assert complete("check", "a", "b", "--missing", "k") == [("plain", "keep"), ("file", "k")]
    for command in ("steps", "prune"):
        assert complete(command, "ru") == [("dir", "ru")]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", *mark_slow("zsh", "fish")])
def test_each_shell_gets_a_script_and_answers(shell):
    """As the documentation says: `_TEMPLAX_COMPLETE=bash_source templax` and so on."""
    code = "import sys; sys.argv = ['templax']; from templax.cli import main; main()"
    script = run_python("-c", code, _TEMPLAX_COMPLETE=f"{shell}_source")
    assert script.returncode == 0, script.stderr
    assert f"_TEMPLAX_COMPLETE={shell}_complete" in script.stdout
    words = {"COMP_WORDS": "templax l", "COMP_CWORD": "l" if shell == "fish" else "1"}
    answer = run_python("-c", code, _TEMPLAX_COMPLETE=f"{shell}_complete", **words)
    assert "ls" in re.split(r"[,\s]", answer.stdout)
    if shell != "bash":
        assert COMMANDS["ls"][1] in answer.stdout


@pytest.mark.slow
def test_help_shows_each_summary_whole():
    for width in ("30", "80", "200"):
        done = run_command("--help", COLUMNS=width)
        shown = " ".join(done.stdout.split())
        assert all(text in shown for _, text in COMMANDS.values())


def test_version_and_help():
    assert run_cli("--version").output == f"templax, version {tx.__version__}\n"
    for command in ("ls", "check", "template", "demo"):
        assert command in run_cli("--help").output
        assert run_cli(command, "-h").exit_code == 0


def test_errors_repeat_what_was_typed_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in "12":
        tx.save(f"runs/threads=4/{step}", {"w": np.ones(2)}, alone=True)
    said = "holds 2 steps; the latest committed step is 2; hint: open "
    path = "runs/threads=4"
    assert f'{path} {said}"{path}/2"' in run_cli("verify", path).stderr
    error = json.loads(run_cli("verify", path, "--json").stdout)["error"]
    assert error["hint"] == f'open "{path}/2"'
    monkeypatch.chdir(tmp_path / "runs")
    assert f'threads=4 {said}"threads=4/2"' in run_cli("verify", "threads=4").stderr
    wrong = run_cli("convert", "threads=4/2", "x.npz", "--skip", "threads=4").stderr
    assert 'Expected --skip names of leaves, got "threads=4"' in wrong
