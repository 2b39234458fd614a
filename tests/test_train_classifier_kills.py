"""train_classifier.py itself, killed at random moments and resumed, against a run that was never interrupted."""

import random
import sys
from pathlib import Path

import pytest
from accelerate.utils import load
from safetensors.torch import load_file

from melanoma_fair_xai.base.files import plain

sys.path.append(str(Path(__file__).parent / "engine"))
from toy_runs import CONTEXT, differences, kill_after_first_checkpoint, running  # noqa: E402

CONTEXT.set_forkserver_preload(["train_classifier", "transformers.models.timm_wrapper", "torch._dynamo"])

FLAGS = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", "32", "--mixed_precision", "no"]
FLAGS += ["--train_batch_size", "8", "--eval_batch_size", "8", "--learning_rate", "0.003", "--report_to", "none"]
CONFIGURATIONS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
KILLS = 10


def state(folder: Path) -> dict:
    """All that the last checkpoint holds (weights, EMA, buffers, optimiser, scheduler, history, best, random states),
    the exported weights and the recorded predictions."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    result = {"step": last.name, "exported": load_file(folder / "model.safetensors")}
    result["predictions"] = (folder / "predictions" / "test.parquet").read_bytes()
    result["metrics"] = (folder / "metrics.json").read_text()
    for path in sorted(last.iterdir()):
        if path.suffix == ".safetensors":
            result[path.name] = load_file(path)
        elif path.name.startswith("random_states"):
            result[path.name] = plain(load(path, weights_only=True))
        elif path.suffix in (".bin", ".pkl"):
            result[path.name] = load(path, weights_only=True)
    return result


def finish(folder: Path, *flags: str, processes: int) -> None:
    with running(folder, *flags, processes=processes, module="train_classifier") as run:
        assert run.wait() == [0] * processes, run.text
        assert f"{processes} process(es) on cpu" in run.text


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_ten_random_kills_resume_exactly(phantoms, tmp_path, processes, workers, record_property):
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    run_flags = [*FLAGS, "--dataset_name", str(phantoms), "--num_train_epochs", str(3 * processes)]
    finish(tmp_path / "whole", *run_flags, processes=processes)
    reference = state(tmp_path / "whole")
    tensors, while_writing = 0, 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        flags = [*run_flags, "--checkpointing_steps", "2", "--dataloader_num_workers", str(workers)]
        options = {"processes": processes, "module": "train_classifier", "seconds": generator.uniform(0, 1.0)}
        while_writing += kill_after_first_checkpoint(folder, *flags, **options)
        finish(folder, "--resume_from_checkpoint", "latest", processes=processes)
        count, differing = differences(reference, state(folder))
        assert differing == [], f"seed {seed}, kill {number}"
        tensors += count
    record_property(
        "measured",
        f"train_classifier.py, {processes} processes, {workers} workers, seed {seed}: {KILLS} kills, "
        f"{while_writing} while a checkpoint was being written: 0 of {tensors} tensors differ",
    )
