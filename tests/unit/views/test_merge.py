"""Several checkpoints are restored from, verified and compared as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import templax as tx

BASE = {
    "layers": [{"w": np.arange(6.0).reshape(2, 3)}, {"w": np.ones((2, 3))}],
    "step": np.int32(9),
}
LORA = {
    "layers": [{"lora_a": np.full((2, 1), i), "lora_b": np.full((1, 3), -i)} for i in (1.0, 2.0)],
    "step": np.int32(7),
}


@pytest.fixture(params=["orbax", "safetensors"])
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    tx.save(tmp_path / "base", BASE)
    tx.save(tmp_path / "lora", LORA, format=request.param)
    return tmp_path / "base", tmp_path / "lora"


@pytest.fixture
def merged(paths: tuple[Path, Path]) -> object:
    return tx.merge(paths[0], (paths[1], "*.lora_?"))


def test_a_template_is_restored_from_several_checkpoints(merged) -> None:
    template = {
        "layers": [
            {"w": np.empty((2, 3)), "lora_a": np.empty((2, 1)), "lora_b": np.empty((1, 3))}
            for _ in range(2)
        ],
        "step": np.int32(0),
    }
    restored = tx.restore(merged, template)
    assert restored["step"] == 9
    for i in range(2):
        np.testing.assert_array_equal(restored["layers"][i]["w"], BASE["layers"][i]["w"])
        for name in ("lora_a", "lora_b"):
            np.testing.assert_array_equal(restored["layers"][i][name], LORA["layers"][i][name])


def test_what_is_taken_and_left_out_is_listed(merged, paths) -> None:
    catalog = tx.open(merged)
    assert len(catalog.leaves) == 7
    assert catalog.url == f"{paths[0]} + {paths[1]}"
    assert catalog.evidence == (
        f"3 leaves of {paths[0]}; 4 leaves of {paths[1]} (1 that match no pattern left out)"
    )
    assert "lora_a" in str(catalog)
    assert repr(merged) == f"merge({paths[0]!r}, ({paths[1]!r}, ('*.lora_?',)))"


def test_a_merge_is_verified_compared_converted_and_accounted(merged, paths, tmp_path) -> None:
    verified = tx.verify(merged)
    assert verified.ok
    assert verified.leaves == 7
    tx.convert(merged, tmp_path / "one", to="orbax")
    assert tx.diff(merged, tmp_path / "one").identical
    assert tx.diff(merged, paths[0]).differs
    kinds = tx.account_bytes(merged).kinds
    assert kinds["leaf"] >= tx.open(merged).nbytes


def test_a_merge_is_shown_through_a_mapping(merged) -> None:
    mapping = tx.Mapping(
        {"a": tx.From("layers.{i}.lora_a", "d r -> i r d"), "w.{i}": "layers.{i}.w"},
        drop=["*.lora_b", "step"],
    )
    template = {"a": np.empty((2, 1, 2)), "w": [np.empty((2, 3)), np.empty((2, 3))]}
    restored = tx.restore(tx.view(merged, mapping), template)
    np.testing.assert_array_equal(restored["a"], [[[1, 1]], [[2, 2]]])
    np.testing.assert_array_equal(restored["w"][0], BASE["layers"][0]["w"])
    assert tx.verify(tx.view(merged, mapping)).ok


def test_the_file_of_a_damaged_part_is_named(merged, paths) -> None:
    lora = tx.open(paths[1])
    [chunk] = lora.locate([lora.leaves["layers.1.lora_a"]])["layers.1.lora_a"]
    file = paths[1] / chunk.extent.key if paths[1].is_dir() else paths[1]
    data = bytearray(file.read_bytes())
    del data[chunk.extent.start + 1 :]
    file.write_bytes(data)
    if lora.format != "orbax":  # whose length the header says, so that it is not even opened
        with pytest.raises(tx.Corrupted) as caught:
            tx.open(merged)
        assert caught.value.file == str(file)
        return
    verified = tx.verify(merged)
    assert not verified.ok
    assert {damage.file for damage in verified.damages} == {str(file)}
    assert "layers.1.lora_a" in {damage.leaf for damage in verified.damages}
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(merged, {"layers": [{}, {"lora_a": np.empty((2, 1))}]}, extra="ignore")
    assert caught.value.file == str(file)
    base = {"layers": [{"w": np.empty((2, 3))}]}
    np.testing.assert_array_equal(
        tx.restore(merged, base, extra="ignore")["layers"][0]["w"], BASE["layers"][0]["w"]
    )


def test_a_name_that_two_checkpoints_have_names_both(paths) -> None:
    with pytest.raises(tx.MappingError) as caught:
        tx.open(tx.merge(*paths))
    assert caught.value.problems == (
        f"`step` is in {paths[0]} and in {paths[1]}: take it from one of them, as in"
        " tx.merge(base, (lora, ['*.lora_?']))",
    )


def test_a_pattern_that_matches_nothing_is_refused(paths) -> None:
    with pytest.raises(tx.MappingError, match=r"'\*\.lora_c' matches no leaf of .*: correct it"):
        tx.open(tx.merge(paths[0], (paths[1], ["*.lora_a", "*.lora_c"])))


def test_a_view_is_not_merged(paths) -> None:
    view = tx.view(paths[1], tx.Mapping({"{...}": "{...}"}))
    with pytest.raises(tx.Unsupported, match=r"got a view: .* tx.view\(tx.merge"):
        tx.open(tx.merge(paths[0], view))


def test_arguments_that_are_no_checkpoints_are_refused(paths) -> None:
    with pytest.raises(tx.UsageError, match="got none"):
        tx.merge()
    with pytest.raises(tx.UsageError, match="a tuple of one and patterns"):
        tx.merge(paths[0], (paths[1], 3))
    with pytest.raises(tx.UsageError, match="a tuple of one and patterns"):
        tx.merge(paths[0], (paths[1],))


def test_a_merge_is_not_converted_into_one_of_its_parts(merged, paths) -> None:
    with pytest.raises(tx.SaveError, match="apart from the source") as caught:
        tx.convert(merged, paths[1] / "one", to="orbax", overwrite=True)
    assert str(paths[1]) in str(caught.value)


def test_sources_without_distinct_urls_are_told_apart(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        tx.save(tmp_path / name, {name: np.full(3, ord(name))}, format="safetensors")
        data = (tmp_path / name / "model.safetensors").read_bytes()
        sources.append(tx.storage.Memory({"": data}))
    merged = tx.merge(*sources)
    restored = tx.restore(merged, {"a": np.empty(3, int), "b": np.empty(3, int)})
    assert (restored["a"][0], restored["b"][0]) == (ord("a"), ord("b"))
    source = tx.open(merged).source
    roots = ["memory:#0", "memory:#1"]
    assert [info.key for info in source.children()] == [f"{root}/" for root in roots]
    assert [info.key for info in source.walk()] == roots
    assert [source.stat(root).size for root in roots] == [s.stat("").size for s in sources]
    assert source.at(roots[1]) is sources[1]
    with pytest.raises(tx.NotFound, match="an object of one of the merged checkpoints"):
        source.read("memory:#2")


def test_the_files_of_a_merge_are_listed_as_they_lie(merged, paths) -> None:
    source = tx.open(merged).source
    files = sorted(str(f) for path in paths for f in path.rglob("*") if f.is_file())
    assert sorted(info.key for info in source.walk()) == files
    for path in paths:
        below = {str(child) for child in path.iterdir()}
        assert {info.key.rstrip("/") for info in source.children(f"{path}/")} == below
    assert {info.key for info in source.walk(f"{paths[1]}/")} <= set(files)
