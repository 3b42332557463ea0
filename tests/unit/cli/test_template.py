"""`templax template`: writing a template file."""

import pytest

from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_template_writes_to_standard_output_and_check_reads_standard_input():
    written = run_cli("template", DEFAULT, "--at", "state.params")
    assert written.exit_code == 0
    result = run_cli("check", DEFAULT, "-", "--at", "state.params", input=written.output)
    assert (result.exit_code, result.output) == (0, f"all 7 leaves match {DEFAULT}\n")


def test_template_without_leaves_is_refused():
    result = run_cli("template", DEFAULT, "--at", "state.parms")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: Expected leaves under `state.parms`, found none - file `{DEFAULT}`\n"
    )
