"""`account_bytes`: every byte of a checkpoint's files has one purpose."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import CORPUS, copy_case, count_bytes, count_examples
from templax._audit.account import Span, cover_bytes, find_shared
from templax._audit.account_result import ByteAccount, Gap
from templax.testing.strategies import arrays, trees

FILES = (
    "safetensors-official/model.safetensors",
    "safetensors-plain/model.safetensors",
    "equinox-header/model.eqx",
    "equinox-plain/model.eqx",
    "flaxmsgpack-chunked/state.msgpack",
    "flaxmsgpack-plain/state.msgpack",
    "gguf/plain.gguf",
    "gguf/not-read.gguf",
    "gguf/quantised.gguf",
    "npy-fortran/array.npy",
    "npz-deflated/params.npz",
    "npz-stored/params.npz",
    "torch-2.14.1/checkpoint-legacy.pt",
    "torch-2.14.1/checkpoint.pt",
    "torch-2.14.1/leaves-legacy.pt",
    "torch-2.14.1/leaves-protocol5.pt",
    "torch-2.14.1/leaves.pt",
    "torch-2.14.1/tensor.pt",
)

DIRECTORIES = (
    *sorted(f"{path.name}/ckpt" for path in CORPUS.glob("orbax-*") if "crash" not in path.name),
    "zarr-2.18.7/tree.zarr",
    "zarr-3.1.6/tree.zarr",
    "zarr-array/tree.zarr",
    "zarr-ocdbt/tree.zarr",
    "gguf/split",
    "safetensors-sharded",
    "t5x/checkpoint_1000",
    "torch-2.14.1/dcp-1",
    "torch-2.14.1/dcp-2",
)


def _open(path: Path) -> tx.Catalog | None:
    try:
        return tx.open(path)
    except tx.UnknownFormat:  # a run: a directory of steps
        return None


def check_account(account: ByteAccount, nbytes: int) -> None:
    """Checks that all views of the bytes of a checkpoint have the same sums."""
    assert account.nbytes == nbytes
    assert sum(account.kinds.values()) == nbytes
    assert sum(file.nbytes for file in account.files) == nbytes
    assert all(sum(file.kinds.values()) == file.nbytes for file in account.files)
    parts: Counter[str] = Counter()
    for part in account.parts:
        assert part.nbytes > 0
        parts[part.kind] += part.nbytes
    assert parts == {kind: n for kind, n in account.kinds.items() if n}
    assert sum(leaf.stored for leaf in account.leaves) == account.kinds["leaf"]
    assert sum(gap.stop - gap.start for gap in account.gaps) == account.kinds["gap"]
    assert str(account).count("\n") > 4


@pytest.mark.parametrize("file", FILES)
def test_the_sum_is_the_size_of_a_file_that_its_own_writer_wrote(file: str):
    account = tx.account_bytes(CORPUS / file)
    check_account(account, (CORPUS / file).stat().st_size)
    assert (account.kinds["gap"], account.kinds["orphan"]) == (0, 0)
    assert account.kinds["leaf"] > 0


@pytest.mark.parametrize("case", DIRECTORIES)
def test_the_sum_is_the_size_of_all_files_below_a_directory(case: str):
    catalog = _open(CORPUS / case)
    assert (catalog is None) == (case.endswith("-manager/ckpt"))
    if catalog is not None:
        account = tx.account_bytes(catalog)
        check_account(account, count_bytes(Path(account.url)))
        # Beside them are expectations of these tests, arrays of strings, or many versions.
        known = ("safetensors", "dcp", "zarr-2", "zarr-3", "zarr-ocdbt")
        if not any(name in case for name in known):
            assert account.kinds["orphan"] == 0


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"format": "safetensors"}])
@given(tree=trees(arrays()))
@count_examples(25)
def test_no_byte_of_what_templax_writes_is_unknown(options: dict[str, Any], tree: Any):
    if options.get("format") == "safetensors" and not isinstance(tree, dict):
        tree = {"tree": tree}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ckpt")
        try:
            tx.save(path, tree, **options)
        except tx.SaveError:  # a leaf that safetensors has no dtype for
            return
        account = tx.account_bytes(path)
        check_account(account, count_bytes(path))
        assert (account.kinds["gap"], account.kinds["orphan"]) == (0, 0)
        assert not account.shared
        decoded = sum(leaf.nbytes for leaf in account.leaves)
        assert decoded == account.decoded


@given(
    spans=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 4)), max_size=20
    ),
    size=st.integers(0, 50),
)
def test_each_byte_has_the_span_of_the_lowest_rank_that_covers_it(
    spans: list[tuple[int, int, int]], size: int
):
    made = [Span(a, b, rank, i, str(i), None) for i, (a, b, rank) in enumerate(spans)]
    want = [
        min((s for s in made if s.start <= at < s.stop), key=lambda s: s[2:4], default=None)
        for at in range(size)
    ]
    got: list[Span | None] = []
    for start, stop, span in cover_bytes(made, size):
        assert start == len(got) < stop
        got += [span] * (stop - start)
    assert got == want


@pytest.mark.slow
def test_ranges_that_all_overlap_take_time_in_proportion_to_their_number():
    n = 50_000
    nested = [Span(i, 2 * n - i, 4 - i % 5, i, "", str(i)) for i in range(n)]
    assert sum(stop - start for start, stop, _ in cover_bytes(nested, 2 * n)) == 2 * n
    assert len(list(find_shared(nested))) == n - 1


def test_the_header_and_the_padding_of_gguf_files_are_named(tmp_path: Path):
    data = bytearray((CORPUS / "gguf" / "plain.gguf").read_bytes())
    parts = {part.what: part for part in tx.account_bytes(CORPUS / "gguf" / "plain.gguf").parts}
    padding = parts["zeros up to a multiple of 32"]
    assert (parts["header"].kind, padding.kind) == ("index", "padding")
    assert parts["header"].nbytes + padding.nbytes + parts["values of leaves"].nbytes == len(data)
    data[-1] = 1  # no zero, so that something else may be there
    (tmp_path / "altered.gguf").write_bytes(data)
    account = tx.account_bytes(tmp_path / "altered.gguf")
    check_account(account, len(data))
    assert account.kinds["gap"] == len(data) - account.gaps[0].start < 32


def test_the_arrays_beside_a_file_are_accounted_for_and_other_checkpoints_are_not(
    monkeypatch: pytest.MonkeyPatch,
):
    account = tx.account_bytes(CORPUS / "flax-gda" / "checkpoint_8")
    monkeypatch.chdir(CORPUS / "flax-gda")
    assert tx.account_bytes("checkpoint_8").kinds == account.kinds
    files = [CORPUS / "flax-gda" / "checkpoint_8"]
    files += [p for p in (CORPUS / "flax-gda" / "checkpoint_8_gda").rglob("*") if p.is_file()]
    check_account(account, sum(path.stat().st_size for path in files))
    assert (account.kinds["gap"], account.kinds["orphan"]) == (0, 0)
    assert account.url == str(files[0])
    assert {part.what for part in account.parts if part.kind == "index"} == {
        "msgpack around the arrays",
        "metadata of arrays",
    }


def test_what_is_put_into_a_checkpoint_of_orbax_is_named(tmp_path: Path):
    path = copy_case("orbax-0.12.8-default", tmp_path / "ckpt")
    before = tx.account_bytes(path)
    (path / "notes").mkdir()
    (path / "notes" / "a.txt").write_text("0123456789")
    data = max((path / "ocdbt.process_0" / "d").iterdir(), key=lambda file: file.stat().st_size)
    size = data.stat().st_size
    with data.open("ab") as file:
        file.write(b"\0" * 100)
    account = tx.account_bytes(path)
    check_account(account, count_bytes(path))
    name = f"ocdbt.process_0/d/{data.name}"
    assert set(account.gaps) - set(before.gaps) == {
        Gap(name, size, size + 100, "nothing refers to it")
    }
    (orphan,) = [file for file in account.files if file.kinds.get("orphan")]
    assert (orphan.file, orphan.nbytes, orphan.kinds) == ("notes/a.txt", 10, {"orphan": 10})
    assert "orphan  nothing refers to the file" in str(account)


def test_nodes_that_only_older_versions_of_a_database_have_are_named(tmp_path: Path):
    account = tx.account_bytes(CORPUS / "orbax-0.12.8-default/ckpt")
    assert {gap.what for gap in account.gaps} == {"only in older versions"}
    parts = {part.what for part in account.parts}
    assert parts >= {"index nodes of OCDBT", "manifests of OCDBT", "metadata of the item"}


def test_values_inside_an_index_count_to_the_index():
    account = tx.account_bytes(CORPUS / "orbax-0.12.8-default/ckpt")
    leaves = {leaf.name: leaf for leaf in account.leaves}
    assert leaves["state.params.big"].stored > 30_000
    assert leaves["state.params.big"].inline == 0
    assert leaves["state.params.scale"].stored == 0
    assert leaves["state.params.scale"].inline == 13


def test_values_in_the_msgpack_file_of_old_orbax_have_their_place():
    account = tx.account_bytes(CORPUS / "orbax-0.4.4-aggregate/ckpt")
    assert account.kinds["leaf"] == 34_388
    assert account.kinds["orphan"] == 0


def test_padding_between_leaves_and_after_a_chunk_at_an_edge(tmp_path: Path):
    tx.save(tmp_path / "a", {"a": np.ones(2, np.float32), "b": np.ones(3, np.int8)})
    account = tx.account_bytes(tmp_path / "a")
    padding = {part.what: part.nbytes for part in account.parts if part.kind == "padding"}
    assert sum(padding.values()) == 56 + 61
    path = tmp_path / "b"
    sharded = np.arange(5 * 100_000, dtype=np.float32)
    ocp.PyTreeCheckpointer().save(path, {"w": sharded})
    check_account(tx.account_bytes(path), count_bytes(path))


def test_a_gap_between_the_members_of_an_archive(tmp_path: Path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a.npy", "b.npy"):
            values = io.BytesIO()
            np.save(values, np.arange(4.0))
            archive.writestr(name, values.getvalue())
            archive.fp.write(b"lost" * 20)  # pyright: ignore[reportOptionalMemberAccess]
            archive.start_dir = archive.fp.tell()  # pyright: ignore[reportOptionalMemberAccess]
    path = tmp_path / "a.npz"
    path.write_bytes(file.getvalue())
    account = tx.account_bytes(path)
    check_account(account, path.stat().st_size)
    assert [gap.stop - gap.start for gap in account.gaps] == [80, 80]
    assert account.kinds["leaf"] == 64


def test_leaves_that_share_bytes_are_counted_once_and_named():
    account = tx.account_bytes(CORPUS / "torch-2.14.1/leaves.pt")
    shared = {group.leaves: group.nbytes for group in account.shared}
    assert shared[("tied.one", "tied.two")] == 48
    leaves = {leaf.name: leaf.stored for leaf in account.leaves}
    assert (leaves["tied.one"], leaves["tied.two"]) == (48, 0)
    assert "48 bytes are shared by `tied.one`, `tied.two`" in str(account)


def test_files_of_no_set_are_orphans(tmp_path: Path):
    tx.save(tmp_path / "m", {"w": np.ones(100, np.float32)}, format="safetensors")
    (tmp_path / "m" / "config.json").write_text("{}")
    account = tx.account_bytes(tmp_path / "m")
    check_account(account, count_bytes(tmp_path / "m"))
    assert account.kinds["orphan"] == 2
    assert {part.what for part in account.parts} >= {"header", "values of leaves"}


def test_a_link_that_leads_out_is_not_measured(tmp_path: Path):
    (tmp_path / "elsewhere").write_bytes(b"secret")
    tx.save(tmp_path / "a", {"w": np.ones(3, np.float32)})
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    account = tx.account_bytes(tmp_path / "a")
    assert account.nbytes == count_bytes(tmp_path / "a") - 6
    assert list(account.unread) == ["link"]
    assert "NOT MEASURED: link: " in str(account)


def test_a_checkpoint_with_lost_values_is_an_error():
    with pytest.raises(tx.Corrupted, match="Expected a data file, found none"):
        tx.account_bytes(CORPUS / "damaged-data_missing/ckpt")


def test_a_catalog_without_files_has_no_bytes():
    account = tx.account_bytes(tx.Recipe(lambda: {"w": np.ones(3, np.float32)}))
    assert (account.nbytes, account.files) == (0, ())
    assert [(leaf.name, leaf.inline) for leaf in account.leaves] == [("w", 12)]
