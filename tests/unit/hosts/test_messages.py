"""The errors that processes agree on; tests/hosts has those of real jobs."""

from __future__ import annotations

import templax as tx
from templax._hosts.messages import Message, RemoteError, describe_disagreement, describe_failure


def test_an_error_names_at_most_eight_processes() -> None:
    failed = {i: RemoteError(f"Full {i}") for i in range(20)}
    absent = {20: "did not answer within 60 s"}
    error = describe_failure(failed, absent, count=21, path="ckpt", doing="writing")
    assert error is not None
    named = "; ".join(f"process {i} of 21 failed while writing: Full {i}" for i in range(8))
    assert error.what == f"P{named[1:]}; and 13 more processes"
    assert error.places["hint"] == "the logs of these processes say why"
    others = {0: Message("a")} | {i: Message("b") for i in range(1, 20)}
    error = describe_disagreement(others, "ckpt")
    assert error is not None
    what = (
        "Expected every process to be `a`, got `b` on processes 1, 2, 3, 4, 5, 6, 7, 8 and 11 more"
    )
    assert error.what == what


def test_processes_that_agree_have_no_error() -> None:
    messages = {i: Message("writing") for i in range(3)}
    assert describe_failure({}, {}, count=3, path="ckpt", doing="writing") is None
    assert describe_disagreement(messages, "ckpt") is None


def test_an_error_that_all_processes_have_is_passed_on_as_it_is() -> None:
    failed = dict.fromkeys(range(3), RemoteError("Full", "SaveError", {"leaf": "w"}))
    error = describe_failure(failed, {}, count=3, path="ckpt", doing="writing")
    assert error == failed[0]


def test_an_error_arrives_as_it_was_sent() -> None:
    for error in (
        tx.SaveError("Full", leaf="a", file="ckpt/d", hint="make room"),
        tx.AlreadyExists("Taken", file="ckpt"),
    ):
        received = RemoteError.from_exception(error).to_exception()
        assert type(received) is type(error)
        assert str(received) == str(error)
    assert str(RemoteError.from_exception(ValueError("x")).to_exception()) == "ValueError: x"


def test_reports_of_several_processes_keep_their_lines() -> None:
    reports = {i: RemoteError(f"1 leaf\n  at `w{i}`", "TemplateError") for i in (0, 2)}
    error = describe_failure(reports, {}, count=3, path="ckpt", doing="matching")
    assert error is not None
    assert error.what == (
        "Process 0 of 3 failed while matching: 1 leaf\n  at `w0`;"
        " process 2 of 3 failed while matching: 1 leaf\n  at `w2`"
    )
