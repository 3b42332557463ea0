"""A job of long-lived processes that live through histories of saves, faults included."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import templax as tx
from job_processes import ForkedProcess, read_outputs

LIMIT_S = 4.0
"""How long a process of such a job waits for one that is alive and does not come."""

LAST = 1000
"""The step that all processes save at the end of a history."""

SILENT_S = 3.0
"""How long a process of such a job may go without a heartbeat."""

_WORKER = r"""
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # native libraries print to stdout, too
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import templax as tx
import templax.compat.orbax as ocp
from templax._hosts import agreement, pairing, presence, session
from templax._runs import agreed_steps
from templax._save import job, writer

agreement.TIMEOUT_S = limit_s
presence.SILENT_S, presence.HEARTBEAT_S = SILENT_S, 0.5
agreed_steps._FOLLOW_S = 0.5
mesh = jax.make_mesh((2 * count,), ("x",))
sharding = NamedSharding(mesh, P("x"))

def make_tree(step, fault):
    values = np.full((4 * count, 3), step, np.float32)
    rows = jax.make_array_from_callback(values.shape, sharding, lambda box: values[box])
    tree = {"w": rows, "v": rows + 0, "step": step}
    if fault == "differs":
        tree["step"] = step + 5000
    if fault == "unsavable":
        tree["step"] = object()
    return tree

def interrupt(*args, **options):
    raise KeyboardInterrupt

def full(*args, **options):
    raise tx.SaveError("No space is left", file="x")

def kill(*args, **options):
    os.kill(os.getpid(), 9)

PLACES = {
    "full": (writer.Writer, "_write", full),
    "interrupt before the meeting": (job, "digest_small", interrupt),
    "interrupt in the meeting": (pairing.Pairing, "_find_absence", interrupt),
    "interrupt after the meeting": (job, "select_large", interrupt),
    "interrupt while staging": (job.Job, "_open_items", interrupt),
    "interrupt while writing": (writer.Writer, "wait", interrupt),
    "interrupt before the commit": (
        session.Session, "_collect" if index == 0 else "_send", interrupt
    ),
    "interrupt while committing": (job.Job, "_write_small_files", interrupt),
    "kill before the meeting": (job, "digest_small", kill),
    "kill while staging": (job.Job, "_open_items", kill),
    "kill while writing": (writer.Writer, "wait", kill),
    "kill before the commit": (session.Session, "_send", kill),
    "kill while committing": (agreement.Hosts, "announce", kill),
}

def save(api, target, root, op, fault):
    step = op["step"] + (1 if fault == "another step" else 0)
    tree, bad = make_tree(step, fault), {"on_progress": 3} if fault == "bad argument" else {}
    if api == "save":
        name = "elsewhere" if fault == "another path" else str(step)
        return tx.save(f"{root}/{name}", tree, wait=op["wait"], **bad)
    if api == "manager":
        return target.save(step, tree, wait=op["wait"], **bad)
    args = None if bad else ocp.args.StandardSave(tree)
    saved = target.save(step, args=args)
    if op["wait"]:
        target.wait_until_finished()
    return saved

def restore(api, target, fault):
    shape = (4 * count + (fault == "another shape"), 3)
    rows = jax.ShapeDtypeStruct((4 * count, 3), np.float32, sharding=sharding)
    template = {"w": rows, "v": jax.ShapeDtypeStruct(shape, np.float32), "step": 0}
    if fault != "another shape":
        template["v"] = rows
    if api == "manager":
        tree = target.restore(template)
    else:
        tree = target.restore(args=ocp.args.StandardRestore(template))
    found = {float(x) for s in tree["w"].addressable_shards for x in np.ravel(s.data)}
    assert found == {float(tree["step"])}, (found, tree["step"])
    return tree["step"]

def attempt(call):
    begin = time.monotonic()
    try:
        result, error = call(), None
    except (tx.TemplaxError, KeyboardInterrupt, TimeoutError) as failed:
        result, error = None, f"{type(failed).__name__}: {failed}"
    return result, error, round(time.monotonic() - begin, 2)

def look(api, target, handles):
    if api == "save":
        for handle in handles[-1:]:
            handle.wait()
    elif api == "manager":
        target.wait()
    else:
        target.check_for_errors()

def live(history):
    api, root = history["api"], history["root"]
    target = {"save": lambda: None, "manager": lambda: tx.Manager(root),
              "compat": lambda: ocp.CheckpointManager(root)}[api]()
    said, handles = [], []
    for op in history["ops"]:
        fault = op["fault"] if op["who"] == index else None
        if fault == "late":
            time.sleep(0.6)
        if fault == "skip":
            said.append({"did": "skip", "error": None, "s": 0, "found": None})
            continue
        if op["kind"] == "restore":
            step, error, took = attempt(lambda: restore(api, target, fault))
            said.append({"did": fault or "restore", "error": error, "s": took, "found": step})
            continue
        owner, name, fake = PLACES.get(fault, (None, None, None))
        real = getattr(owner, name) if owner else None
        if owner:
            setattr(owner, name, fake)
        try:
            saved, error, took = attempt(lambda: save(api, target, root, op, fault))
            if owner and not op["wait"] and error is None:
                attempt(lambda: look(api, target, [saved]))  # the fault must hit this save
        finally:
            if owner:
                setattr(owner, name, real)
        if isinstance(saved, tx.Saved):
            handles.append(saved)
        said.append({"did": fault or "save", "error": error, "s": took,
                     "handle": len(handles) - 1 if isinstance(saved, tx.Saved) else None})
        if fault == "look":
            attempt(lambda: look(api, target, handles))
        if fault == "leave" and api == "manager":
            try:
                with target:
                    raise RuntimeError("boom")
            except RuntimeError:
                target = tx.Manager(root)
    for each in said:
        if each.get("handle") is not None and each["error"] is None:
            each["error"] = attempt(handles[each["handle"]].wait)[1]
    attempt(lambda: look(api, target, handles) if api != "compat" else target.wait_until_finished())
    last = []
    skipped = sum((op["kind"], op["fault"]) == ("restore", "skip") for op in history["ops"])
    for n in range(2 + skipped):  # all but the last may be refused, see `check_history`
        op = {"step": history["last"] + n, "wait": True}
        last.append(attempt(lambda: save(api, target, root, op, None))[1:])
    steps = None if api == "save" else target.steps() if api == "manager" else target.all_steps()
    attempt(lambda: target.close() if target else None)
    return {"ops": said, "last": last, "steps": steps}

for line in os.fdopen(os.dup(0)):
    print(json.dumps(live(json.loads(line))), file=answers)
os._exit(0)
"""


def _run_worker(port: int, index: int, count: int) -> int:
    names = {"port": port, "index": index, "count": count}
    exec(compile(_WORKER, "worker", "exec"), {**names, "limit_s": LIMIT_S, "SILENT_S": SILENT_S})
    return 0


class Job:
    """`count` processes of one JAX job, which stay for many histories."""

    def __init__(self, count: int):
        self.count = count
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115, closed by `end`
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        self._processes = [
            ForkedProcess(Path(self._log.name), port, i, count, program=_run_worker)
            for i in range(count)
        ]

    def live(self, history: Mapping[str, Any], timeout_s: float = 90.0) -> list[Any]:
        """What each process reports about a history; None for a process that is killed in it.

        The job has ended after a history in which a process is killed.
        """
        line = json.dumps(history).encode() + b"\n"
        for process in self._processes:
            process.write(line)
        killed = {op["who"] for op in history["ops"] if str(op["fault"]).startswith("kill")}
        pipes = [process.stdout for process in self._processes]
        _, answers = read_outputs(pipes, timeout_s, lambda data: data.endswith(b"\n"))
        # If a call fails before it reaches the place where its process is to be killed, none dies.
        silent = {i for i, answer in enumerate(answers) if not answer.endswith(b"\n")}
        if not silent <= killed:
            self._log.seek(0)
            text = self._log.read().decode(errors="replace")[-4000:]
            self.end()
            raise AssertionError(f"processes {sorted(silent)} did not answer: {history}\n{text}")
        if silent:
            self.end()
        return [None if i in silent else json.loads(answer) for i, answer in enumerate(answers)]

    def end(self) -> None:
        """Kills the processes."""
        for process in self._processes:
            process.end()
        self._processes = []
        self._log.close()

    @property
    def ended(self) -> bool:
        """Whether the job has to be started again."""
        return not self._processes


def read_values(path: str) -> tuple[set[float], int]:
    """All numbers of a checkpoint's arrays, and its leaf `step`. The checkpoint must be whole."""
    assert tx.verify(path).ok
    catalog = tx.open(path)
    names = {name.rpartition(".")[2]: leaf for name, leaf in catalog.leaves.items()}
    import numpy as np

    template: dict[str, Any] = {
        name: np.zeros(leaf.shape, np.float32) if name in "wv" else 0
        for name, leaf in names.items()
    }
    tree = tx.restore(path, template)
    return {float(x) for name in "wv" for x in np.ravel(tree[name])}, tree["step"]


def find_committed(root: str, api: str) -> dict[str, str]:
    """Name → path of the tree of each committed checkpoint of a history."""
    found: dict[str, str] = {}
    for entry in sorted(os.listdir(root)):
        path = os.path.join(root, entry)
        if os.path.isdir(path) and "tmp" not in entry:
            found[entry] = path if api == "save" else os.path.join(path, "default")
    return found


def check_history(
    history: Mapping[str, Any], answers: Sequence[Any], found: Mapping[str, str]
) -> None:
    """Asserts what holds after any history.

    Args:
        history: What the processes were told.
        answers: What each said.
        found: See `find_committed`.
    """
    whole = {name: read_values(path) for name, path in found.items()}
    for name, (values, step) in whole.items():
        assert values == {float(step)}, (name, values, step)
        assert name in (str(step), "elsewhere"), (name, step)
    alive = [i for i, answer in enumerate(answers) if answer is not None]
    dead, known_dead = False, False
    # Until a process skips a restore, or a restore raises the error of its own earlier save and it
    # restores again before the others come, who join that second call: then it is a call ahead.
    aligned = True
    hit_unseen = False
    for n, op in enumerate(history["ops"]):
        said = {i: answers[i]["ops"][n] for i in alive}
        hit = op["who"] if op["fault"] not in (None, "late", "look", "leave") else None
        others = [i for i in alive if i != hit]
        for each in said.values():
            assert each["s"] < LIMIT_S + 6, (op, said)
        if known_dead:  # it is not waited for again
            called = [each for each in said.values() if each["did"] != "skip"]
            assert all(each["error"] and each["s"] < 2 for each in called), (op, said)
        # A process that dies after it has written everything is missed by the next call.
        dead = dead or (str(op["fault"]).startswith("kill") and op["who"] not in alive)
        errors = [str(each["error"]) for each in said.values()]
        known_dead = known_dead or (dead and any("did not answer" in text for text in errors))
        if op["kind"] == "restore":
            aligned = aligned and op["fault"] != "skip"
            found_steps = {(said[i]["error"] is None, said[i]["found"]) for i in others}
            aligned = aligned and not (hit_unseen and len(found_steps) > 1)
            assert len(found_steps) <= 1 or not aligned, (op, said)
            if op["fault"] == "another shape":
                # A process that is a call ahead was in the restore before, with the others.
                met = said if aligned else {op["who"]: said[op["who"]]}
                assert all(each["error"] for each in met.values()), (op, said)
            continue
        if history["api"] == "compat" and not op["wait"]:
            hit_unseen = hit_unseen or hit is not None
            continue  # it gives no handle that would tell how this save ended
        named = dict.fromkeys(alive, str(op["step"]))
        moved = {"another step": str(op["step"] + 1), "another path": "elsewhere"}
        if op["fault"] == "another step" or (
            op["fault"] == "another path" and history["api"] == "save"
        ):
            named[op["who"]] = moved[op["fault"]]
        saved = {i: said[i]["error"] is None and said[i]["did"] != "skip" for i in alive}
        assert len({saved[i] for i in others}) <= 1 or not aligned, (op, said)
        for i in alive:
            assert not saved[i] or named[i] in whole, (op, said, sorted(whole))
        if not any(saved.values()) and op["fault"] not in moved:
            assert str(op["step"]) not in whole, (op, said)
    if dead:
        return
    left = any(op["fault"] == "leave" for op in history["ops"])
    for answer in answers:
        (first, _), *_, (final, _) = answer["last"]
        assert first is None or left or not aligned, (history, answers)
        assert final is None, (history, answers)
        assert max(took for _, took in answer["last"]) < LIMIT_S + 6, answers
        assert answer["steps"] == answers[0]["steps"], answers
    assert str(history["last"] + len(answers[0]["last"]) - 1) in whole, (history, answers)
