"""Score predictions again by any group, or compare runs on the same lesions, without the model.

python -m melanoma_fair_xai.fairness runs/r18/predictions/test.parquet --group_by sex age_band "sex*age_band"
python -m melanoma_fair_xai.fairness compare runs/r18 runs/r18-balanced --group_by sex
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.files import check_replaceable, locked
from melanoma_fair_xai.base.flags import Parser, flag

if TYPE_CHECKING:
    import pandas as pd

LOCK_NAME = ".melanoma-fair-xai-report.lock"  # another than that of a run, in whose folder a report may be written
# How the files begin that a later report may replace.
REPORT = {"fairness.md": "# Performance by group", "fairness.csv": "kind,group_column,"}
COMPARISON = {"comparison.md": "# Models compared", "comparison.csv": "kind,group_column,"}

# What does the work is imported once the flags are read: neither --help nor a wrong flag need wait for the statistics.


def check_reference(text: str) -> None:
    """Raise UserError for what is not COLUMN=GROUP."""
    if "=" not in text:
        raise UserError(f"--reference {text}: give COLUMN=GROUP, such as fitzpatrick_group=I-II")


@dataclass
class ReportArguments:
    group_by: list[str] | None = flag(
        None,
        'Columns of the table, fitzpatrick_group, age_band, ita_tertile, or pairs such as "fitzpatrick*sex"; '
        "default: whatever the table has.",
    )
    reference: list[str] = flag([], "COLUMN=GROUP: the group that others are compared with.", check=check_reference)
    case_control: bool = flag(
        False, "The design fixed how many lesions of each group are melanomas; by default that is chance."
    )
    family: Literal["primary", "holm", "benjamini-hochberg"] = flag(
        "primary",
        "primary: tests are those of the primary grouping, adjusted by Holm; holm, benjamini-hochberg: those of all "
        "columns, adjusted together, for the chance of any false alarm or for their share among the findings.",
    )
    output_dir: str = flag("report", "Files of an earlier report in it are replaced.")


@dataclass
class EvaluationArguments(ReportArguments):
    n_resamples: int = flag(2000, "Bootstrap replicates.", low=100)
    seed: int = flag(0, "Of the resampling.", low=0)
    title: str = flag("", "Stands over the report.")


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["compare"]:
        compare_runs(arguments[1:])
    else:
        evaluate_runs(arguments)


def evaluate_runs(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m melanoma_fair_xai.fairness",
        description="Performance by group with intervals: fairness.csv, fairness.md and figures. "
        "With `compare` as the first word, runs are compared instead (compare --help).",
    )
    parser.add_argument("predictions", nargs="+", help="Parquet tables, or run folders, that are evaluated together")
    parser.add_flags(EvaluationArguments)
    options = parser.parse_args(arguments)
    check_replaceable(options.output_dir, REPORT)
    from .predictions import read_predictions
    from .stratified import evaluate_predictions

    table = read_predictions(*options.predictions)
    report = evaluate_predictions(
        table,
        options.group_by,
        reference=_references(options.reference),
        n_resamples=options.n_resamples,
        seed=options.seed,
        case_control=options.case_control,
        family=options.family,
        show_progress=True,
    )
    title = options.title or ("phantom data, no patients" if _are_phantoms(table) else "")
    with _turn(options.output_dir):
        report.write(options.output_dir, title, show_progress=True)
    print(report.to_markdown())
    print(f"report:  {Path(options.output_dir, 'fairness.md')}\nfigures: {Path(options.output_dir, 'figures')}")


def compare_runs(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m melanoma_fair_xai.fairness compare",
        description="Paired differences from the first run, on the same lesions.",
    )
    parser.add_argument("runs", nargs="+", help="run folders or Parquet tables; the first is the baseline")
    parser.add_flags(ReportArguments)
    options = parser.parse_args(arguments)
    if len(set(options.runs)) < len(options.runs):
        raise UserError("a run is named twice; give different runs to compare")
    check_replaceable(options.output_dir, COMPARISON)
    from .comparison import compare
    from .predictions import read_predictions, read_validation

    tables = {_run_name(run, options.runs): read_predictions(run) for run in options.runs}
    validation = {_run_name(run, options.runs): read_validation(run) for run in options.runs}
    comparison = compare(
        tables,
        options.group_by,
        _references(options.reference),
        case_control=options.case_control,
        family=options.family,
        show_progress=True,
        validation={name: known for name, known in validation.items() if known},
    )
    with _turn(options.output_dir):
        comparison.write(options.output_dir)
    print(comparison.to_markdown())
    print(f"report: {Path(options.output_dir, 'comparison.md')}")


def _turn(output_dir: str) -> contextlib.AbstractContextManager:
    """Reports that go to one folder are written one after the other: the files of the last are of one report."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    return locked(Path(output_dir, LOCK_NAME), f"{output_dir}: another report is being written there")


def _references(texts: list[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts)


def _run_name(run: str, runs: list[str]) -> str:
    """The folder's name if no other run has it, else the path."""
    names = [Path(other).name for other in runs]
    return Path(run).name if names.count(Path(run).name) == 1 else run


def _are_phantoms(table: "pd.DataFrame") -> bool:
    return "source" in table and bool((table["source"] == "phantom").any())


if __name__ == "__main__":
    run_command(main)
