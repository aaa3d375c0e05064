"""Options of commands, made from dataclasses and functions by their types and docstrings."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse, parse_from_object
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

from atconv.engine.options import as_list, check_value, describe, did_you_mean, rule_of
from atconv.terminal import fail

__all__ = [
    "Fill",
    "Parser",
    "add_function",
    "add_options",
    "add_positional",
    "flag",
]

_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", dict: "{NAME: VALUE}"}


class _Formatter(DefaultHelpFormatter):
    """Help as it was written, with the defaults in force: a recipe's where one sets them."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(text, width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        shown = default not in (None, argparse.SUPPRESS, (), [], {}) and default is not False
        return f"{text} (default: %(default)s)" if shown else text


Fill = Callable[["Parser", Sequence[str]], Callable[..., None]]
"""(parser of a command that is called, its arguments) → what is called with the parsed options"""


class Parser(ArgumentParser):
    """An argument parser whose errors are one line and exit code 2.

    Args:
        fill: adds the options, once the command is called: the options of the others are never made.
    """

    def __init__(self, fill: Fill | None = None, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)
        self.fill = fill
        self.action: Callable[..., None] | None = None
        """what is called with the parsed options"""
        self.kinds: dict[str, Any] = {}
        """types of the options, with their ranges"""
        self.commands: dict[str, Parser] = {}

    def add_command(self, name: str, text: str, fill: Fill | None = None) -> Parser:
        """Add a command with one line of help."""
        if not self.commands:
            self.group = self.add_subcommands(dest="command", metavar="COMMAND", title="commands")
        self.commands[name] = Parser(fill)
        self.group.add_subcommand(name, self.commands[name], help=text)
        self.commands[name].prog = f"{self.prog} {name}"
        return self.commands[name]

    def run(self, arguments: Sequence[str]) -> None:
        """Parse arguments, and do what their command does."""
        parser, options = self, self.parse_args(arguments)
        while parser.commands:
            parser, options = parser.commands[options.command], options[options.command]
        assert parser.action is not None
        parser.action(**options.as_dict())

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **options: Any
    ) -> Namespace:
        if self.fill is not None and self.action is None:
            self.action = self.fill(self, args or ())
        if self.commands and not args:
            self.error(f"no command given; there are {', '.join(self.commands)}")
        try:
            parsed: Namespace = super().parse_args(args, *more, **options)
        except OverflowError as error:  # of a whole number where a float is meant
            self.error(f"a number is too large ({error})")
        if not self.commands:
            self._check(parsed)
        return parsed

    def chosen(self) -> dict[str, Any]:
        """What was given, without defaults."""
        given = super().parse_args(self.args, defaults=False).as_dict()
        return {name: value for name, value in given.items() if value is not None or name in self.kinds}

    def _check(self, parsed: Namespace) -> None:
        for action in self._actions:
            if action.required and action.option_strings and parsed[action.dest] is None:
                self.error(f"{action.option_strings[0]} is missing: give {action.help}")
        try:
            self.validate(parsed)  # here, where names of options have no prefix yet
            for name, value in parsed.as_dict().items():
                if name in self.kinds:
                    check_value(name, value, self.kinds[name])
                    parsed[name] = as_list(value, self.kinds[name])
        except (TypeError, KeyError, ValueError) as error:
            self.error(str(error))

    def _fail_of_missing(self, name: str) -> None:
        """End with what the command lacks: `name` is that of its argument behind those of the commands."""
        *commands, name = name.split(".")
        parser = self
        for command in commands:
            parser = parser.commands[command]
        for action in parser._actions:
            if action.dest == name and not action.option_strings:
                text = f"{action.metavar} is missing: give {action.help}"
                fail(f"{parser.prog}: {text} (see {parser.prog} --help)")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())[:600]
        if wrong := re.match(r'Parser key "(\w+)": .*(?:Got|Given) value: (.*)', text):
            if wrong[1] in self.kinds:
                text = f"{wrong[1]} must be {describe(self.kinds[wrong[1]])}, got {wrong[2]}"
        elif wrong := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose", text):
            text = f"no command {wrong[1]!r}; there are {', '.join(self.commands)}"
            text += did_you_mean(wrong[1], self.commands)
        elif wrong := re.match(r"unrecognized arguments: (--[\w-]+)", text):
            text += did_you_mean(wrong[1], map(flag, self.kinds))
        elif text.startswith("unrecognized arguments: "):
            text += ": a command's arguments come before its options, and no others are taken"
        elif wrong := re.search(r"arguments are required: ([\w.]+)", text):
            self._fail_of_missing(wrong[1])
        fail(f"{self.prog}: {text} (see {self.prog} --help)")


@dataclass(frozen=True)
class _Option:
    name: str
    kind: Any
    default: Any
    help: str
    group: str
    common: bool


def add_options(parser: Parser, config: type, skip: Collection[str] = (), everything: bool = True) -> None:
    """Add the fields of a dataclass of options, grouped by the class that declares them.

    Args:
        everything: explain all options in --help; otherwise those that their class calls `common`, and name
            the others.
    """
    options = [option for option in _fields_of(config) if option.name not in skip]
    hidden: dict[str, list[str]] = {}
    for group in dict.fromkeys(option.group for option in options):
        section = parser.add_argument_group(group)
        for option in (option for option in options if option.group == group):
            shown = everything or option.common
            _add(parser, section, option, shown, ranges=everything)
            if not shown:
                hidden.setdefault(group, []).append(flag(option.name))
    if hidden:
        names = " ".join(name for names in hidden.values() for name in names)
        parser.epilog = f"Also {names}. See {parser.prog} --help-all."
    if any(not option.common for option in options):
        parser.add_argument("--help-all", action="help", help="explain all options")


def add_function(
    parser: Parser,
    function: Callable[..., Any],
    positional: Collection[str] = (),
    skip: Collection[str] = (),
) -> None:
    """Add the parameters of a function, explained by its docstring; `positional` ones without a flag."""
    described = parse(function.__doc__ or "")
    parser.description = parser.description or described.short_description
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in described.params}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if name in positional:
            add_positional(parser, name, texts[name], several=get_origin(hints[name]) is Sequence)
        else:
            option = _Option(name, hints[name], parameter.default, texts.get(name, ""), "", True)
            _add(parser, parser, option, shown=True, ranges=True)


def add_positional(
    parser: Parser, name: str, text: str, several: bool = False, optional: bool = False
) -> None:
    """Add an argument without a flag."""
    nargs = "+" if several else "?" if optional else None
    metavar = name.upper().removesuffix("S") if several else name.upper()
    parser.add_argument(name, metavar=metavar, type=str, nargs=nargs, help=text.removesuffix("."))


def _fields_of(config: type) -> Iterator[_Option]:
    """Options of a dataclass in the order in which its classes are listed, each once."""
    hints, seen = get_type_hints(config, include_extras=True), set()
    owners = [owner for owner in config.__mro__ if is_dataclass(owner)]
    for owner in [*owners[1:], owners[0]]:
        texts = {p.arg_name: p.description for p in parse_from_object(owner).params}
        common = vars(owner).get("common")
        for field in fields(owner):
            if field.name in seen or field.name not in vars(owner).get("__annotations__", {}):
                continue
            seen.add(field.name)
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            text = " ".join((texts.get(field.name) or "").split())
            group = vars(owner).get("group", "options")
            shown = common is None or field.name in common
            yield _Option(field.name, hints[field.name], default, text, group, shown)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add(parser: Parser, section: Any, option: _Option, shown: bool, ranges: bool) -> None:
    rule = rule_of(option.kind) if ranges else None
    parser.kinds[option.name] = option.kind
    text = f"{option.help.removesuffix('.')}; {rule.short}" if rule else option.help.removesuffix(".")
    keywords: dict[str, Any] = {
        "help": text if shown else argparse.SUPPRESS,
        "default": option.default,
    }
    if option.default is inspect.Parameter.empty:
        keywords |= {"required": True, "default": None}
    if get_origin(option.kind) is Sequence:
        section.add_argument(flag(option.name), type=str, nargs="+", metavar="TEXT", **keywords)
    elif _plain(option.kind) is bool:
        section.add_argument(flag(option.name), action=ActionYesNo(no_prefix="no-"), **keywords)
    else:
        kind = _or_one(option.kind)
        section.add_argument(flag(option.name), type=kind, metavar=_placeholder(option.kind), **keywords)


def _or_one(kind: Any) -> Any:
    """A type; of a list of any length also that of one of its items alone."""
    listed = _plain(kind)
    if get_origin(listed) is tuple and ... in get_args(listed):
        return kind | get_args(listed)[0]
    return kind


def _plain(kind: Any) -> Any:
    """A type without its range and without None."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return kind
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return _plain(kinds[0]) if len(kinds) == 1 else kind


def _placeholder(kind: Any) -> str:
    kind = _plain(kind)
    if kind is ...:
        return "..."
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in (tuple, list):
        each = [_placeholder(part) for part in get_args(kind)[:2]]
        return f"[{','.join(each)}]"
    return _PLACEHOLDERS.get(get_origin(kind) or kind, "VALUE")
