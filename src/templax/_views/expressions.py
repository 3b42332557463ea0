"""Numbers that a rule computes from the sizes of its axes: `scale="k**-0.5"`. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

from .._core.text import format_value
from .axes import find_name_problem

_MAX_LENGTH = 200

_MAX_LEVELS = 20
"""Maximum nesting of parentheses, signs and powers. The parser is recursive."""

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W0-9]\w*)"
    r"|(?P<sign>\*\*|[-+*/()])"
    r"|(?P<other>\S)"
)

_Operator = Literal["+", "-", "*", "/", "**", "negative"]


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


class _Name(NamedTuple):
    name: str


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of numbers and sizes of axes.

    Attributes:
        text: As the user wrote it.
        names: The axes that occur in it.
    """

    text: str
    names: frozenset[str] = field(compare=False)
    _program: tuple[float | _Name | _Operator, ...] = field(compare=False, repr=False)
    """Operands and operators, each operator after its operands."""

    def evaluate(self, sizes: Mapping[str, int]) -> float:
        """The value in float64.

        Args:
            sizes: The size of each axis in `names`; others are ignored.

        Raises:
            ValueError: A size is missing, or the value is not a finite number.
        """
        stack: list[float] = []
        try:
            for step in self._program:
                if isinstance(step, str):
                    right = stack.pop()
                    left = 0.0 if step == "negative" else stack.pop()
                    stack.append(_calculate(step, left, right))
                else:
                    stack.append(float(sizes[step.name] if isinstance(step, _Name) else step))
        except KeyError as error:
            raise ValueError(f"`{self.text}` needs the size of `{error.args[0]}`") from None
        except ZeroDivisionError:
            raise ValueError(f"`{self.text}` divides by zero") from None
        except OverflowError:
            raise ValueError(f"`{self.text}` is too large a number") from None
        value = stack.pop()
        if not math.isfinite(value):
            raise ValueError(f"`{self.text}` is not a finite number")
        return value


def parse_expression(value: str | float) -> Expression:
    """Parses what `scale=` or `add=` is given: a number, or an expression.

    An expression consists of numbers, names of axes, `+ - * / **` and parentheses, with the
    precedence that they have in Python.

    Raises:
        ValueError: It is not such an expression, or one without axes that has no finite value. The
            message quotes it.

    >>> parse_expression("k**-0.5").evaluate({"k": 64})
    0.125
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = repr(float(value)) if isinstance(value, float) else _format_int(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"Expected a finite number, got {text}")
    elif isinstance(value, str):
        text = value
    else:
        raise ValueError(f"Expected a number or an expression of axes, got {format_value(value)}")
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"`{text[:80]}…` is longer than {_MAX_LENGTH} characters: shorten it")
    program = _Parser(text).parse()
    names = frozenset(step.name for step in program if isinstance(step, _Name))
    expression = Expression(text, names, program)
    if not names:
        expression.evaluate({})
    return expression


def _format_int(value: int) -> str:
    if value.bit_length() > 1024:  # Python refuses to write integers of many digits
        raise ValueError("Expected a number that float64 can hold, got a larger one")
    return str(int(value))


def _calculate(operator: _Operator, left: float, right: float) -> float:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "negative":
            return -right
        case "**":
            power = cast("float | complex", left**right)
            # The root of a negative number is complex in Python.
            return math.nan if isinstance(power, complex) else power


class _Parser:
    """Parses by recursive descent, one method for each level of precedence."""

    def __init__(self, text: str):
        self._text = text
        self._tokens = [
            _Token(str(match.lastgroup), match[0], match.start()) for match in _TOKEN.finditer(text)
        ]
        self._at = 0
        self._levels = 0
        self._program: list[float | _Name | _Operator] = []

    def parse(self) -> tuple[float | _Name | _Operator, ...]:
        self._parse_sum()
        if self._at < len(self._tokens):
            raise self._error()
        return tuple(self._program)

    def _parse_sum(self) -> None:
        self._parse_product()
        while (operator := self._take("+", "-")) is not None:
            self._parse_product()
            self._program.append(operator)

    def _parse_product(self) -> None:
        self._parse_signed()
        while (operator := self._take("*", "/")) is not None:
            self._parse_signed()
            self._program.append(operator)

    def _parse_signed(self) -> None:
        self._levels += 1
        if self._levels > _MAX_LEVELS:
            raise ValueError(f"`{self._text}` has more than {_MAX_LEVELS} levels: simplify it")
        if self._take("-") is not None:
            self._parse_signed()
            self._program.append("negative")
        else:
            self._parse_operand()
            if self._take("**") is not None:
                self._parse_signed()
                self._program.append("**")
        self._levels -= 1

    def _parse_operand(self) -> None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        if token is None or token.kind == "other" or (token.kind == "sign" and token.text != "("):
            raise self._error()
        self._at += 1
        if token.kind == "number":
            self._program.append(float(token.text))
        elif token.kind == "name":
            problem = find_name_problem(token.text)
            if problem is not None:
                where = f"at character {token.column + 1}"
                raise ValueError(f"`{self._text}` has `{token.text}` {where}, which {problem}")
            self._program.append(_Name(token.text))
        else:
            self._parse_sum()
            if self._take_closing() is None:
                raise self._error()

    def _take(self, *operators: _Operator) -> _Operator | None:
        """The next token if it is one of these, and steps over it."""
        if self._at < len(self._tokens):
            for operator in operators:
                if self._tokens[self._at].text == operator:
                    self._at += 1
                    return operator
        return None

    def _take_closing(self) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at].text == ")":
            self._at += 1
            return ")"
        return None

    def _error(self) -> ValueError:
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            found = f"`{token.text}` at character {token.column + 1}"
        else:
            found = "nothing" if not self._tokens else "the end"
        return ValueError(
            f"`{self._text}` has {found} where it can't stand: use numbers, axes, + - * / ** and"
            " parentheses"
        )
