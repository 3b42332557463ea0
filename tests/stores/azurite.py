"""Azurite, which npm has: installed once into a cache outside of the repository."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
# The key that Azurite documents for this account: it is the same everywhere.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_INSTALL_S = 300


class NotInstalledError(Exception):
    """Azurite is not there and can't be installed; the message says why."""


def find_command() -> list[str]:
    """The command that runs Azurite's blob service in memory, after its installation if needed.

    Raises:
        NotInstalledError: There is no node or npm, the cache can't be written, or npm failed or
            took more than 300 s.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotInstalledError("Azurite needs node and npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "templax-tests" / f"azurite-{VERSION}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotInstalledError(f"no place for Azurite: {error}") from error
    program = directory / "node_modules/azurite/dist/src/blob/main.js"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the tests wait for it too
        done = directory / "done"
        if not done.exists():
            _install(npm, directory)
            done.touch()
    if not program.exists():
        raise NotInstalledError(f"Azurite {VERSION} has no {program.relative_to(directory)}")
    return [node, str(program), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]


def _install(npm: str, directory: Path) -> None:
    options = ["--no-audit", "--no-fund", "--no-progress", "--ignore-scripts", "--omit=dev"]
    options += ["--fetch-retries=1", "--fetch-timeout=30000"]
    command = [npm, "install", "--prefix", str(directory), *options, f"azurite@{VERSION}"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"npm install took more than {_INSTALL_S} s") from error
    if ran.returncode:
        raise NotInstalledError(f"npm install failed: {ran.stderr.strip()[-500:]}")
