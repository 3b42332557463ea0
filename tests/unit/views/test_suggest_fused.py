"""Suggestions where one tree holds in one leaf what the other holds apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx
from model_layouts import D, F, H, K, L, V, kernel, zeros

G = 2
"""Heads of the keys and of the values."""

ORDER = "taken as all queries, then all keys, then all values"


def draw(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).normal(size=shape), np.float32)


def make_tree(attn: dict[str, Any], mlp: dict[str, Any]) -> dict[str, Any]:
    """A stored tree in the layout of PyTorch; each layer has other values."""
    layers = [{"self_attn": attn, "mlp": mlp} for _ in range(L)]
    tree: dict[str, Any] = {"embed_tokens": {"weight": (V, D)}, "layers": layers}
    rng = np.random.default_rng(0)

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return np.asarray(rng.normal(size=node), np.float32)

    return {"model": fill(tree)}


def make_template(attn: dict[str, Any], mlp: dict[str, Any]) -> dict[str, Any]:
    blocks = {f"layers_{i}": {"attn": attn, "mlp": mlp} for i in range(L)}
    return {"embed": {"embedding": zeros(V, D)}, **blocks}


def make_apart(kv: int) -> dict[str, Any]:
    return make_tree(
        {f"{p}_proj": {"weight": (n * K, D)} for p, n in (("q", H), ("k", kv), ("v", kv))},
        {f"{p}_proj": {"weight": (F, D)} for p in ("gate", "up")},
    )


def suggest(tmp_path: Path, stored: Any, template: Any) -> tuple[tx.Mapping | None, list[str], Any]:
    """The mapping, its notes, and what it restores."""
    tx.save(tmp_path / "stored", stored)
    notes: list[str] = []
    mapping = tx.suggest(tmp_path / "stored", template, on_note=notes.append)
    made = None
    if mapping is not None:
        view = tx.view(tmp_path / "stored", mapping)
        made = tx.restore(view, template, missing="keep")
    return mapping, notes, made


def list_parts(stored: Any, layer: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    block = stored["model"]["layers"][layer]
    return (
        [block["self_attn"][f"{p}_proj"]["weight"] for p in "qkv"],
        [block["mlp"][f"{p}_proj"]["weight"] for p in ("gate", "up")],
    )


@pytest.mark.parametrize(("kv", "heads"), [(H, False), (G, False), (G, True)])
def test_separate_projections_are_joined(kv: int, heads: bool, tmp_path: Path) -> None:
    n = H + 2 * kv
    shape = (D, n, K) if heads else (D, n * K)
    template = make_template({"qkv": kernel(*shape)}, {"gate_up_proj": kernel(D, 2 * F)})
    stored = make_apart(kv)
    mapping, notes, made = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert [type(rule) for rule in mapping.rules.values()].count(tx.Concat) == 2
    for i in range(L):
        attn, mlp = list_parts(stored, i)
        block = made[f"layers_{i}"]
        want = np.concatenate(attn).T.reshape(shape)
        np.testing.assert_array_equal(block["attn"]["qkv"]["kernel"], want)
        np.testing.assert_array_equal(block["mlp"]["gate_up_proj"]["kernel"], np.concatenate(mlp).T)
    assert (
        f"can't tell in what order `layers_{{i}}.attn.qkv.kernel` holds its parts: {ORDER}" in notes
    )
    assert sum("holds its parts: taken as all of the gate, then" in note for note in notes) == 1
    again = tx.Mapping.from_json(mapping.to_json())
    assert again == mapping


def test_separate_projections_of_layers_are_joined_and_stacked(tmp_path: Path) -> None:
    layers = {
        "attn": {"qkv": kernel(L, D, (H + 2 * G) * K)},
        "mlp": {"gate_up": kernel(L, D, 2 * F)},
    }
    template = {"embed": {"embedding": zeros(V, D)}, "layers": layers}
    stored = make_apart(G)
    _, _, made = suggest(tmp_path, stored, template)
    for i in range(L):
        attn, mlp = list_parts(stored, i)
        got = made["layers"]
        np.testing.assert_array_equal(got["attn"]["qkv"]["kernel"][i], np.concatenate(attn).T)
        np.testing.assert_array_equal(got["mlp"]["gate_up"]["kernel"][i], np.concatenate(mlp).T)


@pytest.mark.parametrize("heads", [False, True])
def test_fused_projections_with_fewer_keys_are_taken_apart(heads: bool, tmp_path: Path) -> None:
    stored = make_tree(
        {"qkv_proj": {"weight": ((H + 2 * G) * K, D), "bias": ((H + 2 * G) * K,)}},
        {"gate_up_proj": {"weight": (2 * F, D)}},
    )
    sizes = {"q": H, "k": G, "v": G}
    template = make_template(
        {
            p: kernel(D, n, K, bias=(n, K)) if heads else kernel(D, n * K, bias=(n * K,))
            for p, n in sizes.items()
        },
        {"gate": kernel(D, F), "up": kernel(D, F)},
    )
    mapping, notes, made = suggest(tmp_path, stored, template)
    assert mapping is not None
    for i in range(L):
        block, got = stored["model"]["layers"][i], made[f"layers_{i}"]
        fused, start = block["self_attn"]["qkv_proj"], 0
        for p, n in sizes.items():
            rows = slice(start, start + n * K)
            kernel_shape, bias_shape = ((D, n, K), (n, K)) if heads else ((D, n * K), (n * K,))
            want = fused["weight"][rows].T.reshape(kernel_shape)
            np.testing.assert_array_equal(got["attn"][p]["kernel"], want)
            np.testing.assert_array_equal(
                got["attn"][p]["bias"], fused["bias"][rows].reshape(bias_shape)
            )
            start += n * K
        gate, up = np.split(block["mlp"]["gate_up_proj"]["weight"], 2)
        np.testing.assert_array_equal(got["mlp"]["gate"]["kernel"], gate.T)
        np.testing.assert_array_equal(got["mlp"]["up"]["kernel"], up.T)
    (note,) = [note for note in notes if ORDER in note]
    assert "`layers.{i}.self_attn.qkv_proj.weight`" in note.replace("model.", "")
    assert "`layers.{i}.self_attn.qkv_proj.bias`" in note.replace("model.", "")
    assert any("if they alternate, `(t f)` must be `(f t)`" in note for note in notes)


def test_nothing_is_joined_where_the_axis_is_uncertain(tmp_path: Path) -> None:
    """(D, 3 H, K) may hold heads of all three, or, as 3 divides K, parts of each head."""
    template = make_template({"qkv": kernel(D, 3 * H, K)}, {"gate_up_proj": kernel(D, 2 * F)})
    stored = make_tree(
        {f"{p}_proj": {"weight": (D, D)} for p in "qkv"},
        {f"{p}_proj": {"weight": (F, D)} for p in ("gate", "up")},
    )
    mapping, notes, _ = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert not any("qkv" in target for target in mapping.rules)
    assert any("along which axis the parts of `layers_{i}.attn.qkv.kernel` lie" in n for n in notes)
    assert "no source was found for `layers_0.attn.qkv.kernel`" in notes


@pytest.mark.parametrize("width", [3 * H * K + 1, 3 * H * K + K])
def test_parts_that_do_not_add_up_are_not_joined(width: int, tmp_path: Path) -> None:
    template = make_template({"qkv": kernel(D, width)}, {"gate_up_proj": kernel(D, 2 * F)})
    mapping, _, _ = suggest(tmp_path, make_apart(H), template)
    assert mapping is None or not any("qkv" in target for target in mapping.rules)


def test_a_hint_says_that_the_order_is_not_known(tmp_path: Path) -> None:
    tx.save(tmp_path / "stored", make_apart(G))
    template = make_template(
        {"qkv": kernel(D, (H + 2 * G) * K)}, {"gate_up_proj": kernel(D, 2 * F)}
    )
    text = str(tx.check(tmp_path / "stored", template))
    assert "hint: tx.view(checkpoint, tx.suggest(checkpoint, template))" in text
    assert (
        f"can't tell in what order `layers_{{i}}.attn.qkv.kernel` holds its parts: {ORDER}" in text
    )


def restore_flat(
    tmp_path: Path, stored: dict[str, np.ndarray], want: dict[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Restores flat trees: the leaves that are not as wanted, and the notes but for the order."""
    path = tmp_path / "stored.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, path)
    notes: list[str] = []
    mapping = tx.suggest(path, want, on_note=notes.append)
    assert mapping is not None
    made = tx.restore(tx.view(path, mapping), {n: np.zeros_like(v) for n, v in want.items()})
    wrong = [name for name, value in want.items() if not np.array_equal(made[name], value)]
    return wrong, [note for note in notes if "in what order" not in note]


def draw_square(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=(D, D)), np.float32) for name in names}


ORIENTATION = "can't tell by its shape whether it is transposed"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_square_parts_are_turned_like_their_neighbours_or_as_the_names_suggest(
    beside: bool, turned: bool, rows: bool, tmp_path: Path
) -> None:
    """A fused leaf (3 D, D) or (D, 3 D) may hold parts in either layout."""
    parts = draw_square(*"qkvo")
    there, here = "weight" if rows else "kernel", "kernel" if rows == turned else "weight"
    stored = {
        f"attn.qkv.{there}": np.concatenate([parts[n] for n in "qkv"], 0 if rows else 1),
        f"attn.o.{there}": parts["o"],
    }
    want = {f"attn.{n}.{here}": part.T if turned else part for n, part in parts.items()}
    if beside:
        up = draw(D, F)
        stored[f"mlp.up.{there}"] = up
        want[f"mlp.up.{here}"] = up.T if turned else up
    wrong, notes = restore_flat(tmp_path, stored, want)
    assert wrong == []
    assert [ORIENTATION in note for note in notes] == [True] * (turned or not beside)


@pytest.mark.parametrize("joined", [False, True])
def test_a_leaf_that_is_the_same_stays_beside_parts_of_a_square_gate(
    joined: bool, tmp_path: Path
) -> None:
    parts = draw_square("gate_proj", "up_proj", "down_proj")
    apart = {f"{name}.weight": part for name, part in parts.items()}
    whole = {
        "gate_up_proj.weight": np.concatenate([parts["gate_proj"], parts["up_proj"]]),
        "down_proj.weight": parts["down_proj"],
    }
    stored, want = (apart, whole) if joined else (whole, apart)
    wrong, notes = restore_flat(tmp_path, stored, want)
    assert wrong == []
    (note,) = notes
    assert ORIENTATION in note
    assert "down_proj" not in note


def test_the_parts_of_a_leaf_are_turned_alike(tmp_path: Path) -> None:
    """The keys are fewer, so their shape tells that the square queries are transposed, too."""
    q, k, v, up = draw(D, D), draw(G * K, D), draw(G * K, D), draw(D, F)
    stored = {"attn.qkv.w": np.concatenate([q, k, v]), "mlp.a.up": up, "mlp.b.down": up.T}
    want = {"attn.wq": q.T, "attn.wk": k.T, "attn.wv": v.T, "mlp.up": up, "mlp.down": up.T}
    wrong, notes = restore_flat(tmp_path, stored, want)
    assert wrong == []
    assert f"{ORIENTATION} (taken as transposed, like the others): `attn.wq`" in notes


def test_parts_keep_their_layout_where_the_template_divides_them_into_heads(
    tmp_path: Path,
) -> None:
    parts = draw_square(*"qkv")
    want = {f"attn.{name}.w": part.reshape(H, K, D) for name, part in parts.items()}
    stored = {"attn.qkv.weight": np.concatenate([*parts.values()])}
    assert restore_flat(tmp_path, stored, want) == ([], [])
