"""No file of a megabyte takes more than 2 s or 300 MB, in any command."""

import pytest

from fuzz.amplifications import CASES
from fuzz.templates import HOSTILE_TEMPLATES
from helpers import mark_slow
from limits import run_limited

STAGES = """
import contextlib, io, time

def limit(name, run):
    begin = time.process_time()
    try:
        run()
    except tx.TemplaxError:
        pass
    except SystemExit as error:
        assert error.code in (None, 0, 1, 2), (name, error.code)
    took = time.process_time() - begin
    assert took <= 2, f"{name} took {took:.1f} s"

def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        limit(arguments[0], lambda: main(list(arguments)))
    assert "Traceback" not in err.getvalue(), err.getvalue()[-2000:]
    size = len(out.getvalue()) + len(err.getvalue())
    assert size < 16 << 20, f"{arguments[0]} printed {size} bytes"
"""

COMMANDS = """
command("ls", path)
command("ls", "--json", path)
command("ls", "--flat", path)
command("verify", path)
command("steps", path)
command("check", path, "template.json")
command("plan", path, "template.json")
command("template", path, "-o", "made.json")
command("draw", path, "w")
command("draw", path, "a", "--mesh", "x=1024", "--spec", "x", "--svg", "-")
limit("restore", lambda: tx.restore(path, {"w": np.zeros(4, np.float32)}))
limit("restore", lambda: tx.restore(path, {"w": np.zeros(4, np.float32)}, extra="ignore"))
limit("str", lambda: str(tx.open(path)))
"""

TEMPLATE = """{"templax_template": 1, "leaves": [
 {"path": ["w"], "shape": [4], "dtype": "float32"},
 {"path": ["a"], "shape": [4], "dtype": "float32"}
]}"""


SLOW = {
    "a_flax_file_of_arrays_of_many_dimensions",
    "a_flax_file_of_tiny_arrays",
    "a_group_with_many_names_in_its_consolidated_metadata",
    "a_msgpack_of_deep_maps",
    "a_msgpack_of_empty_lists",
    "a_msgpack_of_small_numbers",
    "a_name_of_many_levels",
    "a_node_of_a_million_keys",
    "a_node_of_many_bytes",
    "a_node_of_many_empty_arrays",
    "a_shard_of_equal_values_in_blosc",
    "an_index_of_deep_paths",
    "an_index_of_many_empties",
    "an_index_with_one_long_sharding_for_all",
    "an_inline_shard_index",
    "attributes_of_many_entries",
    "children_of_long_prefixes",
    "gguf_metadata_of_many_keys",
    "gguf_tensors_without_elements",
    "many_names_that_look_alike",
    "names_of_many_digits",
    "one_long_name",
    "the_same_child_many_times",
}
"""Those that take over 1 s of processor time to be made and in all commands together."""


@pytest.mark.parametrize(
    "case", [*(case for case in CASES if case not in SLOW), *mark_slow(*sorted(SLOW))]
)
def test_a_small_checkpoint_takes_little(case, tmp_path):
    path = CASES[case](tmp_path)
    (tmp_path / "template.json").write_text(TEMPLATE)
    code = f"path = {path!r}\n{COMMANDS}"
    run_limited(code, preload=_PRELOAD, seconds=20, cwd=tmp_path)


@pytest.mark.parametrize("case", HOSTILE_TEMPLATES)
def test_a_small_template_takes_little(case, tmp_path):
    (tmp_path / "template.json").write_bytes(HOSTILE_TEMPLATES[case]())
    code = 'command("check", "c", "template.json"); command("plan", "c", "template.json")'
    save = 'tx.save("c", {f"layers.{i}.w{j}": np.zeros(1) for i in range(20) for j in range(10)})'
    run_limited(code, preload=_PRELOAD, prepare=save, seconds=8, cwd=tmp_path)


_PRELOAD = f"import jax\nfrom templax.cli.main import main\n{STAGES}"
