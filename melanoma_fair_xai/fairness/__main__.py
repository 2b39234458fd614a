"""Score predictions again by any group, or compare runs on the same lesions, without the model.

python -m melanoma_fair_xai.fairness runs/r18/predictions/test.parquet --group_by sex age_band "sex*age_band"
python -m melanoma_fair_xai.fairness compare runs/r18 runs/r18-balanced --group_by sex
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from melanoma_fair_xai.base.errors import UserError, run_command

from .comparison import compare
from .predictions import read_predictions
from .stratified import evaluate_predictions


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["compare"]:
        compare_runs(arguments[1:])
    else:
        evaluate_runs(arguments)


def evaluate_runs(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m melanoma_fair_xai.fairness",
        description="Performance by group with intervals: fairness.csv, fairness.md and figures. "
        "With `compare` as the first word, runs are compared instead (compare --help).",
    )
    parser.add_argument("predictions", nargs="+", help="Parquet tables, or run folders, that are evaluated together")
    _add_common(parser)
    parser.add_argument("--n_resamples", type=int, default=2000, help="bootstrap replicates and permutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--title", default="", help="stands over the report")
    options = parser.parse_args(arguments)
    if options.n_resamples < 100:
        raise UserError(f"--n_resamples {options.n_resamples}: at least 100")
    table = read_predictions(*options.predictions)
    report = evaluate_predictions(
        table,
        options.group_by,
        reference=_references(options.reference),
        n_resamples=options.n_resamples,
        seed=options.seed,
        show_progress=True,
    )
    title = options.title or ("phantom data, no patients" if _are_phantoms(table) else "")
    report.write(options.output_dir, title, show_progress=True)
    print(report.to_markdown())
    print(f"report:  {Path(options.output_dir, 'fairness.md')}\nfigures: {Path(options.output_dir, 'figures')}")


def compare_runs(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m melanoma_fair_xai.fairness compare",
        description="Paired differences from the first run, on the same lesions.",
    )
    parser.add_argument("runs", nargs="+", help="run folders or Parquet tables; the first is the baseline")
    _add_common(parser)
    options = parser.parse_args(arguments)
    if len(set(options.runs)) < len(options.runs):
        raise UserError("a run is named twice; give different runs to compare")
    tables = {_run_name(run, options.runs): read_predictions(run) for run in options.runs}
    comparison = compare(tables, options.group_by, _references(options.reference), show_progress=True)
    comparison.write(options.output_dir)
    print(comparison.to_markdown())
    print(f"report: {Path(options.output_dir, 'comparison.md')}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group_by",
        nargs="+",
        metavar="COLUMN",
        help='columns of the table, fitzpatrick_group, age_band, ita_tertile, or pairs such as "fitzpatrick*sex"; '
        "default: whatever the table has",
    )
    parser.add_argument(
        "--reference", nargs="+", default=[], metavar="COLUMN=GROUP", help="the group that others are compared with"
    )
    parser.add_argument("--output_dir", default="report", help="files of an earlier report in it are replaced")


def _references(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise UserError(f"--reference {text}: give COLUMN=GROUP, such as fitzpatrick_group=I-II")
    return dict(text.split("=", 1) for text in texts)


def _run_name(run: str, runs: list[str]) -> str:
    """The folder's name if no other run has it, else the path."""
    names = [Path(other).name for other in runs]
    return Path(run).name if names.count(Path(run).name) == 1 else run


def _are_phantoms(table: pd.DataFrame) -> bool:
    return "source" in table and bool((table["source"] == "phantom").any())


if __name__ == "__main__":
    run_command(main)
