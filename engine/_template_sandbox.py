"""The jinja2 sandbox that chat templates run in, with bounds on what one rendering may cost.

jinja2's sandbox keeps a template from Python's internals, not from looping forever or building a huge string. Here
every loop round and macro call is counted, and the operations that make a value much larger than its parts
(repetition, joining, replacing, padding) are refused beyond a size.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import filters, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 100_000  # loop rounds and macro calls
MAX_VALUE = 4_000_000  # characters or items of one value
_WIDE_FIELD = re.compile(r"\d{6,}")


class TemplateRefusal(Exception):  # noqa: N818  it is what `raise_exception` means, not a fault of the template
    """The template's own refusal of a conversation."""


class ChatSandbox(ImmutableSandboxedEnvironment):
    """transformers' settings (`trim_blocks`, `lstrip_blocks`, loop controls, its `tojson`), bounded."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
        self._rendering = threading.local()
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": _bounded_range}
        self.filters |= {
            "tojson": _to_json,
            "join": pass_eval_context(_bounded_join),
            "replace": _bounded_replace,
            "center": _bounded_width(filters.do_center),
            "indent": _bounded_width(filters.do_indent),
        }

    def start(self) -> None:
        """Begins a rendering on this thread: its steps are counted from zero."""
        self._rendering.steps = 0

    def tick(self) -> str:
        """Counts one step.

        Raises:
          SecurityError: At the first step too many.
        """
        self._rendering.steps += 1
        if self._rendering.steps > MAX_STEPS:
            raise SecurityError(f"a chat template may take at most {MAX_STEPS} loop rounds and macro calls")
        return ""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parses, then puts a tick into every loop and macro and a bound on every operand of `~`."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.body.insert(0, _call_tick(loop.lineno))
        for macro in tree.find_all(nodes.Macro):
            macro.body.insert(0, _call_tick(macro.lineno))
        for block in tree.find_all(nodes.CallBlock):
            block.body.insert(0, _call_tick(block.lineno))
        for concatenation in tree.find_all(nodes.Concat):
            concatenation.nodes = [_call("bounded", [operand]) for operand in concatenation.nodes]
        return tree

    def bounded(self, value: Any) -> Any:
        """Passes a value on unless its text is too large to be joined to another."""
        _check_size(len(str(value)))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes, unless the result would be a huge string, list or number."""
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        sizes = [len(x) for x in (left, right) if isinstance(x, str | bytes | list | tuple)]
        numbers = [abs(x) for x in (left, right) if isinstance(x, int)]
        if any(number >= 1 << 63 for number in numbers):
            raise SecurityError("a chat template may compute with numbers below 2^63")
        if operator == "*" and sizes and numbers:
            _check_size(sizes[0] * numbers[0])
        if operator == "+":
            _check_size(sum(sizes))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls, unless it is a method of a string whose result would be huge."""
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps `str.format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, method.__name__, [*args, *kwargs.values()])
        return super().call(context, obj, *args, **kwargs)


class _GenerationBlock(Extension):
    """Renders the body of `{% generation %}`, which training code uses to mark the assistant's tokens."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares `tags` as a mutable class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the block's body, so that the mark itself disappears."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of a method of the environment, which no name in the template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _call_tick(line: int) -> nodes.ExprStmt:
    statement = nodes.ExprStmt(_call("tick", []))
    statement.set_lineno(line)
    return statement


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        raise SecurityError(f"a chat template may build values of at most {MAX_VALUE} items, got {size}")


def _check_format(pattern: str, values: Iterable[Any]) -> None:
    numbers = [value for value in values if isinstance(value, int) and abs(value) > MAX_VALUE]
    wide = _WIDE_FIELD.search(pattern)
    if wide or (numbers and ("*" in pattern or ":{" in pattern)):
        raise SecurityError("a chat template may format fields of at most 99999 characters")


def _check_method(text: str, name: str, arguments: list[Any]) -> None:
    """Refuses string methods whose result would be huge."""
    if name in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        _check_size(max([0, *(value for value in arguments if isinstance(value, int))]))
    elif name == "replace" and len(arguments) >= 2:
        _check_replace(text, str(arguments[0]), str(arguments[1]))
    elif name == "join" and arguments:
        _check_join(text, arguments[0])
    elif name in ("format", "format_map"):
        _check_format(text, arguments)


def _check_replace(text: str, old: str, new: str) -> None:
    _check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_join(separator: str, values: Any) -> None:
    if isinstance(values, str | list | tuple | dict):
        _check_size(sum(len(str(value)) + len(separator) for value in values))


def _bounded_join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    if not isinstance(value, str | dict):
        value = list(value)
    _check_join(str(d), value)
    joined: str = filters.sync_do_join(context, value, d, attribute)
    return joined


def _bounded_replace(value: str, old: str, new: str, count: int | None = None) -> str:
    _check_replace(str(value), old, new)
    return str(value).replace(old, new, -1 if count is None else count)


def _bounded_width(function: Callable[..., str]) -> Callable[..., str]:
    def bounded(value: str, width: Any = 4, *args: Any, **kwargs: Any) -> str:
        _check_size((len(width) if isinstance(width, str) else width) * (1 + str(value).count("\n")))
        return function(value, width, *args, **kwargs)

    return bounded


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern[:100])


def _bounded_range(*arguments: int) -> range:
    values = range(*arguments)
    _check_size(len(values))
    return values


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """transformers' `tojson`: unlike jinja2's, it does not escape HTML."""
    _check_size(indent or 0)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
