"""Command lines of the scripts: parsed, kept beside a run, and taken up again when it is resumed."""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import plain, write_json
from melanoma_fair_xai.base.flags import Parser, default_of, make_instances

ARGUMENTS_NAME = "training_args.json"
LATEST = "latest"  # --resume_from_checkpoint latest


def parse_arguments(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass from the command line, or from `argv`; every value is in its flag's range.

    With `--resume_from_checkpoint`, flags that are not given come from the `training_args.json` in `--output_dir`, or
    else beside the checkpoint that is named; where neither has one, the defaults stand. UserError if a flag is given
    that contradicts that file and is not free to change.
    """
    parser = Parser()
    parser.add_flags(*dataclass_types)
    given = _given_flags(dataclass_types, argv)
    saved = _saved_arguments(given, parser.flags) if given.get("resume_from_checkpoint") else {}
    parser.set_defaults(**saved)
    for action in parser._actions:
        action.required = action.required and action.dest not in saved
    return make_instances(vars(parser.parse_args(argv)), *dataclass_types)


def _given_flags(dataclass_types: Sequence[type], argv: Sequence[str] | None) -> dict[str, Any]:
    parser = Parser()
    parser.add_flags(*dataclass_types)
    parser.flags.clear()  # ranges are looked at when all values are there
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(parser.parse_args(argv))


def _saved_arguments(given: dict[str, Any], fields: dict[str, dataclasses.Field]) -> dict[str, Any]:
    resumed = given["resume_from_checkpoint"]
    beside = [] if resumed == LATEST else [pathlib.Path(resumed).parent]
    default = default_of(fields["output_dir"])
    folders = [given["output_dir"], *beside] if "output_dir" in given else [*beside, default]
    path = next(filter(pathlib.Path.is_file, (pathlib.Path(folder, ARGUMENTS_NAME) for folder in folders)), None)
    if path is None:
        return {}
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); move it away, and give all flags") from None
    # The folder may have been moved, and has not been overwritten if it is still there.
    saved.update(output_dir=str(path.parent), overwrite_output_dir=False)
    saved = {name: value for name, value in saved.items() if name in fields}
    for name, value in saved.items():
        if name in given and not fields[name].metadata.get("free") and plain(given[name]) != value:
            raise UserError(
                f"--{name} {given[name]}: the run in {path.parent} has {value}, and a resumed run keeps it;\n"
                "leave the flag out, or start anew in another --output_dir"
            )
    return saved


def settings(*instances: Any) -> dict[str, Any]:
    """The fields of dataclasses that decide what a run gives, as JSON can hold them: those not free on resuming."""
    return {
        field.name: plain(getattr(instance, field.name))
        for instance in instances
        for field in dataclasses.fields(instance)
        if not field.metadata.get("free")
    }


def command_line(script: str, *instances: Any) -> str:
    """The launch that gives these arguments: flags that differ from their defaults, in lines that a shell joins.

    Flags that change no result, such as those of resuming, are left out, but for --output_dir and --data_dir.
    """
    lines = [f"accelerate launch {script}"]
    for instance in instances:
        for field in dataclasses.fields(instance):
            value = getattr(instance, field.name)
            unneeded = field.metadata.get("free") and field.name not in ("output_dir", "data_dir")
            if unneeded or value == default_of(field):
                continue
            if isinstance(value, bool):
                lines.append(f"--{field.name}" if value else f"--no_{field.name}")
            else:
                values = value if isinstance(value, list) else [value]
                lines.append(" ".join([f"--{field.name}", *(shlex.quote(str(item)) for item in values)]))
    return " \\\n    ".join(lines)


def save_arguments(path: str | os.PathLike, *instances: Any, **extra: Any) -> None:
    """Write the dataclasses' fields, and `extra`, as one JSON object, whole or not at all."""
    write_json(path, {name: value for instance in instances for name, value in vars(instance).items()} | extra)
