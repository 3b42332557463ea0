"""Hints spelled as options of the command."""

from templax.cli import shell_hints


def test_hints_are_spelled_as_shell_options_where_possible():
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
        assert shell_hints.format_option(hint, rename) == text
