"""Runs that are killed, stopped or broken at any moment, and go on as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from toy_runs import differences, final_state, partial_checkpoints, run_to_end, running

from melanoma_fair_xai.engine.checkpoints import damage

RESUME = ("--resume_from_checkpoint", "latest")
# Checkpoints of some megabytes take long enough to write to be killed meanwhile.
FLAGS = ("--padding", "1000000", "--step_seconds", "0.01")
CONFIGURATIONS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
LAST_STEP = 18
EPOCHS = {1: "3", 2: "6"}  # as many steps for one process as for two


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The final states of uninterrupted runs, by number of processes. Loading workers may not make a difference."""
    folder = tmp_path_factory.mktemp("references")
    for processes, epochs in EPOCHS.items():
        run_to_end(folder / str(processes), *FLAGS, "--num_train_epochs", epochs, processes=processes)
    return {processes: final_state(folder / str(processes)) for processes in EPOCHS}


def resume_and_compare(folder, reference, processes=1, *flags) -> int:
    """Resume a run, check that it ends as the reference did, bit for bit, and return the number of tensors."""
    text = run_to_end(folder, *RESUME, *flags, processes=processes)
    assert "resuming from checkpoint-" in text
    assert not partial_checkpoints(folder)
    tensors, differing = differences(reference, final_state(folder))
    assert tensors > 30 * processes
    assert differing == [], text
    return tensors


def kill_and_resume(folder, reference, processes, workers, generator, while_writing) -> tuple[int, int]:
    """Kill a run after a random step, or at a random moment of writing the checkpoint after it, resume it and compare.

    Returns the step and the number of tensors that were compared.
    """
    step = generator.randrange(5, LAST_STEP - 4)
    flags = ("--dataloader_num_workers", str(workers), "--num_train_epochs", EPOCHS[processes])
    for attempt in range(5):
        with running(folder.with_name(f"{folder.name}-{attempt}"), *FLAGS, *flags, processes=processes) as run:
            run.wait_for(f"step {step}")
            if not while_writing:
                time.sleep(generator.uniform(0, 0.02))
            # On a busy machine the run may get through all its checkpoints unseen: then another one is killed.
            elif not run.stop_while_writing(delay=generator.uniform(0, 0.03)):
                continue
        folder = run.folder
        break
    assert not list(folder.glob("final-*")), "it was killed too late"
    assert partial_checkpoints(folder) or not while_writing
    return step, resume_and_compare(folder, reference, processes)


@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_killed_run_resumes_exactly(references, tmp_path, processes, workers):
    generator = random.Random(processes + 10 * workers)
    kill_and_resume(tmp_path / "run", references[processes], processes, workers, generator, while_writing=workers == 0)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_ten_random_kills_resume_exactly(references, tmp_path, processes, workers, record_property):
    seed = random.SystemRandom().randrange(10**6)
    about = f"{processes} processes, {workers} workers, seed {seed}: 10 kills, half of them while writing"
    print(about)
    generator = random.Random(seed)
    results = [
        kill_and_resume(tmp_path / str(number), references[processes], processes, workers, generator, number % 2 == 0)
        for number in range(10)
    ]
    steps, tensors = zip(*results, strict=True)
    record_property("measured", f"{about}, after steps {sorted(steps)}: 0 of {sum(tensors)} tensors differ")


def test_another_seed_gives_another_run(references, tmp_path):
    run_to_end(tmp_path / "run", *FLAGS, "--seed", "1")
    tensors, differing = differences(references[1], final_state(tmp_path / "run"))
    assert len(differing) > tensors / 2


@pytest.mark.parametrize(("name", "processes"), [("SIGTERM", 2), ("SIGUSR1", 1), ("SIGINT", 1)])
def test_asked_to_stop_it_writes_a_checkpoint_and_says_so(references, tmp_path, name, processes):
    """With two processes only the second one gets the signal, and both agree to stop."""
    folder = tmp_path / "run"
    flags = ("--num_train_epochs", EPOCHS[processes], "--checkpointing_steps", "1000", "--step_seconds", "0.1")
    with running(folder, *FLAGS, *flags, processes=processes) as run:
        run.wait_for("step 7")
        run.signal(getattr(signal, name), rank=processes - 1)
        assert run.wait() == [128 + getattr(signal, name)] * processes
        lines = re.findall(r"^stopped by .*$", run.text, re.MULTILINE)
        assert "Traceback" not in run.text
    (checkpoint,) = folder.glob("checkpoint-*")
    assert lines == [f"stopped by {name}: {checkpoint.name} is written; continue with --resume_from_checkpoint latest"]
    resume_and_compare(folder, references[processes], processes)


def test_second_ctrl_c_interrupts_at_once(tmp_path):
    with running(tmp_path / "run", "--step_seconds", "600") as run:
        run.wait_for("process 0 of 1")
        time.sleep(1)  # into the first step
        run.signal(signal.SIGINT)
        time.sleep(1)  # two that come at the same moment count as one
        run.signal(signal.SIGINT)
        assert run.wait() == [130]
        assert run.text.endswith("interrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_to_the_loading_workers_too_do_not_disturb_the_end(references, tmp_path, name):
    """As a terminal sends Ctrl-C, and a cluster SIGTERM, to all processes of a job."""
    with running(tmp_path / "run", *FLAGS, "--dataloader_num_workers", "2") as run:
        run.wait_for("step 7")
        for process in psutil.Process(run.processes[0].pid).children():
            process.send_signal(getattr(signal, name))
        run.signal(getattr(signal, name))
        assert run.wait() == [128 + getattr(signal, name)]
        assert "Traceback" not in run.text
    resume_and_compare(tmp_path / "run", references[1])


def test_second_run_in_the_same_folder_is_refused(references, tmp_path):
    folder = tmp_path / "run"
    with running(folder, *FLAGS, "--dataloader_num_workers", "2") as run:
        run.wait_for("step 9")
        os.kill(run.processes[0].pid, signal.SIGSTOP)
        assert refusal(folder, *RESUME).startswith(f"error: --output_dir {folder}: in use by another run (process ")
    # Killed, it leaves loading workers behind for some seconds; they may not hold the folder.
    resume_and_compare(folder, references[1])


def refusal(folder, *flags, processes=1, **environment) -> str:
    """What a run says that ends with exit code 2 in all processes, in one or two lines for all."""
    with running(folder, *flags, processes=processes, **environment) as run:
        assert run.wait() == [2] * processes, run.text
        error = run.text[run.text.index("error: ") :]
        assert error.count("\n") <= 2 and "Traceback" not in run.text, run.text
        return error


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run that was stopped by its first SIGTERM, with several checkpoints."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with running(folder, *FLAGS, "--checkpoints_total_limit", "9") as run:
        run.wait_for("step 9")
        run.signal(signal.SIGTERM)
        run.wait()
    return folder


def test_damaged_checkpoint_is_passed_over(references, stopped_run, tmp_path):
    folder = shutil.copytree(stopped_run, tmp_path / "run")
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    os.truncate(newest / "optimizer.bin", 1000)
    text = run_to_end(folder, *RESUME)
    assert f"{newest.name} is damaged (optimizer.bin is not what was written): using checkpoint-8\n" in text
    assert differences(references[1], final_state(folder))[1] == []


@pytest.mark.parametrize(
    ("flags", "processes", "message"),
    [
        (("--seed", "1"), 1, "--seed 1: the run in {folder} has 0"),
        (("--train_batch_size", "8"), 1, "--train_batch_size 8: the run in {folder} has 4"),
        ((), 2, "written with number of processes 1, but this run has 2;\ngive --allow_elastic to go on"),
        (("--allow_elastic",), 3, "4 images at a time cannot be shared equally by 3 processes; start 2 or 4"),
    ],
)
def test_resuming_otherwise_is_refused_with_both_values(stopped_run, flags, processes, message):
    assert message.format(folder=stopped_run) in refusal(stopped_run, *RESUME, *flags, processes=processes)


def test_resuming_another_model_is_refused(stopped_run, tmp_path):
    shutil.copytree(stopped_run / "checkpoint-8", tmp_path / "checkpoint-8")
    path = str(tmp_path / "checkpoint-8")
    error = refusal(tmp_path / "run", "--resume_from_checkpoint", path, "--width", "4")
    assert "0.bias is [8] there and [4] here" in error


@pytest.mark.parametrize(
    ("fault", "processes", "message"),
    [
        ("nan", 1, "the loss is nan at step 6: lower --learning_rate"),
        ("nan", 2, "the loss is nan at step 6: lower --learning_rate"),
        ("out_of_memory", 1, "out of memory (CUDA out of memory); lower --train_batch_size"),
        ("host_memory", 1, "out of memory ("),
        ("full_disk", 1, "checkpoint-8: could not be written ("),
        ("full_disk", 2, "checkpoint-8: could not be written ("),
        ("full_disk_elsewhere", 2, "checkpoint-8: could not be written ("),
    ],
)
def test_fault_ends_the_run_in_two_lines_and_it_goes_on_from_there(references, tmp_path, fault, processes, message):
    folder = tmp_path / "run"
    flags = ("--num_train_epochs", EPOCHS[processes], "--fault", fault)
    assert message in refusal(folder, *FLAGS, *flags, processes=processes)
    assert [path.name for path in folder.glob("*checkpoint-*")] == ["checkpoint-4"]
    arguments = folder / "training_args.json"
    arguments.write_text(arguments.read_text().replace(f'"{fault}"', "null"))
    resume_and_compare(folder, references[processes], processes)


def test_full_disk(tmp_path):
    """A real one, where file systems can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        # The first checkpoint takes 2.4 MB, the second 3.6.
        error = refusal(disk / "run", "--padding", "300000", "--checkpoints_total_limit", "1")
        assert "checkpoint-8: could not be written (" in error and "earlier checkpoints are intact" in error
        assert damage(disk / "run" / "checkpoint-4") is None
        assert not partial_checkpoints(disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_killed_loading_worker(references, tmp_path):
    folder = tmp_path / "run"
    with running(folder, *FLAGS, "--dataloader_num_workers", "2") as run:
        run.wait_for("step 9")
        psutil.Process(run.processes[0].pid).children()[0].kill()
        assert run.wait() == [2], run.text
        assert "error: a data loading worker died (" in run.text and "Traceback" not in run.text
    resume_and_compare(folder, references[1])


def test_killed_process_ends_the_others(references, tmp_path):
    folder = tmp_path / "run"
    with running(folder, *FLAGS, "--num_train_epochs", EPOCHS[2], processes=2) as run:
        run.wait_for("step 9")
        run.signal(signal.SIGKILL, rank=1)
        assert run.wait() == [2, -signal.SIGKILL]
        assert "error: another process of this run died or hangs (" in run.text and "Traceback" not in run.text
    resume_and_compare(folder, references[2], 2)


def test_one_process_where_accelerate_launch_was_asked_for_several_is_refused(tmp_path):
    """With the variables that `accelerate launch --num_processes 2` sets where it finds no two GPUs."""
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert "asked for several processes but started one" in refusal(tmp_path / "run", **environment)
    assert not (tmp_path / "run").exists()
