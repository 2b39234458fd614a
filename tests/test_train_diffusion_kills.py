"""train_diffusion.py itself, killed at random moments and resumed, against a run that was never interrupted."""

import random
import sys
from pathlib import Path

import pytest
from accelerate.utils import load
from safetensors.torch import load_file

from melanoma_fair_xai.base.files import plain

sys.path.append(str(Path(__file__).parent / "engine"))
from toy_runs import CONTEXT, differences, kill_after_first_checkpoint, running  # noqa: E402

CONTEXT.set_forkserver_preload(["train_diffusion", "torch._dynamo", "diffusers.models.unets.unet_2d"])

FLAGS = ["--resolution", "16", "--block_out_channels", "16", "32", "--attention_resolutions", "8"]
FLAGS += ["--train_batch_size", "8", "--num_inference_steps", "2", "--validation_images", "20", "--report_to", "none"]
FLAGS += ["--max_train_steps", "16", "--validation_steps", "7", "--mixed_precision", "no", "--ema_max_decay", "0.9"]
FREQUENT = ["--checkpointing_steps", "2"]
CONFIGURATIONS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
KILLS = 10


def state(folder: Path) -> dict:
    """All that the last checkpoint holds (both networks, both averages, optimiser, scheduler, history, random states),
    the exported weights, the recorded losses and the sheets of samples."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    exported = [path for name in ("unet", "conditioner") for path in (folder / name).glob("*.safetensors")]
    files = [path for path in last.rglob("*") if path.is_file()] + exported
    result = {"step": last.name, "metrics": (folder / "metrics.json").read_text()}
    result |= {path.name: path.read_bytes() for path in (folder / "samples").glob("*.png")}
    for path in sorted(files):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            result[name] = load_file(path)
        elif path.name.startswith("random_states"):
            result[name] = plain(load(path, weights_only=True))
        elif path.suffix in (".bin", ".pkl"):
            result[name] = load(path, weights_only=True)
    return result


def finish(folder: Path, *flags: str, processes: int) -> str:
    with running(folder, *flags, processes=processes, module="train_diffusion") as run:
        assert run.wait() == [0] * processes, run.text
        assert f"{processes} process(es) on cpu" in run.text
        return run.text


def kill_and_resume(folder: Path, flags: list[str], processes: int, seconds: float) -> bool:
    """Kill a run some seconds after its first checkpoint and resume it; whether it was writing a checkpoint."""
    options = {"processes": processes, "module": "train_diffusion", "seconds": seconds}
    writing = kill_after_first_checkpoint(folder, *flags, *FREQUENT, **options)
    assert "resuming from checkpoint-" in finish(folder, "--resume_from_checkpoint", "latest", processes=processes)
    return writing


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_exactly(phantoms, tmp_path, processes):
    """The reference has no workers and few checkpoints, the killed run two workers and many."""
    flags = [*FLAGS, "--dataset_name", str(phantoms)]
    finish(tmp_path / "whole", *flags, processes=processes)
    reference = state(tmp_path / "whole")
    assert {"step-000007.png", "checkpoint-16/model_1.safetensors"} <= reference.keys()
    kill_and_resume(tmp_path / "cut", [*flags, "--dataloader_num_workers", "2"], processes, seconds=0.2)
    count, differing = differences(reference, state(tmp_path / "cut"))
    assert differing == [] and count > 300


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_ten_random_kills_resume_exactly(phantoms, tmp_path, processes, workers, record_property):
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    flags = [*FLAGS, "--dataset_name", str(phantoms)]
    finish(tmp_path / "whole", *flags, processes=processes)
    reference = state(tmp_path / "whole")
    tensors, while_writing = 0, 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        flags_of_run = [*flags, "--dataloader_num_workers", str(workers)]
        while_writing += kill_and_resume(folder, flags_of_run, processes, generator.uniform(0, 1.0))
        count, differing = differences(reference, state(folder))
        assert differing == [], f"seed {seed}, kill {number}"
        tensors += count
    record_property(
        "measured",
        f"train_diffusion.py, {processes} processes, {workers} workers, seed {seed}: {KILLS} kills, "
        f"{while_writing} while a checkpoint was being written: 0 of {tensors} tensors differ",
    )
