"""The handlers of JSON values and protocol buffers: text in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import templax as tx

from ...._save.contents import Content, File
from ...._save.item import Json
from ....formats.orbax.json_item import read_json_item
from ....formats.orbax.write import HANDLERS, JSON
from ....storage.open import open_source
from ..args import JsonRestore, JsonSave
from ..checkpoint_args import register_with_handler
from ..item_args import ProtoRestore, ProtoSave
from ..options import check_tuning
from ..saver import PathLike
from .built_in import BuiltInHandler, make_args_error


class JsonCheckpointHandler(BuiltInHandler):
    """Saves and restores a JSON value, by `JsonSave` and `JsonRestore`.

    Args:
        filename: The name of the file.
        **options: No effect.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "item")
        >>> handler = ocp.JsonCheckpointHandler("config.json")
        >>> handler.save(path, args=ocp.args.JsonSave({"lr": 0.5}))
        >>> handler.restore(path), os.listdir(path)
        ({'lr': 0.5}, ['config.json'])
    """

    name = JSON

    def __init__(self, filename: str | None = None, **options: Any) -> None:
        check_tuning(type(self).__name__, options, ("multiprocessing_options",))
        self._file = filename

    def make_contents(self, args: JsonSave) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`."""
        if not hasattr(args, "item") or hasattr(args, "save_args"):
            raise make_args_error("args.JsonSave(value)", args)
        return {"": Json(args.item, self._file or "metadata")}

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Reads the JSON value in a directory.

        Raises:
            NotFound: The file is not there.
        """
        self.take_args("restore", args, kwargs)
        return read_json_item(open_source(directory), self._file)


class ProtoCheckpointHandler(BuiltInHandler):
    """Saves and restores a protocol buffer as text, by `ProtoSave` and `ProtoRestore`.

    Args:
        filename: The name of the file.
        **options: No effect.

    Raises:
        MissingPackage: `protobuf` is not installed; when the handler is used.
    """

    name = f"{HANDLERS}proto_checkpoint_handler.ProtoCheckpointHandler"

    def __init__(self, filename: str = "proto.pbtxt", **options: Any) -> None:
        check_tuning(type(self).__name__, options, ("multiprocessing_options",))
        self._file = filename

    def make_contents(self, args: ProtoSave) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`."""
        text: str = _import_text_format().MessageToString(args.item)
        return {"": File(text.encode(), self._file, self.name)}

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Reads the protocol buffer in a directory, by `args=ProtoRestore(its class)`."""
        message = self.take_args("restore", args, kwargs).item
        if message is None:
            raise tx.UsageError("Expected the class of the protocol buffer, got None")
        source = open_source(directory)
        if source.stat(self._file) is None:
            raise tx.NotFound("Expected a protocol buffer, found none", file=source.url)
        text = bytes(source.read(self._file)).decode()
        return _import_text_format().Parse(text, message())


def _import_text_format() -> Any:
    try:
        from google.protobuf import text_format
    except ImportError as error:
        raise tx.MissingPackage("A protocol buffer needs `pip install protobuf`") from error
    return text_format


for _handler, _save, _restore in (
    (JsonCheckpointHandler, JsonSave, JsonRestore),
    (ProtoCheckpointHandler, ProtoSave, ProtoRestore),
):
    register_with_handler(_handler, for_save=True)(_save)
    register_with_handler(_handler, for_restore=True)(_restore)
