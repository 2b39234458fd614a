"""Every flag of every script: values outside its range end in two lines that name it, before anything is loaded."""

import dataclasses
import math
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import explain
import generate
import train_classifier
import train_diffusion
from melanoma_fair_xai.classifier import arguments as classifier
from melanoma_fair_xai.diffusion import arguments as diffusion
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.engine.arguments import parse_arguments
from melanoma_fair_xai.hub.arguments import HubArguments

REPOSITORY = Path(train_classifier.__file__).parent
SCRIPTS = {
    "train_classifier.py": (
        classifier.TaskArguments,
        classifier.ModelArguments,
        classifier.TrainingArguments,
        HubArguments,
    ),
    "train_diffusion.py": (
        diffusion.ConditionArguments,
        diffusion.ModelArguments,
        diffusion.TrainingArguments,
        HubArguments,
    ),
    "explain.py": (explain.ExplainArguments, explain.SplitArguments),
    "generate.py": (generate.GenerateArguments,),
}
# Texts that may be anything: names, folders and columns, which are looked for when they are needed.
FREE_TEXTS = {
    *("dataset_name", "dataset_config_name", "data_dir", "split_manifest", "image_column_name", "label_column_name"),
    *("positive_labels", "lesion_column_name", "group_by", "synthetic_dir", "model_name_or_path", "revision"),
    *("pretrained_weights", "output_dir", "eval_split", "mitigation_group", "resume_from_checkpoint", "logging_dir"),
    *("hub_model_id", "conditions", "layer", "images", "split", "like", "balance", "reject_copies"),
    *(name for name, condition in CONDITIONS.items() if not condition.is_measure),
}
REQUIRED = {"explain.py": ["--model_name_or_path", "x"]}
HEAVY = "torch numpy pandas datasets transformers diffusers accelerate timm captum matplotlib scipy sklearn pyarrow"


def plain_kind(kind) -> type:
    """The kind of one value: that of X for X | None and list[X]."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = [part for part in typing.get_args(kind) if part is not type(None)]
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind


FLAGS = [
    pytest.param(script, field, plain_kind(typing.get_type_hints(owner)[field.name]), id=f"{script}-{field.name}")
    for script, owners in SCRIPTS.items()
    for owner in owners
    for field in dataclasses.fields(owner)
]


def outside(field: dataclasses.Field, kind: type) -> list[str]:
    """Values that the flag must refuse: just beyond each bound, and what is no number or none of the choices."""
    if typing.get_origin(kind) is typing.Literal:
        return ["no-such-choice"]
    if kind is bool:
        return ["perhaps"]
    if kind is str:
        return [] if field.name in FREE_TEXTS else ["no such thing"]
    bounds = field.metadata["bounds"]
    assert any(value is not None for value in bounds.values()), f"--{field.name} has no range"
    beyond = [bounds["above"], bounds["below"]]
    if kind is int:
        beyond += [None if bounds["low"] is None else bounds["low"] - 1]
        beyond += [None if bounds["high"] is None else bounds["high"] + 1]
    else:
        beyond += [None if bounds["low"] is None else math.nextafter(bounds["low"], -math.inf)]
        beyond += [None if bounds["high"] is None else math.nextafter(bounds["high"], math.inf)]
        beyond += [math.nan, math.inf]
    return ["many", *(repr(value) for value in beyond if value is not None)]


@pytest.mark.parametrize(("script", "field", "kind"), [flag for flag in FLAGS if flag.values[1].metadata["count"]])
def test_a_list_has_as_many_values_as_its_flag_says(script, field, kind, capsys):
    count = field.metadata["count"]
    for number in (1, count, count + 1):
        argv = [*REQUIRED.get(script, []), f"--{field.name}", *["0.5"] * number]
        if number == count:
            parse_arguments(*SCRIPTS[script], argv=argv)
            continue
        with pytest.raises(SystemExit):
            parse_arguments(*SCRIPTS[script], argv=argv)
        assert f"--{field.name} {' '.join(['0.5'] * number)}: give {count} values" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "field", "kind"), FLAGS)
def test_a_value_outside_its_range_is_refused_by_the_flags_name(script, field, kind, capsys):
    for value in outside(field, kind):
        required = [] if field.name == "model_name_or_path" else REQUIRED.get(script, [])
        with pytest.raises(SystemExit) as stop:
            parse_arguments(*SCRIPTS[script], argv=[*required, f"--{field.name}={value}"])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and f"--{field.name}" in error and error.count("\n") == 2, (value, error)


def test_what_is_free_text_is_a_flag():
    assert FREE_TEXTS <= {flag.values[1].name for flag in FLAGS}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--drop_rate", "2"], "--drop_rate 2.0: give 0 or more and less than 1"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0: give 1 or more"),
        (["--report_to", "x"], "argument --report_to/--report-to: invalid choice: 'x'"),
        (["--threshold_rule", "best"], "--threshold_rule best: unknown rule"),
    ],
)
def test_a_script_says_so_before_it_writes(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *flags])
    with pytest.raises(SystemExit) as stop:
        train_classifier.main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {words}")
    assert not list(tmp_path.iterdir())


LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print("ended", stop.code, *(set(sys.modules) & set(HEAVY.split())))
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", 2), ("--seed=-1", 2)])
def test_help_and_wrong_flags_load_nothing_heavy(script, flag, code):
    """Of HEAVY, at most numpy, which traps need to be drawn."""
    words = [script, flag] if flag == "--help" else [script, *REQUIRED.get(script, []), flag]
    program = LOADED.replace("HEAVY", repr(HEAVY))
    result = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    ended = result.stdout.splitlines()[-1].split()
    assert ended[:2] == ["ended", str(code)], result.stderr
    assert set(ended[2:]) <= {"numpy"}


def test_schedules_and_trackers_are_those_of_the_libraries():
    import torch
    import transformers
    from accelerate.utils import LoggerType

    from melanoma_fair_xai.engine.options import SCHEDULES, TRACKERS

    # A version of accelerate may have more.
    assert set(typing.get_args(TRACKERS)) <= {str(name) for name in LoggerType} - {"all"} | {"none"}
    for name in typing.get_args(SCHEDULES):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = transformers.get_scheduler(name, optimizer, 2, 10)
        optimizer.step()
        schedule.step()
        assert 0 < schedule.get_last_lr()[0] <= 1, name


def test_both_trainings_have_the_flags_of_every_training():
    shared = {field.name for field in dataclasses.fields(train_diffusion.TrainingArguments)} & {
        field.name for field in dataclasses.fields(train_classifier.TrainingArguments)
    }
    assert len(shared) > 20
    for owner in (train_diffusion.TrainingArguments, train_classifier.TrainingArguments):
        for field in dataclasses.fields(owner):
            base = owner.__mro__[1].__dataclass_fields__.get(field.name)
            # A default of one's own, never another range, freedom or place on the card.
            own = {"help", "check"}
            if base is not None and field.name != "class_balanced_sampling":
                same = {name: value for name, value in field.metadata.items() if name not in own}
                assert same == {name: value for name, value in base.metadata.items() if name not in own}, field.name
