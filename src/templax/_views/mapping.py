"""Mappings: for each leaf of one tree, where it comes from in another."""

from __future__ import annotations

import os
from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from .._core.json_text import decode_json
from .._core.text import format_value
from .._escape import escape_text, join_lines
from ..errors import MappingError
from ..formats.registry import Checkpoint, open_checkpoint
from ..storage.file import read_file, write_file
from .inverse import invert_rules
from .mapping_json import DROP, MAX_RULES, REST, decode_rules, encode_rules, format_document
from .names import NamePattern, parse_name
from .resolve import resolve_mapping
from .rule_checks import find_problems
from .rule_layout import RuleLayout
from .rules import Concat, From, Rule

_MAX_FILE = 1 << 24
"""Maximum size of a mapping file, in bytes."""

_MAX_WIDTH = 60
"""Maximum width of a column of the table, in characters; longer names stick out."""


class Mapping:
    """For each leaf of one tree, where it comes from in another.

    A mapping is keyed by the names of the tree that is made, such as a template's. Each is given
    the name of its source, or a `From` if more than the name differs, or a `Concat`. Names contain
    `{placeholders}`: one rule is for a family of leaves.

    Args:
        rules: From the name of each target to its source.
        drop: Patterns of sources that are left out on purpose: names with `*`, or with
            placeholders.
        rest: What becomes of sources that nothing names: "error", or "keep" to take them over under
            their own names.

    Attributes:
        rules: From the name of each target to its `From` or `Concat`.
        targets: From the name of each target to its pattern.
        drop, rest: As given.

    Raises:
        MappingError: A rule is not valid. The error lists all problems of all rules.

    Example:
        >>> import templax as tx
        >>> mapping = tx.Mapping(
        ...     {
        ...         "embed": "model.embed_tokens.weight",
        ...         "layers.{i}.q": tx.From("model.layers.{i}.q_proj.weight", "(h k) d -> d h k"),
        ...         "layers.{i}.mlp": tx.From(
        ...             "model.layers.{i}.{p}.weight", "f d -> d (p f)", p=["gate_proj", "up_proj"]
        ...         ),
        ...     },
        ...     drop="*.inv_freq",
        ... )
        >>> print(mapping)
        target          from                            axes
        embed           model.embed_tokens.weight
        layers.{i}.q    model.layers.{i}.q_proj.weight  (h k) d -> d h k
        layers.{i}.mlp  model.layers.{i}.{p}.weight     f d -> d (p f), p=['gate_proj', 'up_proj']
        drop *.inv_freq
        >>> tx.Mapping.from_json(mapping.to_json()) == mapping
        True
    """

    def __init__(
        self,
        rules: MappingABC[str, str | From | Concat],
        *,
        drop: str | Sequence[str] = (),
        rest: Literal["error", "keep"] = "error",
    ):
        if not isinstance(rules, MappingABC):
            raise MappingError(
                f"Expected a dict from targets to sources, got {format_value(rules)}"
            )
        if len(rules) > MAX_RULES:
            raise MappingError(f"Expected at most {MAX_RULES:,} rules, got {len(rules):,}")
        problems: list[str] = []
        made: dict[str, Rule] = {}
        targets: dict[str, NamePattern] = {}
        for text, given in rules.items():
            rule = From(given) if isinstance(given, str) else given
            found, target = _check_rule(text, rule)
            problems += [f"`{text!s:.200}`: {problem}" for problem in found]
            if target is not None:
                targets[text], made[text] = target, rule
        patterns = (drop,) if isinstance(drop, str) else drop
        problems += _find_drop_problems(patterns)
        if rest not in ("error", "keep"):
            problems.append(f'Expected rest="error" or rest="keep", got {format_value(rest)}')
        if problems:
            raise MappingError(problems)
        self.rules: MappingABC[str, Rule] = MappingProxyType(made)
        self.targets: MappingABC[str, NamePattern] = MappingProxyType(targets)
        self.drop: tuple[str, ...] = tuple(patterns)
        self.rest: Literal["error", "keep"] = rest

    def inverse(self, of: Checkpoint | None = None, *, take: str | Sequence[str] = ()) -> Mapping:
        """The mapping that undoes this one: applied after it, the bytes are the same.

        Names and axes change sides: what is stacked is unstacked, the parts of a `Concat` are cut
        out of it, and leaves that are cut out of one, such as q, k and v, are joined.

        A source that fills several targets, as tied weights do, can be made of any of them, and
        nothing says that they are still equal: after training they may not be. So `take=` must say
        which of them is meant, and the others are in `drop` of the inverse. The same goes for a
        leaf that is repeated along an axis, of which the first copy is taken.

        Args:
            of: The checkpoint that the mapping is for, of which names and shapes are read. It
                settles what only shapes tell: where the parts of a `Concat` end, whether leaves
                that are cut out of one are all of it, how far an axis was padded, the sizes of
                composite axes. Without it, a template settles the last two.
            take: Rules, as the names of their targets, that are taken where several hold the same:
                of each source, the first one that serves.

        Returns:
            A mapping like any other, which can be saved.

        Raises:
            MappingError: There is none, as something is lost or rounded (`drop=`, `crop=`,
                `scale=`, `add=`, elements that no rule takes), or only `of` or `take` tells. The
                error says for each rule why.
            TemplaxError: `of` can't be opened; see `open`.

        Example:
            >>> import templax as tx
            >>> rules = {
            ...     f"{name}.kernel": tx.From(
            ...         "qkv.weight", "(n h k) d -> d h k", select={"n": i}, n=3, k=64
            ...     )
            ...     for i, name in enumerate("qkv")
            ... }
            >>> print(tx.Mapping(rules | {"norm.{i}": "ln_{i+1}"}).inverse())
            target      from      axes
            qkv.weight            ([n] h k) d
                        q.kernel  d h k -> (n h k) d, n=1
                        k.kernel  d h k -> (n h k) d, n=1
                        v.kernel  d h k -> (n h k) d, n=1
            ln_{i+1}    norm.{i}
            >>> tied = {"embed": "wte", "head": tx.From("wte", "v d -> d v")}
            >>> print(tx.Mapping(tied).inverse(take="embed"))
            target  from   axes
            wte     embed
            drop head
        """
        layouts: MappingABC[str, Sequence[RuleLayout]] = {}
        if of is not None:
            catalog = open_checkpoint(of)
            try:
                layouts = resolve_mapping(self, catalog.entries, None).layouts
            except MappingError as error:
                error.add_note(f"in {catalog.url}, of which an inverse is wanted")
                raise
        taken = (take,) if isinstance(take, str) else tuple(take)
        rules, drop, problems = invert_rules(self, layouts, taken)
        if problems:
            raise MappingError(problems)
        return Mapping(rules, drop=drop, rest=self.rest)

    def to_json(self) -> dict[str, Any]:
        """The mapping as values that JSON has: an object for each rule.

        `drop` and `rest` are under `"$drop"` and `"$rest"`.

        Example:
            >>> Mapping({"a": From("b", "h k -> k h")}, rest="keep").to_json()
            {'a': {'from': 'b', 'axes': 'h k -> k h'}, '$rest': 'keep'}
        """
        document = encode_rules(self.rules)
        if self.drop:
            document[DROP] = list(self.drop)
        if self.rest != "error":
            document[REST] = self.rest
        return document

    @classmethod
    def from_json(cls, document: object) -> Mapping:
        """The mapping that `to_json` made into JSON.

        Args:
            document: What a JSON parser returned. A rule may be a name, too.

        Raises:
            MappingError: It is not a mapping, or one that is not valid.
        """
        rules, options, problems = decode_rules(document)
        try:
            mapping = cls(rules, **options)
        except MappingError as error:
            raise MappingError([*problems, *error.problems]) from None
        if problems:
            raise MappingError(problems)
        return mapping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, atomically: one that exists is replaced as a whole or not at all.

        Raises:
            MappingError: The file would be larger than `load` reads.
            SaveError: The file could not be written.
        """
        data = format_document(self.to_json())
        if len(data) > _MAX_FILE:
            raise MappingError(
                f"Expected a mapping of at most {_MAX_FILE:,} bytes, got {len(data):,}: write"
                " fewer rules, with placeholders"
            )
        write_file(os.fspath(path), data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mapping:
        """Reads a file that `save` wrote, or one written by hand.

        Args:
            path: The file; "-" is standard input.

        Raises:
            MappingError: It is not a JSON object with a rule for each target, or a rule is not
                valid.
            NotFound, SourceError: It does not exist, or can't be read.
        """
        file = os.fspath(path)
        data = read_file(file, "a mapping file")
        if len(data) > _MAX_FILE:
            raise MappingError(
                f"Expected a mapping file of at most {_MAX_FILE:,} bytes, got {len(data):,}, in"
                f" `{file}`"
            )
        try:
            document = decode_json(data)
        except (ValueError, RecursionError) as error:
            raise MappingError(f"Expected a mapping file, {error}, in `{file}`") from error
        return cls.from_json(document)

    def __len__(self) -> int:
        return len(self.rules)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        mine, theirs = (self.rules, self.drop, self.rest), (other.rules, other.drop, other.rest)
        return mine == theirs

    def __hash__(self) -> int:
        return hash((tuple(self.rules), self.drop, self.rest))

    def __repr__(self) -> str:
        return f"Mapping({len(self):,} rule{'' if len(self) == 1 else 's'})"

    def __str__(self) -> str:
        rows = [("target", "from", "axes")]
        for target, rule in self.rules.items():
            rows += _list_cells(target, rule)
        rows = [tuple(map(escape_text, row)) for row in rows]
        widths = [min(max(len(row[i]) for row in rows), _MAX_WIDTH) for i in range(2)]
        lines = [
            f"{target:{widths[0]}}  {source:{widths[1]}}  {axes}".rstrip()
            for target, source, axes in rows
        ]
        lines += [f"drop {pattern}" for pattern in self.drop]
        lines += ["keep the rest"] if self.rest == "keep" else []
        return join_lines(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapping.from_json, (self.to_json(),)


def _check_rule(text: Any, rule: Any) -> tuple[list[str], NamePattern | None]:
    """What is wrong with a rule, and the pattern of its target."""
    try:
        target = parse_name(text)
    except ValueError as error:
        return [str(error)], None
    if text.startswith("$"):
        return ["names with `$` in front are options of the JSON form: map to another name"], None
    if not isinstance(rule, (From, Concat)):
        return [f"Expected a name, a From or a Concat, got {format_value(rule)}"], target
    return find_problems(target, rule), target


def _find_drop_problems(patterns: Any) -> list[str]:
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
        return [f"Expected drop= a pattern or a list of patterns, got {format_value(patterns)}"]
    problems: list[str] = []
    for pattern in patterns:
        if "{" not in pattern:
            continue
        try:
            problem = parse_name(pattern).find_ambiguity({})
        except ValueError as error:
            problem = str(error)
        if problem is None and "{(" in pattern:
            problem = "has a placeholder of several, which only a rule has sizes for: write `{i}`"
        if problem is None and ("*" in pattern or "?" in pattern):
            problem = "has both a placeholder and `*` or `?`: write it with one of them"
        if problem is not None:
            problems.append(f"drop={pattern!r:.200}: {problem}")
    return problems


def _list_cells(target: str, rule: Rule) -> list[tuple[str, str, str]]:
    """The rows of a rule in the table."""
    if isinstance(rule, Concat):
        parts = [row for part in rule.parts for row in _list_cells("", part)]
        return [(target, "", rule.axes.text), *parts]
    options = [f"{name}={value!r}" for name, value in rule.list_options().items()]
    axes = [] if rule.axes is None else [rule.axes.text]
    return [(target, rule.source.text, ", ".join([*axes, *options]))]
