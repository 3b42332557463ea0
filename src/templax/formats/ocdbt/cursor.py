"""A cursor over the decoded bytes of an OCDBT manifest or node: numbers, names and raw bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import Corrupted
from .budget import Budget
from .paths import MAX_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Cursor:
    """Reads the fields of a decoded manifest or node, in order.

    Every count is checked against the bytes that are left before anything is allocated for it, and
    the lengths of names against `budget`.
    """

    def __init__(self, data: bytes, budget: Budget):
        self.data, self.budget = data, budget
        self._array = np.frombuffer(data, np.uint8)
        self._at = 0

    def raw(self, n: int) -> bytes:
        """The next `n` bytes."""
        start = self.skip(n)
        return self.data[start : self._at]

    def skip(self, n: int) -> int:
        """Skips the next `n` bytes; returns the position of the first."""
        if not 0 <= n <= len(self.data) - self._at:
            raise Corrupted(f"Expected {n} more bytes, got {len(self.data) - self._at}")
        self._at += n
        return self._at - n

    def byte(self) -> int:
        """The next byte, as a number."""
        return self.raw(1)[0]

    def number(self) -> int:
        """The next unsigned LEB128 number."""
        return int(self.numbers(1)[0])

    def numbers(self, n: int) -> NDArray[np.uint64]:
        """A column of `n` unsigned LEB128 numbers of at most 64 bits, decoded together."""
        if not 0 <= n <= len(self.data) - self._at:
            raise Corrupted(f"Expected {n} numbers, got {len(self.data) - self._at} bytes")
        window = self._array[self._at : self._at + 10 * n]
        ends = np.flatnonzero(window < 0x80)[:n]
        if len(ends) < n:
            raise Corrupted(f"Expected {n} numbers, got {len(ends)}")
        if not n:
            return np.empty(0, np.uint64)
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        longest = int(lengths.max())
        if longest > 10 or (longest == 10 and (window[ends[lengths == 10]] > 1).any()):
            raise Corrupted("Expected numbers of at most 64 bits, got a longer one")
        values = (window[starts] & 0x7F).astype(np.uint64)
        for k in range(1, longest):
            long = lengths > k
            values[long] |= (window[starts[long] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
        self._at += int(ends[-1]) + 1
        return values

    def names(
        self, n: int, tails: bool = False, inherited: int = 0
    ) -> tuple[list[bytes], list[int]]:
        """A column of `n` front-coded names: each omits the prefix shared with the previous.

        Both keys and paths are stored this way: the lengths of the shared prefixes (none for the
        first name), the lengths of the suffixes, an optional further number for each name, and
        the suffixes.

        Args:
            tails: Whether the further number is present.
            inherited: Length of the prefix that will be put before each name.

        Returns:
            The names and the further numbers (zeros if they are not present).
        """
        if not n:
            return [], []
        shared = [0, *self.numbers(n - 1).tolist()]
        own = self.numbers(n).tolist()
        third = self.numbers(n).tolist() if tails else [0] * n
        self.budget.add_names(sum(shared) + sum(own))
        suffixes = self.raw(sum(own))
        names: list[bytes] = []
        last, at = b"", 0
        any_long = inherited + max(shared) + max(own) > MAX_NAME
        for prefix, suffix in zip(shared, own, strict=True):
            if prefix > len(last) or (any_long and inherited + prefix + suffix > MAX_NAME):
                raise Corrupted(
                    f"Expected a name that shares at most {len(last)} bytes, got {prefix}"
                )
            last = last[:prefix] + suffixes[at : at + suffix]
            at += suffix
            names.append(last)
        return names, third

    def finish(self) -> None:
        """Raises Corrupted unless all bytes have been read."""
        if self._at != len(self.data):
            raise Corrupted(f"Expected the end, got {len(self.data) - self._at} more bytes")
