"""Time and memory of the fairness report beside fairlearn's MetricFrame, and on a million rows.

    python -m benchmarks.fairness_speed

10,000 rows in three groups, 2,000 bootstrap replicates. Ours: the whole `evaluate`, with every metric of the report,
contrasts and tests, lesions resampled. fairlearn: AUC, sensitivity and specificity, rows resampled; it is
timed on few replicates and scaled, its time being proportional to them. Each contender runs in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.fairness import evaluate

N_RESAMPLES = 2000
FAIRLEARN_RESAMPLES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the fairness report beside fairlearn's.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="fairlearn: of the first")
    parser.add_argument("--rounds", type=int, default=3, help="of the first number of rows; one of the others")
    parser.add_argument("--output", help="write the figures to this JSON file")
    arguments = parser.parse_args()
    first, *others = arguments.rows
    result: dict = {"python": platform.python_version(), "cores": os.cpu_count()}
    result[f"ours, {first:,} rows"] = mine = best([in_own_process(ours, first) for _ in range(arguments.rounds)])
    theirs = in_own_process(fairlearn, first)
    scale = N_RESAMPLES / FAIRLEARN_RESAMPLES
    scaled = {name: theirs[name] * scale for name in ("seconds", "cpu_seconds")}
    result[f"fairlearn, {first:,} rows"] = theirs | scaled | {"scaled_from_replicates": FAIRLEARN_RESAMPLES}
    result["times_faster"] = scaled["cpu_seconds"] / mine["cpu_seconds"]
    result |= {f"ours, {rows:,} rows": in_own_process(ours, rows) for rows in others}
    print(json.dumps(result, indent=2))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


def best(runs: list[dict]) -> dict:
    """The fastest run, and the seconds of all."""
    return min(runs, key=lambda run: run["cpu_seconds"]) | {"rounds_seconds": [run["seconds"] for run in runs]}


def draw(rows: int) -> dict[str, np.ndarray]:
    """Labels, scores, lesions (three images for every two) and three groups; a tenth are melanomas."""
    rng = np.random.default_rng(0)
    lesion = rng.integers(0, 2 * rows // 3, rows)
    label = (rng.random(rows) < 0.1)[lesion].astype(int)
    shared = rng.normal(size=rows)[lesion]
    score = 1 / (1 + np.exp(-(1.8 * label - 3 + 0.7 * shared + 0.7 * rng.normal(size=rows))))
    group = rng.choice(["I-II", "III-IV", "V-VI"], rows)[lesion]
    return {"labels": label, "scores": score, "lesion_ids": lesion, "groups": group}


def in_own_process(function, rows: int) -> dict:
    """Seconds of `function(data)`, wall and CPU, and the peak resident memory of the process, and before the call."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (function, rows))


def _measure(function, rows: int) -> dict:
    data = draw(rows)
    function({name: values[:300] for name, values in data.items()}, 2)  # imports and caches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, begun = time.perf_counter(), time.process_time()
    function(data)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_megabytes": peak / 1024,
        "peak_before_megabytes": before / 1024,
    }


def ours(data: dict[str, np.ndarray], n_resamples: int = N_RESAMPLES) -> None:
    evaluate(
        data["labels"],
        data["scores"],
        {"fitzpatrick_group": data["groups"]},
        lesion_ids=data["lesion_ids"],
        thresholds=0.2,
        n_resamples=n_resamples,
    )


def fairlearn(data: dict[str, np.ndarray], n_resamples: int = FAIRLEARN_RESAMPLES) -> None:
    from fairlearn.metrics import MetricFrame
    from sklearn.metrics import recall_score, roc_auc_score

    MetricFrame(
        metrics={
            "roc_auc": roc_auc_score,
            "sensitivity": lambda y, s: recall_score(y, s >= 0.2),
            "specificity": lambda y, s: recall_score(y, s >= 0.2, pos_label=0),
        },
        y_true=data["labels"],
        y_pred=data["scores"],
        sensitive_features=data["groups"],
        n_boot=n_resamples,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )


if __name__ == "__main__":
    run_command(main)
