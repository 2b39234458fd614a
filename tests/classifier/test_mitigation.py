"""Mitigations against closed forms, on one process and two, and in the training script."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import load

import train_classifier
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.classifier.mitigation import DRO_STEP_SIZE, GroupLoss
from melanoma_fair_xai.engine.sampler import EpochSampler, balanced_weights
from melanoma_fair_xai.fairness import read_predictions

CELLS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
REPOSITORY = Path(train_classifier.__file__).parent
TINY = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", "32", "--mixed_precision", "no"]
TINY += ["--train_batch_size", "8", "--learning_rate", "0.003", "--report_to", "none", "--group_by", "sex"]


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True)


def test_every_cell_is_drawn_equally_often():
    sampler = EpochSampler(len(CELLS), seed=0, weights=balanced_weights(CELLS), num_samples=8000)
    drawn = np.bincount(CELLS[[index for _, index in sampler]])
    np.testing.assert_allclose(drawn, 2000, atol=150)


def test_reweighting_gives_each_cell_the_same_say(accelerator):
    losses = torch.rand(10, dtype=torch.float64).float()
    loss = GroupLoss("reweighting", CELLS, accelerator)(losses, torch.arange(10))
    means = [losses[torch.from_numpy(CELLS == cell)].mean() for cell in range(4)]
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-6)


def test_group_dro_is_algorithm_1(accelerator):
    """Two steps by hand, the second of which lacks a cell."""
    group_loss, q = GroupLoss("group_dro", CELLS, accelerator), np.full(4, 0.25)
    generator = torch.Generator().manual_seed(0)
    for index in (np.arange(10), np.array([0, 1, 4, 7, 7])):
        losses = (3 * torch.rand(len(index), generator=generator)).requires_grad_()
        loss = group_loss(losses, torch.from_numpy(index))
        loss.backward()
        cells, values = CELLS[index], losses.detach().numpy().astype(float)
        means = np.array([values[cells == cell].mean() if (cells == cell).any() else 0 for cell in range(4)])
        q = q * np.exp(DRO_STEP_SIZE * means)
        q /= q.sum()
        assert loss.item() == pytest.approx((q * means).sum(), rel=1e-5)
        np.testing.assert_allclose(group_loss.q, q, rtol=1e-5)
        expected = q[cells] / np.bincount(cells, minlength=4)[cells]
        np.testing.assert_allclose(losses.grad, expected, rtol=1e-5)


def test_group_dro_turns_to_the_cell_that_is_hard(accelerator):
    group_loss = GroupLoss("group_dro", CELLS, accelerator)
    for _ in range(300):
        group_loss(torch.from_numpy(np.where(CELLS == 2, 2.0, 0.1)).float(), torch.arange(10))
    assert group_loss.q.argmax() == 2 and group_loss.q[2] > 0.9
    restored = GroupLoss("group_dro", CELLS, accelerator)
    restored.load_state_dict(group_loss.state_dict())
    assert torch.equal(restored.q, group_loss.q)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import numpy as np, torch
from accelerate import Accelerator
from melanoma_fair_xai.classifier.mitigation import GroupLoss

accelerator = Accelerator(cpu=True)
cells, inputs = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]), torch.linspace(-1, 2, 10)
group_loss = GroupLoss("group_dro", cells, accelerator)
model = accelerator.prepare(torch.nn.Linear(1, 1))
with torch.no_grad():
    for parameter in model.parameters():
        parameter.fill_(0.7)
# Unequal shares of the cells: the last process has none of cell 0.
share = torch.arange(10).chunk(accelerator.num_processes)[accelerator.process_index]
for _ in range(3):
    model.zero_grad()
    accelerator.backward(group_loss(model(inputs[share, None])[:, 0] ** 2, share))
gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
# A file each: lines of two processes can run into one another.
file = Path(sys.argv[1], f"{accelerator.num_processes}-{accelerator.process_index}.json")
file.write_text(json.dumps([gradient.tolist(), group_loss.q.tolist()]))
"""


def test_two_processes_have_the_gradient_and_the_weights_of_one(tmp_path):
    (tmp_path / "toy.py").write_text(TWO_PROCESSES)
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        command = [sys.executable, *launcher, tmp_path / "toy.py", tmp_path]
        subprocess.run(command, check=True, cwd=REPOSITORY, timeout=200)
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for gradient, q in two:
        np.testing.assert_allclose(gradient, one[0], rtol=1e-5)
        np.testing.assert_allclose(q, one[1], rtol=1e-6)


# --- in the training script ------------------------------------------------------------------------------------------


def launch(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_command(train_classifier.main)


def dro_weights(folder: Path, step: int) -> torch.Tensor:
    states = [
        load(path, weights_only=True) for path in (folder / f"checkpoint-{step}").glob("custom_checkpoint_*.pkl")
    ]
    return next(state["q"] for state in states if "q" in state)


def test_group_dro_resumes_exactly(phantoms, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = ["--dataset_name", phantoms, *TINY, "--mitigation", "group_dro", "--max_train_steps", 8]
    launch(monkeypatch, *flags, "--checkpointing_steps", 3, "--output_dir", whole, "--checkpoints_total_limit", 9)
    resumed.mkdir()
    shutil.copy(whole / "training_args.json", resumed)
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    launch(monkeypatch, "--resume_from_checkpoint", "latest", "--output_dir", resumed)
    assert dro_weights(whole, 3).std() > 0 and not torch.equal(dro_weights(whole, 3), dro_weights(whole, 8))
    assert torch.equal(dro_weights(whole, 8), dro_weights(resumed, 8))
    pd.testing.assert_frame_equal(read_predictions(whole), read_predictions(resumed))


@pytest.mark.parametrize("mitigation", ["group_sampling", "reweighting", "ita_augmentation"])
def test_every_mitigation_trains_and_changes_the_result(phantoms, tmp_path, monkeypatch, mitigation):
    flags = ["--dataset_name", phantoms, *TINY, "--max_train_steps", 3]
    launch(monkeypatch, *flags, "--output_dir", tmp_path / "plain")
    launch(monkeypatch, *flags, "--output_dir", tmp_path / "other", "--mitigation", mitigation)
    assert not read_predictions(tmp_path / "plain")["score"].equals(read_predictions(tmp_path / "other")["score"])


@pytest.mark.parametrize(
    ("column", "words"),
    [("hospital", "--mitigation_group hospital: no such column"), ("source", "one group only")],
)
def test_groups_that_are_none_are_refused(phantoms, tmp_path, monkeypatch, capsys, column, words):
    flags = ["--mitigation", "group_sampling", "--mitigation_group", column, "--output_dir", tmp_path / "run"]
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, "--dataset_name", phantoms, *TINY, *flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err
