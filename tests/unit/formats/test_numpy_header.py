"""Headers of arrays in numpy's format: those that numpy writes, other spellings, and damage."""

from __future__ import annotations

import io
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from helpers import skip_without_dtype
from templax import Corrupted, Unsupported
from templax._core.dtypes import UNNAMED_BYTE
from templax.formats.numpy_header import parse_header


def save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def seal(text: str, version: int = 1) -> bytes:
    body = text.encode("latin-1")
    length = len(body).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + body


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros((2, 3), code) for code in "?bBhHiIlLefdFD"),
        np.zeros((2, 3), ml_dtypes.bfloat16),
        np.zeros((2, 3), ml_dtypes.float8_e5m2),
        np.zeros(()),
        np.zeros((0, 4)),
        np.zeros((1,) * 32),
    ],
    ids=lambda a: f"{a.dtype.name}{a.ndim}",
)
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    data = save(array)
    header = parse_header(data)
    assert (header.dtype, header.shape, header.order) == (array.dtype, array.shape, "C")
    assert header.stop == len(data)
    assert header.start == len(data) - array.nbytes


def test_fortran_order_is_named() -> None:
    assert parse_header(save(np.zeros((2, 3), order="F"))).order == "F"
    flat = seal("{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }")
    assert parse_header(flat).order == "C"


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int4", "uint4", "float8_e8m0fnu"])
def test_a_dtype_of_one_byte_that_numpy_does_not_name_stays_open(name: str) -> None:
    skip_without_dtype(name)
    assert parse_header(save(np.zeros(3, getattr(ml_dtypes, name)))).dtype == UNNAMED_BYTE


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)}",
        '{"shape":(3,2),"fortran_order":False,"descr":"=f4"}\n',
        "  {'shape' : ( 3 , 2 ) , 'descr' : 'f4' , 'fortran_order' : False , }  \n",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_other_writers_spell_it_otherwise(text: str, version: int) -> None:
    header = parse_header(seal(text, version))
    assert (header.dtype, header.shape) == (np.float32, (3, 2))


GOOD = {"descr": "'<f4'", "fortran_order": "False", "shape": "(3, 2)"}


def spell(**changed: str | None) -> bytes:
    fields = {name: text for name, text in (GOOD | changed).items() if text is not None}
    return seal("{" + ", ".join(f"'{name}': {text}" for name, text in fields.items()) + "}")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "got other bytes"),
        (b"\x93NUMPY\1\0", "got other bytes"),
        (spell()[:-1], "Expected a header of at most"),
        (spell(shape=None), "unreadable"),
        (spell(more="1"), "unreadable"),
        (spell(shape="(3, -2)"), "unreadable"),
        (spell(shape="(3 2)"), "the shape"),
        (spell(shape="(,)"), "the shape"),
        (spell(shape="[3]"), "unreadable"),
        (spell(fortran_order="0"), "unreadable"),
        (spell(fortran_order="__import__('os')"), "unreadable"),
        (seal("{'shape': (1,), 'shape': (1,), 'descr': 'f4', 'fortran_order': True}"), "unread"),
        (seal(""), "got other bytes"),
        (seal("{ "), "unreadable"),
        (seal("{}"), "unreadable"),
        (seal("[1]" * 9), "unreadable"),
        (seal(" " * 60000 + "{" + " " * 5000 + "}"), "unreadable"),
        (seal("{'descr': 'f4' 'fortran_order': True, 'shape': ()}"), "unreadable"),
    ],
)
def test_damage_is_found(data: bytes, what: str) -> None:
    with pytest.raises(Corrupted, match=what):
        parse_header(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (save(np.array([{}], object)), "no pickled objects"),
        (save(np.zeros(2, [("a", "f4")])), "no records"),
        (save(np.zeros(2, "S3")), r"dtype `\|S3`"),
        (save(np.zeros(2, "U3")), "dtype `<U3`"),
        (save(np.zeros(2, "M8[s]")), r"dtype `<M8\[s\]`"),
        (save(np.zeros(2, "V7")), r"dtype `\|V7`"),
        (spell(descr="'" + "<f4," * 9000 + "'"), "does not read dtype"),
        (spell(shape="(" + "1," * 33 + ")"), "32 dimensions, got 33"),
        (spell(shape=f"({2**62}, {2**62})"), "address space"),
        (spell(shape=f"(0, {2**63})"), "address space"),
        (spell(shape="(" + "9" * 5000 + ")"), "address space"),
        (seal("{}", 4), "versions 1 to 3"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, what: str) -> None:
    with pytest.raises(Unsupported, match=what):
        parse_header(data)


@pytest.mark.parametrize(
    "text", ["(" + "1" * 60000, "(" + "1," * 30000, "(" + " " * 60000, "'" * 60000]
)
def test_hostile_headers_take_little_time(text: Any) -> None:
    begin = time.perf_counter()
    with pytest.raises((Corrupted, Unsupported)):
        parse_header(spell(shape=text))
    assert time.perf_counter() - begin < 1
