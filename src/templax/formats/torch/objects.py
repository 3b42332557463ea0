"""What a pickle of PyTorch may refer to by name, and what templax builds in its place.

No object here has behaviour: a tensor is a description of bytes. A name that is not in these tables
becomes a `Refused`, which says which name it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from ..._core.boxes import MAX_RANK, fits_address_space, format_shape
from ..._core.dtypes import DTYPES, NUMPY_NAMES
from ...errors import Corrupted, Unsupported


class Named(msgspec.Struct, frozen=True, gc=False):
    """A global of a pickle that is in the tables below."""

    name: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A global that is not in the tables, or what would have been made by calling it."""

    name: str


class Record(msgspec.Struct, eq=False):
    """An object of a class in `RECORDS`: the arguments and the state that were stored for it."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class BrokenText(msgspec.Struct, frozen=True, gc=False):
    r"""A string that is not Unicode, as Python makes of the names of files that are not UTF-8.

    Attributes:
        shown: The string, with halves of surrogate pairs as `\udce9`.
    """

    shown: str


class OtherKey(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Stands for a key of a dict that is neither text nor an integer, and is never hashed itself.

    Attributes:
        value: The key.
    """

    value: Any


class StateDict(dict[Any, Any]):
    """An ordered dict. `metadata` is the attribute `_metadata` that modules give theirs."""

    __slots__ = ("metadata",)

    def __init__(self) -> None:
        super().__init__()
        self.metadata: Any = None


class Storage(msgspec.Struct, frozen=True, gc=False):
    """The memory that tensors are views of.

    Attributes:
        key: Names it in the file.
        dtype: None if it is bytes, as which each tensor has its own dtype.
        nbytes: Its size.
    """

    key: str
    dtype: np.dtype | None
    nbytes: int


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """A view of a storage.

    Attributes:
        storage: What it views.
        dtype: Of its elements.
        offset: Its first element, counted in elements from the beginning of the storage.
        shape: In elements.
        strides: Distance of neighbours along each dimension, in elements.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Parameter(msgspec.Struct, frozen=True, gc=False):
    """A tensor with attributes of its own, such as `_no_weight_decay`."""

    tensor: Tensor
    attributes: dict[Any, Any]


PARAMETER = "torch._utils._rebuild_parameter_with_state"
"""Name of the function that makes a `Parameter`."""

STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
"""Name of a class of storages, without its suffix → dtype."""

_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")

_DTYPES = {
    f"torch.{name}": DTYPES[name]
    for name in DTYPES
    if name in NUMPY_NAMES.split() or name.startswith(("bfloat16", "float8_"))
}
"""Name of a dtype → the dtype. PyTorch calls them as numpy and ml_dtypes do."""

LAZY = "tensors that are to be conjugated or negated lazily"
"""Name of what stands for them: their values are not those that are stored."""

RECORDS = frozenset(
    (
        *(
            f"torch.distributed.checkpoint.metadata.{name}"
            for name in (
                "Metadata",
                "TensorStorageMetadata",
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "TensorProperties",
                "MetadataIndex",
                "StorageMeta",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.distributed.checkpoint.filesystem._StoragePrefix",
        *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
    )
)
"""Classes of the metadata of distributed checkpoints, and of the path that it records."""


def resolve_global(name: str) -> Named | Refused:
    """What a pickle gets for a global, such as "torch.FloatStorage"."""
    known = name in _BUILDERS or name in RECORDS or name in _DTYPES or name in _UNTYPED
    return Named(name) if known or _find_storage_dtype(name) is not None else Refused(name)


def dtype_of(value: Any) -> np.dtype | None:
    """The dtype that a global of a pickle stands for, such as `torch.float32`; None for others."""
    return _DTYPES.get(value.name) if isinstance(value, Named) else None


def build(named: Named, arguments: tuple[Any, ...]) -> Any:
    """What a call of `named` with these arguments stands for.

    Raises:
        Corrupted: The arguments are not those of this call, or contradict each other.
        Unsupported: A feature of tensors that templax does not read.
    """
    if named.name in RECORDS:
        return Record(named.name, arguments)
    builder = _BUILDERS.get(named.name)
    if builder is None:
        return Refused(named.name)
    try:
        return builder(*arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise Corrupted(f"Expected the arguments of `{named.name}`, got others") from error


def make_storage(identifier: Any) -> Storage | Refused:
    """The storage that a persistent identifier of a pickle names.

    It is `("storage", class, key, device, number of elements)`, and may have a last item that is
    None. Files before PyTorch 1.6 also have `("module", class, file, source)`, for a class of
    modules.
    """
    if type(identifier) is not tuple or not 4 <= len(identifier) <= 6:
        raise Corrupted("Expected the identifier of a storage, got another one")
    if len(identifier) == 4:
        if identifier[0] != "module" or not isinstance(identifier[1], Refused):
            raise Corrupted("Expected the identifier of a storage, got another one")
        return identifier[1]
    what, named, key, _, numel, *view = identifier
    if what != "storage" or type(key) is not str or type(numel) is not int or numel < 0:
        raise Corrupted("Expected the identifier of a storage, got another one")
    if view not in ([], [None]):
        raise Unsupported("templax reads no storages that are views of others", leaf=key)
    if isinstance(named, Refused):
        return named
    if not isinstance(named, Named):
        raise Corrupted("Expected the class of a storage, got another value", leaf=key)
    dtype = None if named.name in _UNTYPED else _find_storage_dtype(named.name)
    if dtype is None and named.name not in _UNTYPED:
        raise Corrupted(f"Expected the class of a storage, got `{named.name}`", leaf=key)
    return Storage(key, dtype, numel * (1 if dtype is None else dtype.itemsize))


def _find_storage_dtype(name: str) -> np.dtype | None:
    module, _, kind = name.rpartition(".")
    if module not in ("torch", "torch.cuda") or not kind.endswith("Storage"):
        return None
    dtype = STORAGES.get(kind.removesuffix("Storage"))
    return None if dtype is None else DTYPES[dtype]


def _build_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor | Refused:
    if isinstance(storage, Refused):
        return storage
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise Corrupted("Expected a tensor of a typed storage, got another one")
    return _make_tensor(storage, storage.dtype, offset, shape, strides, metadata)


def _build_untyped_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor | Refused:
    for each in (storage, dtype):
        if isinstance(each, Refused):
            return each
    known = dtype_of(dtype)
    if not isinstance(storage, Storage) or known is None:
        raise Corrupted("Expected a storage and a dtype, got others")
    return _make_tensor(storage, known, offset, shape, strides, metadata)


def _make_tensor(
    storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any, metadata: Any
) -> Tensor | Refused:
    if metadata:  # whether the values are to be conjugated or negated when they are read
        return Refused(LAZY)
    numbers = (shape, strides, (offset,))
    if any(type(each) is not tuple or len(each) > MAX_RANK for each in numbers):
        raise Corrupted(f"Expected a shape and strides of at most {MAX_RANK} dimensions")
    if any(type(n) is not int or n < 0 for each in numbers for n in each):
        raise Corrupted("Expected a shape, strides and an offset of whole numbers")
    if len(shape) != len(strides):
        raise Corrupted(f"Expected as many strides as dimensions, {len(shape)}, got {len(strides)}")
    if not fits_address_space(shape, dtype.itemsize):
        raise Corrupted(f"Expected a shape that memory can hold, got {format_shape(shape)}")
    reach = 0
    if 0 not in shape:
        reach = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if reach * dtype.itemsize > storage.nbytes:
        raise Corrupted(
            f"Expected a tensor within the {storage.nbytes} bytes of storage `{storage.key[:80]}`,"
            f" got {dtype.name}{format_shape(shape)} beyond it"
        )
    return Tensor(storage, dtype, offset, shape, strides)


def _build_parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor | Refused:
    if isinstance(data, Refused):
        return data
    if not isinstance(data, Tensor):
        raise Corrupted("Expected a parameter to be a tensor, got another value")
    return data


def _build_parameter_with_state(
    data: Any, requires_grad: Any, hooks: Any, state: Any
) -> Parameter | Tensor | Refused:
    tensor = _build_parameter(data, requires_grad, hooks)
    if isinstance(tensor, Refused) or not state:
        return tensor
    return Parameter(tensor, state) if type(state) is dict else Refused(PARAMETER)


def _build_ordered_dict(items: Any = None) -> StateDict:
    result = StateDict()
    if items is not None:  # as Python 2 wrote it
        if type(items) is not list or any(type(item) not in (list, tuple) for item in items):
            raise Corrupted("Expected pairs of keys and values, got another value")
        for key, value in items:
            set_item(result, key, value)
    return result


_MAX_KEY = 1 << 63


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Adds an item to a dict that a pickle makes, under an `OtherKey` if no tree has such keys.

    Raises:
        Corrupted: The dict has the key already.
    """
    kind = type(key)
    if kind is str or kind is Record or (kind is int and -_MAX_KEY <= key < _MAX_KEY):
        if key in target:
            shown = key.name if kind is Record else str(key)
            raise Corrupted(f"Expected each key of a dict once, got {shown[:80]!r} again")
        target[key] = value
    else:
        target[OtherKey(key)] = value


def refuse_key(key: Any) -> Unsupported:
    """The error for a dict that has a key of another type than trees have."""
    key = key.value if isinstance(key, OtherKey) else key
    got = f"one of type `{type(key).__name__}`"
    if isinstance(key, (Named, Refused, Record)):
        got = f"`{key.name[:80]}`"
    elif type(key) is int:
        got = "an integer of more bits"
    elif isinstance(key, BrokenText):
        got = f"text that is not Unicode, `{key.shown[:80]}`"
    what = f"templax reads dicts whose keys are text or integers of 64 bits, got {got}"
    return Unsupported(what, hint="save a dict with keys of text")


def list_parts(value: Any) -> Sequence[Any]:
    """What is in a container of a pickle or in an object of a class in `RECORDS`."""
    kind = type(value)
    if kind is list or kind is tuple:
        return value
    if kind is dict or kind is StateDict:
        return [*value.values(), *(key.value for key in value if type(key) is OtherKey)]
    if kind is Parameter:
        return (value.attributes,)
    return (value.arguments, value.state) if kind is Record else ()


def _build_complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Corrupted("Expected a complex number of two floats, got others")
    return complex(real, imaginary)


def _build_size(sizes: Any) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise Corrupted("Expected the sizes of a `torch.Size`, got another value")
    return sizes


def _build_device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or len(kind) > 64 or type(index) not in (int, type(None)):
        raise Corrupted("Expected the name of a device, got another value")
    return kind if index is None else f"{kind}:{index}"


def _build_layout(name: Any) -> Named | Refused:
    if type(name) is not str:
        raise Corrupted("Expected the name of a layout, got another value")
    return Named(name) if name == "torch.strided" else Refused(name)


def _build_bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Corrupted("Expected bytes as text of latin1, got another value")
    return text.encode("latin1")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _build_tensor,
    "torch._utils._rebuild_tensor_v2": _build_tensor,
    "torch._utils._rebuild_tensor_v3": _build_untyped_tensor,
    "torch._utils._rebuild_parameter": _build_parameter,
    PARAMETER: _build_parameter_with_state,
    "torch.Size": _build_size,
    "torch.device": _build_device,
    "torch.serialization._get_layout": _build_layout,
    "collections.OrderedDict": _build_ordered_dict,
    "_codecs.encode": _build_bytes,
    "__builtin__.bytes": _build_bytes,
    "builtins.bytes": _build_bytes,
    "__builtin__.complex": _build_complex,
    "builtins.complex": _build_complex,
}
"""Name of a function or class → what is done in its place."""
