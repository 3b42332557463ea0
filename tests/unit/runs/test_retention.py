"""The rules that decide which steps are kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from templax._runs.retention import as_keep, rank_steps, select_kept

NUMBERS = st.none() | st.integers(1, 9)
VALUES = st.floats() | st.integers(-3, 3) | st.sampled_from([True, "low", None, [1.0]])
METRICS = st.dictionaries(st.sampled_from(["loss", "other"]), VALUES)
STEPS = st.dictionaries(st.integers(0, 40), METRICS, max_size=12)


@st.composite
def rules(draw):
    last, every, best = draw(
        st.tuples(NUMBERS, NUMBERS, NUMBERS).filter(lambda numbers: any(numbers))
    )
    metric = "loss" if best else None
    return tx.Keep(last, every, best, metric, draw(st.sampled_from(["min", "max"])))


def read_losses(steps):
    """Step -> loss, for the steps whose loss can be compared."""
    losses = {step: metrics.get("loss") for step, metrics in steps.items()}
    return {
        step: loss
        for step, loss in losses.items()
        if type(loss) in (int, float) and not math.isnan(loss)
    }


@given(STEPS, rules())
def test_the_latest_step_is_kept_and_only_steps_are_kept(steps, keep):
    stay = select_kept(steps, keep)
    assert set(stay) <= set(steps)
    assert list(stay) == sorted(stay)
    assert not steps or max(steps) in stay
    assert all(stay.values())


@given(STEPS, rules())
def test_combined_rules_keep_the_union_of_each(steps, keep):
    alone = [tx.Keep(last=keep.last)] if keep.last else []
    alone += [tx.Keep(every=keep.every)] if keep.every else []
    alone += [tx.Keep(best=keep.best, metric=keep.metric, mode=keep.mode)] if keep.best else []
    assert set(select_kept(steps, keep)) == {
        step for rule in alone for step in select_kept(steps, rule)
    }


@given(STEPS, st.integers(1, 9))
def test_last_keeps_the_latest_steps(steps, last):
    assert list(select_kept(steps, tx.Keep(last=last))) == sorted(steps)[-last:]


@given(STEPS, st.integers(1, 9))
def test_every_keeps_multiples(steps, every):
    stay = select_kept(steps, tx.Keep(every=every))
    assert set(stay) - {max(steps, default=0)} == {
        s for s in steps if s % every == 0 and s != max(steps)
    }


@given(STEPS, st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_every_keeps_multiples_of_several_numbers(steps, every):
    each = [set(select_kept(steps, tx.Keep(every=number))) for number in every]
    assert set(select_kept(steps, tx.Keep(every=every))) == set().union(*each)


def test_one_number_in_a_list_is_that_number():
    assert tx.Keep(every=[5]) == tx.Keep(every=5)
    assert select_kept({step: {} for step in (6, 7, 10, 11)}, tx.Keep(every=(3, 5))) == {
        6: "every 3",
        10: "every 5",
        11: "the latest",
    }


@given(STEPS, st.integers(1, 9), st.sampled_from(["min", "max"]))
def test_best_keeps_no_step_worse_than_a_deleted_one(steps, best, mode):
    losses = read_losses(steps)
    stay = select_kept(steps, tx.Keep(best=best, metric="loss", mode=mode))
    chosen = {step for step, why in stay.items() if "best" in why}
    assert len(chosen) == min(best, len(losses))
    assert chosen <= set(losses)
    for good in chosen:
        for other in set(losses) - chosen:
            if mode == "min":
                assert (losses[good], -good) <= (losses[other], -other)
            else:
                assert (-losses[good], -good) <= (-losses[other], -other)


@given(STEPS, rules(), rules())
def test_adding_a_rule_never_deletes_a_step(steps, keep, more):
    both = tx.Keep(
        last=max(keep.last or 0, more.last or 0) or None,
        every=keep.every,
        best=max(keep.best or 0, more.best or 0) or None,
        metric=keep.metric or more.metric,
        mode=keep.mode if keep.best else more.mode,
    )
    assert set(select_kept(steps, keep)) <= set(select_kept(steps, both))


def test_kept_steps_come_with_reasons():
    steps = {0: {"loss": 0.5}, 1: {"loss": 0.1}, 2: {}, 3: {"loss": math.nan}, 4: {}}
    keep = tx.Keep(last=2, every=2, best=1, metric="loss")
    assert select_kept(steps, keep) == {
        0: "every 2",
        1: "best 1 by loss",
        2: "every 2",
        3: "last 2",
        4: "the latest, last 2, every 2",
    }


def test_ties_go_to_the_later_step_and_infinities_are_ranked():
    steps = {1: {"m": 1}, 2: {"m": 1.0}, 3: {"m": -math.inf}, 4: {"m": 10**400}, 5: {"m": "x"}}
    assert rank_steps(steps, "m", "min") == [3, 2, 1, 4]
    assert rank_steps(steps, "m", "max") == [4, 2, 1, 3]


def test_a_number_stands_for_the_latest_steps():
    assert as_keep(3) == as_keep(np.int64(3)) == tx.Keep(last=3)
    assert as_keep(None) is None
    assert as_keep(tx.Keep(every=5)) == tx.Keep(every=5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tx.Keep(), "Expected a rule, last=, every= or best=, got none"),
        (lambda: tx.Keep(last=0), "Expected last= an int of at least 1, got 0"),
        (lambda: tx.Keep(every=True), "Expected every= an int of at least 1, got True"),
        (lambda: tx.Keep(best=1.5), "Expected best= an int of at least 1, got 1.5"),
        (lambda: tx.Keep(best=2), "Expected metric= with best=, got none"),
        (lambda: tx.Keep(last=2, metric="loss"), "Expected best= with metric=, got none"),
        (lambda: tx.Keep(best=2, metric=3), "Expected metric= a name (str), got 3"),
        (lambda: tx.Keep(last=2, mode="low"), 'Expected mode="min" or "max", got \'low\''),
        (lambda: as_keep(0), "Expected keep= an int of at least 1, got 0"),
        (lambda: tx.Keep(every=[]), "Expected every= a number or several, got none"),
        (lambda: tx.Keep(every=[5, 0]), "Expected every= an int of at least 1, got 0"),
        (lambda: tx.Keep(every="5"), "Expected every= an int of at least 1, got '5'"),
        (
            lambda: as_keep(tx.Keep),
            "Expected keep= a number of steps, a templax.Keep or a function, got <class"
            " 'templax._runs.retention.Keep'>",
        ),
        (
            lambda: as_keep(2.0),
            "Expected keep= a number of steps, a templax.Keep or a function, got 2.0",
        ),
        (lambda: rank_steps({}, "loss", "least"), 'Expected mode="min" or "max", got \'least\''),
    ],
)
def test_invalid_rules_are_refused(make, says):
    with pytest.raises(tx.UsageError) as caught:
        make()
    assert str(caught.value) == says
