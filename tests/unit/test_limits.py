"""`limits` catches what it is meant to catch."""

import pytest

from helpers import mark_slow
from limits import run_cli_limited, run_limited


def test_the_output_and_the_error_are_returned():
    outcome = run_limited("print(len(x)); tx.open('nowhere')", prepare="x = np.ones(3)")

    assert outcome.stdout == "3\n"
    assert outcome.error is not None
    assert outcome.error.startswith("NotFound: ")
    assert run_cli_limited("ls", "nowhere").status == 2


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("np.ones(50 << 20, np.uint8)", r"took 5\d MiB of 20 MiB"),
        ("a = [i for i in range(1 << 30)]", "failed(.|\n)*MemoryError"),
        ("raise KeyError('k')", "failed(.|\n)*KeyError"),
        *mark_slow(("while True: pass", "stopped by signal")),
    ],
)
def test_too_much_of_anything_fails(code: str, what: str):
    with pytest.raises(AssertionError, match=what):
        run_limited(code, seconds=1 if "while" in code else 60, megabytes=20)


def test_what_is_prepared_is_not_measured():
    run_limited("x.sum()", prepare="x = np.ones(100 << 20, np.uint8)", megabytes=20)
