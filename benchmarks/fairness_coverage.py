"""What the fairness report's intervals and tests are worth, by simulation: coverage, size and power.

    OMP_NUM_THREADS=1 python -m benchmarks.fairness_coverage --output coverage.csv --workers 16
    python -m benchmarks.fairness_coverage --studies near_one --cells 0.995 --data_sets 200
    python -m benchmarks.fairness_coverage --tables coverage.csv

The first writes a row for each figure of each cell of each study as the cells end, and given again goes on where it
was stopped; the last prints the rows as tables. What is drawn: benchmarks/fairness_studies.py.
"""

import argparse
import csv
import math
import multiprocessing
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from benchmarks.fairness_studies import STUDIES, Outcome
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.tables import markdown_table

CHUNK = 20  # data sets that a worker draws at a time
FIELDS = ["study", "cell", "kind", "quantity", "per_cent", "standard_error", "given", "data_sets", "cpu_seconds"]


def cell_name(study: str, cell: tuple) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(STUDIES[study].parameters, cell, strict=True))


def draw_chunk(task: tuple[str, tuple, range]) -> tuple[str, tuple, list[Outcome], float]:
    """The outcomes of some data sets of a cell, which depend on their numbers alone, and the CPU seconds."""
    study, cell, numbers = task
    start, seed = time.process_time(), zlib.crc32(f"{study} {cell_name(study, cell)}".encode())
    outcomes = [STUDIES[study].draw(np.random.default_rng([seed, number]), *cell) for number in numbers]
    return study, cell, outcomes, time.process_time() - start


def rows_of(study: str, cell: tuple, outcomes: list[Outcome], seconds: float) -> Iterator[dict]:
    """The rows of a cell: shares of the data sets that gave an interval or a p-value."""
    for kind, quantity in outcomes[0]:
        given = [outcome[kind, quantity] for outcome in outcomes if outcome[kind, quantity] is not None]
        share = np.mean(given) if given else np.nan
        error = math.sqrt(share * (1 - share) / len(given)) if given else np.nan
        figures = [f"{100 * share:.1f}", f"{100 * error:.2f}", len(given), len(outcomes), f"{seconds:.2f}"]
        yield dict(zip(FIELDS, [study, cell_name(study, cell), kind, quantity, *figures], strict=True))


def simulate(cells: list[tuple[str, tuple]], data_sets: int, workers: int, output: Path) -> None:
    """Draw the cells that `output` lacks, and append their rows to it."""
    done = set()
    if output.exists():
        known = pd.read_csv(output)
        done = set(known.loc[known["data_sets"] >= data_sets, ["study", "cell"]].itertuples(index=False, name=None))
    cells = [(study, cell) for study, cell in cells if (study, cell_name(study, cell)) not in done]
    starts = range(0, data_sets, CHUNK)
    tasks = [(*cell, range(start, min(start + CHUNK, data_sets))) for cell in cells for start in starts]
    found: dict[tuple, list] = {}
    with multiprocessing.Pool(workers) as pool, tqdm(total=len(cells), unit="cell") as bar:
        for study, cell, outcomes, seconds in pool.imap_unordered(draw_chunk, tasks):
            parts = found.setdefault((study, cell), [])
            parts.append((outcomes, seconds))
            if len(parts) < len(starts):
                continue
            every = [outcome for outcomes, _ in found.pop((study, cell)) for outcome in outcomes]
            new = not output.exists()
            with output.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerows(rows_of(study, cell, every, sum(seconds for _, seconds in parts)))
            bar.update()


def tables(output: Path) -> str:
    """The rows of a file as a table for each study: per cent, and the share that was given where under 99 %."""
    rows = pd.read_csv(output).drop_duplicates(["study", "cell", "kind", "quantity"], keep="last")
    rows["order"] = [list(STUDIES).index(study) for study in rows["study"]]
    parts = []
    for study, of_study in rows.sort_values("order", kind="stable").groupby("study", sort=False):
        columns = list(of_study[["kind", "quantity"]].drop_duplicates().itertuples(index=False, name=None))
        names = [cell_name(study, cell) for cell in STUDIES[study].cells]
        by_cell = {(row.cell, row.kind, row.quantity): row for row in of_study.itertuples()}
        body = [
            [name, *(_shown(by_cell.get((name, *column))) for column in columns)]
            for name in names
            if name in set(of_study["cell"])
        ]
        header = [", ".join(STUDIES[study].parameters), *(f"{quantity} ({kind})" for kind, quantity in columns)]
        parts.append(f"### {study}\n\n{markdown_table(header, body)}")
    return "\n\n".join(parts)


def _shown(row) -> str:
    if row is None or not row.given:
        return "–"
    share = row.given / row.data_sets
    return f"{row.per_cent:.1f}" + (f" ({100 * share:.0f} %)" if share < 0.99 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage, size and power of the fairness report, by simulation.")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--cells", default="", help="only those whose name has this in it")
    parser.add_argument("--data_sets", type=int, default=1000, help="of each cell")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("coverage.csv"))
    parser.add_argument(
        "--tables", type=Path, metavar="CSV", help="print the rows of this file as tables, and no more"
    )
    arguments = parser.parse_args()
    if arguments.tables:
        print(tables(arguments.tables))
        return
    cells = [(study, cell) for study in arguments.studies for cell in STUDIES[study].cells]
    cells = [(study, cell) for study, cell in cells if arguments.cells in cell_name(study, cell)]
    simulate(cells, arguments.data_sets, arguments.workers, arguments.output)
    print(tables(arguments.output))


if __name__ == "__main__":
    run_command(main)
