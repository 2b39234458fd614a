"""Command lines of the trainings: parsed into dataclasses, kept beside the run, and taken up again on resuming."""

import argparse
import dataclasses
import difflib
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import transformers

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import plain, write_json

from .run_folder import ARGUMENTS_NAME, LATEST

# What may change when a run is resumed, because the weights do not depend on it. All else is refused if it differs.
FREE_ON_RESUME = frozenset(
    {
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "data_dir",
        "cache_dir",
        "dataloader_num_workers",
        "eval_batch_size",
        "report_to",
        "logging_dir",
        "logging_steps",
        "push_to_hub",
        "hub_model_id",
        "hub_token",
        "hub_private_repo",
    }
)


class _Parser(transformers.HfArgumentParser):
    """Errors in two lines, without the list of all flags, and said by one process only."""

    def error(self, message: str) -> None:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            flags = [flag for flag in self._option_string_actions if "-" not in flag[2:]]
            close = difflib.get_close_matches(unknown[1], flags, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {message}\nsee {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def parse_arguments(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass from the command line, or from `argv`.

    With `--resume_from_checkpoint`, flags that are not given come from the `training_args.json` in `--output_dir`, or
    else beside the checkpoint that is named; where neither has one, the defaults stand. UserError if a flag is given
    that contradicts that file and would change the result (any but those in `FREE_ON_RESUME`).
    """
    given = _given_flags(dataclass_types, argv)
    parser = _Parser(dataclass_types, allow_abbrev=False)
    saved = {}
    if given.get("resume_from_checkpoint"):
        known = {action.dest for action in parser._actions}
        saved = _saved_arguments(given, known, parser.get_default("output_dir"))
    parser.set_defaults(**saved)
    for action in parser._actions:
        action.required = action.required and action.dest not in saved
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def _given_flags(dataclass_types: Sequence[type], argv: Sequence[str] | None) -> dict[str, Any]:
    parser = _Parser(dataclass_types, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(parser.parse_args(argv))


def _saved_arguments(given: dict[str, Any], known: set[str], default_folder: str | None) -> dict[str, Any]:
    resumed = given["resume_from_checkpoint"]
    beside = [] if resumed == LATEST else [pathlib.Path(resumed).parent]
    folders = [given["output_dir"], *beside] if "output_dir" in given else [*beside, default_folder or "."]
    path = next(filter(pathlib.Path.is_file, (pathlib.Path(folder, ARGUMENTS_NAME) for folder in folders)), None)
    if path is None:
        return {}
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); move it away, and give all flags") from None
    # The folder may have been moved, and has not been overwritten if it is still there.
    saved.update(output_dir=str(path.parent), overwrite_output_dir=False)
    for name, value in saved.items():
        if name in given and name not in FREE_ON_RESUME and plain(given[name]) != value:
            raise UserError(
                f"--{name} {given[name]}: the run in {path.parent} has {value}, and a resumed run keeps it;\n"
                "leave the flag out, or start anew in another --output_dir"
            )
    return {name: value for name, value in saved.items() if name in known}


def command_line(script: str, *instances: Any) -> str:
    """The launch that gives these arguments: flags that differ from their defaults, in lines that a shell joins.

    Flags that change no result, such as those of resuming and tokens, are left out, but for --output_dir.
    """
    lines = [f"accelerate launch {script}"]
    for instance in instances:
        for field in dataclasses.fields(instance):
            value = getattr(instance, field.name)
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            if value == default or field.name in FREE_ON_RESUME - {"output_dir", "data_dir"}:
                continue
            if isinstance(value, bool):
                lines.append(f"--{field.name}" if value else f"--no_{field.name}")
            else:
                values = value if isinstance(value, list) else [value]
                lines.append(" ".join([f"--{field.name}", *(shlex.quote(str(item)) for item in values)]))
    return " \\\n    ".join(lines)


def save_arguments(path: str | os.PathLike, *instances: Any, **extra: Any) -> None:
    """Write the dataclasses' fields, and `extra`, as one JSON object, whole or not at all. Tokens are left out."""
    values = {name: value for instance in instances for name, value in vars(instance).items()}
    write_json(path, {name: value for name, value in values.items() if not name.endswith("token")} | extra)
