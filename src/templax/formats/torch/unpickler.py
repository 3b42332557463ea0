"""Interprets the pickles of PyTorch without executing anything.

Python's own unpickler calls what a pickle names, allocates what it declares (an index into its
memo, the size of a frame), and enters whatever was registered for extension codes. This one knows
the instructions that PyTorch's files have, builds containers, numbers, text and the stand-ins of
`objects`, and never looks up a name anywhere but in the tables there. The instructions are those of
Python's `pickletools`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ...errors import Corrupted, Unsupported
from .objects import (
    BrokenText,
    Named,
    OtherKey,
    Parameter,
    Record,
    Refused,
    StateDict,
    Storage,
    build,
    make_storage,
    resolve_global,
    set_item,
)
from .refusals import make_refusal

_MAX_INTEGER = 32
"""Most bytes of an integer. Those of PyTorch have 10 at most."""

_MAX_LINE = 1 << 10
"""Most bytes of the name of a global, or of a number in digits."""

_MAX_LOOKED, _MAX_ITEMS = 1 << 16, 64
"""Most values that are looked at for refused names, besides one per byte, and of one container."""

_MAX_COPIED = 1 << 16
"""Most items and characters that calls copy, beside one for each byte of the data."""

_HIGHEST_PROTOCOL = 5

_STOP = 0x2E


class Truncated(Corrupted):
    """The data ends before the pickle does."""


class Pickle(NamedTuple):
    """A pickle that was interpreted.

    Attributes:
        value: What it stands for.
        stop: Its end in the data.
        refused: The names in it that are not in the tables of `objects`, in order.
        inside: Those that went into something that was refused as a whole.
        storages: Key → storage, for all that it names.
    """

    value: Any
    stop: int
    refused: tuple[str, ...]
    inside: frozenset[str]
    storages: dict[str, Storage]

    def require_known(self) -> None:
        """Raises `Unsupported` if the pickle has names that are not in the tables."""
        self.require_listed(())

    def require_listed(self, names: Collection[str]) -> None:
        """Raises `Unsupported` for a name that is neither in the tables nor listed.

        Nobody would hear of it: a pickle can drop what it calls. A name that went into something
        that is listed counts as listed.

        Args:
            names: The names that are listed as not read.
        """
        for name in self.refused:
            if name not in names and not (names and name in self.inside):
                raise make_refusal(name)


def read_pickle(data: bytes, start: int = 0) -> Pickle:
    """Interprets the pickle that begins at `start`.

    Raises:
        Truncated: It has no end.
        Corrupted: It is not a pickle, or contradicts itself.
        Unsupported: It has instructions or values that templax does not read.
    """
    machine = _Machine(data, start)
    try:
        machine.run()
    except EOFError as error:
        raise Truncated("The pickle is unreadable: it has no end") from error
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        if machine.at + 8 > len(data):  # the longest number that an instruction has
            raise Truncated("The pickle is unreadable: it has no end") from error
        raise Corrupted(f"The pickle is unreadable near its byte {machine.at - start}") from error
    if len(machine.stack) != 1 or machine.marks:
        raise Corrupted("The pickle is unreadable: it ends too early")
    refused, inside = tuple(machine.refused), frozenset(machine.inside)
    return Pickle(machine.stack[0], machine.at, refused, inside, machine.storages)


class _Machine:
    """Interprets one pickle: a stack of values, marks in it, and values to be used again."""

    __slots__ = (
        *("at", "copied", "data", "inside", "looked", "marks", "memo", "refused", "stack"),
        "storages",
    )

    def __init__(self, data: bytes, start: int):
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = self.looked = 0
        self.inside: dict[str, None] = {}
        self.refused: dict[str, None] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> None:
        """Runs to the end of the pickle. Python's limits on indices raise what is wrong with it."""
        data, at, operations = self.data, self.at, _OPERATIONS
        stack, marks, memo = self.stack, self.marks, self.memo
        try:
            while True:
                code = data[at]
                at += 1
                # Nine of ten instructions are one of these, in the protocol of a file of PyTorch,
                # or in that of the metadata of a distributed checkpoint.
                if code == 0x72:  # LONG_BINPUT
                    memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                    at += 4
                elif code == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif code == 0x68:  # BINGET
                    stack.append(memo[data[at]])
                    at += 1
                elif code == 0x6A:  # LONG_BINGET
                    stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
                    at += 4
                elif code == 0x4B:  # BININT1
                    stack.append(data[at])
                    at += 1
                elif code == 0x28:  # MARK
                    marks.append(len(stack))
                elif code == 0x74:  # TUPLE
                    stack.append(tuple(self.pop_marked()))
                elif code == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif code == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif code == 0x7D:  # EMPTY_DICT
                    stack.append({})
                elif code == _STOP:
                    return
                else:
                    operation = operations.get(code)
                    if operation is None:
                        name = f"{chr(code)!r}" if 32 < code < 127 else f"0x{code:02x}"
                        raise Unsupported(f"templax reads no pickles with instruction {name}")
                    self.at = at
                    operation(self)
                    at = self.at
        finally:
            self.at = at

    # What instructions are made of.

    def take(self, n: int) -> bytes:
        stop = self.at + n
        if stop > len(self.data):
            raise EOFError
        piece = self.data[self.at : stop]
        self.at = stop
        return piece

    def take_number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def take_line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.at + _MAX_LINE)
        if stop < 0:
            if len(self.data) < self.at + _MAX_LINE:
                raise EOFError
            raise ValueError
        line = self.data[self.at : stop].decode()
        self.at = stop + 1
        return line

    def pop_marked(self) -> list[Any]:
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise IndexError
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # The instructions.

    def skip(self, n: int) -> None:
        self.take(n)

    def check_protocol(self) -> None:
        protocol = self.take_number(1)
        if protocol > _HIGHEST_PROTOCOL:
            raise Unsupported(f"templax reads no pickles of protocol {protocol}")

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_integer(self, nbytes: int) -> None:
        if nbytes > _MAX_INTEGER:
            raise Unsupported(f"templax reads integers of {_MAX_INTEGER} bytes, got {nbytes}")
        self.push(int.from_bytes(self.take(nbytes), "little", signed=True))

    def push_digits(self) -> None:
        line = self.take_line()
        if len(line) > _MAX_INTEGER:
            raise Unsupported(f"templax reads integers of {_MAX_INTEGER} digits, got {len(line)}")
        self.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line, 10))

    def push_text(self, nbytes: int) -> None:
        data = self.take(nbytes)
        try:
            self.push(data.decode())
        except UnicodeDecodeError:  # Python's pickles also hold text that no encoding has
            text = data.decode("utf-8", "surrogatepass")
            self.push(BrokenText(text.encode("utf-8", "backslashreplace").decode()))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Refused):
            self.note_inside(items)
        else:
            raise TypeError

    def note_inside(self, values: Any) -> None:
        """Notes which refused names went into something that was refused as a whole."""
        pending = [values]
        while pending and self.looked < len(self.data) + _MAX_LOOKED:
            self.looked += 1
            value = pending.pop()
            if isinstance(value, Refused):
                self.inside[value.name] = None
            elif type(value) in (list, tuple):
                pending += value[:_MAX_ITEMS]
            elif type(value) in (dict, StateDict):
                for key, item in itertools.islice(value.items(), _MAX_ITEMS):
                    pending += (key.value, item) if type(key) is OtherKey else (item,)
            elif type(value) is Parameter:
                pending.append(value.attributes)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Refused):
            self.note_inside(items)
            return
        if type(target) not in (dict, StateDict) or len(items) % 2:
            raise TypeError
        for i in range(0, len(items), 2):
            set_item(target, items[i], items[i + 1])

    def push_dict(self) -> None:
        items = self.pop_marked()
        self.push({})
        self.set_items(items)

    def push_refused(self, name: str) -> None:
        self.refused[name] = None
        self.push(Refused(name))

    def push_set(self) -> None:
        self.pop_marked()
        self.push_refused("builtins.frozenset")

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError
        found = resolve_global(f"{module}.{name}")
        if isinstance(found, Refused):
            self.refused[found.name] = None
        self.push(found)

    def push_stack_global(self) -> None:
        name = self.stack.pop()
        self.push_global(self.stack.pop(), name)

    def push_storage(self) -> None:
        storage = make_storage(self.stack.pop())
        if isinstance(storage, Refused):
            self.refused[storage.name] = None
            self.push(storage)
            return
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Corrupted(f"Expected one storage `{storage.key[:80]}`, got two of this key")
        self.push(storage)

    def call(self) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if type(arguments) is not tuple:
            raise TypeError
        # A call copies text or pairs that the pickle may pass to any number of calls.
        self.copied += sum(len(a) for a in arguments if type(a) in (str, list))
        if self.copied > _MAX_COPIED + len(self.data):
            raise Unsupported("templax reads no pickles that copy the same values again and again")
        if isinstance(called, Named):
            made = build(called, arguments)
            if isinstance(made, Refused):
                self.refused[made.name] = None
                self.note_inside(arguments)
            self.push(made)
        elif isinstance(called, Refused):
            self.note_inside(arguments)
            self.push(called)
        else:
            raise TypeError

    def call_with_names(self) -> None:
        if self.stack.pop() != {}:
            raise Unsupported("templax reads no pickles of calls with named arguments")
        self.call()

    def build_state(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record) and target.state is None:
            target.state = state
        elif isinstance(target, StateDict) and type(state) is dict and [*state] == ["_metadata"]:
            target.metadata = state["_metadata"]
        elif isinstance(target, Refused):
            self.note_inside(state)
        else:
            raise Unsupported("templax reads no objects with attributes of their own")


def _make_tuple(n: int) -> Callable[[_Machine], None]:
    def push_tuple(machine: _Machine) -> None:
        stack = machine.stack
        if len(stack) < n:
            raise IndexError
        items = tuple(stack[len(stack) - n :])
        del stack[len(stack) - n :]
        stack.append(items)

    return push_tuple


def _refuse(what: str) -> Callable[[_Machine], None]:
    def refuse(machine: _Machine) -> None:
        raise Unsupported(f"templax reads no pickles with {what}")

    return refuse


_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): operation
    for code, operation in {
        "\x80": _Machine.check_protocol,
        "\x95": lambda p: p.skip(8),  # the size of a frame, which only helps to read ahead
        "0": _Machine.pop,
        "1": _Machine.pop_marked,
        "2": lambda p: p.push(p.stack[-1]),
        "N": lambda p: p.push(None),
        "\x88": lambda p: p.push(True),
        "\x89": lambda p: p.push(False),
        "I": _Machine.push_digits,
        "J": lambda p: p.push(struct.unpack("<i", p.take(4))[0]),
        "M": lambda p: p.push(p.take_number(2)),
        "\x8a": lambda p: p.push_integer(p.take_number(1)),
        "\x8b": lambda p: p.push_integer(p.take_number(4)),
        "G": lambda p: p.push(struct.unpack(">d", p.take(8))[0]),
        "X": lambda p: p.push_text(p.take_number(4)),
        "\x8c": lambda p: p.push_text(p.take_number(1)),
        "\x8d": lambda p: p.push_text(p.take_number(8)),
        "T": lambda p: p.push_text(p.take_number(4)),  # of Python 2
        "U": lambda p: p.push_text(p.take_number(1)),
        "B": lambda p: p.push(p.take(p.take_number(4))),
        "C": lambda p: p.push(p.take(p.take_number(1))),
        "\x8e": lambda p: p.push(p.take(p.take_number(8))),
        "}": lambda p: p.push({}),
        "]": lambda p: p.push([]),
        ")": lambda p: p.push(()),
        "\x8f": lambda p: p.push_refused("builtins.set"),
        "d": _Machine.push_dict,
        "l": lambda p: p.push(p.pop_marked()),
        "\x86": _make_tuple(2),
        "\x87": _make_tuple(3),
        "\x91": _Machine.push_set,
        "\x90": lambda p: p.append(p.pop_marked()),
        "a": lambda p: p.append([p.stack.pop()]),
        "e": lambda p: p.append(p.pop_marked()),
        "s": lambda p: p.set_items([p.stack.pop(), p.stack.pop()][::-1]),
        "u": lambda p: p.set_items(p.pop_marked()),
        "c": lambda p: p.push_global(p.take_line(), p.take_line()),
        "\x93": _Machine.push_stack_global,
        "Q": _Machine.push_storage,
        "R": _Machine.call,
        "\x81": _Machine.call,
        "\x92": _Machine.call_with_names,
        "b": _Machine.build_state,
        "j": lambda p: p.get(p.take_number(4)),
        "q": lambda p: p.put(p.take_number(1)),
        "\x94": lambda p: p.put(len(p.memo)),
        "i": _refuse("INST, which creates an object of a class of the file's choice"),
        "o": _refuse("OBJ, which creates an object of a class of the file's choice"),
        "P": _refuse("identifiers in text"),
        "\x82": _refuse("extension codes"),
        "\x83": _refuse("extension codes"),
        "\x84": _refuse("extension codes"),
        "\x97": _refuse("buffers outside of it"),
        "\x98": _refuse("buffers outside of it"),
    }.items()
}
"""The first byte of an instruction → what it does, except for those in `_Machine.run`. What is
absent is written by protocol 0 alone, or by no version of PyTorch."""
