"""The args of items other than trees: arrays, random keys and protocol buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checkpoint_args import CheckpointArgs


@dataclass
class ArraySave(CheckpointArgs):
    """`args.ArraySave`: an array or a number, and how it is saved.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.ArraySave(7)
        ArraySave(item=7, save_args=None)
    """

    item: Any
    save_args: Any = None


@dataclass
class ArrayRestore(CheckpointArgs):
    """`args.ArrayRestore`: an array or a number; a template for it, or how it is restored.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.ArrayRestore()
        ArrayRestore(item=None, restore_args=None)
    """

    item: Any = None
    restore_args: Any = None


@dataclass
class JaxRandomKeySave(CheckpointArgs):
    """`args.JaxRandomKeySave`: a random key of JAX, typed or raw, and how it is saved.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.JaxRandomKeySave(item=None)
        JaxRandomKeySave(item=None, save_args=None)
    """

    item: Any
    save_args: Any = None


@dataclass
class JaxRandomKeyRestore(CheckpointArgs):
    """`args.JaxRandomKeyRestore`: how the data of the key is restored.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.JaxRandomKeyRestore()
        JaxRandomKeyRestore(restore_args=None)
    """

    restore_args: Any = None


@dataclass
class NumpyRandomKeySave(CheckpointArgs):
    """`args.NumpyRandomKeySave`: what `np.random.get_state` returned.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.NumpyRandomKeySave(("MT19937",)).item
        ('MT19937',)
    """

    item: Any


@dataclass
class NumpyRandomKeyRestore(CheckpointArgs):
    """`args.NumpyRandomKeyRestore`: has no fields.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.NumpyRandomKeyRestore()
        NumpyRandomKeyRestore()
    """


@dataclass
class ProtoSave(CheckpointArgs):
    """`args.ProtoSave`: a protocol buffer.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.ProtoSave(item=None)
        ProtoSave(item=None)
    """

    item: Any


@dataclass
class ProtoRestore(CheckpointArgs):
    """`args.ProtoRestore`: the class of a protocol buffer.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.args.ProtoRestore(item=None)
        ProtoRestore(item=None)
    """

    item: Any
