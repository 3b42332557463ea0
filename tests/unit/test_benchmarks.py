"""The benchmark program: it runs, its report adds up, and a wrong result doesn't pass."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the program isn't part of the package

from benchmarks.measure.sample import Sample  # noqa: E402
from benchmarks.report.outcomes import Outcome, Row  # noqa: E402
from benchmarks.report.tables import format_size, format_table  # noqa: E402
from helpers import is_thorough  # noqa: E402

LIAR = """
from benchmarks.__main__ import main
from benchmarks.restore.libraries import LIBRARIES, Library, open_templax


def _liar(job):
    import jax

    restore = open_templax(job)
    return lambda: jax.tree.map(lambda leaf: leaf.at[-1].add(1), restore())


def _quitter(job):
    raise NotImplementedError("not today")


LIBRARIES["liar"] = Library(_liar)
LIBRARIES["quitter"] = Library(_quitter)

if __name__ == "__main__":
    main()
"""


SAVING_LIAR = """
from benchmarks.saving import main
from benchmarks.save.savers import SAVERS, Saver, open_orbax_pytree


def _liar(tree):
    import jax

    return open_orbax_pytree(jax.tree.map(lambda leaf: leaf.at[-1].add(1), tree))


def _quitter(tree):
    def save(path):
        raise OSError("disk full")

    return save


def _forgetter(tree):
    return lambda path: None


SAVERS["liar"] = Saver(_liar, "orbax", "orbax-pytree")
SAVERS["quitter"] = Saver(_quitter, "orbax", "orbax-pytree")
SAVERS["forgetter"] = Saver(_forgetter, "safetensors", "safetensors")

if __name__ == "__main__":
    main()
"""

thorough = pytest.mark.skipif(not is_thorough(), reason="nox -s thorough runs it")
"""Tests of programs that start a dozen processes to measure something."""


def run(tmp_path, *arguments, pairs=1):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = ["--scale", "0.002", "--pairs", str(pairs), "--dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *arguments, *options, "--json", str(tmp_path / "out.json")],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, json.loads((tmp_path / "out.json").read_text())


@pytest.mark.slow
def test_report_holds_every_workload_library_and_sample(tmp_path):
    chart = tmp_path / "out.svg"
    done, report = run(
        *(tmp_path, "-m", "benchmarks", "tree", "small", "--lib", "templax,orbax-standard"),
        *("--firsts", "1"),
        *("--svg", str(chart), "--markdown", str(tmp_path / "out.md")),
    )
    assert done.returncode == 0, done.stderr
    assert [found["workload"] for found in report["workloads"]] == ["tree", "small"]
    assert [found["leaves"] for found in report["workloads"]] == [148, 40]
    for found in report["workloads"]:
        assert list(found["libraries"]) == ["templax", "orbax-standard"]
        assert found["libraries"]["templax"]["ratio"]["median"] == 1
        for row in found["libraries"].values():
            assert row["ok"], row["trouble"]
            assert row["bytes"] == found["bytes"]
            assert row["read_bytes"] > found["bytes"] / 2
            assert row["peak_anon_bytes"] > found["bytes"] / 2
            assert [sample["peak_anon_bytes"] for sample in row["samples"]] == [None]
            assert len(row["untimed"]) == 2
            (first_s,) = row["first_s"]
            assert first_s > row["samples"][0]["seconds"]  # it has imported the library
    assert ET.parse(chart).getroot().tag.endswith("svg")
    assert "| `orbax-standard` | orbax |" in (tmp_path / "out.md").read_text()
    assert list(tmp_path.glob("templax-bench-*")) == []


@thorough
def test_what_templax_saved_is_restored_beside_what_peers_save(tmp_path):
    libraries = "templax,templax-mapped,orbax-standard,orbax-standard-ours,safetensors"
    done, report = run(
        tmp_path, "-m", "benchmarks", "small-own", "--lib", libraries, "--firsts", "0"
    )
    assert done.returncode == 0, done.stderr
    rows = report["workloads"][0]["libraries"]
    assert {name: (row["file"], row["own_file"]) for name, row in rows.items()} == {
        "templax": ("templax", False),
        "templax-mapped": ("templax", False),
        "orbax-standard": ("orbax", True),
        "orbax-standard-ours": ("templax", False),
        "safetensors": ("safetensors", True),
    }
    assert all(row["ok"] for row in rows.values()), report


@thorough
def test_a_resharding_is_measured_beside_the_restore_in_the_saved_topology(tmp_path):
    done, report = run(
        tmp_path, "-m", "benchmarks", "llama-8x2-to-2x8", "--lib", "templax,templax-same",
        "--firsts", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = report["workloads"]
    assert found["leaves"] == 39
    assert all(row["ok"] for row in found["libraries"].values()), report


@pytest.mark.slow
def test_wrong_result_ends_in_an_error_and_a_failure_in_its_row(tmp_path):
    script = tmp_path / "liar.py"
    script.write_text(LIAR)
    done, report = run(
        tmp_path, str(script), "small", "--lib", "templax,liar,quitter", "--firsts", "0"
    )
    rows = report["workloads"][0]["libraries"]
    assert done.stderr.endswith("A result differs from what was saved\n")
    assert done.returncode == 1
    assert rows["templax"]["ok"]
    assert rows["liar"]["trouble"] == "wrong: 40 leaves differ from what was saved: block_0.w_0"
    assert rows["liar"]["samples"] == []
    assert rows["quitter"]["trouble"] == "failed: NotImplementedError: not today"
    assert "RESULTS DIFFER" in done.stdout


@pytest.mark.slow
def test_saves_are_reported_with_their_stalls_and_files(tmp_path):
    libraries = "templax,templax-nowait,orbax-standard,safetensors,limit-copy,limit-write"
    done, report = run(
        *(tmp_path, "-m", "benchmarks.saving", "reshard-axis1", "--lib", libraries),
        *("--markdown", str(tmp_path / "out.md"), "--svg", str(tmp_path / "out.svg")),
    )
    assert done.returncode == 0, done.stderr
    (found,) = report["workloads"]
    assert (found["workload"], found["leaves"]) == ("reshard-axis1", 8)
    rows = found["libraries"]
    assert list(rows) == libraries.split(",")
    assert all(row["ok"] for row in rows.values()), rows
    assert rows["templax"]["ratio"]["median"] == 1
    assert rows["templax-nowait"]["stall_ratio"]["median"] == 1
    stalled = {name for name, row in rows.items() if row["stall_s"]}
    assert stalled == {"templax-nowait", "orbax-standard", "limit-copy"}
    for name in stalled:
        (sample,) = rows[name]["samples"]
        assert 0 < sample["stall_s"] <= sample["seconds"]
    for name in ("templax", "templax-nowait", "safetensors"):
        assert rows[name]["file_bytes"] > found["bytes"]
    assert rows["limit-write"]["file_bytes"] == found["bytes"]
    assert rows["limit-copy"]["files"] == 0
    assert rows["safetensors"]["files"] == 1
    assert {len(row["untimed"]) for row in rows.values()} == {1}
    text = (tmp_path / "out.md").read_text()
    assert "### Saving `reshard-axis1`" in text
    assert "÷ templax-nowait" in text
    assert "Seconds to save" in (tmp_path / "out.svg").read_text()
    assert list(tmp_path.glob("templax-bench-*")) == []


@thorough
def test_save_that_lost_or_changed_something_ends_in_an_error(tmp_path):
    script = tmp_path / "liar.py"
    script.write_text(SAVING_LIAR)
    libraries = "templax,liar,quitter,forgetter"
    done, report = run(tmp_path, str(script), "small", "--lib", libraries)
    rows = report["workloads"][0]["libraries"]
    assert done.stderr.endswith("A result differs from what was saved\n")
    assert done.returncode == 1
    assert rows["templax"]["ok"]
    assert rows["liar"]["trouble"] == "wrong: 40 leaves differ from what was saved: block_0.w_0"
    assert rows["quitter"]["trouble"] == "failed: OSError: disk full"
    assert rows["forgetter"]["trouble"].startswith("failed: FileNotFoundError")
    assert [len(row["samples"]) for row in rows.values()] == [1, 0, 0, 0]


@thorough
def test_slow_saver_sits_out_the_last_rounds(tmp_path):
    options = ("--lib", "templax,safetensors", "--budget", "0.0001")
    done, report = run(tmp_path, "-m", "benchmarks.saving", "small", *options, pairs=3)
    assert done.returncode == 0, done.stderr
    rows = report["workloads"][0]["libraries"]
    assert [len(row["samples"]) for row in rows.values()] == [1, 1]


def test_ratios_are_those_of_rounds():
    """A slow machine in one round must not make a library look slow."""
    ours, theirs = Row("templax", "orbax", False), Row("peer", "npz", True, nbytes=4)
    ours.timed = [Sample(seconds, 1.0, 8, 4, 0) for seconds in (1.0, 2.0, 10.0)]
    theirs.timed = [Sample(seconds, 1.0, 8, 4, 0) for seconds in (2.0, 6.0, 10.0)]
    for row in (ours, theirs):
        row.untimed = [Sample(1.0, 1.0, 8, 4, 0, peak_anon_bytes=6)]
    ours.first_s, theirs.first_s = [1.0, 4.0], [3.0, 6.0]
    outcome = Outcome("w", "about", False, 1, 4, [ours, theirs, Row("x", "npz", True)])
    outcome.rows[2].trouble = "failed: no"
    assert outcome.ratio(theirs) == (2.0, 1.5, 2.5, 1.0)
    assert outcome.ratio(outcome.rows[2]) is None
    peer, failed = format_table(outcome).splitlines()[3:]
    assert " ".join(peer.split()) == (
        "peer npz (own) 6.000 [4.000–8.000] 2.000 2.00 [1.50–2.50] 1.00 4.5 s, 2.25"
        " 1.000 2.00x 1.50x 1.00x"
    )
    assert failed.split("  ")[-1] == "failed: no"


@thorough
@pytest.mark.parametrize("options", [(), ("--save",)], ids=["restore", "save"])
def test_requests_to_a_store_are_counted_and_results_compared(tmp_path, options):
    pytest.importorskip("moto")
    done, report = run(
        *(tmp_path, "-m", "benchmarks.remote", "tree-own", "--server", "moto", "--latency", "1"),
        *("--lib", f"templax,limit-{'put' if options else 'get'}", *options),
    )
    assert done.returncode == 0, done.stderr
    (found,) = report["workloads"]
    for row in found["libraries"].values():
        assert row["ok"], row["trouble"]
        assert row["requests"] > 0
        assert found["bytes"] <= row["moved_bytes"] < 1.5 * found["bytes"] + 200_000
    limit = list(found["libraries"])[1]
    assert found["libraries"][limit]["notes"][0].startswith(limit)


@pytest.mark.slow
def test_a_job_restores_the_same_with_and_without_shared_reads(tmp_path):
    report = tmp_path / "out.json"
    options = ("--places", "raw", "--mib", "64", "--rounds", "1", "--processes", "2")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shared", *options, "--json", str(report)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {(row["case"], row["mode"]): row for row in json.loads(report.read_text())}
    for case in ("columns", "replicas"):
        never, always = rows[case, "never"], rows[case, "always"]
        assert (never["shared"], always["shared"]) == (0, 8)
        assert always["read_bytes"] * 2 == never["read_bytes"]
        assert never["received_bytes"] == 0 < always["received_bytes"]


def test_stalls_are_divided_by_the_first_that_goes_on_behind_its_call():
    rows = [Row(name, "k", False, nbytes=1 << 20) for name in ("sync", "ours", "peer", "slow")]
    for row, stalls in zip(
        rows, ([None] * 3, [1.0, 2.0, 4.0], [2.0, 8.0, 4.0], [3.0]), strict=True
    ):
        row.timed = [Sample(10.0, 1.0, 1 << 20, 0, 0, stall_s=stall) for stall in stalls]
    outcome = Outcome("w", "about", False, 1, 1 << 20, rows, saved=True)
    sync, ours, peer, slow = rows
    assert outcome.stall_ratio(sync) is None
    assert outcome.stall_ratio(ours) == (1.0, 1.0, 1.0, 1.0)
    assert outcome.stall_ratio(peer) == (2.0, 1.5, 3.0, 1.0)
    assert outcome.stall_ratio(slow) == (3.0, 3.0, 3.0, 3.0)  # of the one round it was in
    assert outcome.ratio(slow) == (1.0, 1.0, 1.0, 1.0)
    heads, *cells = format_table(outcome).splitlines()[1:]
    assert "÷ ours" in heads
    assert " ".join(cells[2].split()) == (
        "peer k 10.000 [10.000–10.000] 10.000 1.00 [1.00–1.00] 1.00"
        " 4.000 [3.000–6.000] 2.000 2.00 [1.50–3.00] 1.00 1.000 1.00x 0.00x 0 3"
    )


def test_sizes_have_the_unit_that_suits_them():
    assert [format_size(n) for n in (0, 1023, 1536, 3 << 29)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.5 GiB",
    ]


@pytest.mark.slow
def test_plans_of_a_job_are_the_same_from_either_index(tmp_path):
    """Of a model of one layer, without any bytes of it."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    arguments = ["--layers", "1", "--hosts", "16", "--show", "--dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.topology", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["| 16", kind] for kind in ("hosts", "whole", "orbax")]
    lines = done.stderr.splitlines()
    placed = {line for line in lines if "bytes placed" in line}
    assert len(placed) == 1  # whatever was read
    devices = {line for line in lines if "hosts 16 × devices 4, mesh data=2 × model=32" in line}
    assert len(devices) == 1
