"""The command line: what it prints, as text and JSON, and how it exits."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import templax as tx
from helpers import CORPUS
from templax._catalog.catalog import Catalog
from templax._catalog.entry import LeafEntry
from templax._core import text as text_module
from templax._display import listing
from templax._display.terminal import printable
from templax.cli import shell_hints
from templax.cli.main import main
from templax.storage import Memory

DEFAULT = "orbax-0.12.8-default/ckpt"


@pytest.fixture(autouse=True)
def _in_corpus(monkeypatch):
    monkeypatch.chdir(CORPUS)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def run(*arguments, input=None):
    return CliRunner().invoke(main, [str(a) for a in arguments], input=input)


def shell(*arguments, **environment):
    """A process of its own, as a shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "templax", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def leaf(*path, shape=(4, 8), dtype="f4", **more):
    return LeafEntry(".".join(map(str, path)), path, shape, np.dtype(dtype), **more)


def catalog_of(*entries, url="ckpt", **more):
    return Catalog(url, "orbax", "a test", entries, Memory({}), lambda _: {}, **more)


def tree(*entries, **options):
    return [
        "|".join((*(cell.rstrip() for cell in cells[:3]), cells[3].strip(), cells[4]))
        for _, cells in listing.cells(listing.rows(entries, **options))
    ]


# ls


def test_ls_prints_the_tree_and_the_code_that_restores_it():
    result = run("ls", "orbax-0.12.8-manager/ckpt/10/state")
    assert result.exit_code == 0
    dtypes = "float32 33.3 KiB, bfloat16 272 B, int8 48 B, float64 8 B, int64 8 B, int32 8 B"
    assert result.output == (
        """\
orbax-0.12.8-manager/ckpt/10/state
  format    orbax, recognised by `_METADATA` and `manifest.ocdbt`
  step      10
  item      state
  items     {"ema": "pytree", "meta": "json", "state": "pytree"}
  saved     2026-11-24 04:16:10 UTC
  total     14 leaves, 33.6 KiB
  dtypes    {dtypes}
  sharding  single device cpu:0, each array (shown, never obeyed)

extra                     2 leaves       16 B
  empty_dict    Dict
  none          None
  py_float      float64   ()              8 B
  py_int        int64     ()              8 B
state                     12 leaves  33.6 KiB
  opt_state               3 leaves      772 B
    0                     3 leaves      772 B
      count     int32     ()              4 B
      mu                  1 leaf        256 B
        kernel  bfloat16  (16, 8)       256 B
      nu                  1 leaf        512 B
        kernel  float32   (16, 8)       512 B
    1           Dict
  params                  7 leaves   32.8 KiB
    big         float32   (128, 64)  32.0 KiB
    dense                 2 leaves      528 B
      bias      bfloat16  (8,)           16 B
      kernel    float32   (16, 8)       512 B
    layers                2 leaves      240 B
      0                   1 leaf        192 B
        w       float32   (8, 6)        192 B
      1                   1 leaf         48 B
        w       int8      (8, 6)         48 B
    scale       float32   ()              4 B
    zeros       float32   (4, 4)         64 B
  rng           uint32    (2,)            8 B
  step          int32     ()              4 B

To restore it:

    import templax as tx

    catalog = tx.open("orbax-0.12.8-manager/ckpt/10/state")
    tree = tx.restore(catalog, catalog.template())

    # or into the tree of your model, with every leaf held to its shape and dtype:
    template = tx.template_of(model.init, key, x)
    tree = tx.restore(catalog, template["params"], at="state.params")
""".replace("{dtypes}", f"{dtypes}, uint32 8 B")
    )


def test_ls_shows_each_saved_sharding_where_they_differ():
    lines = run("ls", "orbax-0.12.8-sharded8/ckpt").output.splitlines()
    assert not any(line.startswith("  sharding") for line in lines)
    (big,) = [line for line in lines if line.lstrip().startswith("big ")]
    assert big == (
        "    big         float32   (128, 64)  32.0 KiB  P('model', 'data') over data=4, model=2"
    )


def test_ls_says_what_an_uncommitted_checkpoint_lacks_and_how_to_read_it_all_the_same():
    result = run("ls", "damaged-uncommitted/ckpt")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[1] == (
        "  UNCOMMITTED: `_CHECKPOINT_METADATA` has no commit time and there is no"
        " `commit_success.txt`"
    )
    assert '    catalog = tx.open("damaged-uncommitted/ckpt", uncommitted="allow")' in lines


def test_ls_depth_sums_up_what_is_below():
    lines = run("ls", "--depth", 1, DEFAULT).output.splitlines()
    assert [line for line in lines if line.startswith(("extra", "state"))] == [
        "extra    2 leaves       16 B",
        "state    12 leaves  33.6 KiB",
    ]


def test_ls_match_shows_some_leaves_and_counts_all():
    result = run("ls", "--match", "*.kernel", "--match", "state.step", "--flat", DEFAULT)
    assert result.exit_code == 0
    assert "  shown     4 leaves, 1.3 KiB, of 14 leaves, 33.6 KiB\n" in result.output
    assert (
        """
state.step                   int32     ()         4 B
state.params.dense.kernel    float32   (16, 8)  512 B
state.opt_state.0.mu.kernel  bfloat16  (16, 8)  256 B
state.opt_state.0.nu.kernel  float32   (16, 8)  512 B

"""
        in result.output
    )


def test_ls_match_without_a_match_exits_with_1():
    assert run("ls", "--match", "kernel", DEFAULT).exit_code == 1


def test_ls_json_has_the_documented_fields():
    result = run("ls", "--json", DEFAULT)
    assert result.exit_code == 0
    data = json.loads(result.output)
    assert list(data) == [
        "schema",
        "url",
        "format",
        "evidence",
        "uncommitted",
        "metadata",
        "fingerprint",
        "leaf_count",
        "nbytes",
        "leaves",
        "restore",
    ]
    assert data["schema"] == 1
    assert (data["url"], data["format"], data["uncommitted"]) == (DEFAULT, "orbax", None)
    catalog = tx.open(DEFAULT)
    assert data["nbytes"] == catalog.nbytes
    assert data["leaf_count"] == len(data["leaves"]) == len(catalog.entries)
    (big,) = [leaf for leaf in data["leaves"] if leaf["name"] == "state.params.big"]
    assert big == {
        "name": "state.params.big",
        "path": ["state", "params", "big"],
        "kind": "array",
        "dtype": "float32",
        "shape": [128, 64],
        "nbytes": 32768,
        "saved_sharding": "single device cpu:0",
        "fingerprint": None,
    }
    assert data["fingerprint"] is None  # Orbax records none


def test_ls_prints_the_fingerprint_of_what_templax_saved(tmp_path: Path):
    tree = {"w": np.arange(5), "b": {"x": 2.5, "s": "text"}}
    tx.save(tmp_path / "ckpt", tree)
    want = tx.fingerprint(tree)
    assert str(want) in run("ls", str(tmp_path / "ckpt")).output
    data = json.loads(run("ls", "--json", str(tmp_path / "ckpt")).output)
    assert data["fingerprint"] == str(want)
    assert {leaf["name"]: leaf["fingerprint"] for leaf in data["leaves"]} == want.leaves
    # Of a part no print of the whole is shown.
    assert str(want) not in run("ls", "--match", "w", str(tmp_path / "ckpt")).output


def test_ls_json_filters_leaves_but_counts_all():
    data = json.loads(run("ls", "--json", "--match", "*.big", DEFAULT).output)
    assert [leaf["name"] for leaf in data["leaves"]] == ["state.params.big"]
    assert data["leaf_count"] == 14


@pytest.mark.parametrize("path", [DEFAULT, "damaged-uncommitted/ckpt", "orbax-0.12.8-special/ckpt"])
def test_the_code_that_ls_prints_runs(path):
    """pain row 45: how do I restore this?"""
    code, own = json.loads(run("ls", "--json", path).output)["restore"].split("\n\n# or ")
    names = {}
    exec(code, names)
    assert jax.tree.leaves(names["tree"])
    if 'template["params"]' in own:
        # The second half is for a model: its own template stands in for `template_of`.
        names["template"] = names["catalog"].template()["state"]
        exec(own.splitlines()[-1], names)
        assert names["tree"]["big"].shape == (128, 64)


def test_the_code_quotes_any_path_and_finds_params_anywhere():
    entries = leaf("model", "params", "w"), leaf("step")
    code = listing.restore_code(catalog_of(*entries, url='a "b"\\c'))
    assert """catalog = tx.open('a "b"\\\\c')""" in code
    assert code.endswith('tree = tx.restore(catalog, template["params"], at="model.params")')
    twice = leaf("model", "params", "w"), leaf("ema", "params", "w")
    assert listing.restore_code(catalog_of(*twice)).endswith("tx.restore(catalog, template)")


def test_numbered_siblings_that_are_alike_are_one_row():
    layers = [
        leaf("layers", f"layer_{i}", key, shape=(64, 64))
        for i in range(12)
        for key in ("mlp", "attention")
    ]
    assert tree(*layers) == [
        "layers||24 leaves|384.0 KiB|",
        "  layer_0 … layer_11||24 leaves|384.0 KiB|12 alike, 32.0 KiB each",
        "    attention|float32|(64, 64)|16.0 KiB|",
        "    mlp|float32|(64, 64)|16.0 KiB|",
    ]
    assert len(tree(*layers, collapse=False)) == 1 + 12 * 3


def test_numbered_siblings_that_differ_or_have_gaps_stay_apart():
    same = [leaf(i) for i in (0, 1, 2, 4, 10)]
    assert [line.split("|")[0] for line in tree(*same)] == ["0 … 2", "4", "10"]
    other = [leaf(0), leaf(1), leaf(2, shape=(4,)), leaf(3), leaf(4, dtype="i4"), leaf(5)]
    assert [line.split("|")[0] for line in tree(*other)] == list("012345")


def test_keys_that_could_be_misread_are_quoted():
    entries = leaf("a.b"), leaf("", "x"), leaf("c d"), leaf("new\nline"), leaf("é/f")
    labels = [line.split("|")[0] for line in tree(*entries)]
    assert labels == ["''", "  x", "'a.b'", "'c d'", r"'new\nline'", "é/f"]


def test_a_bare_leaf_and_an_empty_checkpoint_have_listings():
    assert tree(leaf()) == ["(root)|float32|(4, 8)|128 B|"]
    assert tree() == []


def test_a_string_is_shown_and_cut():
    long = LeafEntry("t", ("t",), (), np.dtype(str), "string", value="x" * 1000)
    assert tree(long) == [f"t|str||1000 B|'{'x' * 56}..."]


def test_a_file_decides_neither_the_depth_of_recursion_nor_what_the_terminal_does():
    deep = leaf(*("k" for _ in range(20_000)))
    assert len(listing.rows([deep])) == 20_000
    numbers = [leaf("9" * 5000), leaf("8" * 5000)]
    assert len(listing.rows(numbers)) == 2
    assert printable("a\x1b[31m\x07é") == r"a\x1b[31m\x07é"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**40 * 3, "3.0 TiB"),
        (2**80, "1048576.0 EiB"),
    ],
)
def test_sizes(nbytes, text):
    assert text_module.format_size(nbytes) == text


# ls of a directory of steps


def test_ls_of_a_run_lists_its_steps_and_what_to_look_into():
    result = run("ls", "orbax-0.12.8-manager/ckpt")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        """\
orbax-0.12.8-manager/ckpt
  format  orbax, recognised by the step directory `20`
  total   2 steps, the latest committed is 20

10  committed  ema (pytree), meta (json), state (pytree)
20  committed  ema (pytree), meta (json), state (pytree)

To look into the latest:

    templax ls orbax-0.12.8-manager/ckpt/20/ema
    templax ls orbax-0.12.8-manager/ckpt/20/state
"""
    )
    for line in result.stdout.splitlines()[-2:]:
        assert run(*line.split()[1:]).exit_code == 0


def test_ls_of_a_run_tells_steps_that_never_committed(tmp_path):
    shutil.copytree("orbax-0.12.8-default/ckpt", tmp_path / "my run" / "ckpt_5")
    shutil.copytree("damaged-uncommitted/ckpt", tmp_path / "my run" / "ckpt_10")
    result = run("ls", tmp_path / "my run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == [
        "  format  orbax, recognised by the step directory `ckpt_10`",
        "  total   2 steps, the latest committed is 5",
        "",
        " ckpt_5  committed",
        "ckpt_10  UNCOMMITTED",
        "",
        "To look into the latest:",
        "",
        f"    templax ls '{tmp_path}/my run/ckpt_5'",
    ]
    shutil.rmtree(tmp_path / "my run" / "ckpt_5")
    result = run("ls", tmp_path / "my run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2:] == [
        "  total   1 step, none was committed",
        "",
        "ckpt_10  UNCOMMITTED",
    ]


def test_ls_json_of_a_run_has_the_documented_fields(tmp_path):
    shutil.copytree("orbax-0.12.8-manager/ckpt/10", tmp_path / "10")
    shutil.copytree("damaged-uncommitted/ckpt", tmp_path / "11")
    result = run("ls", "--json", tmp_path)
    assert result.exit_code == 0
    items = {"ema": "pytree", "meta": "json", "state": "pytree"}
    assert json.loads(result.output) == {
        "schema": 1,
        "url": str(tmp_path),
        "format": "orbax",
        "evidence": "the step directory `11`",
        "latest": 10,
        "steps": [
            {
                "step": 10,
                "url": f"{tmp_path}/10",
                "committed": True,
                "problem": None,
                "items": items,
                "metrics": {},
                "nbytes": None,
                "saved": 1795493770220679756 / 1e9,
            },
            {
                "step": 11,
                "url": f"{tmp_path}/11",
                "committed": False,
                "problem": "`_CHECKPOINT_METADATA` has no commit time and there is no"
                " `commit_success.txt`",
                "items": {},
                "metrics": {},
                "nbytes": None,
                "saved": None,
            },
        ],
        "others": [],
    }


def test_ls_of_leaves_needs_one_checkpoint():
    result = run("ls", "orbax-0.12.8-manager/ckpt", "--match", "*.kernel")
    assert result.exit_code == 2
    assert "holds 2 steps" in result.stderr


# What can't be read


def test_a_manager_root_says_what_to_open(template_file):
    result = run("check", "orbax-0.12.8-manager/ckpt", template_file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: orbax-0.12.8-manager/ckpt holds 2 steps; the latest committed step is 20; hint:"
        ' open "orbax-0.12.8-manager/ckpt/20/ema" or "orbax-0.12.8-manager/ckpt/20/state"\n'
    )


@pytest.mark.parametrize("path", ["nothing/here", ".", "orbax-0.12.8-manager/ckpt/10"])
def test_what_cannot_be_read_is_one_line_and_exit_status_2(path, tmp_path):
    template = tmp_path / "t.json"
    template.write_bytes(b'{"templax_template": 1, "leaves": []}')
    for arguments in (
        ["ls", path],
        ["check", path, template],
        ["template", path],
        ["verify", path],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_an_lfs_pointer_or_lost_dot_files_are_named(tmp_path):
    """pain row 37."""
    pointer = tmp_path / "ckpt"
    shutil.copytree(DEFAULT, pointer)
    (pointer / "manifest.ocdbt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    )
    result = run("ls", pointer)
    assert result.exit_code == 2
    assert "LFS" in result.stderr
    lost = tmp_path / "lost"
    shutil.copytree("orbax-0.12.8-noocdbt/ckpt", lost, ignore=shutil.ignore_patterns(".z*"))
    result = run("ls", lost)
    assert result.exit_code == 2
    assert ".zarray" in result.stderr


# check and template


@pytest.fixture
def template_file(tmp_path):
    file = tmp_path / "template.json"
    assert run("template", DEFAULT, "-o", file).exit_code == 0
    return file


def test_a_checkpoint_fits_the_template_made_of_it(template_file):
    result = run("check", DEFAULT, template_file)
    assert (result.exit_code, result.output) == (0, f"all 14 leaves match {DEFAULT}\n")


def test_template_writes_to_standard_output_and_check_reads_standard_input():
    written = run("template", DEFAULT, "--at", "state.params")
    assert written.exit_code == 0
    result = run("check", DEFAULT, "-", "--at", "state.params", input=written.output)
    assert (result.exit_code, result.output) == (0, f"all 7 leaves match {DEFAULT}\n")


def test_template_of_no_leaves_is_refused():
    result = run("template", DEFAULT, "--at", "state.parms")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: Expected leaves under `state.parms`, found none - file `{DEFAULT}`\n"
    )


def altered(file, name, **changes):
    data = json.loads(file.read_bytes())
    for item in data["leaves"]:
        if ".".join(map(str, item["path"])) == name:
            item |= changes
    file.write_text(json.dumps(data))


def test_a_mismatch_exits_with_1_and_prints_the_report(template_file):
    altered(template_file, "state.params.big", shape=[128, 32])
    altered(template_file, "state.rng", dtype="uint8")
    result = run("check", DEFAULT, template_file)
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout == (
        f"2 of 14 leaves do not match {DEFAULT}\n"
        "  Expected shape `(128, 32)`, got `(128, 64)` - at `state.params.big`\n"
        "  Expected dtype `uint8`, got `uint32` - at `state.rng`\n"
    )


def test_check_json_has_the_documented_fields(template_file):
    altered(template_file, "state.params.big", shape=[128, 32])
    altered(template_file, "state.params.scale", dtype="bfloat16")
    result = run("check", DEFAULT, template_file, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "schema": 1,
        "ok": False,
        "url": DEFAULT,
        "summary": None,
        "rename": None,
        "mismatches": [
            {
                "problem": "shape",
                "name": "state.params.big",
                "expected": "(128, 32)",
                "found": "(128, 64)",
                "note": None,
                "hint": None,
            }
        ],
        "casts": [
            {
                "name": "state.params.scale",
                "stored": "float32",
                "wanted": "bfloat16",
                "nbytes": 4,
            }
        ],
        "matched": 13,
        "kept": [],
        "skipped": [],
        "ignored": [],
    }


def test_check_takes_the_options_of_restore(template_file):
    altered(template_file, "state.params.scale", dtype="bfloat16")
    assert run("check", DEFAULT, template_file).exit_code == 0
    assert run("check", DEFAULT, template_file, "--cast", "exact").exit_code == 1
    altered(template_file, "state.params.big", path=["state", "params", "large"])
    assert run("check", DEFAULT, template_file).exit_code == 1
    rename = ["--rename", "state.params.big=state.params.large"]
    assert run("check", DEFAULT, template_file, *rename).exit_code == 0
    older = "orbax-0.12.8-multi2p/ckpt"  # lacks `extra`
    assert run("check", older, template_file, *rename).exit_code == 1
    assert run("check", older, template_file, *rename, "--missing", DEFAULT).exit_code == 0
    template_file.write_bytes(b'{"templax_template": 1, "leaves": []}')
    assert run("check", DEFAULT, template_file).exit_code == 1
    assert run("check", DEFAULT, template_file, "--extra", "ignore").exit_code == 0


def leaves_of(file, *, at="", under=""):
    """The template in a file, cut at a prefix or put under one."""
    data = json.loads(file.read_bytes())
    cut = at.split(".") if at else []
    below = [item for item in data["leaves"] if item["path"][: len(cut)] == cut]
    for item in below:
        item["path"] = [*([under] if under else []), *item["path"][len(cut) :]]
    file.write_text(json.dumps(data | {"leaves": below}))


@pytest.mark.parametrize(
    ("change", "arguments", "hint"),
    [
        (lambda f: leaves_of(f, at="state.params"), [], "--at state.params"),
        (lambda f: leaves_of(f, under="model"), [], "--rename '=model'"),
        (
            lambda f: altered(f, "state.params.scale", path=["state", "params", "Scale"]),
            [],
            "--rename state.params.scale=state.params.Scale",
        ),
        (
            lambda f: f.write_text('{"templax_template": 1, "leaves": []}'),
            [],
            "--extra ignore",
        ),
        (
            lambda f: altered(f, "state.params.scale", dtype="bfloat16"),
            ["--cast", "exact"],
            "--cast float",
        ),
    ],
)
def test_a_hint_is_an_option_that_works(change, arguments, hint, template_file):
    change(template_file)
    result = run("check", DEFAULT, template_file, *arguments)
    assert result.exit_code == 1
    assert f"hint: {hint}" in result.stdout
    again = run("check", DEFAULT, template_file, *arguments, *shlex.split(hint))
    assert again.exit_code == 0, again.output
    assert '="' not in result.stdout


def test_hints_are_spelled_for_a_shell_where_an_option_says_the_same():
    many = {f"layer{i}": f"Layer{i}" for i in range(9)}
    for hint, rename, text in [
        ('at=""', None, "--at ''"),
        ('at="it\'s" or at="a or b"', None, "--at 'it'\"'\"'s' or --at 'a or b'"),
        ('rename={"a=b": "c"}', {"a=b": "c"}, 'in Python, rename={"a=b": "c"}'),
        ("rename=lambda name: name", None, "in Python, rename=lambda name: name"),
        ("the checkpoint holds the transpose", None, "the checkpoint holds the transpose"),
        (
            'rename={"layer0": "Layer0", ...}',
            many,
            "--rename layer0=Layer0 --rename layer1=Layer1 --rename layer2=Layer2"
            " ... (9 in all, as `rename` in `--json`)",
        ),
    ]:
        assert shell_hints.as_option(hint, rename) == text


def test_json_keeps_hints_as_arguments_of_restore(template_file):
    altered(template_file, "state.params.scale", path=["state", "params", "Scale"])
    data = json.loads(run("check", DEFAULT, template_file, "--json").output)
    assert data["rename"] == {"state.params.scale": "state.params.Scale"}
    hints = {m["hint"] for m in data["mismatches"]}
    assert hints == {'rename={"state.params.scale": "state.params.Scale"}'}


def test_many_mismatches_are_in_the_json(template_file):
    data = json.loads(template_file.read_bytes())
    extra = [{"path": [f"x{i}"], "shape": [], "dtype": "float32"} for i in range(30)]
    template_file.write_text(json.dumps(data | {"leaves": data["leaves"] + extra}))
    output = run("check", DEFAULT, template_file).stdout
    assert "and 10 more: 10 missing (`--json` has them all)" in output


def test_a_template_file_has_no_values_to_keep(template_file):
    """Whether the template given to `restore` has one, the file does not tell."""
    older = "orbax-0.12.8-multi2p/ckpt"  # lacks `extra`
    arguments = ["check", older, template_file, "--missing", "keep"]
    result = run(*arguments)
    assert result.exit_code == 1
    note = "a template file holds no values, so whether restore would keep one is not known"
    line = f"  Expected a leaf, found none - at `extra.py_int`; {note}\n"
    assert line in result.stdout
    data = json.loads(run(*arguments, "--json").output)
    assert {m["note"] for m in data["mismatches"] if m["problem"] == "missing"} == {note}
    assert "holds no values" in " ".join(run("check", "--help").output.split())


def test_usage_errors_exit_with_2(template_file):
    result = run("check", DEFAULT, template_file, "--rename", "a")
    assert result.exit_code == 2
    assert "expected OLD=NEW, got 'a'" in result.stderr
    assert run("check", DEFAULT, "missing.json").exit_code == 2
    assert run("check", DEFAULT, template_file, "--cast", "loose").exit_code == 2


def test_what_is_no_template_file_is_said(tmp_path):
    file = tmp_path / "t.json"
    file.write_text("[]")
    result = run("check", DEFAULT, file)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Expected a template file, ")
    assert f"file `{file}`" in result.stderr


def test_a_saved_template_keeps_shardings_and_is_held_to_them(tmp_path):
    """A mesh of the JSON needs no devices: 5 does not divide 128 on any machine."""
    devices = np.array(jax.devices()[:5])
    sharding = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    file = tmp_path / "t.json"
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=sharding)}
    tx.save_template(template, file)
    assert json.loads(file.read_bytes())["leaves"][0]["sharding"]["mesh"] == {"data": 5}
    result = run("check", DEFAULT, file, "--at", "state.params", "--extra", "ignore")
    assert result.exit_code == 1
    assert result.stdout == (
        f"1 of 1 leaf does not match {DEFAULT}\n"
        "  Expected dimension 0 divisible by 5 (mesh axis `data`), got 128, sharding P('data',)"
        " - at `big`\n"
    ).replace("P('data',)", "P('data')")


# verify


def test_verify_prints_the_verdict_and_exits_by_it(tmp_path: Path):
    """0: no damage; 1: damage, or with --required bytes without a checksum; 2: can't be opened."""
    tx.save(tmp_path / "ckpt", {"w": np.arange(100, dtype=np.int32)})
    sound = run("verify", tmp_path / "ckpt", "--required")
    assert sound.exit_code == 0
    said = f"{tmp_path}/ckpt is sound: all 400 bytes of 1 leaf agree with their checksum"
    assert re.fullmatch(re.escape(said) + r" \(\d+\.\d\d s\)\n", sound.stdout)
    bare = run("verify", DEFAULT, "--threads", 2)
    assert bare.exit_code == 0
    assert "  30,305 bytes of 1 leaf have none: `state.params.big`\n" in bare.stdout
    assert run("verify", DEFAULT, "--required").exit_code == 1
    damaged = run("verify", "damaged-data_missing/ckpt")
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith(
        "damaged-data_missing/ckpt is damaged: 1 damage in 1 of 14 leaves ("
    )
    assert "\n  Expected a data file, found none - at `state.params.big`, " in damaged.stdout
    assert damaged.stderr == ""


def test_verify_of_a_run_says_which_step_to_name():
    result = run("verify", "orbax-0.12.8-manager/ckpt")
    assert result.exit_code == 2
    assert 'hint: open "orbax-0.12.8-manager/ckpt/20/ema" or' in result.stderr


def test_verify_json_has_the_documented_fields():
    result = run("verify", "damaged-data_truncated/ckpt", "--json")
    assert result.exit_code == 1
    listed = json.loads(result.stdout)
    assert listed.pop("seconds") > 0
    assert listed == {
        "schema": 1,
        "ok": False,
        "url": "damaged-data_truncated/ckpt",
        "leaves": 14,
        "damages": [
            {
                "what": "Expected at least 32768 bytes, the file has 16384",
                "leaf": "state.params.big",
                "box": [[64, 128], [0, 64]],
                "file": "ocdbt.process_0/d/a5ca20b7bcd0904cfb5d8a7ea5f1bbe5",
                "start": 16384,
                "stop": 32768,
                "hint": None,
            }
        ],
        "checked_bytes": 1636,
        "unchecked_bytes": 16384,
        "unchecked": ["state.params.big"],
    }


def test_verify_of_many_damages_says_where_all_are(tmp_path: Path):
    tree = {f"l{i:02}": np.arange(100, dtype=np.int32) for i in range(25)}
    tx.save(tmp_path / "ckpt", tree)
    (data,) = (tmp_path / "ckpt" / "d").iterdir()
    data.write_bytes(b"\1" * 64 * 7 * 25 + data.read_bytes()[64 * 7 * 25 :])
    result = run("verify", tmp_path / "ckpt")
    assert "\n  and 5 more (--json has them all)\n" in result.stdout
    assert result.stdout.count("Expected crc32c `") == 20
    listed = json.loads(run("verify", tmp_path / "ckpt", "--json").stdout)
    assert [damage["leaf"] for damage in listed["damages"]] == sorted(tree)


def test_progress_is_a_line_that_goes(monkeypatch, capsys):
    from templax._display.terminal import echo_progress

    echo_progress(5, 10)
    echo_progress(10, 10)
    assert capsys.readouterr().err == "\r  5 of 10 bytes (50%)\x1b[K\r\x1b[K"


# As a process


RUN = "orbax-0.12.8-manager/ckpt"


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", DEFAULT],
        ["check", DEFAULT, "TEMPLATE"],
        ["template", DEFAULT],
        ["verify", DEFAULT],
        ["steps", RUN],
        ["prune", RUN, "--keep", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_command_does_not_import_jax(arguments, template_file):
    """pain row 26: looking into a checkpoint needs no devices, and no second of imports."""
    arguments = [str(template_file) if a == "TEMPLATE" else a for a in arguments]
    code = f"""
import sys
from templax.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"jax", "jaxlib", "rich", "orbax", "tensorstore"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_pipe_gets_plain_text_and_a_terminal_colour():
    plain = shell("ls", DEFAULT)
    assert plain.returncode == 0
    assert "\x1b" not in plain.stdout
    coloured = shell("ls", DEFAULT, FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[1m" in coloured.stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.stdout) == plain.stdout
    red = shell("ls", "damaged-uncommitted/ckpt", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[31m\x1b[1m  UNCOMMITTED: " in red.stdout


@pytest.mark.parametrize(
    ("environment", "styled"),
    [
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_what_a_terminal_asks_for(environment, styled):
    """A terminal of its own, and what the conventions on colour say of it."""
    inherited = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment = inherited | {"TERM": "xterm-256color"} | environment
    main, other = os.openpty()
    command = [sys.executable, "-m", "templax", "ls", "--depth", "1", DEFAULT]
    done = subprocess.run(command, stdout=other, stderr=other, env=environment, check=False)
    os.close(other)
    text = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.returncode == 0
    assert ("\x1b[1m" in text) == styled
    assert text.replace("\x1b[1m", "").replace("\x1b[0m", "").startswith(DEFAULT)


def test_a_name_that_the_terminal_cannot_spell_is_escaped():
    done = shell("ls", "orbax-0.12.8-special/ckpt", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xe9 " in done.stdout


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m templax ls --flat --all {DEFAULT} | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""


def test_version_and_help():
    assert run("--version").output == f"templax, version {tx.__version__}\n"
    for command in ("ls", "check", "template", "demo"):
        assert command in run("--help").output
        assert run(command, "-h").exit_code == 0
