"""Agreement of a job that has one process, or that has no way to communicate."""

from __future__ import annotations

import jax
import pytest

import templax as tx
from templax._hosts import agreement


def test_one_process_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import distributed

    assert jax.process_count() == 1
    monkeypatch.delattr(distributed, "global_state")
    with agreement.open_call("saving", "ckpt/1") as job:
        job.join()
        assert (job.index, job.count) == (0, 1)
        assert job.tell_all("naming", b"x") == b"x"
        assert job.gather("writing", b"y") == [b"y"]
        job.agree("writing")
        problem = tx.SaveError("No")
        with pytest.raises(tx.SaveError) as caught:
            job.agree("committing", problem)
        assert caught.value is problem


def test_processes_that_cannot_communicate_get_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(tx.SaveError) as caught:
        agreement.open_call("saving", "ckpt/1")
    assert str(caught.value) == (
        "The processes of this job can't talk to each other; "
        "hint: call jax.distributed.initialize() before anything else of JAX"
    )


@pytest.mark.parametrize("gone", ["module", "method"])
def test_a_jax_without_the_store_is_named(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import distributed

    assert jax.process_count() == 1
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if gone == "module":
        monkeypatch.delattr(distributed, "global_state")
    else:
        monkeypatch.setattr(distributed.global_state, "client", object())
    with pytest.raises(tx.SaveError) as caught:
        agreement.open_call("saving", "ckpt/1")
    assert str(caught.value) == (
        f"JAX {jax.__version__} has no key-value store that templax knows; "
        "hint: save from one process, or with JAX 0.10 to 0.12"
    )
