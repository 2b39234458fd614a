"""The real launchers, which take their time to start."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from toy_runs import differences, final_state

pytestmark = pytest.mark.slow

TOY = Path(__file__).with_name("toy_training.py")
BIN = Path(sys.executable).parent
REPOSITORY = TOY.parents[2]


def start(*command: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [BIN / command[0], *command[1:]],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(*command: str, cwd: Path) -> str:
    with start(*command, cwd=cwd) as process:
        text = process.communicate(timeout=180)[0]
    assert process.returncode == 0, text
    return text


def lines_until(process: subprocess.Popen, line: str) -> list[str]:
    lines = []
    for text in process.stdout:
        lines.append(text.rstrip("\n"))
        if lines[-1] == line:
            return lines
    raise AssertionError("\n".join(lines))


def test_torchrun_ends_when_a_process_dies_and_resuming_continues(tmp_path):
    launch = ("torchrun", "--nproc_per_node", "2", str(TOY))
    run(*launch, "--output_dir", "whole", "--num_train_epochs", "6", cwd=tmp_path)
    flags = ("--num_train_epochs", "6", "--step_seconds", "0.1")
    with start(*launch, "--output_dir", "cut", *flags, cwd=tmp_path) as process:
        lines = lines_until(process, "step 6")
        assert "process 0 of 2" in lines and "process 1 of 2" in lines
        children = psutil.Process(process.pid).children()
        next(child for child in children if child.environ()["RANK"] == "1").kill()
        text = process.communicate(timeout=180)[0]
    assert process.returncode != 0
    assert "error: another process of this run died or hangs (" in text or "Signal 9 (SIGKILL)" in text
    assert not psutil.wait_procs(children, timeout=60)[1]
    text = run(*launch, "--output_dir", "cut", "--resume_from_checkpoint", "latest", cwd=tmp_path)
    assert "resuming from checkpoint-4 of " in text
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut"))[1] == []


def test_torchrun_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path):
    flags = ("--num_train_epochs", "6", "--step_seconds", "0.1", "--checkpointing_steps", "1000")
    with start("torchrun", "--nproc_per_node", "2", str(TOY), *flags, cwd=tmp_path) as process:
        lines_until(process, "step 3")
        process.terminate()
        text = process.communicate(timeout=180)[0]
    assert text.count("stopped by SIGTERM: checkpoint-") == 1
    assert len(list((tmp_path / "toy-run").glob("checkpoint-*"))) == 1


def test_accelerate_launch_resumes_without_other_flags(tmp_path):
    """Also after SIGTERM to the launcher alone, which dies of it and leaves its child behind."""
    accelerate = ("accelerate", "launch", "--num_processes", "1", str(TOY))
    with start(*accelerate, "--seed", "3", "--step_seconds", "0.1", cwd=tmp_path) as process:
        lines_until(process, "step 3")
        children = psutil.Process(process.pid).children()
        process.terminate()
        text = process.communicate(timeout=180)[0]
        assert not psutil.wait_procs(children, timeout=60)[1]
    assert "stopped by SIGTERM: checkpoint-" in text
    text = run(*accelerate, "--resume_from_checkpoint", "latest", cwd=tmp_path)
    assert "resuming from checkpoint-" in text and "finished" in text
    run("python", str(TOY), "--output_dir", "whole", "--seed", "3", cwd=tmp_path)
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "toy-run"))[1] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs, other numbers of processes are started")
def test_accelerate_launch_of_several_processes_without_gpus(tmp_path):
    """Either two processes run, or it says that there is one only."""
    launch = ("accelerate", "launch", "--num_machines", "1", "--mixed_precision", "no", "--num_processes", "2")
    with start(*launch, "--cpu", str(TOY), cwd=tmp_path) as process:
        text = process.communicate(timeout=180)[0]
    assert process.returncode != 0
    assert "error: accelerate launch was asked for several processes but started one" in text
    assert not (tmp_path / "toy-run").exists()
    assert "process 1 of 2" in run(*launch, "--multi_gpu", str(TOY), cwd=tmp_path)
