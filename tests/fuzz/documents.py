"""Targets for documents: JSON, msgpack, headers, names."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

import templax as tx
from templax._runs.locks import _describe_holder
from templax._runs.steps import read_run
from templax._template.json_file import dump_template, load_template
from templax.errors import SaveError
from templax.formats.diagnose import diagnose_source
from templax.formats.orbax.directory import examine_directory, list_items, list_steps
from templax.formats.orbax.step_metadata import read_custom_metadata, read_metrics
from templax.formats.orbax.step_names import step_name
from templax.formats.registry import open_catalog
from templax.formats.safetensors_set import SafetensorsSet
from templax.storage import Memory
from templax.storage.open import local_path

from . import seeds
from .encodings import MANIFEST, leaf_node, manifest, seal, seal_index
from .inspection import check_line, inspect
from .mutators import mutate_bytes, mutate_json, mutate_msgpack
from .targets import Wrong, add_target


def _open(objects: dict[str, bytes]) -> None:
    inspect(open_catalog(Memory(objects), uncommitted="allow"))


def _headers() -> list[bytes]:
    found = []
    for data in seeds.files_ending(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        if length <= len(data) - 8:
            found.append(b"\1" + data[8 : 8 + length])
    tensors = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "U8", "shape": [0], "data_offsets": [3, 3]},
        "__metadata__": {"x": "1", "templax.crc32c": "2:00000000f16177d2,"},
    }
    return [*found, b"\1" + json.dumps(tensors).encode()]


@add_target(
    "safetensors",
    seeds=_headers,
    mutate=lambda data, rng: data[:1] + mutate_json(data[1:], rng),
    tokens=(
        b'"templax.crc32c"',
        b'"dtype"',
        b'"shape"',
        b'"data_offsets"',
        b'"__metadata__"',
        b'"F32"',
        b'"BF16"',
    ),
)
def read_safetensors(data: bytes) -> None:
    """A byte that says whether the data is as long as the header asks for, then the header."""
    flags, header = data[:1], data[1:]
    stop = 64
    if flags == b"\1":
        with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
            tensors = json.loads(header).values()
            stop = max(t["data_offsets"][1] for t in tensors if "data_offsets" in t)
    body = bytes(stop if isinstance(stop, int) and 0 <= stop < 1 << 20 else 64)
    source = Memory({"": len(header).to_bytes(8, "little") + header + body})
    inspect(open_catalog(OneFile(source)))


class OneFile(Memory):
    """A source whose root is a file."""

    def __init__(self, source: Memory):
        super().__init__(source._objects)
        self.url = "memory://file"

    def at(self, key: str) -> Memory:
        return Memory({}) if key == ".." else self


_SET = {
    "index": {
        "metadata": {"total_size": 12},
        "weight_map": {"a.w": "m-1.safetensors", "b": "m-2.safetensors"},
    },
    "m-1.safetensors": {"a.w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    "m-2.safetensors": {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    },
}


def _sets() -> list[bytes]:
    alone = {"m.safetensors": _SET["m-1.safetensors"]}
    more = {**_SET, "c.safetensors": _SET["m-2.safetensors"]}
    return [json.dumps(files).encode() for files in (_SET, alone, more)]


@add_target(
    "safetensors-set",
    seeds=_sets,
    mutate=mutate_json,
    tokens=(b'"weight_map"', b'"metadata"', b'"m-1.safetensors"', b'".."', b'"./"'),
)
def read_safetensors_set(data: bytes) -> None:
    """The index, and the header of each file, by its name: each gets data that is long enough."""
    found, objects = {}, dict[str, bytes]()
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
    for name, content in list(found.items())[:16] if isinstance(found, dict) else []:
        text = json.dumps(content).encode()
        if name == "index":
            objects["m.safetensors.index.json"] = text
            continue
        body = 0
        with suppress(ValueError, TypeError, LookupError, AttributeError):
            body = max(t["data_offsets"][1] for t in content.values() if "data_offsets" in t)
        nbytes = body if isinstance(body, int) and 0 <= body < 1 << 20 else 64
        objects[name] = len(text).to_bytes(8, "little") + text + bytes(nbytes)
    source = Memory(objects)
    for place in (source, source.at("m.safetensors.index.json")):
        format = SafetensorsSet()
        if format.detect(place) is not None:
            inspect(format.open(place))
    diagnose_source(source)


def _msgpacks() -> list[bytes]:
    return [*seeds.files_ending(".msgpack"), *seeds.files_named("checkpoint", most=6)]


def _flax_files() -> list[bytes]:
    """Files of Flax, with each kind of leaf, and what else may be first."""
    array = msgspec.msgpack.Ext(1, msgspec.msgpack.encode([[2, 3], "int8", b"abcdef"]))
    number = msgspec.msgpack.Ext(3, msgspec.msgpack.encode([[], "float32", b"abcd"]))
    complex_ = msgspec.msgpack.Ext(2, msgspec.msgpack.encode([1.0, 2.0]))
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 3, "1": 4},
        "chunks": {"0": array, "1": array},
    }
    leaves = {"b": b"raw", "t": "text", "i": 1 << 63, "f": 0.5, "n": None, "e": {}, "l": [True]}
    trees = [array, number, leaves | {"w": array, "s": number}, {"c": chunked}, {"z": complex_}]
    return [*_msgpacks(), *map(msgspec.msgpack.encode, trees)]


class _Remote(Memory):
    """A store that does not map files, so that only what is between arrays is read."""

    maps = False

    def view(self, key: str, start: int, stop: int) -> memoryview:
        raise Wrong("mapped")


@add_target("flax-msgpack", seeds=_flax_files, mutate=mutate_msgpack)
def read_flax(data: bytes) -> None:
    """A state dict of Flax: a file, in a store that maps files and in one that does not."""
    found: list[object] = []
    for kind in (Memory, _Remote):
        try:
            catalog = open_catalog(kind({"": data}), uncommitted="allow")
        except tx.TemplaxError as error:
            found.append(str(error))
            continue
        found.append(catalog.entries)
        inspect(catalog)
        entries = [entry for entry in catalog.entries if entry.kind != "string"]
        for name, chunks in catalog.locate(entries).items():
            if any(not 0 <= c.extent.start <= c.extent.stop <= len(data) for c in chunks):
                raise Wrong(f"an extent outside the file, of {name!r}")
    if found[0] != found[1]:
        raise Wrong(f"a store that maps files gives {found[0]}, another {found[1]}"[:2000])


@add_target("orbax-msgpack", seeds=_msgpacks, mutate=mutate_msgpack)
def read_aggregate(data: bytes) -> None:
    """The file `checkpoint` of Orbax before 0.6, beside two arrays."""
    _open({"checkpoint": data, **_ARRAYS})


_ZARRAY = (
    b'{"chunks":[2],"compressor":null,"dtype":"<f4","fill_value":null,"filters":null,'
    b'"order":"C","shape":[2],"zarr_format":2}'
)

_ARRAYS = {
    f"{name}/{file}": data
    for name in ("a", "b.c", "a/b")
    for file, data in ((".zarray", _ZARRAY), ("0", bytes(8)))
}


def _state_dicts() -> list[bytes]:
    """State dicts that refer to arrays beside their file, as T5X and Flax write them."""
    number = msgspec.msgpack.Ext(3, msgspec.msgpack.encode([[], "float32", b"abcd"]))
    about = {"shape": [2], "chunks": [2], "compressor": {"id": "gzip"}}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "a/"}}
    more = spec | {"dtype": "float32", "metadata": about, "kvstore": {"driver": "gcs"}}
    trees = [
        {"n": number, "a": spec, "b": more | {"path": "/old/b.c"}},
        {"a": "//GDAPlaceholder:a", "b": "//GDAPlaceholder:b/c", "n": number},
        "//GDAPlaceholder:",
    ]
    return [*map(msgspec.msgpack.encode, trees), *seeds.files_named("checkpoint", most=6)]


@add_target(
    "flax-outside",
    seeds=_state_dicts,
    mutate=mutate_msgpack,
    tokens=(b"\xa7kvstore", b"\xa6driver", b"\xa4path", b"//GDAPlaceholder:", b"../"),
)
def read_outside(data: bytes) -> None:
    """The file of a state dict, beside arrays: in the directory of T5X, and alone."""
    beside = {f"c_gda/{key}": value for key, value in _ARRAYS.items()}
    source = Memory({"checkpoint": data, "c": data, **_ARRAYS, **beside})
    for key in ("", "checkpoint", "c", "c_gda"):
        with suppress(tx.TemplaxError):
            inspect(open_catalog(source.at(key) if key else source, uncommitted="allow"))


def _tree_seeds() -> list[bytes]:
    found = [data + b"\0{}" for data in seeds.files_named("_METADATA", most=6)]
    leaf = {"key_metadata": [{"key": "a", "key_type": 2}], "value_metadata": {"value_type": "x"}}
    text = {"key_metadata": [{"key": "s", "key_type": 2}]}
    text["value_metadata"] = {"value_type": "string"}
    tree = {"tree_metadata": {"('a',)": leaf, "('s',)": text}, "use_ocdbt": False}
    return [*found, json.dumps(tree).encode() + b'\0{"s": "text"}']


_TREE_TOKENS = (
    b'"key_metadata"', b'"value_metadata"', b'"value_type"', b'"skip_deserialize"', b'"key_type"',
    b'"tree_metadata"', b'"use_ocdbt"', b'"custom_metadata"',
)  # fmt: skip


@add_target("orbax-tree", seeds=_tree_seeds, mutate=mutate_json, tokens=_TREE_TOKENS)
def read_tree(data: bytes) -> None:
    """`_METADATA` and `_strings.json`, joined by NUL, over a database that has what they name."""
    tree, _, strings = data.partition(b"\0")
    objects = {"_METADATA": tree, "_strings.json": strings, **_ARRAYS}
    names = _names_in(tree)
    objects |= {f"{name}/.zarray": _ZARRAY for name in names}
    objects |= {f"{name}/0": bytes(8) for name in names}
    _open(objects)
    _open({"_METADATA": tree, "_strings.json": strings, **_database(names)})


def _names_in(tree: bytes) -> list[str]:
    """The names of leaves in `_METADATA`, as far as they can be told."""
    try:
        found = json.loads(tree)["tree_metadata"].values()
        keys = [[str(k["key"]) for k in p["key_metadata"]] for p in found]
        names = [".".join(key) for key in keys]
        names = [name for name in names if name.encode() and "\0" not in name and len(name) < 4096]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return sorted(set(names))[:64]


def _database(names: list[str]) -> dict[str, bytes]:
    values = {f"{name}/.zarray": _ZARRAY.decode() for name in names}
    values |= {f"{name}/0": "\0" * 8 for name in names}
    keys = sorted(key.encode() for key in values)
    rows = [[0, key.decode()] for key in keys]
    body = leaf_node({"height": 0, "keys": rows, "values": [values[k.decode()] for k in keys]})
    node = seal(0x0CDB20DE, body)
    root = manifest([[0, "d/x", 0]], [[0, 0, len(node)]], 0)
    return {"manifest.ocdbt": seal(MANIFEST, root), "d/x": node}


_SIDECARS = ("_sharding", "array_metadatas/process_0", "_CHECKPOINT_METADATA", "metrics/metrics")


def _sidecar_seeds() -> list[bytes]:
    columns = [seeds.files_named(name.rpartition("/")[2], most=4) or [b"{}"] for name in _SIDECARS]
    rows = max(map(len, columns))
    return [b"\0".join(c[i % len(c)] for c in columns) for i in range(rows)]


@add_target("orbax-sidecars", seeds=_sidecar_seeds, mutate=mutate_json)
def read_sidecars(data: bytes) -> None:
    """What lies beside the arrays: shardings, key types, the step's metadata, its metrics."""
    found = dict(zip(_SIDECARS, data.split(b"\0"), strict=False))
    tree = _tree_seeds()[-1].partition(b"\0")
    item = {"_METADATA": tree[0], "_strings.json": tree[2], **_ARRAYS}
    own = {key: found[key] for key in _SIDECARS[:2] if key in found}
    step = {key: found[key] for key in _SIDECARS[2:] if key in found}
    objects = {f"run/7/default/{key}": value for key, value in (item | own).items()}
    objects |= {f"run/7/{key}": value for key, value in step.items()}
    source = Memory(objects)
    inspect(open_catalog(source.at("run/7/default"), uncommitted="allow"))
    for read in (read_custom_metadata, read_metrics, tx.read_json):
        with suppress(tx.TemplaxError):
            read(source.at("run/7"))
    run = read_run(source.at("run"))
    for directory in () if run is None else run.directories:
        check_line(directory.unread or "")


@functools.cache
def _saved() -> dict[str, bytes]:
    """A checkpoint of templax, with its index."""
    directory = tempfile.mkdtemp()
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"s": "text", "n": 3}}
    tx.save(f"{directory}/c", tree)
    root = Path(directory, "c")
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    shutil.rmtree(directory)
    return files


@add_target(
    "templax-index",
    seeds=lambda: [_saved()["templax.index"][24:-4]],
    mutate=mutate_msgpack,
)
def read_index(data: bytes) -> None:
    """The body of `templax.index`, beside the files that it was written with."""
    catalog = open_catalog(Memory(_saved() | {"templax.index": seal_index(data)}))
    inspect(catalog)
    for damage in [] if catalog.audit is None else catalog.audit():
        check_line(str(damage))


@functools.cache
def _catalog() -> tx.Catalog:
    return open_catalog(Memory(_saved()))


def _templates() -> list[bytes]:
    leaf = {
        "path": ["a"], "shape": [2, 3], "dtype": "float32", "optional": True, "aliases": ["x"],
        "sharding": {"mesh": {"x": 2, "y": 1}, "spec": [["x", "y"], None]},
    }  # fmt: skip
    key = {"path": ["k", 0], "shape": [2, 2], "dtype": "uint32", "kind": "key"}
    key["key_impl"] = "threefry2x32"
    own = dump_template(tx.check(_catalog(), {}, extra="ignore").template)
    return [own, json.dumps({"templax_template": 1, "leaves": [leaf, key]}).encode()]


@add_target(
    "template-json",
    seeds=lambda: _templates(),
    mutate=mutate_json,
    tokens=(b'"path"', b'"shape"', b'"sharding"', b'"mesh"', b'"spec"', b'"kind"', b'"key"'),
)
def read_template(data: bytes) -> None:
    """A template file, checked and planned against a small checkpoint."""
    template = load_template(data, "t.json")
    load_template(dump_template(template))
    match = tx.check(_catalog(), template, extra="ignore", missing="error")
    for line in str(match).split("\n"):
        check_line(line)
    try:
        tx.plan(_catalog(), template, extra="ignore")
    except tx.TemplateError as error:
        if match.ok:
            raise Wrong("check says that it fits, plan that it does not") from error
    else:
        if not match.ok:
            raise Wrong("plan says that it fits, check that it does not")


@functools.cache
def _directory() -> Path:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    directory = tempfile.mkdtemp(dir=base)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _foreign_seeds() -> list[bytes]:
    def write(*arrays: np.ndarray) -> bytes:
        file = io.BytesIO()
        for array in arrays:
            np.save(file, array)
        return file.getvalue()

    one = np.arange(3, dtype=np.int8)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.npy", write(one))
    squeezed = io.BytesIO()
    np.savez_compressed(squeezed, a=one, b=np.zeros((2, 2)))
    torch = io.BytesIO()
    with zipfile.ZipFile(torch, "w") as writer:
        writer.writestr("archive/data.pkl", b"\x80\x02N.")
    flax = msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(1, b"\x93\x91\1\xa5uint8\xc4\1a")})
    return [
        write(one), write(one, one), b'{"n": 1}\n' + write(one, one), archive.getvalue(),
        squeezed.getvalue(), torch.getvalue(), b"\x80\x04N.", flax, b"\x1f\x8b",
        b"\x89HDF\r\n\x1a\n", b"version https://git-lfs.github.com/spec/v1", b"BZh",
        b"model_checkpoint_path: ",
    ]  # fmt: skip


@add_target(
    "foreign",
    seeds=_foreign_seeds,
    mutate=lambda data, rng: (mutate_msgpack if rng.random() < 0.3 else mutate_bytes)(data, rng),
    tokens=(b"\x93NUMPY", b"'descr': '<f4'", b"'shape': (3,)", b"'fortran_order'", b"PK\3\4"),
)
def recognise_file(data: bytes) -> None:
    """A file of another kind, by itself and in a directory."""
    path = _directory() / "file"
    path.write_bytes(data)
    with suppress(tx.TemplaxError):
        tx.open(path)
    raise diagnose_source(Memory({"x/file": data, "x/0": b"1"}).at("x"))


@add_target(
    "names",
    seeds=lambda: [
        b"1/_METADATA\0002/_METADATA\0log.txt",
        b"step_1/d/manifest.ocdbt\0step_2.orbax-checkpoint-tmp-3/_METADATA\0step_2/x",
        b"a/.zarray\0a/0\0b/zarr.json\0b/c/0/0\0checkpoint\0_strings.json",
        b"default/_METADATA\0metrics/metrics\0_CHECKPOINT_METADATA\0data/data.json",
        b"1.partial_save/_METADATA\0ocdbt.process_0/manifest.ocdbt\0_CHECKPOINT_DELETION",
    ],
    tokens=(
        b"_METADATA\0", b"manifest.ocdbt\0", b".orbax-checkpoint-tmp-", b"/0\0", b"9" * 18,
        b"ckpt_", b"ocdbt.process_0", b"_CHECKPOINT_METADATA", b"metrics", b".zarray",
    ),
)  # fmt: skip
def read_names(data: bytes) -> None:
    """Names of files, joined by NUL."""
    names = [n.strip("/") for n in data.decode("utf-8", "surrogateescape").split("\0")[:200]]
    contents = {"_METADATA": b'{"tree_metadata": {}}', ".zarray": _ZARRAY}
    source = Memory({n: contents.get(n.rpartition("/")[2], b"{}") for n in names if n})
    examine_directory(source)
    list_items(source)
    step_name(1, list_steps(source))
    with suppress(tx.TemplaxError):
        open_catalog(source, uncommitted="allow")
    read_run(source)
    raise diagnose_source(source)


@add_target(
    "texts",
    seeds=lambda: [
        b'{"pid": 1, "host": "h", "since": "2026-01-01 00:00:00 UTC"}',
        b"gs://bucket/run", b"gs:/bucket/run", b"file:///tmp/x%20y", b"/data/gs:/bucket", b"C:/x",
    ],
    mutate=lambda data, rng: (mutate_json if data[:1] == b"{" else mutate_bytes)(data, rng),
    tokens=(b"://", b"file://localhost/", b"s3:/", b"%00", b'"pid"'),
)  # fmt: skip
def read_texts(data: bytes) -> None:
    """The content of a lock file, and paths as users give them."""
    check_line(str(SaveError(_describe_holder(data))))
    local_path(data.decode("utf-8", "surrogateescape"), "reads", "copy it")
