"""The commands that prepare, score and publish: help and wrong flags come at once, and every number has its range."""

import dataclasses
import math
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from dataset_scripts.fitzpatrick17k import __main__ as fitzpatrick17k
from dataset_scripts.ham10000 import __main__ as ham10000
from dataset_scripts.phantom import __main__ as phantom
from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.flags import check_flags, default_of
from melanoma_fair_xai.fairness.__main__ import EvaluationArguments

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = "torch datasets pandas pyarrow transformers diffusers accelerate timm matplotlib scipy sklearn huggingface_hub"
MEGABYTES = 150

COMMANDS = [
    *(
        (source.module, "--data_dir=raw --seed=-1" if source.has_raw_files else "--seed=-1")
        for source in SOURCES.values()
    ),
    ("melanoma_fair_xai.fairness", "runs/r18 --seed=-1"),
    ("melanoma_fair_xai.fairness compare", "runs/r18 --references x"),
    ("melanoma_fair_xai.hub", "pull"),
    ("melanoma_fair_xai.hub card", "runs/r18 --outputs x"),
    ("melanoma_fair_xai.hub push", "runs/r18 --hub_model_id a/b --hub_dataset_id c/d"),
]
PROGRAM = f"""
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("ended", stop.code, int(status["VmHWM"].split()[0]) // 1024, *(set(sys.modules) & set({HEAVY!r}.split())))
"""


def run(words: str) -> tuple[str, int, set[str], str]:
    """Exit code, megabytes of memory, what heavy was imported, and what was said as error."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words.split()], cwd=REPOSITORY, capture_output=True, text=True
    )
    _, code, memory, *imported = done.stdout.splitlines()[-1].split()
    return code, int(memory), set(imported), done.stderr


@pytest.mark.parametrize(("command", "wrong"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_help_and_wrong_flags_wait_for_nothing(command, wrong):
    code, memory, imported, _ = run(f"{command} --help")
    assert code == "0" and not imported and memory < MEGABYTES
    code, memory, imported, error = run(f"{command} {wrong}")
    assert code == "2" and not imported and memory < MEGABYTES
    assert error.startswith("error: ") and error.count("\n") == 2


NUMBERS = [
    pytest.param(owner, field, id=f"{owner.__module__.split('.')[1]} {field.name}")
    for owner in (ham10000.Arguments, fitzpatrick17k.Arguments, phantom.Arguments, EvaluationArguments)
    for field in dataclasses.fields(owner)
    if {int, float}
    & {typing.get_type_hints(owner)[field.name], *typing.get_args(typing.get_type_hints(owner)[field.name])}
]


@pytest.mark.parametrize(("owner", "field"), NUMBERS)
def test_every_number_has_a_range_that_holds(owner, field):
    bounds = field.metadata["bounds"]
    outside = [bounds["above"], bounds["below"], math.nan, math.inf]
    outside += [None if bounds[name] is None else bounds[name] + step for name, step in (("low", -1), ("high", 1))]
    assert any(bound is not None for bound in bounds.values())
    for value in outside:
        if value is not None:
            own = dataclasses.make_dataclass("Own", [(field.name, float, dataclasses.field(metadata=field.metadata))])
            with pytest.raises(UserError, match=f"--{field.name} {value}: give "):
                check_flags(own(value))
    assert default_of(field) is None or not check_flags(own(default_of(field)))
