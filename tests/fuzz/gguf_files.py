"""Writes GGUF files from descriptions, as no writer would, and the targets that read them."""

from __future__ import annotations

import json
import struct
from typing import Any

import templax as tx
from templax._codecs.decode import decode
from templax._core.boxes import size_of
from templax.formats.diagnose import diagnose_source
from templax.formats.gguf.file_set import GgufSet
from templax.formats.registry import open_catalog
from templax.storage import Memory

from . import seeds
from .documents import OneFile
from .encodings import number, text
from .inspection import inspect
from .mutators import mutate_json
from .targets import Wrong, add_target

_WRITTEN = seeds.CORPUS / "gguf"

_SCALARS: dict[int, str] = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
)

_DECODED = 1 << 20
"""Most bytes of a tensor that are decoded."""


def encode_text(value: Any) -> bytes:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"?"
    return struct.pack("<Q", len(data)) + data


def encode_value(kind: int, value: Any) -> bytes:
    """A value of the metadata; a list is `[kind of the items, items]`, or has a length of its own.

    What does not fit its kind is zero.
    """
    if kind == 8:
        return encode_text(value)
    if kind == 9:
        items = value if isinstance(value, list) else []
        inner = number(items[0]) if items else 0
        values = items[1] if len(items) > 1 and isinstance(items[1], list) else []
        count = number(items[2]) if len(items) > 2 else len(values)
        encoded = b"".join(encode_value(inner, each) for each in values[:1000])
        return struct.pack("<IQ", inner & 0xFFFFFFFF, count & (1 << 64) - 1) + encoded
    layout = _SCALARS.get(kind, "I")
    try:
        return struct.pack(f"<{layout}", value)
    except (struct.error, OverflowError):
        return bytes(struct.calcsize(layout))


def encode_file(spec: dict[str, Any]) -> bytes:
    """A file of a version, metadata `[key, kind, value]`, tensors `[name, sizes, type, offset]`,
    the counts of both, and a number of bytes after them."""
    entries = [row for row in _list(spec, "metadata") if isinstance(row, list) and len(row) == 3]
    tensors = [row for row in _list(spec, "tensors") if isinstance(row, list) and len(row) == 4]
    counts = [number(spec.get(f"{k}_count"), len(v)) for k, v in (("t", tensors), ("e", entries))]
    out = [b"GGUF", struct.pack("<I", number(spec.get("version"), 3) & 0xFFFFFFFF)]
    out += [struct.pack("<Q", count & (1 << 64) - 1) for count in counts]
    for key, kind, value in entries:
        kind = number(kind)
        out += [encode_text(key), struct.pack("<I", kind & 0xFFFFFFFF), encode_value(kind, value)]
    for name, sizes, kind, offset in tensors:
        sizes = [number(n) & (1 << 64) - 1 for n in sizes] if isinstance(sizes, list) else []
        out += [encode_text(name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        out += [struct.pack("<IQ", number(kind) & 0xFFFFFFFF, number(offset) & (1 << 64) - 1)]
    head = b"".join(out)
    return head + bytes(-len(head) % 32) + bytes(min(abs(number(spec.get("nbytes"))), 1 << 16))


def _list(spec: dict[str, Any], name: str) -> list[Any]:
    found = spec.get(name)
    return found[:4096] if isinstance(found, list) else []


SPEC: dict[str, Any] = {
    "version": 3,
    "metadata": [
        ["general.architecture", 8, "llama"],
        ["general.alignment", 4, 32],
        ["x.scale", 6, 0.5],
        ["x.flag", 7, True],
        ["x.big", 10, 1 << 63],
        ["tokens", 9, [8, ["a", "b"]]],
        ["scores", 9, [6, [0.5, 1.5]]],
    ],
    "tensors": [
        ["a.weight", [4, 2], 0, 0],
        ["b.weight", [32, 2], 8, 32],
        ["c.weight", [256], 12, 128],
        ["d.weight", [256], 16, 288],
        ["e.weight", [0, 3], 1, 384],
    ],
    "nbytes": 384,
}


def _inspect_file(data: bytes) -> None:
    catalog = open_catalog(OneFile(Memory({"": data})))
    inspect(catalog)
    for entry in catalog.entries:
        try:
            chunks = catalog.locate([entry])[entry.name]
        except tx.Unsupported:
            continue
        for chunk in chunks:
            start, stop = chunk.extent.start, chunk.extent.stop
            if not 0 <= start < stop <= len(data):
                raise Wrong(f"{start}-{stop} of {len(data)} bytes")
            nbytes = size_of(chunk.box) * entry.dtype.itemsize
            if nbytes <= _DECODED and len(decode(chunk.codecs, data[start:stop], nbytes)) != nbytes:
                raise Wrong(f"{entry.name!r} decodes to another size")


@add_target("gguf", seeds=lambda: [json.dumps(SPEC).encode()], mutate=mutate_json)
def read_gguf(data: bytes) -> None:
    """A description of a file in JSON."""
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(spec, dict):
        _inspect_file(encode_file(spec))


@add_target(
    "gguf-file",
    seeds=lambda: [path.read_bytes() for path in sorted(_WRITTEN.rglob("*.gguf"))],
    tokens=(b"GGUF\x03\0\0\0", b"general.alignment", b"split.count", b"\xff" * 8),
)
def read_gguf_file(data: bytes) -> None:
    """The bytes of a file."""
    _inspect_file(data)


@add_target(
    "gguf-set",
    seeds=lambda: [b"m-00001-of-00002.gguf\0m-00002-of-00002.gguf", b"m.gguf", b"m.gguf\0n.gguf"],
    tokens=(b"-00003-of-00003.gguf", b"\0", b"-00000-of-00000.gguf", b"-99999-of-99999.gguf"),
)
def read_gguf_set(data: bytes) -> None:
    """Names of files, joined by NUL: those of one model, of which each has a tensor of its own."""
    names = text(data.decode("latin-1")).split(b"\0")[:16]
    files: dict[str, bytes] = {}
    for i, name in enumerate(names):
        key = name.decode("latin-1").strip("/")
        spec = {"tensors": [[f"t{i}", [8], 0, 0]], "nbytes": 32}
        files[key] = encode_file(spec) if key else b""
    source = Memory(files)
    format = GgufSet()
    if format.detect(source) is not None:
        inspect(format.open(source))
    diagnose_source(source)
