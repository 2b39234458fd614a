"""Both training scripts under accelerate launch, stopped and resumed by two processes, one, and two again."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
FLAGS = {
    "train_classifier": [
        *("--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", "32", "--drop_rate", "0"),
        *(
            "--num_train_epochs",
            "4",
            "--eval_batch_size",
            "8",
            "--learning_rate",
            "0.003",
            "--no_class_balanced_sampling",
        ),
    ],
    "train_diffusion": [
        *("--resolution", "16", "--block_out_channels", "16", "32", "--attention_resolutions", "8"),
        *("--max_train_steps", "14", "--num_inference_steps", "2", "--validation_images", "20"),
    ],
}
COMMON = ["--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--mixed_precision", "no"]
COMMON += ["--report_to", "none", "--checkpointing_steps", "1000"]
RESUME = ["--resume_from_checkpoint", "latest", "--allow_elastic"]


def launch(script: str, record: Path, *flags: str, processes: int, stop: int = 0) -> str:
    several = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--num_processes", "1"]
    command = ["-m", "accelerate.commands.launch", *several, REPOSITORY / "tests" / "recorded_training.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command, record, stop, script, "--output_dir", record.with_suffix(""), *flags]
    result = subprocess.run(list(map(str, command)), env=environment, text=True, capture_output=True)
    text = result.stdout + result.stderr
    assert (f"stopped by SIGTERM: checkpoint-{stop} is written" in text) if stop else result.returncode == 0, text
    return text


def steps(record: Path) -> list[tuple[list[float], float]]:
    """The images of each step, and its mean loss."""
    images, losses = defaultdict(list), defaultdict(list)
    for line in record.read_text().splitlines():
        row = json.loads(line)
        images[row["step"]] += row["images"]
        losses[row["step"]] += row["losses"]
    return [(images[step], np.mean(losses[step])) for step in sorted(images)]


@pytest.mark.parametrize("script", FLAGS)
def test_two_processes_then_one_then_two_learn_what_two_learn(script, phantoms, tmp_path, record_property):
    flags = [*FLAGS[script], *COMMON, "--dataset_name", str(phantoms)]
    launch(script, tmp_path / "whole.jsonl", *flags, processes=2)
    launch(script, tmp_path / "cut.jsonl", *flags, processes=2, stop=4)
    text = launch(script, tmp_path / "cut.jsonl", *RESUME, processes=1, stop=9)
    assert "resuming from checkpoint-4" in text and "1 process(es) go on from 2: the same images in every step" in text
    text = launch(script, tmp_path / "cut.jsonl", *RESUME[:2], processes=2)
    assert "resuming from checkpoint-9" in text and "2 process(es) go on from 1" in text
    whole, cut = steps(tmp_path / "whole.jsonl"), steps(tmp_path / "cut.jsonl")
    assert len(whole) > 11
    assert [images for images, _ in cut] == [images for images, _ in whole]
    everything = [image for images, _ in whole for image in images]
    assert len(set(everything)) == len(everything)
    difference = np.abs(np.subtract([loss for _, loss in cut], [loss for _, loss in whole]))
    spread = np.std([loss for _, loss in whole])
    record_property(
        "measured", f"{script}: losses differ by at most {difference.max():.1e}, their spread {spread:.1e}"
    )
    assert difference.max() < 0.02 * spread, difference
    metrics, metrics_cut = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut"))
    assert metrics.keys() == metrics_cut.keys()
