"""Checkpointables of the v1 API and who saves them, under Orbax and `templax.compat.orbax`."""

import asyncio
import json

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from google.protobuf import struct_pb2

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import assert_same, first_device, small_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
LIBRARIES = pytest.mark.parametrize("ocp", [orbax.v1, compat.v1], ids=["orbax", "templax"])


class Text:
    """What `TextHandler` saves."""

    def __init__(self, text):
        self.text = text


class TextHandler:
    """A handler of the caller's own, of no library."""

    async def save(self, directory, checkpointable):
        text = checkpointable.text
        assert directory.path.name == (directory / "deeper").path.parent.name

        async def write():
            if text == "bad":
                raise RuntimeError("no ink")
            path = await directory.await_creation()
            (path / "text").write_text(text)

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            return Text((directory / "text").read_text())

        return read()

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Text)

    def is_abstract_handleable(self, abstract_checkpointable):
        return abstract_checkpointable is None


class Counter:
    """Saves and loads itself."""

    def __init__(self, n):
        self.n = n

    async def save(self, directory):
        n = self.n

        async def write():
            (await directory.await_creation() / "n").write_text(str(n))

        return write()

    async def load(self, directory):
        async def read():
            self.n = int((directory / "n").read_text())

        return read()


def with_text(ocp):
    """A context whose registry has `TextHandler`."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(TextHandler)
    return context


def save_all(ocp, path):
    counter = Counter(7)
    with with_text(ocp):
        response = ocp.save_checkpointables_async(
            path,
            {
                "state": small_tree(),
                "config": {"lr": 0.5},
                "text": Text("first try"),
                "counter": counter,
                "proto": struct_pb2.Value(number_value=3),
            },
            custom_metadata={"seed": 3},
        )
        counter.n = 8  # the value at the call is saved
        response.result()


def load_all(ocp, path):
    asked = {
        "state": abstract(small_tree(), first_device()),
        "config": None,
        "text": None,
        "counter": Counter(0),
        "proto": struct_pb2.Value,
    }
    with with_text(ocp):
        found = ocp.load_checkpointables(path, asked)
    assert found["counter"] is asked["counter"]
    counter, proto = found.pop("counter").n, found.pop("proto").number_value
    return found | {"text": found["text"].text, "counter": counter, "proto": proto}


@pytest.mark.slow
def test_checkpointables_are_interchangeable(tmp_path):
    """Trees, JSON, protocol buffers, objects that save themselves, and handlers of the caller."""
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        save_all(ocp, tmp_path / name)
    want = load_all(orbax.v1, tmp_path / "theirs")
    assert want["text"] == "first try"
    assert want["counter"] == 7
    for name in ("theirs", "ours"):
        for ocp in (orbax.v1, compat.v1):
            assert_same(load_all(ocp, tmp_path / name), want)


def test_the_metadata_names_the_same_handlers(tmp_path):
    """So that either library, and its next version, finds the handler again."""
    handlers = []
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        save_all(ocp, tmp_path / name)
        about = json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text())
        handlers.append(about["item_handlers"])
        assert about["custom_metadata"] == {"seed": 3}
        assert (tmp_path / name / "orbax.checkpoint").exists()
    assert handlers[0] == handlers[1]


@LIBRARIES
def test_a_registry_decides_by_name_then_by_kind(ocp, tmp_path):
    """The handler of a name comes first, then the one that was added last."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="config")
    with pytest.raises(ValueError, match="already exists"):
        registry.add(ocp.handlers.JsonHandler)
    with pytest.raises(ValueError, match="already exists"):
        registry.add(ocp.handlers.PyTreeHandler, checkpointable_name="config")
    with pytest.raises(ValueError, match=r"type|class"):
        registry.add(ocp.handlers.PyTreeHandler())
    context = ocp.Context()
    context.checkpointables.registry = registry
    with context:
        ocp.save_checkpointables(tmp_path / "ckpt", {"config": {"a": 1}, "other": {"a": 1}})
        assert (tmp_path / "ckpt/config/data.json").exists()
        assert (tmp_path / "ckpt/other/_METADATA").exists()
        assert ocp.load_checkpointables(tmp_path / "ckpt") == {
            "config": {"a": 1},
            "other": {"a": 1},
        }
    assert registry.has("config")
    assert registry.get("config") is ocp.handlers.JsonHandler
    with pytest.raises(KeyError, match="nobody"):
        registry.get("nobody")
    with pytest.raises(NotImplementedError, match="read-only"):
        ocp.Context().checkpointables.registry.add(TextHandler)


@LIBRARIES
def test_a_handler_of_everybody(ocp, tmp_path):
    """`register_handler` adds to the registry that every later context has."""

    class Global(TextHandler):
        pass

    assert ocp.handlers.register_handler(Global) is Global
    try:
        ocp.save_checkpointables(tmp_path / "ckpt", {"text": Text("for all")})
        assert ocp.load_checkpointables(tmp_path / "ckpt")["text"].text == "for all"
        with pytest.raises(ValueError, match="already exists"):
            ocp.handlers.register_handler(Global)
    finally:
        ocp.handlers.global_registry().get_all_entries().pop()


@LIBRARIES
@pytest.mark.parametrize(
    "checkpointables",
    [None, {}, [], "text", {"": 1}, {"metrics": 1}, {"AUTO": 1}, {"state": None}],
    ids=str,
)
def test_what_is_no_checkpointable(ocp, checkpointables, tmp_path):
    """Refused before anything is written."""
    with pytest.raises(ValueError, match=r"."):
        ocp.save_checkpointables(tmp_path / "ckpt", checkpointables)
    assert not list(tmp_path.iterdir())


@LIBRARIES
def test_what_nobody_saves(ocp, tmp_path):
    with pytest.raises(KeyError, match=r"Could not identify a valid handler.*text"):
        ocp.save_checkpointables(tmp_path / "ckpt", {"text": Text("x")})
    with pytest.raises(ValueError, match=r"Unsupported leaf type for saving: .*Text"):
        ocp.save(tmp_path / "ckpt", {"text": Text("x")})
    for empty in ({}, [], ()):
        with pytest.raises(ValueError, match="Found empty item"):
            ocp.save(tmp_path / "ckpt", empty)


@LIBRARIES
def test_what_can_not_be_loaded(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "ckpt", {"a": {"x": 1}, "b": {"y": 2}})
    with pytest.raises(KeyError, match="Requested checkpointables"):
        ocp.load_checkpointables(tmp_path / "ckpt", {"c": None})
    for asked in ({"metrics": None}, {"": None}, ["a"]):
        with pytest.raises(ValueError, match=r"."):
            ocp.load_checkpointables(tmp_path / "ckpt", asked)
    for name in ("metrics", ""):
        with pytest.raises(ValueError, match=r"."):
            ocp.load(tmp_path / "ckpt", checkpointable_name=name)
    with pytest.raises(TypeError, match="Unsupported abstract leaf"):
        ocp.load(tmp_path / "ckpt", {"x": Text("x")})
    with pytest.raises(NotImplementedError):
        ocp.load_async(tmp_path / "ckpt")
    with pytest.raises(NotImplementedError):
        ocp.load_checkpointables_async(tmp_path / "ckpt")


@LIBRARIES
def test_what_a_damaged_checkpointable_raises(ocp, tmp_path):
    """A `KeyError` that names the checkpointable, whatever its handler raised."""
    with with_text(ocp):
        ocp.save_checkpointables(tmp_path / "ckpt", {"a": {"x": 1}, "text": Text("x")})
        (tmp_path / "ckpt/text/text").unlink()
        with pytest.raises(KeyError, match="Failed to load checkpointable: text"):
            ocp.load_checkpointables(tmp_path / "ckpt")
        assert ocp.load_checkpointables(tmp_path / "ckpt", {"a": None}) == {"a": {"x": 1}}


def test_a_tree_that_does_not_fit_says_so(tmp_path):
    """By `TemplateError`, which lists the leaves, and not by a `KeyError` of the checkpointable."""
    compat.v1.save_checkpointables(tmp_path / "ckpt", {"a": {"x": np.ones(3)}})
    with pytest.raises(tx.TemplateError, match="`x`"):
        compat.v1.load_checkpointables(tmp_path / "ckpt", {"a": {"x": np.ones(4)}})


@pytest.mark.parametrize("wait", [True, False])
def test_a_handler_that_fails_leaves_nothing(wait, tmp_path):
    """Neither the checkpoint nor a temporary directory; one that was there is still the old one."""
    path = tmp_path / "ckpt"

    def save(text, overwrite):
        if wait:
            compat.v1.save_checkpointables(path, {"t": Text(text)}, overwrite=overwrite)
            return
        checkpointables = {"t": Text(text)}
        compat.v1.save_checkpointables_async(path, checkpointables, overwrite=overwrite).result()

    with with_text(compat.v1):
        with pytest.raises(RuntimeError, match="no ink"):
            save("bad", overwrite=False)
        assert not list(tmp_path.iterdir())
        save("good", overwrite=False)
        with pytest.raises(RuntimeError, match="no ink"):
            save("bad", overwrite=True)
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        assert compat.v1.load_checkpointables(path)["t"].text == "good"
        save("better", overwrite=True)
        assert compat.v1.load_checkpointables(path)["t"].text == "better"


@LIBRARIES
def test_a_handler_that_saves_a_tree_by_another(ocp, tmp_path):
    """A handler may give a part of what it saves to the handler of trees."""

    class Model:
        def __init__(self, params):
            self.params = params

    class ModelHandler:
        async def save(self, directory, checkpointable):
            return await ocp.handlers.PyTreeHandler().save(directory, checkpointable.params)

        async def load(self, directory, abstract_checkpointable=None):
            loading = await ocp.handlers.PyTreeHandler().load(directory)

            async def finish():
                return Model(await loading)

            return finish()

        async def metadata(self, directory):
            return await ocp.handlers.PyTreeHandler().metadata(directory)

        def is_handleable(self, checkpointable):
            return isinstance(checkpointable, Model)

        def is_abstract_handleable(self, abstract_checkpointable):
            return False

    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(ModelHandler)
    with context:
        ocp.save_checkpointables(tmp_path / "ckpt", {"model": Model({"w": np.arange(3)})})
        found = ocp.load_checkpointables(tmp_path / "ckpt")["model"]
    assert_same(found.params, {"w": np.arange(3)})


@LIBRARIES
def test_calls_inside_of_a_running_event_loop(ocp, tmp_path):
    """As in a notebook."""

    async def cell():
        with with_text(ocp):
            ocp.save_checkpointables(tmp_path / "ckpt", {"text": Text("x"), "a": {"b": 1}})
            return ocp.load_checkpointables(tmp_path / "ckpt")

    found = asyncio.run(cell())
    assert found["a"] == {"b": 1}
    assert found["text"].text == "x"


def numpy_leaves(ocp, path):
    tree = {"n": np.arange(3), "list": [np.ones(2), 1.5], "s": "text", "j": jnp.ones(2)}
    ocp.save_checkpointables(path / "ckpt", {"tree": tree, "leaf": np.arange(4)})
    return ocp.load_checkpointables(path / "ckpt")


@pytest.mark.slow
def test_numpy_stays_numpy_without_a_template(tmp_path):
    """As with Orbax; a template decides otherwise."""
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    ours = numpy_leaves(compat.v1, tmp_path / "ours")
    assert_same(ours, numpy_leaves(orbax.v1, tmp_path / "theirs"))
    assert type(ours["tree"]["list"][0]) is np.ndarray


@LIBRARIES
def test_older_names_warn(ocp, tmp_path):
    with pytest.warns(DeprecationWarning, match="Use `save` instead"):
        ocp.save_pytree(tmp_path / "ckpt", {"a": 1})
    with pytest.warns(DeprecationWarning, match="Use `load` instead"):
        assert ocp.load_pytree(tmp_path / "ckpt") == {"a": 1}
