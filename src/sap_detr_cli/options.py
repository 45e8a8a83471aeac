# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Command lines from dataclasses whose fields are `Annotated[type, "reason", ARGUMENT or a Limit, ...]`.

Only argparse is used: with a parser library, we would still need our own code for recipes, unchanged text values
(`007`, `on`) and error messages.
"""

import argparse
import dataclasses
import difflib
import math
import os
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar

ARGUMENT = object()  # in a field's annotation: a positional argument, not `--name`
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
READERS: dict[Any, Callable[[str], Any]] = {int: int, float: float, bool: lambda text: TRUTH[text.lower()]}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Limit:
    """A condition on a field's value, and its description for the error message."""

    words: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Limit("at least 0", lambda value: value >= 0)
AT_LEAST_1 = Limit("at least 1", lambda value: value >= 1)
ABOVE_0 = Limit("above 0", lambda value: value > 0)
FRACTION = Limit("between 0 and 1", lambda value: 0 <= value <= 1)


class Settings:
    """Base of the settings dataclasses; checks the type and limits of every field.

    Raises:
        ValueError: a value of the wrong type or out of range; the message names the field.
    """

    takes_recipe = False  # whether the first argument may be a recipe
    extra = "train"  # the extra of the package (pyproject.toml) that the verb needs
    command: str | None = None  # the command line that the settings were read from
    given: frozenset[str] | None = None  # names of the settings given on the command line or in the recipe

    def __post_init__(self):
        for option in options(type(self)):
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Option:
    """A field of a settings dataclass; `kind` is its type without None."""

    name: str
    kind: Any
    optional: bool
    reason: str
    marks: tuple
    default: Any

    @property
    def spelling(self) -> str:
        """The name on the command line."""
        return self.name if ARGUMENT in self.marks else "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """The option in the usage line of `--help`."""
        many = " ..." * (typing.get_origin(self.kind) is list)
        return f"{'' if ARGUMENT in self.marks else self.spelling + ' '}{self.name.upper()}{many}"

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping."""
        return typing.get_origin(self.kind) is dict

    def checked(self, value: Any) -> Any:
        """Return `value` as the field's type; a text is parsed as a number, truth value, list or mapping if needed.

        Raises:
            ValueError: the value has another type or is out of range.
        """
        if self.optional and value in (None, ""):
            return None
        value = _typed(self.name, value, self.kind)
        for limit in self.marks:
            if isinstance(limit, Limit) and not limit.holds(value):
                raise ValueError(f"`{self.name}` = {value} must be {limit.words}.")
        return value

    def from_words(self, words: Any) -> Any:
        """Return a value from the command line: text unchanged, `null` as None, a list as several words or `[a, b]`."""
        if isinstance(words, list) and len(words) == 1 and words[0].startswith("[") and ARGUMENT not in self.marks:
            return words[0]
        return None if self.optional and words == "null" else words


def options(settings: type[Settings]) -> list[Option]:
    """Return the fields of a settings dataclass."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return [_option(field, hints[field.name]) for field in dataclasses.fields(settings)]  # type: ignore[arg-type]


def description(settings: type[Settings]) -> str:
    """Return the description of a verb: the docstring of its settings module."""
    return (sys.modules[settings.__module__].__doc__ or "").strip()


def nearest(name: str, names: Iterable[str], program: str) -> str:
    """Suggest the most similar name for an unknown one."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"the nearest one is `{close[0]}`" if close else f"`{program} --help` lists them"


def check_known(name: str, settings: type[Settings], where: str, program: str) -> None:
    """Raise an error for an unknown setting and suggest the most similar one.

    Raises:
        ValueError: the name is unknown.
    """
    names = [option.name for option in options(settings)]
    if name not in names:
        raise ValueError(f"{where} sets `{name}`, which is not a setting: {nearest(name, names, program)}.")


def parse(settings: type[AnySettings], words: Sequence[str], program: str = "sap-detr") -> AnySettings:
    """Parse a command line into settings. The command line overrides the recipe; `--help` exits.

    Raises:
        ValueError: unknown names, missing arguments, values of the wrong type, or values that contradict each other.
        OSError: the recipe does not exist.
    """
    known = {option.name: option for option in options(settings)}
    required = [option.usage for option in known.values() if option.default is MISSING]
    parser = _Parser(
        program,
        usage=" ".join([program, *["[RECIPE]"] * settings.takes_recipe, *required, "[options]"]),
        description=description(settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if settings.takes_recipe:
        parser.add_argument(
            "recipe", nargs="?", metavar="RECIPE", help="a name listed by `sap-detr recipes`, or a YAML file"
        )
    for option in known.values():
        _add(parser, option)
    given = vars(parser.parse_intermixed_args(_spelled(words, settings, program)))
    values: dict[str, Any] = {}
    if recipe := given.pop("recipe", None):
        from .recipes import read_recipe

        values = read_recipe(recipe, settings)
    result = settings(**values | {name: known[name].from_words(value) for name, value in given.items()})
    object.__setattr__(result, "given", frozenset(values) | frozenset(given))
    object.__setattr__(result, "command", shlex.join([*program.split(), *words]))
    return result


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message} (`{self.prog} --help` explains all arguments)")


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    default = option.default
    shown = "empty" if default in (None, [], {}) else str(default).lower() if isinstance(default, bool) else default
    more: dict[str, Any] = {"help": option.reason + ("" if default is MISSING else f" [{shown}]")}
    more["help"] = more["help"].replace("%", "%%")
    if option.kind is bool:
        parser.add_argument(option.spelling, action=argparse.BooleanOptionalAction, **more)
        return
    choices = typing.get_args(option.kind) if typing.get_origin(option.kind) is Literal else ()
    more["metavar"] = "{" + ",".join(choices) + "}" if choices else option.name.upper()
    if typing.get_origin(option.kind) is list:
        more["nargs"] = "+"
    if ARGUMENT not in option.marks:
        more |= {"dest": option.name, "required": default is MISSING}
    elif default is not MISSING:
        more["nargs"] = "?"
    parser.add_argument(option.spelling, **more)


def _spelled(words: Sequence[str], settings: type[Settings], program: str) -> list[str]:
    """Normalize a command line: `-` instead of `_` in option names, `--x true` to `--x`, `--x=false` to `--no-x`."""
    flags = {option.spelling: option for option in options(settings) if option.kind is bool}
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest]
        if word.startswith("--") and word != "--help":
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            positive = name.replace("--no-", "--", 1)
            if not (positive in flags and name != positive):
                check_known(name[2:].replace("-", "_"), settings, "The command line", program)
            if name in flags and (equals or (rest and rest[0].lower() in TRUTH)):
                truth = flags[name].checked(value if equals else rest.pop(0))
                word = name if truth else f"--no-{name[2:]}"
            else:
                word = name + equals + value
        result.append(word)
    return result


def _option(field: dataclasses.Field, hint: Any) -> Option:
    kind, reason, *marks = typing.get_args(hint)
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    optional = union and type(None) in typing.get_args(kind)
    if optional:
        kind = next(argument for argument in typing.get_args(kind) if argument is not type(None))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Option(field.name, kind, optional, reason, tuple(marks), default)


def _typed(name: str, value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"`{name}` = {value!r} must be one of {', '.join(arguments)}.")
        return value
    read: Any = os.fspath(value) if origin is str and isinstance(value, os.PathLike) else value
    if isinstance(value, str) and origin in (list, dict):
        from .yaml_settings import yaml_value

        read = yaml_value(name, value, texts=origin is list)
    elif isinstance(value, str) and origin is not str:
        try:
            read = READERS[origin](value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"`{name}` = {value!r} must be {WORDS[origin]}.") from error
    if origin is list and isinstance(read, (list, tuple)):
        return [_typed(name, item, arguments[0]) for item in read]
    if origin is float and isinstance(read, int) and not isinstance(read, bool):
        read = float(read)
    wrong = not isinstance(read, origin) or (origin is int and isinstance(read, bool))
    if wrong or (origin is float and not math.isfinite(read)):
        advice = ": put it in quotes" if origin is str else ""
        raise ValueError(f"`{name}` = {value!r} must be {WORDS[origin]}{advice}.")
    if read == "":
        raise ValueError(f"`{name}` is empty, but must be {WORDS[str]}.")
    return read
