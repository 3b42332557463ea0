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
            'rename=lambda name: name.replace("l", "L")',
            many,
            " ".join(f"--rename layer{i}=Layer{i}" for i in range(9)),
        ),
        (
            "rename=error.match.rename (200 entries), after ...",
            {f"layer{i}": f"Layer{i}" for i in range(200)},
            "in Python, rename= with the 200 entries that `--json` has as `rename`",
        ),
        (
            'rename=lambda name: name + ".value", at="params"',
            None,
            'in Python, rename=lambda name: name + ".value", at="params"',
        ),
    ]:
        assert shell_hints.format_option(hint, rename) == text
