"""Orbax's v1 option groups, which a `Context` holds.

Options that only tune performance have no effect. Those that would change a result and are not
mapped raise `NotImplementedError` when they are set.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from ...options import AtomicityMode, check_metadata_options
from ...unmapped import make_getattr, make_unmapped_error
from .registration import CheckpointableHandlerRegistry, ReadOnlyRegistry

__all__ = [
    "ArrayOptions",
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointLayout",
    "CheckpointablesOptions",
    "DeletionOptions",
    "FileOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeOptions",
    "SafetensorsOptions",
]

active_contexts: ContextVar[tuple[Any, ...]] = ContextVar("templax_contexts", default=())
"""The contexts whose `with` blocks this thread or task is in, the outer ones first."""


def check_not_frozen(owner: object) -> None:
    """Refuses to change an active context.

    Raises:
        RuntimeError: `owner` is an active context, or one of its options.
    """
    if any(owner is each for context in active_contexts.get() for each in _list_parts(context)):
        raise RuntimeError(
            "Cannot mutate options of an active context: expected all of them to be set before its"
            " `with` block"
        )


def _list_parts(owner: object) -> Iterator[object]:
    yield owner
    for value in vars(owner).values():
        if is_dataclass(value) and not isinstance(value, type):
            yield from _list_parts(value)


class Options:
    """An option group: its attributes may be set until its context is entered."""

    unmapped: ClassVar[dict[str, tuple[Any, str]]] = {}
    """Name → the only value that is mapped, and what to write instead of another one."""

    def __setattr__(self, name: str, value: Any) -> None:
        check_not_frozen(self)
        if name in self.unmapped and value != self.unmapped[name][0]:
            raise make_unmapped_error(f"{type(self).__name__}.{name}", self.unmapped[name][1])
        if is_dataclass(self) and name not in {each.name for each in fields(self)}:
            raise make_unmapped_error(
                f"{type(self).__name__}.{name}", "leave it out: no option has this name"
            )
        object.__setattr__(self, name, value)


@dataclass(kw_only=True)
class AsyncOptions(Options):
    """Options of saves in the background.

    Attributes:
        post_finalization_callback: Called once a save in the background is committed, in the thread
            that saved.

    The other options have no effect.
    """

    timeout_secs: int = 1200
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True
    skip_sync_file_validations: bool = False


@dataclass(kw_only=True)
class AtomicityOptions(Options):
    """No effect: every save is atomic."""

    mode: Any = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclass(kw_only=True)
class MultiprocessingOptions(Options):
    """Which processes take part: all of the job, of which process 0 commits.

    Attributes:
        primary_host: Tells custom handlers which process writes; nothing else.
        active_processes: Must be all processes of the job, or None.
        barrier_sync_key_prefix: No effect.
    """

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


def default_path_class() -> type[Any]:
    """The class of the paths that handlers are called with: `etils.epath.Path`, if installed."""
    try:
        from etils import epath
    except ImportError:
        from pathlib import Path

        return Path
    return epath.Path


@dataclass(kw_only=True)
class FileOptions(Options):
    """Options of files and directories.

    Attributes:
        path_permission_mode: No effect: the umask decides.
        path_class: The class of the paths that handlers are called with.
    """

    path_permission_mode: int | None = None
    path_class: Any = field(default_factory=default_path_class)


@dataclass(kw_only=True)
class PyTreeOptions(Options):
    """Options of trees."""

    @dataclass(kw_only=True)
    class Saving(Options):
        """No effect: the metadata of a tree has one form. Rich types are named in the log."""

        pytree_metadata_options: Any = None

        def __setattr__(self, name: str, value: Any) -> None:
            check_metadata_options("PyTreeOptions.Saving", value)
            super().__setattr__(name, value)

    @dataclass(kw_only=True)
    class Loading(Options):
        """Options of loading a tree.

        Attributes:
            partial_load: Whether leaves that the abstract tree lacks are left unread.
        """

        partial_load: bool = False

    saving: Saving = field(default_factory=Saving)
    loading: Loading = field(default_factory=Loading)


@dataclass(kw_only=True)
class ArrayOptions(Options):
    """Options of arrays."""

    @dataclass(kw_only=True)
    class Saving(Options):
        """Options of saving arrays.

        Attributes:
            storage_options: How each array is stored.
            scoped_storage_options_creator: `(key path, value)` of a leaf → the `StorageOptions` of
                this leaf, or None. They take precedence over `storage_options`.

        The other options have no effect.
        """

        @dataclass(kw_only=True)
        class StorageOptions(Options):
            """How an array is stored.

            Attributes:
                dtype: The dtype that the array is cast to first, by JAX or NumPy.
                chunk_byte_size, shard_axes: No effect.
            """

            dtype: Any = None
            chunk_byte_size: int | None = None
            shard_axes: tuple[int, ...] | None = None

        storage_options: StorageOptions = field(default_factory=StorageOptions)
        use_ocdbt: bool = True
        use_zarr3: bool = True
        use_compression: bool = True
        ocdbt_target_data_file_size: int | None = None
        enable_pinned_host_transfer: bool | None = None
        enable_post_merge_validation: bool = True
        use_replica_parallel: bool | None = None
        min_slice_bytes_for_replica_parallel: int | None = None
        max_replicas_for_replica_parallel: int | None = None
        enable_replica_parallel_separate_folder: bool = False
        enable_write_sharding_file: bool = True
        array_metadata_store: Any = None
        scoped_storage_options_creator: Any = None

    @dataclass(kw_only=True)
    class Loading(Options):
        """Options of loading arrays, which are always complete and have the requested shape.

        `use_load_and_broadcast` and its options have no effect.
        """

        unmapped: ClassVar[dict[str, tuple[Any, str]]] = {
            "enable_padding_and_truncation": (
                False,
                "load the saved shape, then jnp.pad or slice the array",
            ),
            "raise_array_data_missing_error": (
                True,
                "leave it out: an array of which a part is lost is never filled with zeros",
            ),
        }

        @dataclass(kw_only=True)
        class LoadAndBroadcastOptions(Options):
            """No effect: each process reads what its devices need."""

            replica_axis_index: int | None = 0
            primary_replica_id: int | None = 0
            broadcast_memory_limit_bytes: int | None = None
            broadcast_memory_scaling_factor: float | None = 0.75

        enable_padding_and_truncation: bool = False
        raise_array_data_missing_error: bool = True
        use_load_and_broadcast: bool = False
        load_and_broadcast_options: LoadAndBroadcastOptions = field(
            default_factory=LoadAndBroadcastOptions
        )

    saving: Saving = field(default_factory=Saving)
    loading: Loading = field(default_factory=Loading)


@dataclass(kw_only=True)
class CheckpointablesOptions(Options):
    """Options of checkpointables.

    Attributes:
        registry: Which handler saves and loads which of them; see `handlers.local_registry`.
    """

    registry: CheckpointableHandlerRegistry = field(default_factory=ReadOnlyRegistry)


@dataclass(kw_only=True)
class PathwaysOptions(Options):
    """No effect."""

    checkpointing_impl: Any = None


@dataclass(kw_only=True)
class DeletionOptions(Options):
    """Options of deletions, which are final."""

    @dataclass(kw_only=True)
    class GcsDeletionOptions(Options):
        """Options of deleting from Google Cloud Storage."""

        unmapped: ClassVar[dict[str, tuple[Any, str]]] = {
            "todelete_full_path": (None, "leave it out: a checkpoint is deleted, not moved")
        }

        todelete_full_path: str | None = None

    gcs_deletion_options: GcsDeletionOptions = field(default_factory=GcsDeletionOptions)


@dataclass(kw_only=True)
class MemoryOptions(Options):
    """No effect: templax keeps to a limit of its own. `templax.save(memory=)` sets another."""

    unmapped: ClassVar[dict[str, tuple[Any, str]]] = {
        "serialization_status_callback": (None, "templax.save(path, tree, on_progress=...)")
    }

    write_concurrent_bytes: int | None = None
    read_concurrent_bytes: int | None = None
    transfer_concurrent_bytes: int | None = None
    regulator_options: Any = None
    expected_surge_bytes: float | None = None
    is_prioritized_key_fn: Any = None
    serialization_status_callback: Any = None
    deepcopy_host_arrays: bool = True


@dataclass(kw_only=True)
class SafetensorsOptions(Options):
    """No effect."""

    max_over_read_ratio: float | None = None
    read_chunk_bytes: int | None = None


class CheckpointLayout(enum.Enum):
    """What a path holds: a checkpoint of Orbax, or of safetensors; or whichever it is."""

    ORBAX = "orbax"
    SAFETENSORS = "safetensors"
    AUTO = "auto"


__getattr__ = make_getattr("experimental.v1.options.")
