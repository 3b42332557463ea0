"""JAX. Orbax's v1 `multihost`: which process this is."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import multihost_utils

from ...multihost import is_primary_host, process_count, process_index
from ...unmapped import make_getattr, make_unmapped_error

__all__ = [
    "is_pathways_backend",
    "is_primary_host",
    "process_count",
    "process_index",
    "sync_global_processes",
]


def is_pathways_backend() -> bool:
    """Whether JAX runs on Pathways."""
    client: Any = jax.devices()[0].client
    return hasattr(client, "pathways") or "pathways" in client.runtime_type


async def sync_global_processes(
    key: str,
    *,
    operation_id: str,
    timeout: int | None = None,
    processes: Any = None,
    record_event_name: str = "",
) -> None:
    """Waits until all processes of the job have called this.

    Args:
        key, operation_id: Together the name of the barrier, which is used only once.
        timeout, record_event_name: No effect.
        processes: The indices of those that take part: all, or this one alone.
    """
    alone = processes is not None and set(processes) == {process_index()}
    if process_count() == 1 or alone:
        return
    if processes is not None and set(processes) != set(range(process_count())):
        raise make_unmapped_error("processes", "leave it out: all processes of the job meet")
    multihost_utils.sync_global_devices(f"[op={operation_id}] {key}")


__getattr__ = make_getattr("experimental.v1.multihost.")
