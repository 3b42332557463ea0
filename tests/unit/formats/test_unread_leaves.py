"""Leaves that templax does not read: listed, never ignored without a word, and the others read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.serialization import msgpack_serialize

import templax as tx
from helpers import run_cli


def test_members_that_are_not_read_are_listed_and_the_others_restored(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    tree = {"w": np.arange(6.0), "b": np.ones(2)}
    record = np.zeros(3, [("a", "f4"), ("b", "i4")])
    np.savez(path, record=record, name=np.array(["run"]), some=np.array([{}]), **tree)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(path, "a") as writer:
        writer.writestr("README.txt", "by hand")
    catalog = tx.open(path)
    assert catalog.unread == {
        "record": "templax reads no records, got an array of `[('a', '<f4'), ('b', '<i4')]`",
        "name": "templax does not read dtype `<U3`",
        "some": "templax reads no pickled objects, got an array of them; save arrays of numbers",
        "README.txt": "templax reads archives of arrays, got a file of another kind in one",
    }
    got = tx.restore(path, catalog.template())
    assert got["w"].tolist() == tree["w"].tolist()
    assert got["b"].tolist() == tree["b"].tolist()
    assert got["record"] is got["some"] is ...

    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, tree)
    (extra,) = [m for m in caught.value.mismatches if m.name == "record"]
    assert (extra.problem, extra.found, extra.note) == (
        "extra",
        "one that templax does not read",
        catalog.unread["record"],
    )
    assert len(caught.value.mismatches) == 4
    assert 'hint: extra="ignore"' in str(caught.value)
    assert sorted(tx.check(path, tree, extra="ignore").ignored) == sorted(catalog.unread)
    wanted = {"record": "ignore", "name": "ignore", "some": "ignore", "README.*": "ignore"}
    assert tx.check(path, tree, extra=wanted).unused_patterns == ()

    made = run_cli("template", path, "-o", tmp_path / "t.json")
    assert made.exit_code == 0, made.output
    assert run_cli("check", path, tmp_path / "t.json").exit_code == 0

    verified = tx.verify(path)
    assert (verified.ok, verified.leaves) == (True, 2)
    assert verified.unread == tuple(catalog.unread)
    assert "templax does not read 4 leaves: `record`" in str(verified)
    data = bytearray(path.read_bytes())
    data[data.index(b"by hand")] ^= 1
    path.write_bytes(data)
    verified = tx.verify(path)
    assert [damage.leaf for damage in verified.damages] == ["README.txt"]
    assert "1 damage in 1 of 3 leaves" in str(verified)
    account = tx.account_bytes(path)
    gaps = {gap.what for gap in account.gaps}
    assert gaps == {"members that templax does not read"}
    assert account.kinds["leaf"] == 8 * 8


@pytest.fixture
def with_text(tmp_path: Path) -> Path:
    """An archive of numbers `w` and `z` and the text `s`."""
    np.savez(tmp_path / "a.npz", w=np.arange(6.0), s=np.array(["x"]), z=np.ones(1))
    return tmp_path / "a.npz"


@pytest.mark.parametrize("z", [..., np.zeros(1)])
def test_an_array_that_is_not_read_may_be_kept_or_supplied(with_text: Path, z: Any) -> None:
    template = {"w": np.zeros(6), "s": np.full(1, 7.0), "z": z}
    got = tx.restore(with_text, template, missing="keep")
    assert got["s"].tolist() == [7]
    match = tx.check(with_text, template, missing="keep")
    assert (match.kept, "s" in match.ignored) == (("s",), False)
    np.savez(with_text.with_name("b.npz"), s=np.full(1, 9.0))
    got = tx.restore(with_text, template, missing=with_text.with_name("b.npz"))
    assert got["s"].tolist() == [9]


def test_an_array_that_no_checkpoint_has_in_a_form_that_is_read(with_text: Path) -> None:
    other = with_text.with_name("b.npz")
    np.savez(other, u=np.array(["y"]), w=np.zeros(6))
    template = {"w": np.zeros(6), "z": np.zeros(1), "s": ..., "u": np.zeros(1)}
    (missing,) = tx.check(with_text, template, missing=other).mismatches
    assert missing.found == f"none, and one that templax does not read in {other}"
    assert missing.note == "templax does not read dtype `<U1`"
    np.savez(other, s=np.array(["y"]), w=np.zeros(6))
    template |= {"s": np.zeros(1), "u": ...}
    (missing,) = tx.check(with_text, template, missing=other).mismatches
    assert missing.found == (
        f"one that templax does not read, and one that templax does not read in {other}"
    )


def test_an_array_that_is_not_read_is_not_drawn(with_text: Path) -> None:
    with pytest.raises(tx.Unsupported, match=r"does not read this leaf: .* dtype `<U1` - at `s`"):
        tx.draw_chunks(with_text, "s")


def test_targets_below_an_array_that_is_not_read_may_be_kept(with_text: Path) -> None:
    inner = {"a": np.full(1, 7.0), "b": np.full(1, 8.0)}
    got = tx.restore(with_text, {"w": np.zeros(6), "s": inner, "z": ...}, missing="keep")
    assert [got["s"][name].tolist() for name in "ab"] == [[7], [8]]


def test_arrays_that_are_not_read_are_extra_under_the_names_of_the_template(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    values = {"m.w": np.zeros(2), "m.s": np.array(["x"]), "m.l.t": np.array(["x"])}
    np.savez(path, **values, other=np.array(["x"]))
    for options, name in [({"at": "m"}, "s"), ({"at": "m", "rename": {"s": "r"}}, "r")]:
        found = tx.check(path, {"w": np.zeros(2), "l": ...}, **options)
        assert [(m.problem, m.name) for m in found.mismatches] == [("extra", name)]
        assert found.ignored == ("l.t",)
    found = tx.check(path, {"w": np.zeros(2), "l": {"t": {"deep": 0.0}}}, at="m", extra="ignore")
    assert [(m.problem, m.name) for m in found.mismatches] == [("missing", "l.t.deep")]
    assert found.ignored == ("s",)


def test_an_array_that_is_not_read_does_not_give_way_to_one_of_its_name(with_text: Path) -> None:
    found = tx.check(with_text, {"w": np.zeros(6)}, rename={"s": "w"}, extra="ignore")
    assert [(m.problem, m.name) for m in found.mismatches] == [("ambiguous", "w")]


def test_the_template_of_lists_and_names_with_arrays_that_are_not_read(tmp_path: Path) -> None:
    tree = {"l": [np.zeros(2), np.array(["x"])], "m": [np.array(["x"])]}
    path = tmp_path / "state"
    path.write_bytes(msgpack_serialize({"l": tree["l"], "m": {"0": tree["m"][0]}}))
    template = tx.open(path).template()
    assert isinstance(template["l"], list)
    assert template["l"][1] is template["m"]["0"] is ...
    np.savez(tmp_path / "flat.npz", **{"a": np.zeros(2), "a.b": np.ones(2), "a.c": np.array(["x"])})
    flat = tx.open(tmp_path / "flat.npz")
    assert set(flat.template()) == {"a", "a.b", "a.c"}
    assert tx.restore(flat, flat.template())["a.c"] is ...


def test_one_checkpoint_may_have_what_is_not_read_in_another(with_text: Path) -> None:
    other = with_text.with_name("b.npz")
    np.savez(other, s=np.full(1, 9.0))
    for parts in [(with_text, other), (other, with_text)]:
        merged = tx.open(tx.merge(*parts))
        assert dict(merged.unread) == {}
        assert tx.restore(merged, merged.template())["s"].tolist() == [9]


def test_a_mapping_drops_what_is_not_read_and_says_why_it_can_not_use_it(with_text: Path) -> None:
    rules = {"k": tx.From("w"), "z": tx.From("z")}
    view = tx.open(tx.view(with_text, tx.Mapping(rules)))
    assert list(view.unread) == ["s"]
    assert tx.verify(view).unread == ("s",)
    dropped = tx.open(tx.view(with_text, tx.Mapping(rules, drop=["s"])))
    assert dict(dropped.unread) == {}
    assert tx.restore(dropped, {"k": np.zeros(6), "z": np.zeros(1)})["k"].tolist() == [*range(6)]
    with pytest.raises(tx.MappingError, match=r"`t`: templax does not read `s`: .*dtype `<U1`"):
        tx.open(tx.view(with_text, tx.Mapping(rules | {"t": tx.From("s")})))
    kept = tx.open(tx.view(with_text, tx.Mapping({"s": tx.From("w")}, rest="keep")))
    assert dict(kept.unread) == {}


def test_a_conversion_may_skip_what_is_not_read(with_text: Path, tmp_path: Path) -> None:
    done = tx.convert(with_text, tmp_path / "copy.npz", skip=["s"])
    assert dict(done.lost) == {"a leaf that skip= names": ("s",)}


def test_an_array_that_is_not_read_and_asked_for_is_one_mismatch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.zeros(2), name=np.array(["run"]))
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tmp_path / "a.npz", {"w": np.zeros(2), "name": np.zeros(1)})
    assert [(m.problem, m.name) for m in caught.value.mismatches] == [("missing", "name")]


@pytest.mark.parametrize("at", ["b", "b.objects"])
def test_a_leaf_below_at_that_is_not_read_is_named_and_no_other_place_is_hinted_at(
    tmp_path: Path, at: str
) -> None:
    path = tmp_path / "a.npz"
    arrays: dict[str, Any] = {"a.w": np.zeros(3), "b.objects": np.array([{}], object)}
    np.savez(path, **arrays)
    template = {"objects": np.zeros(3)} if at == "b" else np.zeros(3)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template, at=at)
    (mismatch,) = caught.value.mismatches
    assert mismatch.found == "one that templax does not read"
    assert "templax reads no pickled objects" in str(caught.value)
    assert "hint" not in str(caught.value)
