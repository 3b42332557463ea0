"""`templax ls`: the tree of a checkpoint, the steps of a run, and JSON."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx
from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_ls_prints_the_tree_and_the_code_that_restores_it():
    result = run_cli("ls", "orbax-0.12.8-manager/ckpt/10/state")
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
  total     14 leaves, 33.6 KiB, 8,650 parameters
  dtypes    {dtypes}
  sharding  single device cpu:0 for every array that has one (not used for placement)

extra                     2 leaves       16 B  1 parameter
  empty_dict    Dict
  none          None
  py_float      float64   ()              8 B
  py_int        int64     ()              8 B
state                     12 leaves  33.6 KiB  8.65 K parameters
  opt_state               3 leaves      772 B  256 parameters
    0                     3 leaves      772 B  256 parameters
      count     int32     ()              4 B
      mu                  1 leaf        256 B  128 parameters
        kernel  bfloat16  (16, 8)       256 B
      nu                  1 leaf        512 B  128 parameters
        kernel  float32   (16, 8)       512 B
    1           Dict
  params                  7 leaves   32.8 KiB  8.39 K parameters
    big         float32   (128, 64)  32.0 KiB
    dense                 2 leaves      528 B  136 parameters
      bias      bfloat16  (8,)           16 B
      kernel    float32   (16, 8)       512 B
    layers                2 leaves      240 B  48 parameters
      0                   1 leaf        192 B  48 parameters
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

    # or into the tree of your model, checking the shape and dtype of every leaf:
    template = tx.template_of(model.init, key, x)
    tree = tx.restore(catalog, template["params"], at="state.params")
""".replace("{dtypes}", f"{dtypes}, uint32 8 B")
    )


def test_ls_shows_each_saved_sharding_where_they_differ():
    lines = run_cli("ls", "orbax-0.12.8-sharded8/ckpt").output.splitlines()
    assert not any(line.startswith("  sharding") for line in lines)
    (big,) = [line for line in lines if line.lstrip().startswith("big ")]
    assert big == (
        "    big         float32   (128, 64)  32.0 KiB  P('model', 'data') over data=4, model=2"
    )


def test_ls_says_what_an_uncommitted_checkpoint_lacks_and_how_to_read_it():
    result = run_cli("ls", "damaged-uncommitted/ckpt")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[1] == (
        "  UNCOMMITTED: `_CHECKPOINT_METADATA` has no commit time and there is no"
        " `commit_success.txt`"
    )
    assert '    catalog = tx.open("damaged-uncommitted/ckpt", uncommitted="allow")' in lines


def test_ls_depth_adds_up_deeper_leaves():
    lines = run_cli("ls", "--depth", 1, DEFAULT).output.splitlines()
    assert [line for line in lines if line.startswith(("extra", "state"))] == [
        "extra    2 leaves       16 B  1 parameter",
        "state    12 leaves  33.6 KiB  8.65 K parameters",
    ]


def test_ls_match_shows_some_leaves_and_counts_all():
    result = run_cli("ls", "--match", "*.kernel", "--match", "state.step", "--flat", DEFAULT)
    assert result.exit_code == 0
    assert (
        "  shown     4 leaves, 1.3 KiB, 384 parameters, of 14 leaves, 33.6 KiB, 8,650 parameters\n"
        in result.output
    )
    assert (
        """
state.step                   int32     ()         4 B
state.params.dense.kernel    float32   (16, 8)  512 B
state.opt_state.0.mu.kernel  bfloat16  (16, 8)  256 B
state.opt_state.0.nu.kernel  float32   (16, 8)  512 B

"""
        in result.output
    )


@pytest.mark.parametrize("name", ["format", "total", "dtypes", "by whom"])
def test_ls_names_what_a_file_says_of_itself(tmp_path, name):
    file = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, file, metadata={name: "pt"})
    lines = [line.split() for line in run_cli("ls", file).stdout.splitlines()[1:4]]
    assert lines == [
        ["format", "safetensors,", "recognised", "by", "its", "header"],
        ["metadata", *f"`{name}`".split(), "pt"],
        ["total", "1", "leaf,", "12", "B,", "3", "parameters"],
    ]


def test_ls_of_a_long_tree_says_how_to_have_a_short_one(tmp_path):
    shapes = {
        f"{'ab'[i % 2]}{i}": {name: np.zeros(i % 7 + k) for k, name in enumerate("xyz")}
        for i in range(80)
    }
    tx.save(tmp_path / "ckpt", {"model": {"params": shapes}})
    listed = run_cli("ls", tmp_path / "ckpt").stdout.splitlines()
    (said,) = [line for line in listed if "--depth" in line]
    assert said == "322 rows; --depth 2 shows 2"
    shorter = run_cli("ls", tmp_path / "ckpt", "--depth", 2).stdout
    tree = shorter.partition("\n\n")[2].partition("\n\nTo restore")[0]
    assert len(tree.splitlines()) == 2
    assert "rows;" not in shorter
    assert "rows;" not in run_cli("ls", "--flat", tmp_path / "ckpt").stdout


def test_ls_of_a_long_flat_tree_names_the_option_that_shortens_it(tmp_path):
    tx.save(tmp_path / "ckpt", {f"w{i}": np.zeros(i) for i in range(300)})
    assert "\n300 rows; --match GLOB shows some\n" in run_cli("ls", tmp_path / "ckpt").stdout


def test_ls_match_without_a_match_exits_with_1():
    assert run_cli("ls", "--match", "kernel", DEFAULT).exit_code == 1


def test_ls_json_has_the_documented_fields():
    result = run_cli("ls", "--json", DEFAULT)
    assert result.exit_code == 0
    data = json.loads(result.output)
    assert list(data) == [
        "schema",
        "url",
        "format",
        "evidence",
        "uncommitted",
        "metadata",
        "unread",
        "fingerprint",
        "leaf_count",
        "nbytes",
        "parameter_count",
        "leaves",
        "restore",
    ]
    assert data["schema"] == 1
    assert (data["url"], data["format"], data["uncommitted"]) == (DEFAULT, "orbax", None)
    catalog = tx.open(DEFAULT)
    assert data["nbytes"] == catalog.nbytes
    assert data["leaf_count"] == len(data["leaves"]) == len(catalog.entries)
    assert data["parameter_count"] == catalog.parameter_count == 8650
    assert sum(entry["parameter_count"] for entry in data["leaves"]) == 8650
    (big,) = [
        make_entry for make_entry in data["leaves"] if make_entry["name"] == "state.params.big"
    ]
    assert big == {
        "name": "state.params.big",
        "path": ["state", "params", "big"],
        "kind": "array",
        "dtype": "float32",
        "shape": [128, 64],
        "nbytes": 32768,
        "parameter_count": 8192,
        "saved_sharding": "single device cpu:0",
        "quantisation": None,
        "made_from": None,
        "undecodable": None,
        "fingerprint": None,
    }
    assert data["fingerprint"] is None  # Orbax records none


def test_ls_prints_the_fingerprint_that_templax_saved(tmp_path: Path):
    list_rows = {"w": np.arange(5), "b": {"x": 2.5, "s": "text"}}
    tx.save(tmp_path / "ckpt", list_rows)
    want = tx.fingerprint(list_rows)
    assert str(want) in run_cli("ls", str(tmp_path / "ckpt")).output
    data = json.loads(run_cli("ls", "--json", str(tmp_path / "ckpt")).output)
    assert data["fingerprint"] == str(want)
    assert {
        make_entry["name"]: make_entry["fingerprint"] for make_entry in data["leaves"]
    } == want.leaves
    # The fingerprint covers all leaves, so a selection has none.
    assert str(want) not in run_cli("ls", "--match", "w", str(tmp_path / "ckpt")).output


def test_ls_json_filters_leaves_but_counts_all():
    data = json.loads(run_cli("ls", "--json", "--match", "*.big", DEFAULT).output)
    assert [make_entry["name"] for make_entry in data["leaves"]] == ["state.params.big"]
    assert data["leaf_count"] == 14


@pytest.mark.parametrize("path", [DEFAULT, "damaged-uncommitted/ckpt", "orbax-0.12.8-special/ckpt"])
def test_the_code_that_ls_prints_runs(path):
    code, own = json.loads(run_cli("ls", "--json", path).output)["restore"].split("\n\n# or ")
    names = {}
    exec(code, names)
    assert jax.tree.leaves(names["tree"])
    if 'template["params"]' in own:
        # The second half needs a model; this template takes the place of `template_of`.
        names["template"] = names["catalog"].template()["state"]
        exec(own.splitlines()[-1], names)
        assert names["tree"]["big"].shape == (128, 64)


def test_ls_of_a_run_lists_its_steps_and_the_next_commands():
    result = run_cli("ls", "orbax-0.12.8-manager/ckpt")
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
        assert run_cli(*line.split()[1:]).exit_code == 0


def test_ls_of_a_run_marks_uncommitted_steps(tmp_path):
    shutil.copytree("orbax-0.12.8-default/ckpt", tmp_path / "my run" / "ckpt_5")
    shutil.copytree("damaged-uncommitted/ckpt", tmp_path / "my run" / "ckpt_10")
    result = run_cli("ls", tmp_path / "my run")
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
    result = run_cli("ls", tmp_path / "my run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2:] == [
        "  total   1 step, none was committed",
        "",
        "ckpt_10  UNCOMMITTED",
    ]


def test_ls_json_of_a_run_has_the_documented_fields(tmp_path):
    shutil.copytree("orbax-0.12.8-manager/ckpt/10", tmp_path / "10")
    shutil.copytree("damaged-uncommitted/ckpt", tmp_path / "11")
    result = run_cli("ls", "--json", tmp_path)
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


def test_ls_match_on_a_run_is_refused():
    result = run_cli("ls", "orbax-0.12.8-manager/ckpt", "--match", "*.kernel")
    assert result.exit_code == 2
    assert "holds 2 steps" in result.stderr


def test_links_out_of_a_checkpoint_are_followed_if_asked_for(tmp_path):
    path, template = tmp_path / "ckpt", tmp_path / "template.json"
    tx.save(path, {"w": np.ones(2, np.float32)})
    (path / "templax.index").rename(tmp_path / "elsewhere")
    (path / "templax.index").symlink_to("../elsewhere")
    tx.save_template({"w": np.zeros(2, np.float32)}, template)
    commands = [("ls",), ("verify",), ("template", "-o", str(tmp_path / "made"))]
    for command, *rest in [*commands, ("check", str(template)), ("plan", str(template))]:
        places = [str(path), *rest]
        refused = run_cli(command, *places)
        assert refused.exit_code == 2, refused.output
        assert "give the command --follow-links" in refused.output
        assert run_cli(command, "--follow-links", *places).exit_code == 0


def test_long_metadata_is_cut_and_says_so(tmp_path):
    text = "x" * 5000
    save_file({"w": np.ones(2)}, tmp_path / "a.safetensors", {"notes": text, "short": "y" * 400})
    result = run_cli("ls", tmp_path / "a.safetensors")
    cut = f"{'x' * 400}... (5,000 characters; --json has them all)\n"
    assert f"  metadata `notes`  {cut}  metadata `short`  {'y' * 400}\n" in result.output
    found = json.loads(run_cli("ls", tmp_path / "a.safetensors", "--json").output)
    assert found["metadata"]["notes"] == text


@pytest.mark.parametrize("as_json", [False, True])
def test_the_code_opens_what_the_command_opened(tmp_path, monkeypatch, as_json):
    monkeypatch.chdir(tmp_path)
    tx.save("ckpt", {"w": np.arange(3.0)})
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "ckpt").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    (tmp_path / "map.json").write_text('{"v": "w"}')
    for arguments, name in (
        (["links", "--follow-links"], "w"),
        (["ckpt", "--map", "map.json"], "v"),
        (["links", "--follow-links", "--map", "map.json"], "v"),
    ):
        result = run_cli("ls", *arguments, *(["--json"] if as_json else []))
        assert result.exit_code == 0, result.output
        code = json.loads(result.stdout)["restore"] if as_json else result.stdout
        lines = [line.strip() for line in code.splitlines()]
        [first] = [line for line in lines if line.startswith("catalog = ")]
        names = {"tx": tx}
        exec(f"{first}\ntree = tx.restore(catalog, catalog.template())", names)
        assert names["tree"][name].tolist() == [0, 1, 2]
