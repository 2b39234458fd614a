"""Flags of the commands: dataclass fields that say all that is known of a flag, and a parser that holds to it.

Nothing heavy is imported here, nor where flags are declared: `--help` and every wrong flag answer at once.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from .errors import UserError


def flag(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    count: int | None = None,
    check: Callable[[str], Any] | None = None,
    free: bool = False,
    shown: bool = True,
) -> Any:
    """A dataclass field that is a flag.

    Args:
        default: its value if it is not given; without one, it must be.
        help: a line for `--help`.
        low, high: the least and the greatest number allowed, of each number in a list.
        above, below: likewise, where the number itself is not allowed.
        count: how many values a list has, where that is fixed.
        check: raises UserError, with the flag's name in it, for a text that is none of its kind.
        free: may change when a run is resumed, because the weights do not depend on it.
        shown: on the card, in the line of settings; False for what the card says elsewhere.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    metadata = {"help": help, "bounds": bounds, "count": count, "check": check, "free": free, "shown": shown}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def with_default(owner: type, name: str, default: Any) -> Any:
    """The flag `name` of dataclass `owner` as a field of a subclass that has another default."""
    return dataclasses.field(default=default, metadata=owner.__dataclass_fields__[name].metadata)


def default_of(field: dataclasses.Field) -> Any:
    """A field's default value; dataclasses.MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class Parser(argparse.ArgumentParser):
    """Takes flags from dataclasses. Errors come in two lines, without the list of all flags, from one process only."""

    def __init__(self, **options: Any):
        super().__init__(
            **{"allow_abbrev": False, "formatter_class": argparse.ArgumentDefaultsHelpFormatter} | options
        )
        self.flags: dict[str, dataclasses.Field] = {}

    def add_flags(self, *owners: type) -> None:
        """Add the fields of dataclasses, made by `flag`."""
        for owner in owners:
            kinds = typing.get_type_hints(owner)
            for field in dataclasses.fields(owner):
                self.flags[field.name] = field
                _add(self, field, kinds[field.name])

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """As argparse's, which parses subcommands by it, too; and every value is in its flag's range."""
        values, rest = super().parse_known_args(args, namespace)
        for name, field in self.flags.items():
            if problem := value_problem(field, getattr(values, name)):
                self.error(problem)
        return values, rest

    def error(self, message: str) -> None:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            flags = [flag for flag in self._option_string_actions if "-" not in flag[2:]]
            close = difflib.get_close_matches(unknown[1], flags, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {message}\nsee {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def parse_flags(*owners: type, argv: Sequence[str] | None = None, **options: Any) -> tuple[Any, ...]:
    """One instance of each dataclass from the command line, or from `argv`; `options` are those of `Parser`."""
    parser = Parser(**options)
    parser.add_flags(*owners)
    return make_instances(vars(parser.parse_args(argv)), *owners)


def make_instances(values: dict[str, Any], *owners: type) -> tuple[Any, ...]:
    """One instance of each dataclass from parsed values by name."""
    return tuple(owner(**{field.name: values[field.name] for field in dataclasses.fields(owner)}) for owner in owners)


def check_flags(instance: Any) -> None:
    """Raise UserError for a field of a dataclass that is not in its flag's range."""
    for field in dataclasses.fields(instance):
        if problem := value_problem(field, getattr(instance, field.name)):
            raise UserError(problem)


def value_problem(field: dataclasses.Field, value: Any) -> str | None:
    """What is wrong with a flag's value, in a line that names both, or None."""
    items = value if isinstance(value, list | tuple) else [value]
    count = field.metadata.get("count")
    if count and value is not None and len(items) != count:
        return f"--{field.name} {' '.join(map(str, items))}: give {count} values"
    for item in items:
        if isinstance(item, int | float) and not isinstance(item, bool):
            allowed = _range(**field.metadata.get("bounds", {}))
            if allowed and not allowed[0](item):
                return f"--{field.name} {item}: give {allowed[1]}"
        elif isinstance(item, str) and field.metadata.get("check"):
            try:
                field.metadata["check"](item)
            except UserError as error:
                return str(error)
    return None


def _range(
    low: float | None = None, high: float | None = None, above: float | None = None, below: float | None = None
) -> tuple[Callable[[float], bool], str] | None:
    """A test of a number (NaN and infinities fail), and in words what passes it; None without a bound."""
    least = f"{low:g} or more" if low is not None else f"more than {above:g}" if above is not None else ""
    most = f"at most {high:g}" if high is not None else f"less than {below:g}" if below is not None else ""
    between = low is not None and high is not None
    words = f"{low:g} to {high:g}" if between else " and ".join(filter(None, (least, most)))

    def allowed(number: float) -> bool:
        return (
            math.isfinite(number)
            and (low is None or number >= low)
            and (high is None or number <= high)
            and (above is None or number > above)
            and (below is None or number < below)
        )

    return (allowed, words) if words else None


def _add(parser: Parser, field: dataclasses.Field, kind: Any) -> None:
    options: dict[str, Any] = {"dest": field.name, "help": field.metadata.get("help", "").replace("%", "%%")}
    options["default"] = default_of(field)
    options["required"] = options["default"] is dataclasses.MISSING
    if options["required"]:
        del options["default"]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None
        (kind,) = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is list:
        options["nargs"] = "+"
        (kind,) = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        options["choices"] = typing.get_args(kind)
        kind = type(options["choices"][0])
    if kind is bool:
        parser.add_argument(*_spellings(field.name), type=_boolean, nargs="?", const=True, **options)
        if options.get("default"):
            no = {"dest": field.name, "action": "store_false", "default": True, "help": argparse.SUPPRESS}
            parser.add_argument(*_spellings(f"no_{field.name}"), **no)
    else:
        parser.add_argument(*_spellings(field.name), type=kind, **options)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _boolean(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]
