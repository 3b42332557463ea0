"""JAX. The key-value store that the processes of a job share: that of JAX's coordination service.

JAX offers no public way to it. This is the one place that calls it, and a JAX without it, or with
another one, is told from the rest.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.errors import JaxRuntimeError

from ..errors import SaveError

CHUNK_BYTES = 1 << 21
"""Of a value: what gRPC takes in a message (4 MiB) unless it is told otherwise, as JAX does."""


class JobStore:
    """JAX's key-value store: the one place that calls it.

    Raises `JaxRuntimeError` where the service can't be reached.
    """

    def __init__(self) -> None:
        try:
            from jax._src import distributed  # pyright: ignore

            client: Any = distributed.global_state.client
        except (ImportError, AttributeError) as error:
            raise _unknown_jax() from error
        if client is None:
            raise SaveError(
                "The processes of this job can't talk to each other",
                hint="call jax.distributed.initialize() before anything else of JAX",
            )
        try:
            self._set = client.key_value_set_bytes
            self._get = client.blocking_key_value_get_bytes
            self._list = client.key_value_dir_get_bytes
            self._add = client.key_value_increment
            self.delete = client.key_value_delete  # all keys under one, too
        except AttributeError as error:
            raise _unknown_jax() from error

    def set(self, key: str, value: bytes, *, again: bool = False) -> bool:
        """False if the key is there already and `again` is not given."""
        try:
            self._set(key, value, allow_overwrite=again)
        except JaxRuntimeError as error:
            if _code(error) != "ALREADY_EXISTS":
                raise
            return False
        return True

    def get(self, key: str, wait_s: float) -> bytes | None:
        """None if the key is not there in time."""
        try:
            return self._get(key, max(1, int(wait_s * 1000)))
        except JaxRuntimeError as error:
            if _code(error) != "DEADLINE_EXCEEDED":
                raise
            return None

    def by_process(self, key: str) -> dict[int, bytes]:
        """What each process has set under `key`."""
        return {int(name.rpartition("/")[2]): value for name, value in self._list(f"{key}/")}

    def add(self, key: str) -> int:
        """How many processes have called this with `key`, this one included."""
        return self._add(key, 1)

    def put(self, key: str, value: bytes) -> None:
        """A value of any size, for `take`."""
        for start in range(0, len(value), CHUNK_BYTES):
            self.set(f"{key}/{start}", value[start : start + CHUNK_BYTES])

    def take(self, key: str, size: int) -> bytes:
        """A value that was put before the word that tells its size."""
        chunks = [self._get(f"{key}/{n}", 60_000) for n in range(0, size, CHUNK_BYTES)]
        return b"".join(chunks)


def _unknown_jax() -> SaveError:
    what = f"JAX {jax.__version__} has no key-value store that templax knows"
    return SaveError(what, hint="save from one process, or with JAX 0.10 to 0.12")


def _code(error: Exception) -> str:
    return str(error).partition(":")[0]
