"""Paths and URLs, and what `pathlib` and `os.path` make of URLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CKPT, read_files, run_cli
from templax.compat import orbax as compat
from templax.storage import S3, Local, open_source, open_staging
from templax.storage.open import find_remote

URLS = ["hdfs://bucket/run/1200", "ftp://bucket/run/1200", "oss://bucket/run/1200"]
TREE = {"w": np.zeros(3, np.float32)}

MANGLE: dict[str, Callable[[str], Any]] = {
    "as it is": str,
    "pathlib": Path,
    "pathlib, text": lambda url: str(Path(url)),
    "normpath": os.path.normpath,
    "absolute": lambda url: Path(url).absolute(),
    "abspath": os.path.abspath,
    "joined": lambda url: Path("runs") / url,
}


@pytest.mark.parametrize("mangle", MANGLE)
@pytest.mark.parametrize("url", URLS)
def test_a_url_stays_a_url(
    url: str, mangle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, scheme = MANGLE[mangle](url), url.partition(":")[0]
    calls: list[Callable[[], Any]] = [
        lambda: tx.open(path),
        lambda: tx.restore(path, TREE),
        lambda: tx.check(path, TREE),
        lambda: tx.plan(path, TREE),
        lambda: tx.verify(path),
        lambda: tx.read_json(path),
        lambda: tx.restore(tx.Recipe(lambda: TREE), TREE, missing=path),
        lambda: tx.save(path, TREE),
        lambda: tx.save_template(TREE, path),
        lambda: tx.Manager(path),
        lambda: open_source(path),
        lambda: open_staging(path, overwrite=True),
        lambda: compat.StandardCheckpointer().save(path, TREE),
        lambda: compat.StandardCheckpointer().restore(path, TREE),
        lambda: compat.CheckpointManager(path),
    ]
    for call in calls:
        with pytest.raises(tx.SourceError, match=f"`{scheme}://` is not served"):
            call()
    assert read_files(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["ls", "steps", "verify", "template"])
def test_the_command_line_knows_them_too(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("hdfs:/bucket/run", tmp_path / "oss:/bucket/run"):
        result = run_cli(command, path)
        assert result.exit_code == 2
        assert "is not served by this version" in result.output


@pytest.mark.parametrize("mangle", ["as it is", "pathlib", "absolute"])
def test_a_file_url_is_its_path(mangle: str) -> None:
    path = MANGLE[mangle](f"file://{CKPT}")
    assert tx.open(path).url == str(CKPT)


@pytest.mark.parametrize("path", ["C:/run", "C:\\run", "a:b/c", "./gs:/run", "gs:", "lr=0.1:/x"])
def test_other_paths_with_a_colon_are_local(path: str) -> None:
    source = open_source(path)
    assert isinstance(source, Local)
    assert source.url == path


def test_a_local_directory_of_that_name_is_opened_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been made by a program that took the mangled URL for a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gs:" / "bucket").mkdir(parents=True)
    local = tmp_path / "gs:" / "bucket" / "run"
    assert tx.save(local, {"w": jnp.zeros(3)}).path == str(local)
    with pytest.raises(tx.UsageError, match=r'write "\./gs:/bucket/run" or "gs://bucket/run"'):
        tx.open(Path("gs://bucket/run"))
    assert tx.open(Path("./gs:/bucket/run").absolute()).leaves["w"].shape == (3,)
    assert tx.open(local).leaves["w"].shape == (3,)


@pytest.mark.parametrize("path", ["", "file://", "://x"])
def test_an_empty_path_is_a_usage_error(path: str) -> None:
    with pytest.raises(tx.UsageError, match="Expected a path"):
        open_source(path)


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"timeout": 0}, {"timeout": -1.0}])
def test_a_store_that_could_never_answer_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(tx.UsageError, match=f"Expected {next(iter(settings))}="):
        S3(**settings)


@pytest.mark.parametrize("url", ["hf://org/name", "azure://box/run", "memory://name/run"])
def test_an_absolute_path_made_of_a_url_is_that_url(url: str) -> None:
    found = find_remote(os.path.abspath(url))
    assert found is not None
    assert found[1] == url
