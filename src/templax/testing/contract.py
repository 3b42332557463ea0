"""The contracts of sources and formats, as test classes to subclass and run with pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .._audit.account import account_bytes
from .._catalog.catalog import Catalog
from .._core.boxes import full_box, intersect, size_of
from .._restore.api import restore
from ..errors import Corrupted, NotFound
from ..storage.source import Source

OBJECTS = {
    "a": b"hello world",
    "b/c": bytes(range(256)) * 64,
    "b/d/e": b"",
    "b/.hidden": b"{}",
    "b with space/ü": b"x",
}


class SourceContract:
    """Tests that every `Source` must pass. Subclasses implement `make`; pytest runs the rest.

    The tests hold a source to the protocol `templax.storage.Source`, and to two phrases that
    templax's reports rely on: the `NotFound` of a read names the key, and the `Corrupted` of a read
    past the end says "the file has 11" for an object of 11 bytes. `view` is not tested.

    Name the subclass `Test...`, so that pytest collects it, and add tests of your own to it, such
    as that an object that changes between two reads raises `SourceError`.

    Example:
        >>> from templax.storage import Memory
        >>> from templax.testing import SourceContract
        >>> class TestMemory(SourceContract):
        ...     def make(self, objects):
        ...         return Memory(objects)
        >>> test = TestMemory()  # pytest does this, and runs every test
        >>> test.test_out_is_filled_and_returned(test.make({"a": b"hello world"}))
    """

    def make(self, objects: Mapping[str, bytes]) -> Source:
        """Creates a store with the given objects and returns a source of it. Called once per test.

        Create the objects by other means than the source, such as the client of the store, so that
        the tests are not circular. To remove them after a test, request pytest's fixtures in an
        autouse fixture of the subclass.

        Args:
            objects: The content of each object by its key. A key is a path relative to the root
                of the source, separated by `/`; parts may begin with a dot or have spaces and
                letters outside ASCII. An object may be empty; the largest has 16 KiB.

        Returns:
            A source whose root holds exactly these objects, and the directories that their keys
            imply.
        """
        raise NotImplementedError

    @pytest.fixture
    def source(self) -> Source:
        return self.make(OBJECTS)

    def test_it_is_a_source(self, source: Source) -> None:
        assert isinstance(source, Source)
        assert source.url

    def test_children_are_direct_sorted_and_relative_to_the_root(self, source: Source) -> None:
        assert [i.key for i in source.children()] == ["a", "b with space/", "b/"] or [
            i.key for i in source.children()
        ] == ["a", "b/", "b with space/"]
        assert [i.key for i in source.children("b/")] == ["b/.hidden", "b/c", "b/d/"]

    def test_children_of_nothing_are_none(self, source: Source) -> None:
        assert list(source.children("nope/")) == []
        assert list(source.children("a/")) == []

    def test_sizes_are_those_of_the_objects(self, source: Source) -> None:
        sizes = {i.key: i.size for i in source.walk()}
        assert sizes == {key: len(data) for key, data in OBJECTS.items()}

    def test_walk_goes_below_a_prefix_only(self, source: Source) -> None:
        assert {i.key for i in source.walk("b/")} == {"b/c", "b/d/e", "b/.hidden"}

    def test_stat_tells_objects_directories_and_nothing_apart(self, source: Source) -> None:
        info = source.stat("b/c")
        assert info is not None
        assert (info.size, info.is_dir) == (16384, False)
        directory = source.stat("b")
        assert directory is not None
        assert directory.is_dir
        root = source.stat("")
        assert root is not None
        assert root.is_dir
        assert source.stat("b/nope") is None
        assert source.stat("a/nope") is None

    def test_a_range_is_read_exactly(self, source: Source) -> None:
        assert bytes(source.read("a", 6, 11)) == b"world"
        assert bytes(source.read("a", 6)) == b"world"
        assert bytes(source.read("a", 3, 3)) == b""
        assert bytes(source.read("b/d/e")) == b""
        assert bytes(source.read("b with space/ü")) == b"x"

    def test_out_is_filled_and_returned(self, source: Source) -> None:
        memory = bytearray(5)
        assert bytes(source.read("a", 0, 5, memoryview(memory))) == b"hello"
        assert memory == b"hello"

    def test_a_read_past_the_end_is_damage_not_a_short_read(self, source: Source) -> None:
        with pytest.raises(Corrupted, match="the file has 11"):
            source.read("a", 0, 12)
        with pytest.raises(Corrupted):  # raised before memory of that size is allocated
            source.read("a", 0, 1 << 60)

    def test_a_read_of_nothing_is_not_found(self, source: Source) -> None:
        with pytest.raises(NotFound, match="nope"):
            source.read("nope", 0, 1)

    def test_at_is_the_same_store_rooted_elsewhere(self, source: Source) -> None:
        below = source.at("b")
        assert bytes(below.read("c", 0, 2)) == b"\0\1"
        assert below.url.startswith(source.url)
        assert bytes(below.at("..").read("a", 0, 5)) == b"hello"
        assert {i.key for i in below.walk()} == {"c", "d/e", ".hidden"}

    def test_threads_may_read_at_once(self, source: Source) -> None:
        data = OBJECTS["b/c"]
        with ThreadPoolExecutor(8) as pool:
            pieces = list(
                pool.map(lambda i: bytes(source.read("b/c", i, i + 64)), range(0, 16384, 64))
            )
        assert b"".join(pieces) == data


class FormatContract:
    """Tests that every `Format` must pass. Subclasses implement `open` and `expected`.

    They run on one checkpoint, which the format's own tools should have written, not templax: keep
    it small, since every leaf is read, and let it have all that the format allows, such as leaves
    of several chunks, empty arrays and unusual dtypes. To test several checkpoints, parametrise the
    subclass with pytest. Name it `Test...`, so that pytest collects it.

    Example:
        >>> import hashlib, pathlib, tempfile
        >>> import numpy as np
        >>> import templax as tx
        >>> from templax.testing import FormatContract
        >>> path = pathlib.Path(tempfile.mkdtemp(), "ckpt")
        >>> values = np.arange(6, dtype="<f4").reshape(2, 3)
        >>> saved = tx.save(path, {"params": {"w": values}})
        >>> class TestMyFormat(FormatContract):
        ...     def open(self):
        ...         return tx.open(path)
        ...     def expected(self):
        ...         return {"params.w": hashlib.sha256(values.tobytes()).hexdigest()}
        >>> TestMyFormat().test_values_are_those_that_were_saved()
    """

    def open(self) -> Catalog:
        """Opens the checkpoint. Called once per test.

        Returns:
            What `templax.open(path)` returns or, for a format that is not in the table of formats
            yet, what its `open` returns for `templax.storage.open_source(path)`. The checkpoint is
            committed and undamaged, so nothing is raised.
        """
        raise NotImplementedError

    def expected(self) -> Mapping[str, str]:
        """The values that a restore must give.

        Returns:
            Leaf name → sha256 of the values of that leaf, as 64 lowercase hexadecimal digits. The
            name is the key path joined by dots, such as "params.w". The bytes are the decoded
            elements in C order and little-endian; an element smaller than a byte, such as an int4,
            takes one byte. List every array and number; strings and typed PRNG keys have no place
            here. Compute the digests from the arrays that were saved, without templax.
        """
        raise NotImplementedError

    def test_it_says_what_it_is_and_why(self) -> None:
        catalog = self.open()
        assert catalog.format
        assert catalog.evidence
        assert catalog.url

    def test_names_are_key_paths_joined_by_dots(self) -> None:
        for entry in self.open().entries:
            assert entry.name == ".".join(map(str, entry.path))

    def test_chunks_tile_every_leaf_exactly_once(self) -> None:
        catalog = self.open()
        entries = [e for e in catalog.entries if e.kind != "string"]
        located = catalog.locate(entries)
        for entry in entries:
            everything = full_box(entry.shape)
            boxes = [intersect(chunk.box, everything) for chunk in located[entry.name]]
            inside = [box for box in boxes if box is not None]
            assert sum(map(size_of, inside)) == size_of(everything)
            for i, box in enumerate(inside):
                assert all(intersect(box, other) is None for other in inside[:i])

    def test_a_sound_checkpoint_has_no_damage_to_list(self) -> None:
        catalog = self.open()
        entries = [e for e in catalog.entries if e.kind != "string"]
        damages: list[Corrupted] = []
        assert catalog.locate(entries, damages) == catalog.locate(entries)
        assert damages == []
        assert list(catalog.audit() if catalog.audit is not None else ()) == []

    def test_extents_lie_within_their_objects(self) -> None:
        catalog = self.open()
        for chunks in catalog.locate([e for e in catalog.entries if e.kind != "string"]).values():
            for extent in (chunk.extent for chunk in chunks):
                if extent.inline is None:
                    info = catalog.source.stat(extent.key)
                    assert info is not None
                    assert 0 <= extent.start <= extent.stop <= info.size

    def test_every_byte_of_the_files_is_counted_once(self) -> None:
        account = account_bytes(self.open())
        assert sum(file.nbytes for file in account.files) == account.nbytes
        assert sum(account.kinds.values()) == account.nbytes
        assert sum(leaf.stored for leaf in account.leaves) == account.kinds["leaf"]

    def test_values_are_those_that_were_saved(self) -> None:
        catalog = self.open()
        want = self.expected()
        template: dict[str, object] = dict.fromkeys(catalog.unread, ...)
        template |= {e.name: ... for e in catalog.entries} | {
            e.name: np.broadcast_to(np.zeros((), e.dtype), e.shape)
            for e in catalog.entries
            if e.name in want and e.kind in ("array", "scalar")
        }
        restored = restore(catalog, template)
        got = {name: restored[name].tobytes() for name in want}
        assert {name: hashlib.sha256(data).hexdigest() for name, data in got.items()} == dict(want)
