"""Folds and cross-validation of the training script: what is tested where, and that interruptions change nothing."""

import json
import shutil
import sys

import pandas as pd
import pytest
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard

import train_classifier
from dataset_scripts.splits import read_manifest
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.fairness import read_predictions
from melanoma_fair_xai.hub.classifier_card import write_classifier_card

TINY = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", "32", "--mixed_precision", "no"]
TINY += ["--train_batch_size", "16", "--learning_rate", "0.003", "--report_to", "none", "--max_train_steps", "2"]
TINY += ["--group_by", "sex"]


def launch(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_command(train_classifier.main)


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        launch(patch, "--dataset_name", phantoms, "--output_dir", folder, "--cross_validation", 5, *TINY)
    return folder


def test_every_image_is_scored_once_by_a_model_that_had_not_seen_its_lesion(whole):
    table = read_predictions(whole)
    assert len(table) == table["image_id"].nunique() == 150
    assert table["fold"].value_counts().between(15, 45).all() and set(table["fold"]) == set(range(5))
    for fold, part in table.groupby("fold"):
        manifest = read_manifest(str(whole / f"fold-{fold}" / "split_manifest.csv"))
        split = manifest.set_index("image_id")["split"]
        assert (split[part["image_id"]] == "test").all()
        train = manifest["lesion_id"][manifest["split"] == "train"]
        assert not set(part["lesion_id"]) & set(train)
        config = json.loads((whole / f"fold-{fold}" / "config.json").read_text())
        assert (part["threshold"] == config["operating_point"]["threshold"]).all()
        assert config["training"]["fold"] == f"{fold}/5"
    assert (table.groupby("lesion_id")["fold"].nunique() == 1).all()


def test_the_report_is_of_all_folds_together(whole):
    report = pd.read_csv(whole / "fairness.csv")
    overall = report[(report["group"] == "all") & (report["metric"] == "sensitivity")].iloc[0]
    table = read_predictions(whole)
    decided = table["score"] >= table["threshold"]
    assert overall["n"] == 150 and overall["value"] == pytest.approx(decided[table["label"] == 1].mean())
    metrics = json.loads((whole / "metrics.json").read_text())
    auc = report[(report["group"] == "all") & (report["metric"] == "roc_auc")]["value"].item()
    assert metrics["splits"]["test"]["roc_auc"] == pytest.approx(auc)
    assert len(metrics["thresholds"]) == 5
    card = ModelCard.load(whole / "README.md")
    assert "This folder holds 5 models" in card.text and "Phantom data" in card.text and "Smoke run" in card.text
    assert "| all images | 150 (" in card.text and "Each fold's model is calibrated" in card.text
    text = (whole / "README.md").read_text()
    assert write_classifier_card(whole).read_text() == text


def test_interrupted_between_and_within_folds_it_goes_on_to_the_same(whole, phantoms, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "copy")
    for name in ("fold-3", "fold-4", "predictions", "README.md", "fairness.csv", "metrics.json"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("README.md", "model.safetensors", "config.json", "predictions"):  # fold 2 had just been trained
        path = folder / "fold-2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    launch(monkeypatch, "--output_dir", folder, "--resume_from_checkpoint", "latest")
    pd.testing.assert_frame_equal(read_predictions(whole), read_predictions(folder))
    assert (whole / "fairness.csv").read_bytes() == (folder / "fairness.csv").read_bytes()


def test_one_fold_alone_is_what_it_is_in_cross_validation(whole, phantoms, tmp_path, monkeypatch):
    launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / "one", "--fold", "2/5", *TINY)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "one"), read_predictions(whole / "fold-2"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fold", "5/5"], "--fold: invalid choice: '5/5'"),
        (["--fold", "2"], "--fold: invalid choice: '2'"),
        (["--cross_validation", "10"], "invalid choice: 10 (choose from 5)"),
        (["--cross_validation", "5", "--eval_only"], "--cross_validation trains"),
        (["--cross_validation", "5", "--allow_elastic"], "all folds have the same number of processes"),
        (["--group_by", "hospital"], "--group_by"),
        (["--group_by", "sex*hospital"], "hospital"),
    ],
)
def test_user_errors(flags, words, phantoms, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / "run", *TINY, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
