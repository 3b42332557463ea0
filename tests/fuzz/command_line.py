"""Runs many templax commands, each in a process forked from one that has imported everything.

`python command_line.py nobody` reads lines of JSON, each a directory and arguments, and writes a
line for each: the exit status (negative for a signal), standard output and standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NOBODY = 65534

_WALL_S = 60

_CPU_S = 10


@dataclass(frozen=True)
class Result:
    """What a command did. A status below 0 is the signal that ended it: it took too long."""

    arguments: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


def run_commands(
    directory: Path, commands: Sequence[Sequence[str]], *, nobody: bool = False
) -> list[Result]:
    """Runs `templax` with each of these arguments in the directory.

    Args:
        directory: Where they run.
        commands: The arguments of each. A path may have bytes that are not UTF-8 (surrogates).
        nobody: Whether to run as the user `nobody`, whom file modes restrict, unlike root.
    """
    lines = "".join(json.dumps([str(directory), list(command)]) + "\n" for command in commands)
    package = Path(sys.modules["templax"].__file__ or "").parents[1]
    done = subprocess.run(
        [sys.executable, __file__, "nobody" if nobody else "self"],
        input=lines.encode(),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(package), "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    return [Result(tuple(c), *r) for c, r in zip(commands, found, strict=True)]


def _serve() -> None:
    _warm_up()
    if sys.argv[1] == "nobody":
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for line in sys.stdin:
        directory, arguments = json.loads(line)
        print(json.dumps(_run(directory, arguments)), flush=True)


def _warm_up() -> None:
    """Runs the commands once, so that processes forked later have what they import."""
    from templax.cli.main import main

    with (
        tempfile.TemporaryDirectory() as directory,
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
    ):
        here = Path(__file__).parents[1] / "corpus" / "orbax-0.12.8-default" / "ckpt"
        template = os.path.join(directory, "t.json")
        for command in ("template", "ls", "verify", "steps", "check", "plan"):
            output = {"template": ["-o", template], "check": [template], "plan": [template]}
            with contextlib.suppress(SystemExit):
                main([command, str(here), *output.get(command, [])], "templax")


def _run(directory: str, arguments: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _become_command(directory, arguments, out.fileno(), err.fileno())
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(_WALL_S)
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 22).decode("utf-8", "backslashreplace"))
        return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def _become_command(directory: str, arguments: list[str], out: int, err: int) -> None:
    import resource
    import traceback

    from templax.cli.main import main

    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(directory)
        main([os.fsdecode(a.encode("utf-8", "surrogateescape")) for a in arguments], "templax")
        status = 0
    except SystemExit as error:
        code = error.code
        status = code if isinstance(code, int) else int(code is not None)
    except BaseException:  # noqa: BLE001 (a traceback is looked for)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
