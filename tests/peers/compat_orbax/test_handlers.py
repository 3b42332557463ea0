"""Handlers of a program's own: Orbax and templax call them alike, and commit what they write."""

import asyncio
import concurrent.futures
import importlib
import json
import os
import threading
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
PEERS = {"theirs": orbax, "ours": compat}


def make_text_handler(ocp):
    """A handler of text in a file, its args to save and to restore, and the calls it gets."""
    calls: list[Any] = []
    future = importlib.import_module(f"{ocp.__name__}.future")

    def note(what, directory):
        # Orbax makes the directory of `async_save` later, and has written a file about the save.
        names = os.listdir(directory) if directory.exists() else []
        calls.append((what, sorted(name for name in names if name[0] != "_")))

    class TextHandler(ocp.AsyncCheckpointHandler):
        def save(self, directory, args):
            note("save", directory)
            (directory / "text.txt").write_text(args.text)

        async def async_save(self, directory, args):
            note("async_save", directory)
            work = asyncio.to_thread((directory / "text.txt").write_text, args.text)
            return [future.CommitFutureAwaitingContractedSignals(work)]

        def restore(self, directory, args):
            note("restore", directory)
            return args.prefix + (directory / "text.txt").read_text()

        def metadata(self, directory):
            return {"length": len((directory / "text.txt").read_text())}

        def finalize(self, directory):
            note("finalize", directory)

        def close(self):
            calls.append("close")

    @dataclass
    class TextSave(ocp.args.CheckpointArgs):
        text: str

    @dataclass
    class TextRestore(ocp.args.CheckpointArgs):
        prefix: str = ""

    ocp.args.register_with_handler(TextHandler, for_save=True)(TextSave)
    ocp.args.register_with_handler(TextHandler, for_restore=True)(TextRestore)
    return TextHandler, TextSave, TextRestore, calls


def list_files(path):
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())


@pytest.mark.parametrize("kind", ["Checkpointer", "AsyncCheckpointer"])
def test_a_handler_gets_the_same_calls(kind, tmp_path):
    """In the same order, each with the same files there."""
    heard = {}
    for name, ocp in PEERS.items():
        handler, save, restore, heard[name] = make_text_handler(ocp)
        with getattr(ocp, kind)(handler()) as checkpointer:
            checkpointer.save(tmp_path / name, args=save("hello"))
            if kind == "AsyncCheckpointer":
                checkpointer.wait_until_finished()
            assert checkpointer.restore(tmp_path / name) == "hello"
            assert checkpointer.restore(tmp_path / name, args=restore("> ")) == "> hello"
            assert checkpointer.metadata(tmp_path / name).item_metadata == {"length": 5}
        assert ocp.args.has_registered_args(handler)
        assert ocp.args.get_registered_args_cls(handler()) == (save, restore)
        assert ocp.args.get_registered_handler_cls(restore()) is handler
    assert heard["ours"] == heard["theirs"]
    assert heard["ours"][0][0] == ("save" if kind == "Checkpointer" else "async_save")
    assert list_files(tmp_path / "ours") == list_files(tmp_path / "theirs")


def save_items(ocp, path):
    _, save, restore, _ = make_text_handler(ocp)
    args = ocp.args
    items = args.Composite(
        text=save("hello"),
        tree=args.PyTreeSave({"a": np.arange(3)}),
        config=args.JsonSave({"lr": 0.5}),
        array=args.ArraySave(np.arange(4)),
        number=args.ArraySave(5),
        key=args.JaxRandomKeySave(jax.random.key(7)),
        raw_key=args.JaxRandomKeySave(jax.random.PRNGKey(7)),
        state=args.NumpyRandomKeySave(np.random.RandomState(5).get_state()),
        new_state=args.NumpyRandomKeySave(np.random.RandomState(5).get_state(legacy=False)),
    )
    with ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, items)
        checkpointer.wait_until_finished()
    return restore


@pytest.mark.slow
def test_each_restores_the_items_that_the_other_saved(tmp_path):
    """Arrays, random keys, JSON and an item of a handler of its own, beside a tree."""
    restores = {name: save_items(ocp, tmp_path / name) for name, ocp in PEERS.items()}
    handlers = {}
    for name in PEERS:
        about = json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text())
        handlers[name] = about["item_handlers"]
    assert handlers["ours"].keys() == handlers["theirs"].keys()
    assert {k: v for k, v in handlers["ours"].items() if k != "text"} == {
        k: v for k, v in handlers["theirs"].items() if k != "text"
    }
    for reader, ocp in PEERS.items():
        args = ocp.args
        as_numpy = args.ArrayRestore(restore_args=ocp.RestoreArgs(restore_type=np.ndarray))
        as_number = args.ArrayRestore(restore_args=ocp.RestoreArgs(restore_type=int))
        for name in PEERS:
            got = ocp.Checkpointer(ocp.CompositeCheckpointHandler()).restore(
                tmp_path / name,
                args.Composite(
                    text=restores[reader]("> "),
                    config=args.JsonRestore(),
                    array=as_numpy,
                    number=as_number,
                    key=args.JaxRandomKeyRestore(),
                    raw_key=args.JaxRandomKeyRestore(),
                    state=args.NumpyRandomKeyRestore(),
                    new_state=args.NumpyRandomKeyRestore(),
                ),
            )
            assert (got.text, got.config, got["number"]) == ("> hello", {"lr": 0.5}, 5)
            assert type(got.array) is np.ndarray
            assert got.array.tolist() == [0, 1, 2, 3]
            assert got.key == jax.random.key(7)
            assert (got.raw_key == jax.random.PRNGKey(7)).all()
            for state in (got.state, got.new_state):
                copy = np.random.RandomState()
                copy.set_state(state)
                assert copy.randint(1 << 30) == np.random.RandomState(5).randint(1 << 30)


def test_restores_all_items_without_args(tmp_path):
    """By the handlers that the checkpoint names; one that nobody registered is an error."""
    save_items(compat, tmp_path / "ckpt")
    composite = compat.Checkpointer(compat.CompositeCheckpointHandler())
    for args in ((), (compat.args.Composite(),)):
        got = composite.restore(tmp_path / "ckpt", *args)
        assert (got.text, got.config, got.tree["a"].tolist()) == ("hello", {"lr": 0.5}, [0, 1, 2])
    file = tmp_path / "ckpt" / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace("TextHandler", "LostHandler"))
    composite = compat.Checkpointer(compat.CompositeCheckpointHandler())
    with pytest.raises(tx.UsageError, match=r"Item `text` .* could not be restored"):
        composite.restore(tmp_path / "ckpt")


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_a_handler_without_registered_args_gets_the_arguments(ocp, tmp_path):
    """As code has it that is older than args: Grain's, for example."""

    class Old(ocp.CheckpointHandler):
        def save(self, directory, item, suffix=""):
            (directory / "text.txt").write_text(item + suffix)

        def restore(self, directory, item=None, prefix=""):
            return prefix + (directory / "text.txt").read_text()

    checkpointer = ocp.Checkpointer(Old())
    checkpointer.save(tmp_path / "ckpt", "hello", suffix="!")
    assert checkpointer.restore(tmp_path / "ckpt", prefix="> ") == "> hello!"
    assert not ocp.args.has_registered_args(Old)
    with pytest.raises(ValueError):
        ocp.args.get_registered_args_cls(Old)


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_the_error_of_a_handler_is_raised_as_it_is(ocp, tmp_path):
    """At the call, or by the next one if it comes from a future. Nothing is committed."""
    handler, save, _, _ = make_text_handler(ocp)

    class Failing(handler):
        def save(self, directory, args):
            (directory / "half.txt").write_text("half")
            raise LookupError("no such text")

        async def async_save(self, directory, args):
            async def fail():
                (directory / "half.txt").write_text("half")
                raise LookupError("no such text")

            future = importlib.import_module(f"{ocp.__name__}.future")
            return [future.CommitFutureAwaitingContractedSignals(fail())]

    ocp.args.register_with_handler(Failing, for_save=True)(type("S", (save,), {}))
    ocp.args.register_with_handler(Failing, for_restore=True)(type("R", (save,), {}))
    with pytest.raises(LookupError, match="no such text"):
        ocp.Checkpointer(Failing()).save(tmp_path / "sync", "text")
    checkpointer = ocp.AsyncCheckpointer(Failing())
    checkpointer.save(tmp_path / "async", "text")
    with pytest.raises(LookupError, match="no such text"):
        checkpointer.wait_until_finished()
    assert not (tmp_path / "sync").exists()
    assert not (tmp_path / "async").exists()
    if ocp is compat:
        assert os.listdir(tmp_path) == []
        checkpointer.wait_until_finished()  # raised once


def test_a_checkpoint_appears_once_the_futures_have_ended(tmp_path):
    """The program continues meanwhile; trees beside the item wait for it, too."""
    written = threading.Event()

    class Slow(compat.AsyncCheckpointHandler):
        def save(self, directory, args):
            raise NotImplementedError

        async def async_save(self, directory, args):
            (directory / "one").write_text("1")
            work = asyncio.to_thread(written.wait, 60)
            chained = compat.future.ChainedFuture(
                [compat.future.CommitFutureAwaitingContractedSignals(work)],
                lambda: (directory / "two").write_text("2") and None,
            )
            return [compat.future.NoopFuture(), [chained]]

        def restore(self, directory, args):
            return sorted(n for n in os.listdir(directory) if n.isalpha())

    class SlowArgs(compat.args.CheckpointArgs):
        pass

    compat.args.register_with_handler(Slow, for_save=True, for_restore=True)(SlowArgs)
    checkpointer = compat.AsyncCheckpointer(compat.CompositeCheckpointHandler())
    tree = compat.args.StandardSave({"a": np.arange(3)})
    checkpointer.save(tmp_path / "ckpt", compat.args.Composite(slow=SlowArgs(), tree=tree))
    assert not (tmp_path / "ckpt").exists()
    written.set()
    checkpointer.wait_until_finished()
    got = checkpointer.restore(tmp_path / "ckpt", compat.args.Composite(slow=SlowArgs()))
    assert got.slow == ["one", "two"]


def test_a_handler_may_save_a_part_with_a_checkpointer(tmp_path):
    """Also in the thread of its future, while the save that it is part of waits for that."""

    class Parts(compat.AsyncCheckpointHandler):
        def save(self, directory, args):
            compat.StandardCheckpointer().save(directory / "part", {"a": np.arange(3)})

        async def async_save(self, directory, args):
            work = asyncio.to_thread(self.save, directory, args)
            return [compat.future.CommitFutureAwaitingContractedSignals(work)]

        def restore(self, directory, args):
            return compat.StandardCheckpointer().restore(directory / "part")

    class PartsArgs(compat.args.CheckpointArgs):
        pass

    compat.args.register_with_handler(Parts, for_save=True, for_restore=True)(PartsArgs)
    for kind in (compat.Checkpointer, compat.AsyncCheckpointer):
        path = tmp_path / kind.__name__
        with kind(Parts()) as checkpointer:
            checkpointer.save(path, args=PartsArgs())
            assert checkpointer.restore(path, args=PartsArgs())["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_a_handler_may_extend_one_of_the_library(ocp, tmp_path):
    """It writes a file beside what the handler that it derives from writes."""

    class Noting(ocp.PyTreeCheckpointHandler):
        def save(self, directory, *args, **kwargs):
            super().save(directory, *args, **kwargs)
            (directory / "note.txt").write_text("mine")

        def restore(self, directory, *args, **kwargs):
            tree = super().restore(directory, *args, **kwargs)
            return tree, (directory / "note.txt").read_text()

    @dataclass
    class NotingSave(ocp.args.PyTreeSave):
        pass

    @dataclass
    class NotingRestore(ocp.args.PyTreeRestore):
        pass

    ocp.args.register_with_handler(Noting, for_save=True)(NotingSave)
    ocp.args.register_with_handler(Noting, for_restore=True)(NotingRestore)
    checkpointer = ocp.Checkpointer(Noting())
    checkpointer.save(tmp_path / "ckpt", {"a": np.arange(3)})
    tree, note = checkpointer.restore(tmp_path / "ckpt")
    assert (tree["a"].tolist(), note) == ([0, 1, 2], "mine")
    assert compat.PyTreeCheckpointer().restore(tmp_path / "ckpt")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_handlers_save_and_restore_on_their_own(ocp, tmp_path):
    """Without a checkpointer, into a directory as it is."""
    handlers, args = importlib.import_module(f"{ocp.__name__}.handlers"), ocp.args
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    cases = [
        (ocp.PyTreeCheckpointHandler(), args.PyTreeSave({"n": 5}), None, {"n": 5}),
        (ocp.StandardCheckpointHandler(), args.StandardSave({"n": 5}), None, {"n": 5}),
        (ocp.JsonCheckpointHandler("config.json"), args.JsonSave([1]), None, [1]),
        (
            handlers.ArrayCheckpointHandler("mine"),
            args.ArraySave(np.arange(2)),
            args.ArrayRestore(restore_args=as_numpy),
            [0, 1],
        ),
    ]
    for number, (handler, save, restore, expected) in enumerate(cases):
        path = tmp_path / str(number)
        path.mkdir()
        path = importlib.import_module("etils.epath").Path(path)
        handler.save(path, args=save)
        handler.finalize(path)
        got = handler.restore(path, args=restore) if restore else handler.restore(path)
        assert np.asarray(got).tolist() == expected if restore else got == expected
        assert not (path / "_CHECKPOINT_METADATA").exists()
        again = tmp_path / f"{number} again"
        again.mkdir()
        again = importlib.import_module("etils.epath").Path(again)
        for future in asyncio.run(handler.async_save(again, args=save)):
            future.result()
        handler.finalize(again)
        got = handler.restore(again, args=restore) if restore else handler.restore(again)
        assert np.asarray(got).tolist() == expected if restore else got == expected
        handler.close()
    with pytest.raises(TypeError):
        handlers.ArrayCheckpointHandler().save(tmp_path / "text", args=args.ArraySave("text"))
    assert list_files(tmp_path / "2") == ["config.json"]


def test_protocol_buffers_are_text(tmp_path):
    """As Orbax writes it, whose names are those of the module of the handler."""
    from google.protobuf import struct_pb2

    value = struct_pb2.Struct()
    value.update({"lr": 0.5})
    for name, ocp in PEERS.items():
        checkpointer = ocp.Checkpointer(ocp.handlers.ProtoCheckpointHandler("value.pbtxt"))
        checkpointer.save(tmp_path / name, args=ocp.args.ProtoSave(value))
        for reader in PEERS.values():
            restoring = reader.Checkpointer(reader.handlers.ProtoCheckpointHandler("value.pbtxt"))
            args = reader.args.ProtoRestore(struct_pb2.Struct)
            assert restoring.restore(tmp_path / name, args=args) == value
    files = [(tmp_path / name / "value.pbtxt").read_text() for name in PEERS]
    assert files[0] == files[1]


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_registries_tell_the_handler_of_an_item(ocp, tmp_path):
    """By its name and args, or by its args alone; what does not match is refused."""
    handlers, args = importlib.import_module(f"{ocp.__name__}.handlers"), ocp.args
    registry = handlers.DefaultCheckpointHandlerRegistry()
    json_handler = ocp.JsonCheckpointHandler("config.json")
    registry.add("config", args.JsonSave, json_handler)
    registry.add("config", args.JsonRestore, json_handler)
    registry.add(None, args.StandardSave)
    assert registry.get("config", args.JsonSave([1])) is json_handler
    assert registry.has(None, args.StandardSave)
    assert not registry.has("state", args.StandardSave)
    with pytest.raises(KeyError):
        registry.get("state", args.StandardSave)
    with pytest.raises(ValueError):
        registry.add("config", args.JsonSave, json_handler)
    assert len(handlers.DefaultCheckpointHandlerRegistry(registry).get_all_entries()) == 3
    made = handlers.create_default_handler_registry(config=json_handler)
    assert made.get("config", args.JsonRestore) is json_handler
    composite = ocp.CompositeCheckpointHandler(handler_registry=registry)
    with ocp.Checkpointer(composite) as checkpointer:
        items = args.Composite(config=args.JsonSave([1]), state=args.StandardSave({"n": 5}))
        checkpointer.save(tmp_path / "ckpt", items)
        assert (tmp_path / "ckpt" / "config" / "config.json").exists()
        wrong = args.Composite(config=args.StandardRestore())
        with pytest.raises(ValueError, match="does not match with any registered handler"):
            checkpointer.restore(tmp_path / "ckpt", wrong)
        with pytest.raises(KeyError):
            checkpointer.restore(tmp_path / "ckpt", args.Composite(other=args.JsonRestore()))
    for names in ({"state": ocp.StandardCheckpointHandler()}, {}):
        with pytest.raises(ValueError, match="handler_registry"):
            ocp.CompositeCheckpointHandler(
                *(() if names else ("state",)), handler_registry=registry, **names
            )


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_an_item_keeps_its_handler(ocp, tmp_path):
    """Names that a handler was not made with, and args of another kind, are refused."""
    args = ocp.args
    named = ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", config=None))
    named.save(tmp_path / "one", args.Composite(state=args.StandardSave({"n": 5})))
    for items in ({"state": args.JsonSave([1])}, {"typo": args.StandardSave({"n": 5})}):
        path = tmp_path / next(iter(items))  # Orbax leaves a temporary directory beside each
        with pytest.raises(ValueError, match="does not match with any registered handler"):
            named.save(path, args.Composite(**items))
    assert named.restore(tmp_path / "one").state == {"n": 5}
    unknown = ocp.Checkpointer(ocp.CompositeCheckpointHandler("state"))
    with pytest.raises(ValueError, match="undetermined `CheckpointHandler`"):
        unknown.restore(tmp_path / "one")


def test_args_of_orbax_itself_are_obeyed(tmp_path):
    """What Flax and Grain make are objects of Orbax's classes, or of such that derive from them."""

    class Iterator:  # registered with Orbax alone, as Grain's is
        def save(self, directory, args):
            (directory / "position.json").write_text(json.dumps(args.item))

        def restore(self, directory, args):
            return json.loads((directory / "position.json").read_text())

    @orbax.args.register_with_handler(Iterator, for_save=True)
    @dataclass
    class IteratorSave(orbax.args.CheckpointArgs):
        item: Any

    @orbax.args.register_with_handler(Iterator, for_restore=True)
    @dataclass
    class IteratorRestore(orbax.args.CheckpointArgs):
        item: Any = None

    checkpointer = compat.Checkpointer(compat.CompositeCheckpointHandler())
    save_args = {"a": orbax.SaveArgs(dtype=np.dtype(np.int8))}
    items = orbax.args.Composite(
        state=orbax.args.PyTreeSave({"a": np.arange(3)}, save_args),
        config=orbax.args.JsonSave([1]),
        data=IteratorSave({"position": 7}),
        array=orbax.args.ArraySave(np.arange(2)),
    )
    checkpointer.save(tmp_path / "ckpt", items)
    device = jax.devices()[1]
    sharding = jax.sharding.SingleDeviceSharding(device)
    template = {"a": jax.ShapeDtypeStruct((3,), np.int8, sharding=sharding)}
    got = checkpointer.restore(
        tmp_path / "ckpt",
        orbax.args.Composite(
            state=orbax.args.PyTreeRestore(template),
            config=orbax.args.JsonRestore(),
            data=IteratorRestore(),
        ),
    )
    assert got.state["a"].devices() == {device}
    assert (got.config, got.data) == ([1], {"position": 7})
    assert (tmp_path / "ckpt" / "array" / "templax.index").exists()


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_composites_are_mappings(ocp):
    """Items are keys, and attributes where the name is free; they can't be changed."""
    items = ocp.args.Composite(a=1, keys=2)
    assert (items.a, items["keys"], items.get("b"), dict(items)) == (1, 2, None, {**items})
    assert dict(items & ocp.args.Composite(a=3)) == {"a": 1}
    assert dict(items | {"a": 3}) == {"a": 3, "keys": 2}
    for code in (lambda: items.b, lambda: items["b"]):
        with pytest.raises(KeyError):
            code()
    with pytest.raises(ValueError):
        items.a = 3
    with pytest.raises(ValueError):
        ocp.args.Composite(__a=1)


def test_metadata_of_an_item_is_stored_with_it(tmp_path):
    """`custom_metadata` of the args, which Orbax reads."""
    for name, args in (("PyTreeSave", "PyTree"), ("StandardSave", "Standard")):
        path, about = tmp_path / name, {"of": name}
        save = getattr(compat.args, name)({"a": np.arange(3)}, custom_metadata=about)
        compat.Checkpointer(getattr(compat, f"{args}CheckpointHandler")()).save(path, args=save)
        for ocp in PEERS.values():
            reader = ocp.Checkpointer(getattr(ocp, f"{args}CheckpointHandler")())
            found = reader.metadata(path)
            assert found.item_metadata.custom_metadata == about
            assert found.custom_metadata == {}


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_metadata_of_a_composite_is_by_item(ocp, tmp_path):
    """Of items whose handlers are known; the names of all handlers are in the checkpoint."""
    handler, save, _, _ = make_text_handler(ocp)
    args = ocp.args
    items = args.Composite(
        text=save("hello"), state=args.StandardSave({"n": 5}), config=args.JsonSave([1])
    )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    checkpointer.save(tmp_path / "ckpt", items, custom_metadata={"run": 1})
    found = checkpointer.metadata(tmp_path / "ckpt")
    assert found.custom_metadata == {"run": 1}
    assert found.item_metadata["text"] == {"length": 5}
    assert list(found.item_metadata["state"].tree) == ["n"]
    assert found.item_metadata["config"] is None
    assert found.item_handlers["text"] == handler.typestr()
    assert found.item_handlers["state"] == ocp.StandardCheckpointHandler().typestr()
    stranger = ocp.Checkpointer(ocp.CompositeCheckpointHandler()).metadata(tmp_path / "ckpt")
    assert dict(stranger.item_metadata) == {"text": None, "state": None, "config": None}
    assert stranger.item_handlers == found.item_handlers
    assert isinstance(found.commit_timestamp_nsecs, int)


def test_args_can_be_changed_and_extended(tmp_path):
    """They are ordinary dataclasses, and may come as positional arguments with `item=None`."""

    @dataclass
    class Mine(compat.args.PyTreeSave):
        note: str = ""

    args = Mine({"a": np.arange(3)})
    args.item = {"b": np.arange(4)}
    checkpointer = compat.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "ckpt", args)
    template = {"b": np.zeros(4, np.int64)}
    restore = compat.args.PyTreeRestore(template)
    assert checkpointer.restore(tmp_path / "ckpt", restore, item=None)["b"].tolist() == [0, 1, 2, 3]
    got = compat.StandardCheckpointer().restore(tmp_path / "ckpt", target=template, strict=True)
    assert got["b"].tolist() == [0, 1, 2, 3]


def test_futures_end_and_are_cancelled():
    """As `concurrent.futures` has it."""
    future = compat.future
    begun, over = threading.Event(), threading.Event()

    async def wait():
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            over.set()

    running = future.CommitFutureAwaitingContractedSignals(wait(), name="waiting")
    assert begun.wait(60)
    with pytest.raises(TimeoutError):
        running.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.ChainedFuture([running], lambda: None).result(timeout=0.01)
    future.ChainedFuture([running, future.NoopFuture()], lambda: None).cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        running.result()
    assert over.is_set()
    assert isinstance(running, future.Future)
