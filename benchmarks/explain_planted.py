"""Planted truth: is a classifier that learned a ruler caught, and one that could not left alone? On phantoms.

    python -m benchmarks.explain_planted --seeds 3

For each seed, phantoms are drawn with and without `--confounder ruler`, a small net is trained on each, and explain.py
says what it finds on the test split: the energy of Grad-CAM in the ruler against every control, and the change of the
score when a ruler is pasted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from melanoma_fair_xai.explain.findings import artefact_rows, is_caught

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted rulers, caught or not, over seeds.")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        for confounder in (None, "ruler"):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(
                    {"seed": seed, "confounder": confounder or "none"} | planted(Path(folder), confounder, seed)
                )
            print(json.dumps(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("confounder")[["caught_by_energy", "caught_by_trap"]].sum())


def planted(folder: Path, confounder: str | None, seed: int, num_images: int = 700, epochs: int = 10) -> dict:
    """Draw, train and explain; what the report finds about rulers."""
    tied = ["--confounder", confounder] if confounder else []
    run("-m", "dataset_scripts.phantom", "--num_images", num_images, "--image_size", 64, "--seed", seed, *tied,
        "--output_dir", folder / "data")  # fmt: skip
    run("train_classifier.py", "--dataset_name", folder / "data", "--model_name_or_path", "test_resnet",
        "--seed", seed, "--no_pretrained", "--image_size", 64, "--num_train_epochs", epochs, "--report_to", "none",
        "--mixed_precision", "no", "--output_dir", folder / "run")  # fmt: skip
    run("explain.py", "--model_name_or_path", folder / "run", "--dataset_name", folder / "data",
        "--target", "melanoma", "--trap", "ruler", "--gallery", 0, "--output_dir", folder / "report")  # fmt: skip
    metrics = json.loads((folder / "run" / "metrics.json").read_text())["splits"]["test"]
    groups = pd.read_csv(folder / "report" / "groups.csv")
    overall = groups[groups["group_column"] == "all"].set_index("measure")
    trap = overall.loc["trap_ruler_change"]
    ruler = next((row for row in artefact_rows(overall) if row["title"] == "ruler"), None)
    return {
        "auc": metrics["roc_auc"],
        "images_with_ruler": None if ruler is None else int(ruler["n"]),
        "energy_in_ruler": None if ruler is None else float(ruler["energy"]),
        "least_advantage": None if ruler is None else [float(ruler[end]) for end in ("least", "low", "high")],
        "caught_by_energy": ruler is not None and ruler["caught"],
        "trap_change": [float(trap[end]) for end in ("mean", "low", "high")],
        "caught_by_trap": is_caught(trap),
    }


def run(*arguments: object) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)


if __name__ == "__main__":
    main()
