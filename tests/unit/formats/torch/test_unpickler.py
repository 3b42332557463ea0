"""Pickles are interpreted, never executed: values, refusals, limits."""

from __future__ import annotations

import collections
import copyreg
import io
import math
import os
import pickle
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from templax._core.gc_pause import pause_gc
from templax.errors import Corrupted, TemplaxError, Unsupported
from templax.formats.torch.objects import Refused, StateDict
from templax.formats.torch.tree import Tree
from templax.formats.torch.unpickler import Truncated, read_pickle

PROTO = b"\x80\x02"


@pause_gc()
def read_tree(data: bytes, *, needs_tensors: bool = True) -> Tree:
    """What a file with this pickle goes through."""
    found = read_pickle(data)
    tree = Tree(len(data), len(data))
    tree.add(found.value)
    if needs_tensors:
        tree.require_tensors()
    found.require_listed(tree.refused)
    return tree


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_those_of_pickle(protocol: int) -> None:
    shared = [1, 2]
    value = {
        "n": [0, 255, 65535, -1, 2**31, -(2**63), 2**100],
        "x": (1.5, float("inf")),
        "flags": (True, False, None),
        "text": ["", "ü" * 300, "x" * 70000],
        "bytes": [b"", b"\x00\xff", bytes(300)],
        "nested": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1: {"a": [()]}}],
        "shared": [shared, shared],
        "many": list(range(3000)),
    }
    found = read_pickle(b"xx" + pickle.dumps(value, protocol) + b"rest", 2)
    assert found.value == value
    assert found.stop == len(pickle.dumps(value, protocol)) + 2
    assert found.refused == ()
    assert found.value["shared"][0] is found.value["shared"][1]


def test_ordered_dicts_carry_the_metadata_of_modules() -> None:
    state = collections.OrderedDict(a=1)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    found = read_pickle(pickle.dumps(state, 2)).value
    assert type(found) is StateDict
    assert dict(found) == {"a": 1}
    assert found.metadata == {"": {"version": 1}}
    assert read_tree(pickle.dumps({"model": state}, 2)).metadata == {
        "model._metadata": {"": {"version": 1}}
    }


def test_text_of_python_2_is_read() -> None:
    data = PROTO + b"}(U\x01aU\x02\xc3\xbcT\x01\x00\x00\x00bI01\nu."
    assert read_pickle(data).value == {"a": "ü", "b": True}


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Attributes:
    pass


def attack(path: Path) -> dict[str, bytes]:
    """Pickles that create `path` if they are loaded, by the tricks that are known."""
    shell = f"touch {path}"
    code = f"open({str(path)!r}, 'w')"
    text = shell.encode()
    python = code.encode()
    with_attributes = Attributes()
    with_attributes.x = Calls(os.system, (shell,))
    return {
        "os.system": pickle.dumps({"w": Calls(os.system, (shell,))}, 2),
        "os.system as a stack global": pickle.dumps({"w": Calls(os.system, (shell,))}, 4),
        "eval": pickle.dumps(Calls(eval, (code,)), 2),
        "exec": pickle.dumps([Calls(exec, (code,))], 5),
        "compile": pickle.dumps([Calls(compile, (code, "x", "exec"))], 4),
        "subprocess": pickle.dumps({"a": Calls(subprocess.Popen, (["touch", str(path)],))}, 4),
        "a nested call": pickle.dumps(Calls(eval, (Calls(str, (code,)),)), 2),
        "a call of what a call gives": PROTO
        + b"cbuiltins\ngetattr\n(c__builtin__\n__import__\n(X\x02\x00\x00\x00ostR"
        + b"X\x06\x00\x00\x00systemtR(X" + struct.pack("<I", len(text)) + text + b"tR.",
        "a dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.sys\x93)R.",
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "INST in protocol 2": PROTO + b"(X" + struct.pack("<I", len(text)) + text
        + b"ios\nsystem\n.",
        "OBJ": PROTO + b"(cos\nsystem\nX" + struct.pack("<I", len(text)) + text + b"o.",
        "NEWOBJ": PROTO + b"cos\nsystem\nX" + struct.pack("<I", len(text)) + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\nX" + struct.pack("<I", len(text)) + text
        + b"\x85}\x92.",
        "a call that is dropped": PROTO + b"}cbuiltins\nexec\nX" + struct.pack("<I", len(python))
        + python + b"\x85R0.",
        "a call kept in the memo": PROTO + b"cbuiltins\nexec\nX" + struct.pack("<I", len(python))
        + python + b"\x85Rq\x000}.",
        "a state": pickle.dumps(with_attributes, 2),
        "__setstate__": PROTO + b"ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__"
        + b"cos\nsystem\nsbX" + struct.pack("<I", len(text)) + text + b"b.",
        "__reduce_ex__ of an allowed class": PROTO + b"ctorch\nSize\n}X\x08\x00\x00\x00__call__"
        + b"cos\nsystem\nsb(X" + struct.pack("<I", len(text)) + text + b"tR.",
        "a persistent identifier": PROTO + b"cos\nsystem\nX" + struct.pack("<I", len(text)) + text
        + b"\x85RQ.",
        "a class of storages": PROTO + b"(X\x07\x00\x00\x00storagecos\nsystem\nX"
        + struct.pack("<I", len(text)) + text + b"X\x03\x00\x00\x00cpuK\x01tQ.",
        "an identifier in text": b"P" + text + b"\n.",
        "a dtype": PROTO + b"ctorch\nload\nX" + struct.pack("<I", len(text)) + text + b"\x85R.",
        "hub": PROTO + b"ctorch.hub\nload\n(X\x01\x00\x00\x00aX\x01\x00\x00\x00btR.",
        "attributes of torch": PROTO + b"ctorch.serialization\nos.system\nX"
        + struct.pack("<I", len(text)) + text + b"\x85R.",
    }  # fmt: skip


@pytest.mark.parametrize("trick", attack(Path("x")))
def test_nothing_is_executed(trick: str, tmp_path: Path) -> None:
    path = tmp_path / "executed"
    with pytest.raises((Unsupported, Corrupted)):
        read_tree(attack(path)[trick])
    assert not path.exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "subprocess", "a dtype"])
def test_what_is_refused_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        read_tree(attack(tmp_path / "x")[name])
    named = {"os.system": "posix.system", "eval": "__builtin__.eval"}
    named |= {"subprocess": "subprocess.Popen", "a dtype": "torch.load"}
    assert f"`{named[name]}`" in str(caught.value)


def test_extension_codes_are_refused_though_the_program_registered_one() -> None:
    copyreg.add_extension("collections", "OrderedDict", 0x70)
    try:
        for data in (b"\x82\x70.", b"\x83\x70\x00.", b"\x84\x70\x00\x00\x00."):
            with pytest.raises(Unsupported, match="extension codes"):
                read_pickle(PROTO + data)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 0x70)


def test_the_leaf_that_is_refused_is_named() -> None:
    data = pickle.dumps({"a": {"b.c": [1, Attributes()]}}, 2)
    with pytest.raises(Unsupported, match="Attributes") as caught:
        read_tree(data)
    assert caught.value.leaf == "a.b.c.1"
    assert isinstance(read_pickle(data).value["a"]["b.c"][1], Refused)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_complex_numbers_are_read(protocol: int) -> None:
    number = complex(-0.0, math.nan)
    entries = read_tree(pickle.dumps([1.5 - 2j, number], protocol)).entries
    assert [(entry.kind, entry.dtype.name, entry.shape) for entry in entries] == [
        ("scalar", "complex128", ())
    ] * 2
    found = [entry.handle[0].extent.inline for entry in entries]
    assert found == [struct.pack("<2d", 1.5, -2), struct.pack("<2d", -0.0, math.nan)]


@pytest.mark.parametrize("arguments", [("1j",), (1.0, 2), (1.0, 2j), (1.0, 2.0, 3.0)])
def test_what_else_complex_takes_is_damage(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(Corrupted, match=r"Expected (a complex number|the arguments)"):
        read_tree(pickle.dumps(Calls(complex, arguments), 2))


@pytest.mark.parametrize("value", [{1, 2}, frozenset((1,)), bytearray(b"x"), slice(1), complex])
def test_values_that_are_no_leaves_are_refused(value: Any) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(Unsupported):
            read_tree(pickle.dumps({"x": value}, protocol))


OTHER_KEYS = [
    (1, ("a", Attributes)), frozenset((1, 2)), 1.5, True, None, b"x", 2**70, Attributes,
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("key", OTHER_KEYS)
def test_a_dict_with_keys_that_are_neither_text_nor_integers_is_not_read_and_listed(
    key: Any, protocol: int
) -> None:
    value = {"a": {"b": [{7: "x", key: {key: Attributes()}}], "c": 2}}
    tree = read_tree(pickle.dumps(value, protocol), needs_tensors=False)
    assert [entry.name for entry in tree.entries] == ["a.c"]
    assert list(tree.not_read) == ["a.b.0"]
    assert tree.not_read["a.b.0"].endswith("; save a dict with keys of text")
    with pytest.raises(Unsupported, match=r"keys are text .* - at `a\.b\.0`; hint: save a dict"):
        read_tree(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", [2, 4])
def test_text_that_is_not_unicode_is_not_read_and_listed(protocol: int) -> None:
    text = os.fsdecode(b"/data/caf\xe9/\xe2\x82\xac") + "\ud83d"
    value = {"a": {"path": text, "paths": [text, "x"]}, "b": {text: 1, "c": 2}, "d": 3}
    tree = read_tree(pickle.dumps(value, protocol), needs_tensors=False)
    assert [entry.name for entry in tree.entries] == ["a.paths.1", "d"]
    why = (
        "templax reads text that is Unicode, got a string with half of a surrogate pair; save it"
        ' as bytes, `text.encode(errors="surrogatepass")`'
    )
    shown = "/data/caf\\udce9/€\\ud83d"
    key = f"text or integers of 64 bits, got text that is not Unicode, `{shown}`"
    assert (tree.not_read.pop("a.path"), tree.not_read.pop("a.paths.0")) == (why, why)
    assert list(tree.not_read) == ["b"]
    assert key in tree.not_read["b"]


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_such_a_dict_at_the_root_is_refused(key: Any) -> None:
    with pytest.raises(Unsupported, match="whose keys are text or integers") as caught:
        read_tree(pickle.dumps({"a": 1, key: 1}, 2))
    assert (caught.value.leaf, caught.value.hint) == (None, "save a dict with keys of text")


def test_such_a_dict_in_an_object_that_is_not_read_does_not_hide_what_is_in_it() -> None:
    holder = Attributes()
    holder.x = {frozenset((1,)): complex}  # type: ignore[attr-defined]
    tree = read_tree(pickle.dumps({"a": holder, "b": 1}, 2), needs_tensors=False)
    assert list(tree.not_read) == ["a"]
    with pytest.raises(Unsupported, match=r"no `posix\.system`"):  # part of no leaf
        read_tree(PROTO + b"}(X\x01\0\0\0a}NK\x01su0cposix\nsystem\n0K\x01.")


def test_two_leaves_of_one_name_are_refused() -> None:
    for value in ({"a.b": 1, "a": {"b": 2}}, {"1": 1, 1: 2}, {"a": [3], "a.0": 4}):
        with pytest.raises(Unsupported, match="two leaves have the same name"):
            read_tree(pickle.dumps(value, 2))
    assert [e.path for e in read_tree(pickle.dumps({"a.b": 1, "a": 2}, 2)).entries] == [
        ("a", "b"),
        ("a",),
    ]


def test_a_key_that_occurs_twice_is_damage() -> None:
    with pytest.raises(Corrupted, match="once, got 'a' again"):
        read_pickle(PROTO + b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.")


def laugh(levels: int) -> bytes:
    value: Any = 1
    for _ in range(levels):
        value = [value] * 10
    return pickle.dumps(value, 2)


def repeat(inner: bytes, n: int) -> bytes:
    """A list that refers `n` times to one object."""
    return PROTO + inner + b"q\x000](" + b"h\x00" * n + b"e."


BOMBS = {
    "laughs": laugh(9),
    "laughs in 200 levels": laugh(200),
    "a list of itself": PROTO + b"]q\x00(" + b"h\x00" * 1000 + b"e.",
    "a dict of itself": PROTO + b"}q\x00X\x01\x00\x00\x00ah\x00s.",
    "deep lists": PROTO + b"]" * 400_000 + b"a" * 399_999 + b".",
    "deep tuples": PROTO + b")" + b"\x85" * 900_000 + b".",
    "deep tuples as a key": PROTO + b"})" + b"\x85" * 900_000 + b"K\x01s.",
    "deep tuples as a key of a leaf": PROTO + b"}X\x01\0\0\0a})" + b"\x85" * 900_000 + b"K\x01ss.",
    "laughs as a key": PROTO + b"}X\x01\0\0\0a}" + laugh(200)[2:-1] + b"K\x01ss.",
    "laughs as a key again and again": PROTO + b"}X\x01\0\0\0a](" + laugh(9)[2:-1]
    + b"r\xff\xff\0\0" + b"".join(b"}j\xff\xff\0\0K\x01s" for _ in range(100_000)) + b"es.",
    "a path of laughs as a key twice": PROTO + b"}(cpathlib\nPosixPath\n" + laugh(20)[2:-1]
    + b"\x85Rr\xff\xff\0\0K\x01j\xff\xff\0\0K\x02u.",
    "marks": PROTO + b"(" * 900_000 + b".",
    "dicts": PROTO + b"(" + b"}" * 900_000 + b"l.",
    "dicts in the memo": b"\x80\x04(" + b"}\x94" * 450_000 + b"l.",
    "a large integer": PROTO + b"\x8b\x00\x00\x08\x00" + b"\x7f" * (1 << 19) + b".",
    "many digits": b"I" + b"9" * 900_000 + b"\n.",
    "a long line": b"c" + b"a" * 900_000 + b"\nb\n.",
    "a large text": PROTO + b"X\xff\xff\xff\xffab.",
    "large bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab.",
    "a long name again and again": PROTO + b"}q\x00X\xa0\x86\x01\x00" + b"a" * 100_000
    + b"](" + b"K\x01" * 400_000 + b"es.",
    "a name of many dots": PROTO + b"}X\xa0\x86\x01\x00" + b"." * 100_000 + b"K\x01s.",
    "a long string again and again": repeat(b"X\xa0\x86\x01\x00" + b"a" * 100_000, 400_000),
    "bytes made again and again": PROTO + b"c_codecs\nencode\nq\x00X\xa0\x86\x01\x00"
    + b"a" * 100_000 + b"X\x06\x00\x00\x00latin1\x86q\x01(" + b"h\x00h\x01R" * 150_000 + b"l.",
    "pairs again and again": PROTO + b"ccollections\nOrderedDict\nq\x00]("
    + b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(60_000))
    + b"e\x85q\x01(" + b"h\x00h\x01R" * 100_000 + b"l.",
    "a key of many elements again": repeat(
        b"}X\xc8\x00\x00\x00" + b"a." * 100 + b"K\x01s", 300_000
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_bounded_time(bomb: str) -> None:
    began = time.process_time()
    with pytest.raises(TemplaxError):
        read_tree(BOMBS[bomb])
    assert time.process_time() - began < 2


@pytest.mark.parametrize("data", [b"Nr\xff\xff\xff\xff.", b"\x95" + b"\xff" * 8 + b"N."])
def test_a_declared_index_or_size_allocates_nothing(data: bytes) -> None:
    """Python's own unpickler allocates 64 GiB for the first one."""
    tracemalloc.start()
    assert read_pickle(b"\x80\x04" + data).value is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x02", PROTO + b"X\x05\x00\x00\x00ab"])
def test_a_pickle_without_an_end_is_truncated(data: bytes) -> None:
    with pytest.raises(Truncated):
        read_pickle(data)


def test_every_cut_of_a_pickle_is_damage() -> None:
    whole = pickle.dumps({"a": [1, 2.5, "x" * 300, b"y", None, True], "b": (2**40,)}, 4)
    for stop in range(len(whole)):
        with pytest.raises(Truncated):
            read_pickle(whole[:stop])


@pytest.mark.parametrize(
    "data",
    [b".", b"NN.", b"(N.", b"0.", b"t.", b"K\x01a.", b"h\x00.", b"N}s.", b"K\x01R.", b"NQ.",
     b"]N\x85R.", b"}(Nu.", b"X\x01\x00\x00\x00\xff."],
)  # fmt: skip
def test_nonsense_is_damage(data: bytes) -> None:
    with pytest.raises(Corrupted):
        read_pickle(PROTO + data + b"......................")


@pytest.mark.parametrize("data", [b"\x80\x06N.", b"F1.5\n.", b"V1\n.", b"\x97.", b"\xff."])
def test_instructions_that_pytorch_does_not_write_are_refused(data: bytes) -> None:
    with pytest.raises(Unsupported):
        read_pickle(data)


def test_a_global_of_pickle_itself_is_not_resolved_by_python() -> None:
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 2).dump(pickle.Unpickler)
    (name,) = read_pickle(buffer.getvalue()).refused
    assert name in ("pickle.Unpickler", "_pickle.Unpickler")


def test_keys_of_metadata_are_text_and_are_counted() -> None:
    state: Any = collections.OrderedDict()
    state._metadata = {1: {}}
    with pytest.raises(Unsupported, match="keys that are not text"):
        read_tree(pickle.dumps(state, 2))
    shared = {"k" * 400_000: 1}
    state._metadata = {str(i): shared for i in range(20_000)}
    with pytest.raises(Unsupported, match="refers to the same text so often"):
        read_tree(pickle.dumps(state, 2))


def test_many_references_to_a_dict_that_is_not_read_take_little_time() -> None:
    odd = {**dict.fromkeys(range(16_000), 1), None: 1}
    data = pickle.dumps([odd] * 16_000, protocol=2)
    begin = time.process_time()
    tree = read_tree(data, needs_tensors=False)
    assert time.process_time() - begin < 2
    assert len(tree.not_read) == 16_000
