"""Which call of one process belongs to which of another."""

from __future__ import annotations

import msgspec
import numpy as np

from templax._hosts.messages import Call, RemoteError
from templax._hosts.offers import Offer, find_different_leaf, find_different_value, judge_offers

OWN = Call("saving", "/run", 3)


def judge(*calls: Call, own: Call = OWN, refused: object = None, failures: object = None):
    offers = {i: Offer(0, call) for i, call in enumerate(calls, 1)}
    return judge_offers(own, offers, len(calls) + 1, refused or {}, failures or {})


def at(step: int | None) -> Call:
    return Call("saving", "/run", step)


def test_equal_calls_are_one() -> None:
    judged = judge(at(3), at(3))
    assert judged.error is None
    assert not judged.past


def test_a_lower_step_is_behind_and_fails_alone() -> None:
    judged = judge(at(2), at(3))
    assert judged.error is None
    assert list(judged.past) == [1]
    assert "Process 0 of 3 is ahead: it is saving step 3 of `/run`" in judged.past[1].what


def test_a_higher_step_is_ahead_and_is_not_answered() -> None:
    judged = judge(at(3), at(4))
    assert judged.error is not None
    assert judged.at_once
    assert judged.ahead == {2}
    assert "Process 2 of 3 is ahead: it is saving step 4" in judged.error.what


def test_checkpoints_named_by_numbers_are_ordered_by_them() -> None:
    own = Call("saving", "/run/model-9", 9, in_path=True)
    assert list(judge(Call("saving", "/run/model-10", 10, in_path=True), own=own).ahead) == [1]
    other = judge(Call("saving", "/run/best-10", 10, in_path=True), own=own)
    assert other.error is not None
    assert not other.ahead


def test_other_calls_fail_on_all_and_are_ordered_by_what_was_refused_before() -> None:
    a, b = Call("saving", "/a"), Call("saving", "/b")
    judged = judge(b, own=a)
    assert judged.error is not None
    assert (
        "Expected every process to be saving `/a`, got process 1 saving `/b`" in judged.error.what
    )
    assert judge(Call("saving", "/c"), own=b, refused={1: {b.identity}}).ahead == {1}
    assert list(judge(a, own=b, failures={a.identity: RemoteError("Full")}).past) == [1]


def test_what_failed_on_a_process_fails_on_all_once() -> None:
    failed = msgspec.structs.replace(at(3), error=RemoteError("Bad", "UsageError"))
    judged = judge(failed)
    assert judged.error is not None
    assert judged.error.what == "Process 1 of 2 failed while saving: Bad"
    again = msgspec.structs.replace(OWN, number=1)
    assert list(judge(failed, own=again).past) == [1]


def test_a_failure_that_one_process_has_not_heard_of_fails_the_next_call_of_all() -> None:
    judged = judge(msgspec.structs.replace(at(3), earlier=RemoteError("Full")))
    assert judged.error is not None
    assert judged.error.earlier
    assert judged.error.what == "Full - process 1 of 2 had not heard of it yet"


def test_different_facts_are_named() -> None:
    own = msgspec.structs.replace(OWN, facts={"overwrite=": "False"})
    judged = judge(msgspec.structs.replace(OWN, facts={"overwrite=": "True"}), own=own)
    assert judged.error is not None
    what = "Expected the same overwrite= on every process, got False on process 0 and True"
    assert judged.error.what.startswith(what)


def pack(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def test_the_first_leaf_that_differs_is_named() -> None:
    names = ["a", "b", "c"].__getitem__
    own = msgspec.structs.replace(OWN, leaves=pack(1, 2, 3), values=pack(0, 7, 2, 9))
    other = msgspec.structs.replace(OWN, leaves=pack(1, 5), values=pack(1, 4, 2, 8))
    error = find_different_leaf(own, other, 1, names)
    assert error is not None
    assert error.places["leaf"] == "b"
    assert "got another on process 1, with 2 leaves instead of 3" in error.what
    assert find_different_value(own, other) == 2
    assert find_different_leaf(own, own, 1, names) is None
    assert find_different_value(own, own) is None
