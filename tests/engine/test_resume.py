"""Runs that are killed, stopped or broken at any moment, and go on as if nothing had happened."""

import random
import shutil
import time

import pytest
from toy_runs import SIGNALS, differences, final_state, partial_checkpoints, run_to_end, running

RESUME = ("--resume_from_checkpoint", "latest")
# Checkpoints of some megabytes take long enough to write to be killed meanwhile.
FLAGS = ("--padding", "300000", "--step_seconds", "0.01")
CONFIGURATIONS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
LAST_STEP = {1: 18, 2: 9}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The final states of uninterrupted runs, by number of processes. Loading workers may not make a difference."""
    folder = tmp_path_factory.mktemp("references")
    for processes in LAST_STEP:
        run_to_end(folder / str(processes), *FLAGS, processes=processes)
    return {processes: final_state(folder / str(processes)) for processes in LAST_STEP}


def kill_and_resume(folder, reference, processes, workers, generator, while_writing):
    """Kill a run at a random moment, resume it, and return (step, whether a write was cut, tensors, differing)."""
    flags = (*FLAGS, "--dataloader_num_workers", str(workers), "--checkpointing_steps", "2")
    step = generator.randrange(2, LAST_STEP[processes])
    with running(folder, *flags, processes=processes) as run:
        run.wait_for(f"step {step}")
        if while_writing:
            run.wait_for_writing()
        time.sleep(generator.uniform(0, 0.03))
        run.kill()
        cut = bool(partial_checkpoints(folder))
        assert not list(folder.glob("final-*")), "it was killed too late"
    # Given anew: flags that the file of the killed run would supply as well.
    text = run_to_end(folder, *flags[-4:], *RESUME, processes=processes)
    assert "resumed from checkpoint-" in text or step == 2
    assert not partial_checkpoints(folder)
    return step, cut, *differences(reference, final_state(folder))


@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_killed_run_resumes_exactly(references, tmp_path, processes, workers):
    generator = random.Random(processes + 10 * workers)
    *_, cut, tensors, differing = kill_and_resume(
        tmp_path / "run", references[processes], processes, workers, generator, while_writing=workers == 0
    )
    assert tensors > 30 * processes
    assert differing == []
    assert cut or workers


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), CONFIGURATIONS)
def test_ten_random_kills_resume_exactly(references, tmp_path, processes, workers, capsys):
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    results = [
        kill_and_resume(tmp_path / str(number), references[processes], processes, workers, generator, number % 2 == 0)
        for number in range(10)
    ]
    steps, cuts, tensors, differing = zip(*results, strict=True)
    with capsys.disabled():
        print(
            f"\n{processes} processes, {workers} workers, seed {seed}: 10 kills after steps {sorted(steps)}, "
            f"{sum(cuts)} of them while writing; {sum(map(len, differing))} of {sum(tensors)} tensors differ"
        )
    assert not any(differing), (seed, differing)


def test_another_seed_gives_another_run(references, tmp_path):
    run_to_end(tmp_path / "run", *FLAGS, "--seed", "1")
    tensors, differing = differences(references[1], final_state(tmp_path / "run"))
    assert len(differing) > tensors / 2
