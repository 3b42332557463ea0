"""JAX. Orbax's `multihost`: the processes of a job."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import multihost_utils

from .unmapped import make_getattr, make_unmapped_error

__all__ = [
    "broadcast_one_to_all",
    "initialize_distributed_to_device_ids",
    "initialize_runtime_to_distributed_ids",
    "is_distributed_to_device_ids_initialized",
    "is_primary_host",
    "is_runtime_to_distributed_ids_initialized",
    "process_count",
    "process_index",
    "reached_preemption",
    "sync_global_processes",
]


def process_index() -> int:
    """The index of this process."""
    return jax.process_index()


def process_count() -> int:
    """The number of processes of the job."""
    return jax.process_count()


def is_primary_host(primary_host: int | None) -> bool:
    """Whether this process is the primary one; all are if `primary_host` is None.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.multihost.is_primary_host(0)
        True
    """
    return primary_host is None or primary_host == jax.process_index()


def broadcast_one_to_all(in_tree: Any, is_source: bool | None = None) -> Any:
    """The values of one process on every process; all must call it.

    Args:
        in_tree: The values: numbers and arrays.
        is_source: Whether this is the process that they come from; None for process 0.
    """
    return multihost_utils.broadcast_one_to_all(in_tree, is_source)


def reached_preemption(step: int) -> bool:
    """Whether JAX announces a preemption of the job, at the same step on every process."""
    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # JAX's preemption service is disabled
        return False


def sync_global_processes(
    name: str, *, timeout: int | None = None, processes: Any = None, **options: Any
) -> None:
    """Returns once all processes of the job have called this.

    Args:
        name: The same on all processes.
        processes: None, for all.
        timeout, options: No effect.
    """
    if processes is not None:
        raise make_unmapped_error("processes", "leave it out: all processes take part")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def initialize_runtime_to_distributed_ids() -> None:
    """Does nothing: templax asks JAX for the number of a process whenever it needs it.

    Orbax notes here which process of `jax.distributed` has which number in JAX's runtime, for its
    checkpointers of several tiers, which templax does not have.
    """


def initialize_distributed_to_device_ids() -> None:
    """Does nothing, as `initialize_runtime_to_distributed_ids`: no numbers of devices are noted."""


def is_runtime_to_distributed_ids_initialized() -> bool:
    """Whether `initialize_runtime_to_distributed_ids` has nothing left to do: always.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> if not ocp.multihost.is_runtime_to_distributed_ids_initialized():
        ...     ocp.multihost.initialize_runtime_to_distributed_ids()
    """
    return True


def is_distributed_to_device_ids_initialized() -> bool:
    """Whether `initialize_distributed_to_device_ids` has nothing left to do: always."""
    return True


__getattr__ = make_getattr("multihost.")
