"""The key-value store that the processes of a job share: that of JAX's coordination service.

JAX has no public API for it. Only this module calls the private one, and it names a version of JAX
that lacks it. JAX is imported with the first `JobStore`, or to count processes: a program that has
not loaded it is not in a job.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from .._core.optional import can_import_jax, is_jax_loaded
from ..errors import SaveError

CHUNK_BYTES = 1 << 21
"""Values are stored in chunks of this size: gRPC limits a message to 4 MiB, and JAX does not raise
that."""


class StoreError(Exception):
    """JAX's coordination service can't be reached. The message is that of JAX."""


def is_connected() -> bool:
    """Whether `jax.distributed` is initialized. Does not initialize JAX's backends."""
    if not is_jax_loaded():
        return False
    try:
        from jax._src import distributed  # pyright: ignore

        return distributed.global_state.client is not None
    except (ImportError, AttributeError):
        return False


def count_processes() -> int:
    """How many processes the job has; 1 without JAX. Initializes JAX's backends."""
    if not can_import_jax():
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """The index of this process in its job. Initializes JAX's backends."""
    import jax

    return jax.process_index()


def count_local_processes() -> int:
    """How many processes of the job run on this machine, as far as known: all, if they have met on
    loopback; else 1.
    """
    if not is_connected():
        return 1
    from jax._src import distributed  # pyright: ignore

    address = str(getattr(distributed.global_state, "coordinator_address", None) or "")
    local = address.startswith(("127.", "localhost:", "[::1]:"))
    return count_processes() if local else 1


class JobStore:
    """JAX's key-value store. Thread-safe.

    A key is set once, unless `overwrite` is passed. All methods raise `StoreError` if the service
    can't be reached.

    Attributes:
        client: JAX's client, of which there is another after `jax.distributed` was shut down and
            initialized again.
        catches_sigterm: Whether JAX catches SIGTERM, for its preemption service.

    Raises:
        SaveError: `jax.distributed` is not initialized, or this version of JAX is not supported.
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
            self._delete = client.key_value_delete
            self._try_get = getattr(client, "key_value_try_get_bytes", None)
            manager = distributed.global_state.preemption_sync_manager
            self.client = client
            self.catches_sigterm = manager is not None
        except AttributeError as error:
            raise _unknown_jax() from error

    def set(self, key: str, value: bytes, *, overwrite: bool = False) -> bool:
        """Sets a key. Returns False, and changes nothing, if it is set already.

        Args:
            key: The key.
            value: At most `CHUNK_BYTES`.
            overwrite: Whether to replace an existing value; the result is then always True.
        """
        try:
            with _translate_errors():
                self._set(key, value, allow_overwrite=overwrite)
        except StoreError as error:
            if _status_code(error) != "ALREADY_EXISTS":
                raise
            return False
        return True

    def get(self, key: str, wait_s: float) -> bytes | None:
        """The value of a key, or None if it is not set within `wait_s` seconds."""
        try:
            with _translate_errors():
                return self._get(key, max(1, int(wait_s * 1000)))
        except StoreError as error:
            if _status_code(error) != "DEADLINE_EXCEEDED":
                raise
            return None

    def delete(self, key: str) -> None:
        """Deletes a key and all keys below it."""
        with _translate_errors():
            self._delete(key)

    def by_process(self, key: str) -> dict[int, bytes]:
        """The values of the keys `KEY/INDEX`, by process index."""
        return {int(name.rpartition("/")[2]): value for name, value in self._list_below(key)}

    def peek(self, key: str) -> bytes | None:
        """The value of a key, or None if it is not set. Does not wait."""
        if self._try_get is None:  # older versions of JAX
            return self.get(key, 0.001)
        try:
            with _translate_errors():
                return self._try_get(key)
        except StoreError as error:
            if _status_code(error) != "NOT_FOUND":
                raise
            return None

    def by_process_and_number(self, key: str) -> list[tuple[int, int, bytes]]:
        """The keys `KEY/INDEX/NUMBER`: process index, number and value."""
        found: list[tuple[int, int, bytes]] = []
        for name, value in self._list_below(key):
            _, index, number = name.rsplit("/", 2)
            found.append((int(index), int(number), value))
        return found

    def _list_below(self, key: str) -> list[tuple[str, bytes]]:
        with _translate_errors():
            return self._list(f"{key}/")

    def put(self, key: str, value: bytes) -> None:
        """Stores a value of any size, to be read by `take`."""
        for start in range(0, len(value), CHUNK_BYTES):
            self.set(f"{key}/{start}", value[start : start + CHUNK_BYTES])

    def take(self, key: str, size: int) -> bytes:
        """Reads a value of `size` bytes that was stored by `put`. The value stays in the store."""
        with _translate_errors():
            chunks = [self._get(f"{key}/{n}", 60_000) for n in range(0, size, CHUNK_BYTES)]
        return b"".join(chunks)


@contextmanager
def _translate_errors() -> Generator[None]:
    """Turns the errors of JAX's client into `StoreError`s."""
    from jax.errors import JaxRuntimeError

    try:
        yield
    except JaxRuntimeError as error:
        raise StoreError(str(error)) from error


def _unknown_jax() -> SaveError:
    import jax

    what = f"JAX {jax.__version__} has no key-value store that templax knows"
    return SaveError(what, hint="save from one process, or with JAX 0.10 to 0.12")


def _status_code(error: Exception) -> str:
    """The gRPC status code, with which the message of a `StoreError` begins."""
    return str(error).partition(":")[0]
