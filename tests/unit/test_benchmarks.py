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

from benchmarks.outcomes import Outcome, Row  # noqa: E402
from benchmarks.report import size, table  # noqa: E402
from benchmarks.worker import Sample  # noqa: E402

LIAR = """
from benchmarks.__main__ import main
from benchmarks.libraries import LIBRARIES, Library, _templax


def _liar(job):
    import jax

    restore = _templax(job)
    return lambda: jax.tree.map(lambda leaf: leaf.at[-1].add(1), restore())


def _quitter(job):
    raise NotImplementedError("not today")


LIBRARIES["liar"] = Library(_liar)
LIBRARIES["quitter"] = Library(_quitter)

if __name__ == "__main__":
    main()
"""


def run(tmp_path, *arguments):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = ["--scale", "0.002", "--pairs", "1", "--dir", str(tmp_path)]
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
    assert ET.parse(chart).getroot().tag.endswith("svg")
    assert "| `orbax-standard` | orbax |" in (tmp_path / "out.md").read_text()
    assert list(tmp_path.glob("templax-bench-*")) == []


@pytest.mark.slow
def test_what_templax_saved_is_restored_beside_what_peers_save(tmp_path):
    libraries = "templax,templax-mapped,orbax-standard,orbax-standard-ours,safetensors"
    done, report = run(tmp_path, "-m", "benchmarks", "small-own", "--lib", libraries)
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


@pytest.mark.slow
def test_wrong_result_ends_in_an_error_and_a_failure_in_its_row(tmp_path):
    script = tmp_path / "liar.py"
    script.write_text(LIAR)
    done, report = run(tmp_path, str(script), "small", "--lib", "templax,liar,quitter")
    rows = report["workloads"][0]["libraries"]
    assert done.stderr.endswith("A result differs from what was saved\n")
    assert done.returncode == 1
    assert rows["templax"]["ok"]
    assert rows["liar"]["trouble"] == "wrong: 40 leaves differ from what was saved: block_0.w_0"
    assert rows["liar"]["samples"] == []
    assert rows["quitter"]["trouble"] == "failed: NotImplementedError: not today"
    assert "RESULTS DIFFER" in done.stdout


def test_ratios_are_those_of_rounds():
    """A slow machine in one round must not make a library look slow."""
    ours, theirs = Row("templax", "orbax", False), Row("peer", "npz", True, nbytes=4)
    ours.timed = [Sample(seconds, 1.0, 8, 4, 0) for seconds in (1.0, 2.0, 10.0)]
    theirs.timed = [Sample(seconds, 1.0, 8, 4, 0) for seconds in (2.0, 6.0, 10.0)]
    for row in (ours, theirs):
        row.untimed = [Sample(1.0, 1.0, 8, 4, 0, peak_anon_bytes=6)]
    outcome = Outcome("w", "about", False, 1, 4, [ours, theirs, Row("x", "npz", True)])
    outcome.rows[2].trouble = "failed: no"
    assert outcome.ratio(theirs) == (2.0, 1.5, 2.5, 1.0)
    assert outcome.ratio(outcome.rows[2]) is None
    peer, failed = table(outcome).splitlines()[3:]
    assert " ".join(peer.split()) == (
        "peer npz (own) 6.000 [4.000–8.000] 2.000 2.00 [1.50–2.50] 1.00 1.000 2.00x 1.50x 1.00x"
    )
    assert failed.split("  ")[-1] == "failed: no"


def test_sizes_have_the_unit_that_suits_them():
    assert [size(n) for n in (0, 1023, 1536, 3 << 29)] == ["0 B", "1023 B", "1.5 KiB", "1.5 GiB"]
