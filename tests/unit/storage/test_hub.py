"""Repositories of the Hub, on a server that answers as it does, and in its local cache."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import templax as tx
from hub_server import Hub, Repository
from templax.storage import HuggingFace, Local, ObjectSource, Source, open_source
from templax.testing import SourceContract

constants = pytest.importorskip("huggingface_hub.constants")

TREE = {
    "embed": np.arange(600_000, dtype=np.float32).reshape(600, 1000),
    "head": np.ones((1000, 30), np.float32),
    "norm": np.full(1000, 2, np.float32),
}
FILES = {
    "model.safetensors": save(TREE),
    "config.json": b'{"model_type": "tiny"}',
    "README.md": b"# tiny\n",
    "onnx/deep/model.onnx": b"x" * 2000,
    "tokenizer.json": b"{}",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TEMPLAX_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    with Hub() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield started


def fill_cache(
    root: Path, name: str, files: Mapping[str, bytes], commit: str, branch: str = "main"
) -> None:
    """Writes a repository as huggingface_hub's cache has it: links to blobs in snapshots."""
    folder = root / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    for number, (path, data) in enumerate(files.items()):
        blob, link = folder / "blobs" / f"{commit}{number}", folder / "snapshots" / commit / path
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


class TestHub(SourceContract):
    @pytest.fixture(autouse=True)
    def _hub(self, hub: Hub) -> None:
        self.hub = hub

    def make(self, objects: Mapping[str, bytes]) -> Source:
        if "" in objects:
            pytest.skip("a repository is a directory")
        repository = self.hub.repositories.setdefault("org/name", Repository())
        repository.commit({"unrelated": b"x", **{f"ckpt/{k}": v for k, v in objects.items()}})
        return open_source("hf://org/name@main/ckpt")


@pytest.mark.slow
def test_a_repository_is_listed_and_read_in_ranges(hub: Hub) -> None:
    hub.repositories["org/tiny"] = Repository()
    commit = hub.repositories["org/tiny"].commit(FILES)
    checkpoint = tx.open("hf://org/tiny")
    assert {name: leaf.shape for name, leaf in checkpoint.leaves.items()} == {
        name: leaf.shape for name, leaf in TREE.items()
    }
    source = open_source("hf://org/tiny")
    assert isinstance(source, ObjectSource)
    assert source.url == f"hf://org/tiny@{commit}"
    assert [info.key for info in source.children()] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/",
        "tokenizer.json",
    ]
    hub.requests.clear()
    hub.received_bytes = 0
    tree = tx.restore("hf://org/tiny", {"norm": TREE["norm"]}, extra="ignore")
    np.testing.assert_array_equal(tree["norm"], TREE["norm"])
    assert all(request.range for request in hub.requests if "/resolve/" in request.path)
    assert hub.received_bytes < len(FILES["model.safetensors"])
    assert len(hub.select("GET", "/revision/")) == 1
    whole = tx.restore("hf://org/tiny", TREE)
    assert all(np.array_equal(whole[name], TREE[name]) for name in TREE)


@pytest.mark.slow
def test_one_commit_is_read_while_the_branch_moves_on(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub.repositories["org/tiny"] = Repository()
    first = repository.commit(FILES)
    with caplog.at_level(logging.INFO, "templax"):
        source = open_source("hf://org/tiny")
    assert f"reading `hf://org/tiny` at commit {first}" in caplog.messages
    second = repository.commit({**FILES, "config.json": b"{}", "new": b"x"})
    assert source.read("config.json") == FILES["config.json"]
    assert source.stat("new") is None
    assert bytes(open_source("hf://org/tiny").read("config.json")) == b"{}"
    for url in (f"hf://org/tiny@{first}", "hf://org/tiny@v1", "hf://org/tiny@refs/pr/3/onnx"):
        repository.refs |= {"v1": first, "refs/pr/3": second}
        assert open_source(url).url.startswith("hf://org/tiny@")
    assert open_source("hf://org/tiny@v1").read("config.json") == FILES["config.json"]
    assert open_source("hf://org/tiny@refs/pr/3/onnx").url == f"hf://org/tiny@{second}/onnx"
    assert open_source("hf://org/tiny/onnx/deep").read("model.onnx") == b"x" * 2000
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.url == source.url
    assert again.read("config.json") == FILES["config.json"]


def test_datasets(hub: Hub) -> None:
    hub.repositories["datasets/org/data"] = Repository()
    hub.repositories["datasets/org/data"].commit({"a.npz": b"x" * 5000})
    assert open_source("hf://datasets/org/data").read("a.npz", 10, 20) == b"x" * 10


def test_the_token_goes_to_the_hub_but_not_to_where_it_leads(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/private"] = Repository(token="hf_secret")
    hub.repositories["org/private"].commit(FILES)
    settings = HuggingFace(token="hf_secret")
    assert "hf_secret" not in repr(settings)
    tree = tx.restore("hf://org/private", TREE, storage=settings)
    assert np.array_equal(tree["embed"], TREE["embed"])
    assert {request.token for request in hub.select("GET", "/resolve/")} == {"hf_secret"}
    assert {request.token for request in hub.select("GET", "", is_cdn=True)} == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tx.restore("hf://org/private", TREE)


def test_errors_say_what_to_do(hub: Hub) -> None:
    hub.repositories["org/gated"] = Repository(token="hf_secret", gated=True)
    hub.repositories["org/gated"].commit(FILES)
    hub.repositories["org/public"] = Repository()
    hub.repositories["org/public"].commit(FILES)
    log_in = (
        "log in with `hf auth login`, set HF_TOKEN, or pass templax.storage.HuggingFace(token=…)"
    )
    with pytest.raises(tx.NotFound) as absent:
        tx.open("hf://org/absent")
    assert str(absent.value) == (
        "Expected a model on the Hub, found none, or a private one - file `hf://org/absent`; hint:"
        f" check its name, or {log_in}"
    )
    with pytest.raises(tx.NotFound) as revision:
        tx.open("hf://org/gated@v7")
    assert str(revision.value) == (
        "Expected a revision `v7`, found none - file `hf://org/gated@v7`; hint: give a branch, a"
        " tag or a commit after @"
    )
    with pytest.raises(tx.SourceError) as gated:
        tx.restore("hf://org/gated", TREE)
    assert str(gated.value) == (
        "can't read `hf://org/gated`: it is gated, and its owner has not granted access; hint: ask"
        f" for access at {hub.url}/org/gated, then {log_in}"
    )
    with pytest.raises(tx.SaveError, match="reads from the Hub, but does not write to it"):
        tx.save("hf://org/public", {"w": np.zeros(3, np.float32)})
    with pytest.raises(tx.UsageError, match="Expected a URL that begins with s3://"):
        tx.open("hf://org/gated", storage=tx.storage.S3())


@pytest.mark.parametrize("url", ["hf://", "hf://org//x", "hf://org/name@", "hf://org/name/x@v1"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(tx.UsageError, match="Expected a URL such as hf://org/name"):
        HuggingFace().locate(url)


def test_failures_that_pass_are_repeated(hub: Hub) -> None:
    hub.repositories["org/tiny"] = Repository()
    hub.repositories["org/tiny"].commit(FILES)
    hub.failures = [503]
    source = open_source("hf://org/tiny")
    hub.failures = [429, 500]
    assert source.read("model.safetensors", 8, 100) == FILES["model.safetensors"][8:100]
    hub.failures = [502]
    assert source.read("onnx/deep/model.onnx") == b"x" * 2000
    assert not hub.failures


@pytest.mark.slow
def test_a_cache_knows_files_again_in_other_commits(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["org/tiny"] = Repository()
    repository.commit(FILES)
    settings = HuggingFace(cache=tmp_path / "cache")
    for attempt in range(2):
        hub.received_bytes = 0
        tree = tx.restore("hf://org/tiny", TREE, storage=settings)
        assert all(np.array_equal(tree[name], TREE[name]) for name in TREE)
        assert (hub.received_bytes > 0) == (attempt == 0)
        repository.commit({**FILES, "README.md": b"# changed\n"})


@pytest.mark.parametrize("why", ["set", "no network"])
def test_without_the_hub_its_local_cache_is_read(
    why: str,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit, other = "ab" * 20, "cd" * 20
    fill_cache(tmp_path / "hub", "org/tiny", FILES, commit)
    fill_cache(tmp_path / "hub", "org/tiny", {"x": b"1"}, other, "other")
    if why == "set":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.INFO, "templax"):
        tree = tx.restore("hf://org/tiny", TREE)
    assert all(np.array_equal(tree[name], TREE[name]) for name in TREE)
    said = [
        m for m in caplog.messages if m.startswith(f"reading `hf://org/tiny` at commit {commit}")
    ]
    assert len(said) == 1
    assert hub.requests == []
    for revision in ("other", other):
        source = open_source(f"hf://org/tiny@{revision}")
        assert isinstance(source, Local)
        assert source.read("x") == b"1"
    assert open_source("hf://org/tiny/onnx/deep").read("model.onnx") == b"x" * 2000
    with pytest.raises(tx.SourceError) as caught:
        tx.open("hf://org/absent@v1")
    text = str(caught.value)
    assert text.startswith("can't read `hf://org/absent@v1`: ")
    assert text.endswith(
        f"{tmp_path}/hub/models--org--absent has no snapshot of revision `v1`; hint: run `hf"
        " download org/absent` with a network"
    )


@pytest.mark.slow
def test_the_hub_is_where_its_own_variables_say(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = Repository()
    hub.repositories["org/tiny"].commit(FILES)
    code = "import templax as tx; print(sorted(tx.open('hf://org/tiny').leaves))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['embed', 'head', 'norm']\n"
