"""Flags that are declared once: their kinds, their ranges, and what is said of a wrong one."""

import dataclasses
from typing import Literal

import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.flags import Parser, check_flags, flag, parse_flags, with_default


def even(text: str) -> None:
    if len(text) % 2:
        raise UserError(f"--name {text}: give an even number of letters")


@dataclasses.dataclass(kw_only=True)
class Own:
    data_dir: str = flag(help="Needed.")
    steps: int = flag(3, "At least one.", low=1)
    share: float | None = flag(None, "50 % or so.", low=0, high=1)
    rate: float = flag(1.0, above=0, below=2)
    weights: list[float] = flag([1.0, 2.0], low=0)
    kind: Literal["a", "b"] = flag("a")
    name: str | None = flag(None, check=even)
    loud: bool = flag(False)
    private: bool = flag(True)


@dataclasses.dataclass(kw_only=True)
class Quiet(Own):
    steps: int = with_default(Own, "steps", 7)


def parse(*words: str, owner: type = Own):
    return parse_flags(owner, argv=["--data_dir", "raw", *words], prog="own")[0]


def test_defaults_stand_and_flags_are_of_their_kind():
    assert parse() == Own(data_dir="raw")
    given = parse(*"--steps 5 --share 0.5 --weights 3 4 5 --kind b --name even --loud --no_private".split())
    assert (given.steps, given.share, given.weights, given.kind) == (5, 0.5, [3.0, 4.0, 5.0], "b")
    assert (given.name, given.loud, given.private) == ("even", True, False)
    assert parse("--loud", "false", "--private", "no") == Own(data_dir="raw", private=False)
    assert parse("--rate", "1.5").rate == parse("--rate=1.5").rate == 1.5
    assert parse(owner=Quiet).steps == 7 and parse("--steps", "1", owner=Quiet).steps == 1
    assert parse().weights is not parse().weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "--steps 0: give 1 or more"),
        ("--steps 1.5", "--steps: invalid int value: '1.5'"),
        ("--share -0.1", "--share -0.1: give 0 to 1"),
        ("--share 1.1", "--share 1.1: give 0 to 1"),
        ("--share nan", "--share nan: give 0 to 1"),
        ("--rate 0", "--rate 0.0: give more than 0 and less than 2"),
        ("--rate 2", "--rate 2.0: give more than 0 and less than 2"),
        ("--rate inf", "--rate inf: give more"),
        ("--weights 1 -1", "--weights -1.0: give 0 or more"),
        ("--kind c", "invalid choice: 'c'"),
        ("--name odd", "--name odd: give an even number of letters"),
        ("--loud maybe", "'maybe' is neither true nor false"),
        ("--step 5", "unrecognized arguments: --step 5; did you mean --steps?"),
    ],
)
def test_a_wrong_flag_is_named_in_two_lines_and_ends_with_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*words.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said
    assert said.startswith("error: ") and said.endswith("\nsee own --help\n") and said.count("\n") == 2


def test_bounds_themselves_are_allowed_where_they_belong():
    for words in ("--steps 1", "--share 0", "--share 1", "--weights 0", "--rate 1.999"):
        parse(*words.split())


def test_what_is_needed_must_be_given(capsys):
    with pytest.raises(SystemExit):
        parse_flags(Own, argv=[], prog="own")
    assert "required: --data_dir" in capsys.readouterr().err


def test_only_one_of_many_processes_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        parse("--steps", "0")
    assert ended.value.code == 2 and capsys.readouterr().err == ""


def test_a_subcommands_flags_have_ranges_too(capsys):
    parser = Parser(prog="own")
    parser.add_subparsers().add_parser("do").add_flags(Own)
    assert parser.parse_args(["do", "--data_dir", "raw"]).steps == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["do", "--data_dir", "raw", "--steps", "0"])
    assert "--steps 0: give 1 or more" in capsys.readouterr().err


def test_values_from_python_are_held_to_the_same():
    check_flags(Own(data_dir="raw", weights=(0, 1)))
    with pytest.raises(UserError, match="--weights -1: give 0 or more"):
        check_flags(Own(data_dir="raw", weights=(0, -1)))


def test_help_shows_every_flag_its_default_and_a_percent_sign(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "50 % or so. (default: None)" in said and "At least one. (default: 3)" in said
