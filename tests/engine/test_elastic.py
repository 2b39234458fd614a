"""A run that goes on with another number of processes has the same images in every step, and learns the same."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from test_training import options_of, start
from toy_runs import final_state, run_to_end, running
from toy_training import ToyLearner

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import file_digest, write_json
from melanoma_fair_xai.engine.sampler import EpochSampler, training_loader
from melanoma_fair_xai.engine.shares import Shares


class Indices(torch.utils.data.Dataset):
    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> int:
        return key[1]


def steps_of(shares: Shares, size: int, whole: int, first_pass: int = 0) -> list[list[int]]:
    """The samples of each optimiser step of an epoch, as Accelerate deals them to the processes."""
    dealt = []
    for rank in range(shares.processes):
        loader = training_loader(Indices(size), EpochSampler(size, seed=5, whole=whole), shares.images)
        loader = prepare_data_loader(loader, num_processes=shares.processes, process_index=rank, put_on_device=False)
        dealt.append([batch.tolist() for batch in loader])
    passes = [sum(parts, []) for parts in zip(*dealt, strict=True)][first_pass:]
    return [sum(passes[i : i + shares.passes], []) for i in range(0, len(passes), shares.passes)]


@pytest.mark.parametrize(
    ("begun", "processes"),
    [
        *((Shares(2, 4, 2), number) for number in (1, 2, 4, 8)),
        *((Shares(1, 12, 1), number) for number in (2, 3, 4, 6, 12)),
        *((Shares(6, 2, 3), number) for number in (1, 2, 3, 4)),
        *((Shares(2, 17, 1), number) for number in (1, 17, 34)),
    ],
)
@pytest.mark.parametrize("size", [34, 45, 96, 101])
def test_every_step_has_the_same_images_on_any_number_of_processes(begun, processes, size):
    """The end of the epoch, which may be less than a step, too."""
    shares = begun.among(processes)
    assert shares.processes == processes and shares.images <= begun.images
    expected = steps_of(begun, size, begun.images_per_pass)
    assert steps_of(shares, size, begun.images_per_pass) == expected
    seen = sum(expected, [])
    assert seen == list(index for _, index in EpochSampler(size, seed=5))[: len(seen)]
    assert size - begun.images_per_pass < len(seen) == len(set(seen)) <= size
    # Back on as many as before, and from any step on.
    assert begun.among(begun.processes) == begun
    assert steps_of(shares, size, begun.images_per_pass, shares.passes) == expected[1:]


def test_memory_is_kept_to_unless_a_batch_must_stay_whole():
    assert Shares(8, 32, 1).among(2) == Shares(2, 32, 4)
    assert Shares(8, 32, 1).among(2, whole=True) == Shares(2, 128, 1)
    assert Shares(2, 32, 3).among(4) == Shares(4, 16, 3)


@pytest.mark.parametrize(
    ("begun", "processes", "fitting"),
    [(Shares(2, 4, 2), 3, "2 or 4"), (Shares(2, 4, 2), 9, "8"), (Shares(3, 5, 4), 2, "1 or 3")],
)
def test_what_cannot_be_shared_equally_is_refused_with_what_could(begun, processes, fitting):
    with pytest.raises(UserError, match=f"by {processes} processes; start {fitting}$"):
        begun.among(processes)


FLAGS = ("--num_train_epochs", "4", "--checkpointing_steps", "1000", "--dropout", "0", "--allow_elastic")
RESUME = ("--resume_from_checkpoint", "latest")


def stop_after(folder, step: int, *flags: str, processes: int) -> None:
    with running(folder, *flags, "--step_seconds", "0.05", processes=processes) as run:
        run.wait_for(f"step {step}")
        run.signal(signal.SIGTERM)
        assert run.wait() == [128 + signal.SIGTERM] * processes, run.text


def test_two_processes_then_one_then_two_learn_what_two_learn(tmp_path):
    """Images exactly, all that is learnt closely; 45 images are 5 batches of 8: epochs end with half a step."""
    run_to_end(tmp_path / "whole", *FLAGS, processes=2)
    folder = tmp_path / "cut"
    stop_after(folder, 2, *FLAGS, processes=2)
    stop_after(folder, 6, *RESUME, processes=1)
    text = run_to_end(folder, *RESUME, "--step_seconds", "0", processes=2)
    assert "2 process(es) go on from 1: the same images in every step, 4 at a time" in text
    whole, cut = final_state(tmp_path / "whole")[0], final_state(folder)[0]

    losses, images = zip(*whole["seen"], strict=True)
    losses_cut, images_cut = zip(*cut["seen"], strict=True)
    assert len(images_cut) > len(images) and {len(part) for part in images_cut} == {8, 4}
    assert sum(images_cut, []) == sum(images, [])
    epochs = np.array(sum(images, [])).reshape(4, 40) // 1000
    assert (epochs == np.arange(4)[:, None]).all()
    # A pass of two processes gathers two means.
    np.testing.assert_allclose(sum(losses_cut, []), sum(losses, []), atol=1e-3)

    assert cut["scheduler"] == whole["scheduler"]
    for name in ("global_step", "epoch", "batch_in_epoch"):
        assert cut["progress"][name] == whole["progress"][name]
    history, history_cut = (json.loads(state["progress"]["history"]) for state in (whole, cut))
    assert [row["step"] for row in history_cut] == [row["step"] for row in history] == [3, 6, 9, 12]
    for name in ("train_loss", "validation_value"):
        values, values_cut = ([row[name] for row in rows] for rows in (history, history_cut))
        np.testing.assert_allclose(values_cut, values, atol=0.02)
    assert cut["emas"][0]["updates"] == whole["emas"][0]["updates"] == 12
    weights, weights_cut = (state["emas"][0]["shadow"]["0.weight"] for state in (whole, cut))
    torch.testing.assert_close(weights_cut, weights, atol=1e-3, rtol=0)
    torch.testing.assert_close(cut["optimizer"]["state"][0], whole["optimizer"]["state"][0], atol=1e-3, rtol=0)
    facts = json.loads((folder / "checkpoint-12" / "facts.json").read_text())
    (_, first), (_, second), (_, third) = facts["processes"]
    assert (first, second, third) == (2, 1, 2) and facts["fixed"]["number of processes"] == 2


EPOCHS_OF_TWO = 6  # are as many steps as 3 of one process


def as_if_by(processes: int, checkpoint) -> None:
    """Make a checkpoint of one process one that so many others wrote."""
    facts = json.loads((checkpoint / "facts.json").read_text())
    facts["fixed"] |= {"number of processes": processes, "num_train_epochs": EPOCHS_OF_TWO}
    facts.pop("processes", None)  # which checkpoints of earlier versions lack
    write_json(checkpoint / "facts.json", facts)
    sums = json.loads((checkpoint / "checksums.json").read_text())
    write_json(checkpoint / "checksums.json", {**sums, "facts.json": file_digest(checkpoint / "facts.json")})


@pytest.fixture
def begun_by_two(tmp_path):
    run = start(tmp_path, options_of(tmp_path, checkpointing_steps=7, checkpoints_total_limit=9))
    run.run()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        as_if_by(2, checkpoint)
    return tmp_path


def test_random_numbers_are_made_anew_from_seed_and_step(begun_by_two, capsys):
    def random_state(step: int) -> torch.Tensor:
        path = begun_by_two / f"checkpoint-{step}"
        options = options_of(begun_by_two, resume_from_checkpoint=str(path), allow_elastic=True)
        start(begun_by_two, dataclasses.replace(options, num_train_epochs=EPOCHS_OF_TWO))
        assert "1 process(es) go on from 2" in capsys.readouterr().out
        return torch.get_rng_state()

    assert torch.equal(random_state(7), random_state(7))
    assert not torch.equal(random_state(7), random_state(18))


def test_what_was_begun_by_others_needs_the_flag_again_and_again(begun_by_two):
    resumed = options_of(begun_by_two, resume_from_checkpoint=str(begun_by_two / "checkpoint-7"))
    resumed.num_train_epochs = EPOCHS_OF_TWO
    with pytest.raises(UserError, match="number of processes 2, but this run has 1;\ngive --allow_elastic"):
        start(begun_by_two, resumed)
    resumed.allow_elastic = True
    run = start(begun_by_two, resumed)
    assert (run.shares, run.begun) == (Shares(1, 4, 4), Shares(2, 4, 2))
    run._save()
    assert start(begun_by_two, resumed).processes == [[0, 2], [7, 1]]
    resumed.allow_elastic = False
    with pytest.raises(UserError, match="number of processes 2, but this run has 1;\ngive --allow_elastic"):
        start(begun_by_two, resumed)


def test_the_epoch_goes_on_with_whole_steps(begun_by_two):
    """After one step of 16 images, the 40 of an epoch leave one of 16 and one of 8, now 4 at a time."""
    path = begun_by_two / "checkpoint-7"
    options = options_of(begun_by_two, resume_from_checkpoint=str(path), allow_elastic=True)
    run = start(begun_by_two, dataclasses.replace(options, num_train_epochs=EPOCHS_OF_TWO))
    earlier = len(run.learner.seen.rows)
    passes = [(step, len(run.learner.seen.rows) - earlier) for step in run.epoch_steps()]
    assert passes == [(8, 4), (9, 6)]


def test_a_loss_that_is_no_mean_over_images_has_whole_batches(begun_by_two):
    path = begun_by_two / "checkpoint-7"
    options = options_of(begun_by_two, resume_from_checkpoint=str(path), allow_elastic=True)
    options.num_train_epochs = EPOCHS_OF_TWO
    run = start(begun_by_two, options, type("Whole", (ToyLearner,), {"needs_whole_batches": True}))
    assert run.shares == Shares(1, 8, 2) and len(next(iter(run.loader))["id"]) == 8


def test_too_few_images_for_a_batch_are_refused(begun_by_two):
    as_if_by(32, begun_by_two / "checkpoint-7")
    options = options_of(begun_by_two, resume_from_checkpoint=str(begun_by_two / "checkpoint-7"), allow_elastic=True)
    with pytest.raises(UserError, match="45 training images are fewer than the 128 of a batch; start 32 processes"):
        start(begun_by_two, options)
