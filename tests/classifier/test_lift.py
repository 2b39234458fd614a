"""What the study of lifts changes and measures."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_classifier
from benchmarks.lift import DihedralViews, run_data, scored_again
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.fairness import read_predictions


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory) -> Path:
    """A short training's folder."""
    folder = tmp_path_factory.mktemp("lift") / "run"
    flags = "--model_name_or_path test_resnet --no_pretrained --image_size 32 --mixed_precision no --group_by sex"
    flags += f" --max_train_steps 6 --learning_rate 0.003 --dataset_name {phantoms} --output_dir {folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_classifier.py", *flags.split()])
        run_command(train_classifier.main)
    return folder


def test_views_agree_on_every_turn_and_flip_of_an_image():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    )
    images = torch.rand(2, 3, 8, 8)
    expected = DihedralViews(network)(images)
    for turned in (images.rot90(1, (2, 3)), images.flip(-1), images.flip(-2).rot90(3, (2, 3))):
        torch.testing.assert_close(DihedralViews(network)(turned), expected)
        assert not torch.allclose(network(turned), network(images))


def test_the_same_size_and_one_view_give_the_run_again(run):
    tables = scored_again(run, 32, views=False)
    for split, table in tables.items():
        saved = read_predictions(run / "predictions" / f"{split}.parquet")
        assert list(table["image_id"]) == list(saved["image_id"])
        np.testing.assert_allclose(table["score"], saved["score"], atol=1e-3)  # calibrated twice
    other = scored_again(run, 40, views=True)["test"]
    assert np.abs(other["score"] - tables["test"]["score"]).max() > 1e-3


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        run_data(tmp_path)
