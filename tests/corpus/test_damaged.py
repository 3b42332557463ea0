"""The error for each damaged checkpoint of the corpus, and the memory it takes."""

import subprocess
import sys

import numpy as np
import pytest

import templax as tx
from templax.errors import Corrupted
from templax.errors import Uncommitted
from templax.errors import UnknownFormat
from templax.errors import Unsupported
from templax.formats import open_catalog
from templax.storage import Local

AT_OPEN = {
    "leaf_without_array": (
        "Expected a directory with an array, found none "
        "- at `state.params.scale`, file `state.params.scale`"
    ),
    "manifest_bitflip": "Expected crc32c `c8c88da7`, got `6a6a9fc6` - file `manifest.ocdbt`",
    "manifest_empty": "Expected an OCDBT manifest, got 0 bytes - file `manifest.ocdbt`",
    "metadata_json": (
        "The JSON is unreadable: Unterminated string starting at: line 1 column 693 (char 692) "
        "- file `_METADATA`"
    ),
    "node_bitflip": (
        "Expected crc32c `13f78761`, got `ed940a3e` "
        "- file `d/8bb5ad35ba2a27ed6e29ea841bbd9804`, bytes 0-2197"
    ),
    "path_escape": (
        "Expected a data file inside the checkpoint, got '../outside.bin' - file `d/node`"
    ),
}

AT_LOCATE = {
    "chunk_missing": (
        "Expected a chunk, found none - at `state.params.big`, file `state.params.big/0.0`"
    ),
    "data_missing": (
        "Expected a data file, found none "
        "- at `state.params.big`, file `ocdbt.process_0/d/bb45c012f53cd0cc35e2d6909e253f96`"
    ),
    "data_truncated": (
        "Expected at least 32768 bytes, the file has 16384 - at `state.params.big`, "
        "file `ocdbt.process_0/d/a5ca20b7bcd0904cfb5d8a7ea5f1bbe5`, bytes 0-32768"
    ),
    "huge_shape": (
        "Expected a chunk of 281474976710656 bytes, got 30305 that can't decode to as many "
        "- at `state.params.big`, file `state.params.big/0.0`, bytes 0-30305"
    ),
    "process_dir_missing": (
        "Expected a data file, found none "
        "- at `state.params.big`, file `ocdbt.process_1/d/9d1bdb63464c32204bd5f05930a70945`"
    ),
}

AT_DECODE = {
    "zstd_bitflip": (
        "Expected a zstd frame, got bytes that do not decode "
        "(zstd decompress error: Data corruption detected)"
    ),
    "zstd_bomb": "Expected 32768 decoded bytes, got more",
}


@pytest.mark.parametrize("case", AT_OPEN)
def test_damaged_metadata_is_refused_when_the_checkpoint_is_opened(corpus, case):
    with pytest.raises(Corrupted) as caught:
        open_catalog(Local(corpus / f"damaged-{case}" / "ckpt"))
    assert str(caught.value) == AT_OPEN[case]


@pytest.mark.parametrize("case", AT_LOCATE)
def test_missing_bytes_are_noticed_before_an_array_is_read(corpus, case):
    catalog = open_catalog(Local(corpus / f"damaged-{case}" / "ckpt"))
    with pytest.raises(Corrupted) as caught:
        catalog.locate(catalog.entries)
    assert str(caught.value) == AT_LOCATE[case]


@pytest.mark.parametrize("case", AT_LOCATE)
def test_other_leaves_of_a_damaged_checkpoint_are_readable(corpus, case, assemble):
    catalog = open_catalog(Local(corpus / f"damaged-{case}" / "ckpt"))
    assert assemble(catalog, catalog.leaves["state.step"]).shape == ()


@pytest.mark.parametrize("case", AT_DECODE)
def test_a_broken_zstd_frame_is_refused_when_it_is_decoded(corpus, case, assemble):
    catalog = open_catalog(Local(corpus / f"damaged-{case}" / "ckpt"))
    with pytest.raises(Corrupted) as caught:
        assemble(catalog, catalog.leaves["state.params.big"])
    assert str(caught.value) == AT_DECODE[case]


def test_a_flipped_bit_in_a_raw_chunk_goes_unnoticed(corpus, assemble):
    """Orbax writes no checksum of raw chunks, which is why templax can record one."""
    damaged = open_catalog(Local(corpus / "damaged-raw_bitflip" / "ckpt"))
    sound = open_catalog(Local(corpus / "orbax-0.12.8-uncompressed" / "ckpt"))
    pairs = [
        (assemble(damaged, damaged.leaves[name]), assemble(sound, sound.leaves[name]))
        for name in sound.leaves
    ]
    different = [int((a.view(np.uint8) != b.view(np.uint8)).sum()) for a, b in pairs if a.shape]
    assert sum(different) == 1


def test_an_unfinished_save_is_refused_unless_allowed(corpus):
    source = Local(corpus / "damaged-uncommitted" / "ckpt")
    with pytest.raises(Uncommitted, match=r"no commit time and there is no `commit_success.txt`"):
        open_catalog(source)
    catalog = open_catalog(source, uncommitted="allow")
    assert len(catalog.entries) == 14
    assert catalog.uncommitted is not None


def test_a_save_killed_before_its_merge_is_named(corpus):
    path = corpus / "orbax-0.12.8-crash_merge" / "ckpt.orbax-checkpoint-tmp"
    with pytest.raises(Uncommitted) as caught:
        open_catalog(Local(path), uncommitted="allow")
    assert str(caught.value) == (
        f"{path} was never finished: the databases of its processes (`ocdbt.process_0`) "
        f"were not merged into a `manifest.ocdbt`"
    )


@pytest.mark.parametrize(
    ("path", "what", "load"),
    [
        ("damaged-st_header_2e60/model.safetensors", "a file of another kind", None),
    ],
)
def test_files_of_other_formats_are_recognised(corpus, path, what, load):
    with pytest.raises(UnknownFormat) as caught:
        open_catalog(Local(corpus / path))
    hint = "" if load is None else f"; hint: restore from tx.Recipe(lambda: {load})"
    assert str(caught.value) == (
        f"Expected a checkpoint that templax reads at {corpus / path}, got {what}"
        + hint.replace("{}", f'"{corpus / path}"')
    )


def test_pickled_arrays_are_refused_by_name(corpus):
    catalog = open_catalog(Local(corpus / "damaged-npz_pickle" / "params.npz"))
    why = "templax reads no pickled objects, got an array of them; save arrays of numbers"
    assert catalog.unread == {"a": why}
    with pytest.raises(tx.TemplateError, match=r"does not read - at `a`; .*no pickled objects"):
        tx.restore(catalog, {"a": np.zeros(1)}, extra="ignore")


def test_a_cut_msgpack_file_is_refused(corpus):
    with pytest.raises(Corrupted) as caught:
        open_catalog(Local(corpus / "damaged-msgpack_truncated" / "state.msgpack"))
    assert str(caught.value) == "The msgpack is unreadable: Input data was truncated"


_BOUNDED = """
import resource, sys
sys.path[:0] = {path!r}
from templax.formats import open_catalog
from templax.storage import Local
from templax._codecs.decode import decode
from templax import Corrupted
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    catalog = open_catalog(Local({case!r}))
    entry = catalog.leaves["state.params.big"]
    for chunk in catalog.locate([entry])[entry.name]:
        extent = chunk.extent
        data = catalog.source.read(extent.key, extent.start, extent.stop)
        decode(chunk.codecs, data, entry.nbytes)
except Corrupted:
    print("refused")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("case", ["zstd_bomb", "huge_shape"])
def test_hostile_sizes_take_less_than_64_mebibytes(corpus, case):
    program = _BOUNDED.format(path=sys.path, case=str(corpus / f"damaged-{case}" / "ckpt"))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "refused\n"
