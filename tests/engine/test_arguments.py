import json
import shlex
from dataclasses import dataclass
from typing import Literal

import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.flags import flag
from melanoma_fair_xai.engine.arguments import command_line, parse_arguments, save_arguments
from melanoma_fair_xai.fairness.threshold_rules import parse_threshold_rule


@dataclass
class DataArguments:
    dataset_name: str = flag(help="Required.")
    positive_labels: list[str] = flag([])
    max_train_samples: int | None = flag(None, low=1)


@dataclass
class TrainingArguments:
    output_dir: str = flag("run", free=True)
    overwrite_output_dir: bool = flag(False, free=True)
    resume_from_checkpoint: str | None = flag(None, free=True)
    learning_rate: float = flag(1e-3, above=0)
    train_batch_size: int = flag(8, low=1)
    pretrained: bool = flag(True)
    target: Literal["melanoma_vs_rest", "diagnosis"] = flag("melanoma_vs_rest")
    checkpointing_steps: int = flag(500, low=1, free=True)
    dropout: float = flag(0.0, low=0, below=1)
    shares: list[float] = flag([0.0, 1.0], low=0, high=1)
    threshold_rule: str = flag("youden", check=parse_threshold_rule)


def parse(*argv):
    return parse_arguments(DataArguments, TrainingArguments, argv=argv)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that was started with flags of its own, in the default --output_dir."""
    monkeypatch.chdir(tmp_path)
    flags = "--dataset_name a --positive_labels x y --learning_rate 3e-4 --no_pretrained --target diagnosis".split()
    (tmp_path / "run").mkdir()
    save_arguments(tmp_path / "run" / "training_args.json", *parse(*flags), commit="abc")
    return tmp_path / "run"


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 2 and message.startswith("error: ")
    return message


def test_flags_and_defaults():
    data, training = parse("--dataset_name", "phantom", "--train-batch-size", "16", "--no_pretrained")
    assert data == DataArguments("phantom")
    assert training == TrainingArguments(train_batch_size=16, pretrained=False)


def test_errors_take_two_lines_and_name_the_flag(capsys):
    assert "--dataset_name" in refused(capsys)
    assert "--train_batch_size" in refused(capsys, "--dataset_name", "a", "--train_batch_size", "many")
    assert "invalid choice: 'tumour'" in refused(capsys, "--dataset_name", "a", "--target", "tumour")
    assert "did you mean --learning_rate?" in refused(capsys, "--dataset_name", "a", "--learning_rte", "1")
    assert "--learning" in refused(capsys, "--dataset_name", "a", "--learning", "1")  # no abbreviations


def test_arguments_are_saved(run):
    saved = json.loads((run / "training_args.json").read_text())
    assert saved["learning_rate"] == 3e-4 and saved["positive_labels"] == ["x", "y"] and saved["commit"] == "abc"


def test_resuming_takes_the_flags_from_the_run(run):
    data, training = parse("--resume_from_checkpoint", "latest")
    assert data == DataArguments("a", ["x", "y"])
    expected = TrainingArguments("run", False, "latest", 3e-4, pretrained=False, target="diagnosis")
    assert training == expected


def test_resuming_a_run_that_was_moved_or_is_named_by_its_checkpoint(run, tmp_path):
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    (_, training) = parse("--resume_from_checkpoint", "latest", "--output_dir", str(moved))
    assert (training.output_dir, training.learning_rate) == (str(moved), 3e-4)
    (_, training) = parse("--resume_from_checkpoint", str(moved / "checkpoint-40"))
    assert (training.output_dir, training.learning_rate) == (str(moved), 3e-4)
    # Into another folder: the flags still come from beside the checkpoint.
    (_, training) = parse("--resume_from_checkpoint", str(moved / "checkpoint-40"), "--output_dir", "new")
    assert (training.output_dir, training.learning_rate) == ("new", 3e-4)


def test_what_does_not_change_the_result_may_change(run):
    same = ("--learning_rate", "0.0003", "--positive_labels", "x", "y")
    _, training = parse("--resume_from_checkpoint", "latest", "--checkpointing_steps", "9", *same)
    assert (training.checkpointing_steps, training.learning_rate) == (9, 3e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learning_rate", "0.1"), "--learning_rate 0.1: the run in run has 0.0003"),
        (("--pretrained",), "--pretrained True: the run in run has False"),
        (("--max_train_samples", "5"), "--max_train_samples 5: the run in run has None"),
        (("--train_batch_size", "16"), "--train_batch_size 16: the run in run has 8"),
    ],
)
def test_what_changes_the_result_is_refused(run, flags, message):
    with pytest.raises(UserError, match=message):
        parse("--resume_from_checkpoint", "latest", *flags)


def test_nothing_to_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data, training = parse("--resume_from_checkpoint", "latest", "--dataset_name", "b")
    assert (data.dataset_name, training.output_dir) == ("b", "run")
    assert "--dataset_name" in refused(capsys, "--resume_from_checkpoint", "latest")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00\xff"])
def test_unreadable_file(run, text):
    (run / "training_args.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="training_args.json: cannot be read"):
        parse("--resume_from_checkpoint", "latest")


def test_flags_that_an_older_version_did_not_have_or_a_newer_one_has_not(run):
    path = run / "training_args.json"
    saved = json.loads(path.read_text())
    del saved["checkpointing_steps"]
    path.write_text(json.dumps({**saved, "retired_flag": 1}))
    _, training = parse("--resume_from_checkpoint", "latest")
    assert training.checkpointing_steps == 500


def test_the_command_line_that_is_told_gives_the_same_arguments():
    flags = ["--dataset_name", "a b", "--positive_labels", "x", "it's", "--no_pretrained", "--learning_rate", "3e-4"]
    flags += ["--output_dir", "elsewhere", "--overwrite_output_dir"]
    command = command_line("train.py", *parse(*flags))
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["accelerate", "launch", "train.py"]
    data, training = parse(*words[3:])
    expected_data, expected = parse(*flags[:-1])
    assert (data, training) == (expected_data, expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_batch_size 0", "--train_batch_size 0: give 1 or more"),
        ("--learning_rate 0", "--learning_rate 0.0: give more than 0"),
        ("--learning_rate nan", "--learning_rate nan: give more than 0"),
        ("--learning_rate inf", "--learning_rate inf: give more than 0"),
        ("--dropout 1", "--dropout 1.0: give 0 or more and less than 1"),
        ("--shares 0.5 1.5", "--shares 1.5: give 0 to 1"),
        ("--max_train_samples -5", "--max_train_samples -5: give 1 or more"),
        ("--threshold_rule best", "--threshold_rule best: unknown rule; give youden, sensitivity=VALUE"),
        ("--pretrained perhaps", "argument --pretrained: 'perhaps' is neither true nor false"),
    ],
)
def test_values_out_of_range_are_refused(capsys, flags, message):
    assert refused(capsys, "--dataset_name", "a", *flags.split()).startswith(f"error: {message}")


@pytest.mark.parametrize(
    "flags", ["--train_batch_size 1", "--learning_rate 1e-9", "--dropout 0", "--dropout 0.99", "--shares 0 1"]
)
def test_the_ends_of_a_range_pass(flags):
    parse("--dataset_name", "a", *flags.split())


def test_a_value_out_of_range_that_was_saved_is_refused_too(run, capsys):
    path = run / "training_args.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "train_batch_size": 0}))
    assert "--train_batch_size 0" in refused(capsys, "--resume_from_checkpoint", "latest")
