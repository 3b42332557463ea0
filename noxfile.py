"""The checks of templax, each in an environment of its own.

nox -s lint docs dist   what CI runs, besides `fuzz` and the test command of README.md
nox -s quick            the tests that take seconds
nox -s nojax            those of what needs no JAX, where it is not installed
nox -s tests            all of them, on each supported Python that is installed
nox -s fuzz             every fuzzing target for 20 s; arguments after `--` go to tests.fuzz
nox -s thorough         all tests, those of faults at every point and properties with more examples
nox -s mappings         the mappings of `examples/` on models of transformers, which needs torch
nox -s lowest lowest_demo newest
                        before a release: the oldest dependencies that are allowed, the newest
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
PINNED = ("-c", "constraints.txt")
QUICK = ("-q", "-n", "auto", "-m", "not slow")

nox.options.sessions = ["lint", "docs", "quick"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, import contracts, types, and whether the changelog fragments build."""
    session.install(*PINNED, "-e", ".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the pages into `docs/_build`; a warning is an error."""
    session.install(*PINNED, "-e", ".[docs]")
    options = ("-q", "-W", "--keep-going", "--fresh-env")
    session.run("python", "-m", "sphinx", *options, "-b", "html", "docs", "docs/_build")


@nox.session
def dist(session: nox.Session) -> None:
    """Builds the sdist and the wheel; the wheel holds the package and nothing else."""
    session.install(*PINNED, "hatchling")
    built = Path(session.create_tmp()).resolve() / "dist"
    session.run("hatchling", "build", "--clean", "-d", str(built))
    [wheel] = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = Path("src")
    package = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file)
    }
    if names != package:
        session.error(f"the wheel and src/ differ in {sorted(names ^ package)}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests. Arguments after `--` go to pytest."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-q", "-n", "auto", *session.posargs)


@nox.session(python=PYTHONS[0])
def thorough(session: nox.Session) -> None:
    """All tests, with every point of which `tests` tries a part."""
    session.install(*PINNED, "-e", ".[test]")
    session.run(
        "pytest", "-q", "-n", "auto", *session.posargs, env={"HYPOTHESIS_PROFILE": "thorough"}
    )


@nox.session
def quick(session: nox.Session) -> None:
    """The tests that are not marked slow."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session
def nojax(session: nox.Session) -> None:
    """The tests of what needs no JAX, in an environment without it."""
    session.install(*PINNED, "-e", ".", "pytest")
    session.run("python", "-c", "import importlib.util as u; assert u.find_spec('jax') is None")
    # The settings in tests/conftest.py are for JAX.
    session.run("pytest", "-q", "--confcutdir", "tests/nojax", "tests/nojax", *session.posargs)


@nox.session(python=PYTHONS[0])
def fuzz(session: nox.Session) -> None:
    """Runs the targets of `tests/fuzz`, for 20 s each or as the arguments after `--` say."""
    session.install(*PINNED, "-e", ".[fuzz]")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(python=PYTHONS[0])
def mappings(session: nox.Session) -> None:
    """Compares small models of transformers with models of Flax that have their weights.

    It installs torch (several GB), and downloads no weights.
    """
    session.install(*PINNED, "-e", ".[demo]", "safetensors", "torch", "transformers")
    script = "examples/mappings/compare_outputs.py"
    session.run("python", script, env={"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"})


# What the tests need of other libraries, in the last versions that run on JAX 0.5.3.
LOWEST_PEERS = (
    "equinox==0.11.12",
    "flax==0.10.6",
    "optax==0.2.4",
    "orbax-checkpoint==0.11.10",
    "tensorstore==0.1.72",
)
LOWEST_TESTS = (
    *("tests/unit", "tests/contract", "tests/corpus", "tests/devices", "tests/matrix"),
    "tests/hosts/test_shared_reads.py",
)


@nox.session(python=[PYTHONS[0], PYTHONS[-1]])
def lowest(session: nox.Session) -> None:
    """The quick tests of templax itself with the lowest versions that the dependencies may have.

    Those in `tests/peers` compare with Orbax and Flax as the demo asks for them, which need a newer
    JAX.
    """
    tools = ("einops", "hypothesis", "pytest", "pytest-xdist", "safetensors")
    extras = ("jax", "codecs", "hf")
    lowest = _resolve_lowest(session, *(f"--extra={extra}" for extra in extras))
    session.install("-c", lowest, "-e", f".[{','.join(extras)}]", *tools, *LOWEST_PEERS)
    session.run("pytest", *QUICK, *LOWEST_TESTS, *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest_demo(session: nox.Session) -> None:
    """All quick tests with the lowest versions that the dependencies and the demo may have."""
    session.install("-c", _resolve_lowest(session, "--extra", "demo"), "-e", ".[test]")
    session.run("pytest", *QUICK, *session.posargs)


def _resolve_lowest(session: nox.Session, *options: str) -> str:
    """A file with the lowest version of each dependency."""
    session.install(*PINNED, "uv")
    file = str(Path(session.create_tmp()).resolve() / "lowest.txt")
    resolve = ("uv", "pip", "compile", "-q", "--resolution", "lowest-direct", *options)
    session.run(*resolve, "--python-version", str(session.python), "-o", file, "pyproject.toml")
    return file


@nox.session(python=[PYTHONS[0], PYTHONS[-1]])
def newest(session: nox.Session) -> None:
    """The quick tests with the newest version of everything, whatever `constraints.txt` says."""
    session.install("--upgrade", "-e", ".[test]")
    session.run("pytest", *QUICK, *session.posargs)
