"""Windows and macOS, simulated: each test takes away what Python does not have there.

This is not a run on these systems. Of Windows, the separator and the refusal to open a directory
are simulated, too.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, list_names, mark_slow, read_files, run_python
from templax.errors import Corrupted
from templax.formats.ocdbt.paths import confine_path
from templax.formats.orbax.step_names import basename, step_number
from templax.storage import Local

# What CPython's documentation lists as available on Unix only.
WINDOWS = """
import sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
import os, mmap, signal, ctypes
import jax, numpy, click, tempfile, shutil, inspect  # these have their own ways on Windows
for module, names in {
    os: '''O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC O_DSYNC WNOHANG fork forkpty
        register_at_fork getuid geteuid getgid uname pathconf fpathconf statvfs fstatvfs
        sched_getaffinity pread preadv readv pwrite pwritev writev posix_fadvise posix_fallocate
        sendfile fchmod fchown chown mkfifo sysconf nice killpg getpgid setsid''',
    mmap: '''MAP_PRIVATE MAP_SHARED MAP_ANON MAP_ANONYMOUS MAP_NORESERVE MAP_POPULATE PROT_READ
        PROT_WRITE PROT_EXEC MADV_HUGEPAGE MADV_DONTNEED MADV_WILLNEED MADV_NORMAL''',
    signal: "SIGPIPE SIGHUP SIGKILL SIGALRM SIGUSR1 pthread_sigmask",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

os_open, os_mmap = os.open, mmap.mmap

def open_no_directory(path, flags, mode=0o777):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os_open(path, flags, mode)

def mmap_without_flags(fileno, length, tagname=None, access=0, offset=0):
    return os_mmap(fileno, length, access=access, offset=offset)

def no_library(name, *args, **kwargs):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

os.open, mmap.mmap, ctypes.CDLL = open_no_directory, mmap_without_flags, no_library
"""

# Before version 11, macOS has no `preadv` either.
MACOS = """
import os, mmap, io, builtins
import jax, numpy
for module, names in {
    os: "preadv pwritev sched_getaffinity posix_fadvise posix_fallocate",
    mmap: "MAP_NORESERVE MAP_POPULATE MADV_HUGEPAGE",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
open_file = open

def open_no_proc(file, *args, **kwargs):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", file)
    return open_file(file, *args, **kwargs)

builtins.open = open_no_proc
"""

READ_ALL = """
import hashlib, json
import templax as tx
found = {}
for path in sys.argv[1:]:
    catalog = tx.open(path)
    tree = tx.restore(catalog, catalog.template(), mapped=True)
    assert tx.check(path, catalog.template()).ok
    assert tx.verify(path).ok
    hash = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        hash.update(numpy.asarray(leaf).tobytes())
    found[path] = hash.hexdigest()
print(json.dumps(found))
"""

CASES = (
    "orbax-0.12.8-default",
    "orbax-0.12.8-noocdbt",
    "orbax-0.12.8-prng",
    "orbax-0.12.8-zarr3",
    "orbax-0.2.3-default",
)


def run(prelude: str, code: str, *arguments: object) -> str:
    """The output of code that runs, in a process of its own, on such a system."""
    environment = {"JAX_PLATFORMS": "cpu"}
    code = f"{prelude}\nimport sys\n{textwrap.dedent(code)}"
    done = run_python("-c", code, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of templax, with a leaf of more than 1 MiB and a small one."""
    path = tmp_path_factory.mktemp("saved") / "ckpt"
    big = jnp.arange(600_000, dtype=jnp.float32)
    tx.save(path, {"big": big, "params": {"w": jnp.ones((3, 5), jnp.bfloat16)}, "step": 7})
    return path


@pytest.fixture(scope="module")
def read_here(saved: Path) -> dict[str, str]:
    """The digest of what is read from each checkpoint, without taking anything away."""
    paths = [str(saved), *(str(CORPUS / case / "ckpt") for case in CASES)]
    here = json.loads(run("import jax, numpy", READ_ALL, *paths))
    assert set(here) == set(paths)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("system", [WINDOWS, *mark_slow(MACOS)], ids=["windows", "macos"])
def test_checkpoints_are_read_checked_and_verified(system: str, read_here: dict[str, str]) -> None:
    assert json.loads(run(system, READ_ALL, *read_here)) == read_here


@pytest.mark.slow
@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_the_shell_commands_that_read_work(system: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.symlink(saved, tmp_path / "run" / "5")
    want = str(tmp_path / "want.json")
    commands = [
        ["ls", str(saved)],
        ["template", str(saved), "-o", want],
        ["check", str(saved), want],
        ["plan", str(saved), want],
        ["verify", str(saved)],
        ["steps", str(tmp_path / "run")],
    ]
    code = """
    import json
    from templax.cli import main
    for arguments in json.loads(sys.argv[1]):
        main(arguments, standalone_mode=False)
    """
    listed = run(system, code, json.dumps(commands))
    here = run("", code, json.dumps(commands))
    time = r"[\d.]+ (s|min)( ago)?\b"
    assert re.sub(time, "", listed) == re.sub(time, "", here)
    assert "bfloat16" in listed


@pytest.mark.slow
def test_a_run_is_read_on_windows(tmp_path: Path) -> None:
    with tx.Manager(tmp_path) as manager:
        for step in (1, 2):
            manager.save(step, {"w": jnp.full(3, float(step))}, metrics={"loss": 1.0 / step})
    code = """
    import templax as tx
    manager = tx.Manager(sys.argv[1])
    tree = manager.restore({"w": jax.ShapeDtypeStruct((3,), "float32")})
    print(manager.steps(), manager.latest(), manager.best("loss"), float(tree["w"][0]))
    """
    assert run(WINDOWS, code, tmp_path) == "[1, 2] 2 2 2.0\n"


CAN_NOT = (
    "SaveError templax can't save or delete on this system (`linux`), where Python has no `fcntl`"
    " and no `os.pwrite` and no `os.O_DIRECTORY` - file `{path}`; hint: save on Linux or macOS, or"
    " under WSL; reading works here"
)


CALLS = [
    "tx.save(path + '/new/a', {'w': jax.numpy.ones(3)})",
    "tx.save(path + '/new/a', {'w': jax.numpy.ones(3)}, wait=False).result()",
    "tx.save(path + '/7', {'w': jax.numpy.ones(3)}, overwrite=True)",
    "tx.Manager(path + '/new').save(8, {'w': jax.numpy.ones(3)}, wait=True)",
    "tx.Manager(path, keep=1).save(8, {'w': jax.numpy.ones(3)}, wait=True)",
]


class Refused(NamedTuple):
    """What a call says on Windows, the directory it was made for, and its files before."""

    said: str
    place: Path
    before: dict[str, bytes]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refused]:
    """Each call on Windows, for a directory of its own that holds a checkpoint."""
    places = {call: tmp_path_factory.mktemp("windows") for call in CALLS}
    for place in places.values():
        tx.save(place / "7", {"w": jnp.zeros(3)})
    before = {call: read_files(place) for call, place in places.items()}
    code = """
    import json
    import templax as tx
    said = {}
    for call, path in json.loads(sys.argv[1]).items():
        try:
            eval(call)
        except tx.SaveError as error:
            said[call] = f"{type(error).__name__} {error}"
    print(json.dumps(said))
    """
    directories = {call: str(place) for call, place in places.items()}
    said = json.loads(run(WINDOWS, code, json.dumps(directories)))
    return {call: Refused(said[call], place, before[call]) for call, place in places.items()}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_saving_on_windows_says_that_it_can_not_and_writes_nothing(
    call: str, refused: dict[str, Refused]
) -> None:
    said, place, before = refused[call]
    assert re.sub(r"file `[^`]*`", "file `{path}`", said) == CAN_NOT
    assert str(place) in said
    assert read_files(place) == before
    assert list_names(place) == ["7"]


@pytest.mark.slow
def test_pruning_on_windows_says_that_it_can_not_and_deletes_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        tx.save(tmp_path / str(step), {"w": jnp.zeros(3)})
    before = read_files(tmp_path)
    code = """
    from templax.cli import main
    main(sys.argv[1:], standalone_mode=False)
    """
    done = run_python("-c", WINDOWS + textwrap.dedent(code), "prune", tmp_path, "--keep=1", "--yes")
    assert "can't save or delete on this system" in " ".join((done.stdout + done.stderr).split())
    assert read_files(tmp_path) == before


@pytest.mark.slow
def test_macos_without_preadv_saves_replaces_and_prunes(tmp_path: Path) -> None:
    code = """
    import templax as tx
    path = sys.argv[1]
    for value in (1.0, 2.0):
        tx.save(path + "/a", {"w": jax.numpy.full(3, value)}, overwrite=True)
    with tx.Manager(path + "/run", keep=1) as manager:
        for step in (1, 2):
            manager.save(step, {"w": jax.numpy.full(3, step * 1.0)})
    print(manager.steps())
    """
    assert run(MACOS, code, tmp_path) == "[2]\n"
    for name, value in {"a": 2.0, "run/2": 2.0}.items():
        tree = tx.restore(tmp_path / name, {"w": np.zeros(3, np.float32)})
        assert tree["w"].tolist() == [value] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preadv", "O_NONBLOCK", "O_DIRECTORY", "pathconf", "uname"])
def test_no_single_function_that_is_missing_stops_a_read(name: str, saved: Path) -> None:
    code = """
    import templax as tx
    print(tx.restore(sys.argv[1], {"step": 0}, extra="ignore"))
    print(tx.open(sys.argv[1]))
    """
    assert run(f"import os\nimport jax\ndel os.{name}", code, saved).startswith("{'step': 7}\n")


def test_without_preadv_a_range_is_read_exactly(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    code = """
    import os
    del os.preadv
    from templax.storage import Local
    source, memory = Local(sys.argv[1]), memoryview(bytearray(1_000_000))
    source.read("a", 250, 1_000_250, memory)
    print(bytes(memory) == (bytes(range(256)) * 5000)[250:1_000_250])
    try:
        source.read("a", 0, 2_000_000)
    except Exception as error:
        print(error)
    """
    assert run("", code, tmp_path) == (
        "True\nExpected at least 2000000 bytes, the file has 1280000 - file `a`, bytes 0-2000000\n"
    )


def test_a_windows_path_gives_a_url_with_slashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the name of a step, and the mark of an unfinished save, are found in it."""
    (tmp_path / "run" / "10").mkdir(parents=True)
    (tmp_path / "run" / "10" / "_METADATA").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sep", "\\")
    source = Local(r"run\10")
    assert source.url == "run/10"
    assert (basename(source), step_number(source)) == ("10", 10)
    assert [info.key for info in source.children()] == ["_METADATA"]
    assert source.at("..").url == "run"
    assert source.at(r"..").at("10").url == "run/10"


def test_a_backslash_in_a_name_stays_one_on_other_systems(tmp_path: Path) -> None:
    path = tmp_path / r"run\10"
    tx.save(path, {"w": jnp.ones(2)})
    assert tx.open(path).url == str(path)
    assert list_names(tmp_path) == [r"run\10"]


@pytest.mark.parametrize("name", [r"..\outside", r"d\..\..\outside", "C:outside", r"C:\outside"])
def test_a_data_file_that_is_outside_on_windows_is_refused_everywhere(name: str) -> None:
    with pytest.raises(Corrupted, match="Expected a data file inside the checkpoint"):
        confine_path(name.encode())
