"""The training script run for real, small: what it leaves, that it repeats itself, resumes, and says what is wrong."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing import event_accumulator

import train_classifier
from dataset_scripts.phantom import Phantom
from dataset_scripts.prepare import prepare_parquet
from dataset_scripts.splits import read_manifest
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.classifier import task

REPOSITORY = Path(train_classifier.__file__).parent
TINY = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", "32", "--mixed_precision", "no"]
TINY += ["--train_batch_size", "16", "--learning_rate", "0.003", "--report_to", "none"]
SHORT = [*TINY, "--max_train_steps", "3", "--group_by", "sex"]


def launch(monkeypatch, *arguments: object) -> None:
    """Run the script in this process, as `python train_classifier.py ARGUMENTS` would."""
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_command(train_classifier.main)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "train_classifier.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """A run of two epochs in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    arguments = ["--dataset_name", phantoms, "--output_dir", folder, *TINY, "--num_train_epochs", 2]
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def predictions(folder, split: str = "test") -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions" / f"{split}.parquet")


def assert_same_run(first, second) -> None:
    weights, others = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert weights.keys() == others.keys()
    assert not [name for name in weights if not torch.equal(weights[name], others[name])]
    assert json.loads((first / "metrics.json").read_text()) == json.loads((second / "metrics.json").read_text())
    for split in ("validation", "test"):
        pd.testing.assert_frame_equal(predictions(first, split), predictions(second, split))


def test_a_run_leaves_what_it_should(trained, phantoms):
    folder, output = trained
    for name in ("fairness.csv", "fairness.md", "README.md", "figures/fairness_fitzpatrick_group_forest.png"):
        assert (folder / name).is_file(), name
    for name in ("figures/training.png", "figures/roc.png", "training_args.json", "split_manifest.csv", "skipped.csv"):
        assert (folder / name).is_file(), name
    for line in ("phantoms, drawn lesions", "metrics.json", "figures", "README.md", 'timm.create_model("local-dir:'):
        assert line in output
    modes = {(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1, "whoever can read the config can read the weights"
    columns = ["image_id", "lesion_id", "label", "score", "fold", "threshold"]
    table = predictions(folder)
    assert list(table.columns[:6]) == columns
    assert {"diagnosis", "age", "sex", "localization", "fitzpatrick", "source"} <= set(table.columns)
    assert "melanoma" not in table.columns
    assert set(table["label"]) == {0, 1} and table["score"].between(0, 1).all()
    manifest = read_manifest(str(folder / "split_manifest.csv"))
    assert manifest.groupby("lesion_id")["split"].nunique().max() == 1
    assert set(table["image_id"]) == set(manifest["image_id"][manifest["split"] == "test"])


def test_metrics_are_those_of_the_predictions(trained):
    folder, _ = trained
    metrics = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert config["operating_point"]["threshold"] == metrics["threshold"]
    for split in ("validation", "test"):
        table, values = predictions(folder, split), metrics["splits"][split]
        positive = table["score"] >= metrics["threshold"]
        assert values["roc_auc"] == pytest.approx(roc_auc_score(table["label"], table["score"]))
        assert values["sensitivity"] == pytest.approx(positive[table["label"] == 1].mean())
        assert values["specificity"] == pytest.approx((~positive[table["label"] == 0]).mean())
        assert (values["n"], values["melanomas"]) == (len(table), table["label"].sum())
        assert values["lesions"] == table["lesion_id"].nunique()
        assert (table["threshold"] == metrics["threshold"]).all()


def test_the_threshold_is_the_best_on_validation(trained):
    folder, _ = trained
    table = predictions(folder, "validation")

    def youden(threshold: float) -> float:
        decided = table["score"] >= threshold
        return decided[table["label"] == 1].mean() - decided[table["label"] == 0].mean()

    chosen = json.loads((folder / "metrics.json").read_text())["threshold"]
    assert youden(chosen) == pytest.approx(max(youden(score) for score in table["score"]))


def test_who_loads_the_model_gets_the_recorded_scores(trained, phantoms):
    """Published pre-processing on the original files gives the scores that were evaluated from the cache."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder, _ = trained
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    test = datasets.load_dataset(str(phantoms), split="test")
    with torch.inference_mode():
        logits = torch.cat([model(**processor(row["image"], return_tensors="pt")).logits for row in test])
    scores = pd.Series(logits.softmax(-1)[:, 1].numpy(), index=test["image_id"][:])
    recorded = predictions(folder).set_index("image_id")["score"]
    np.testing.assert_allclose(scores[recorded.index], recorded, atol=1e-5)


def test_the_same_command_gives_the_same_result_and_another_seed_another(trained, phantoms, tmp_path, monkeypatch):
    folder, _ = trained
    arguments = ["--dataset_name", phantoms, *TINY, "--num_train_epochs", 2]
    again = subprocess.run(command(*arguments, "--output_dir", tmp_path / "again", "--dataloader_num_workers", 2))
    assert again.returncode == 0
    assert_same_run(folder, tmp_path / "again")
    launch(monkeypatch, *arguments, "--output_dir", tmp_path / "other", "--seed", 1)
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert any(not torch.equal(value, other[name]) for name, value in load_file(folder / "model.safetensors").items())


def test_pixels_that_lie_on_the_device_give_the_same_run(trained, phantoms, tmp_path, monkeypatch):
    """As a GPU holds them; here the device is the CPU."""
    monkeypatch.setattr(task, "on_device", lambda pixels, device: torch.from_numpy(pixels.copy()))
    launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / "run", *TINY, "--num_train_epochs", 2)
    assert_same_run(trained[0], tmp_path / "run")


@pytest.mark.slow
def test_a_compiled_run_resumes_exactly_and_leaves_the_plain_model(trained, phantoms, tmp_path, monkeypatch):
    torch._dynamo.utils.counters.clear()
    flags = ["--dataset_name", phantoms, *TINY, "--max_train_steps", 6, "--checkpointing_steps", 3, "--torch_compile"]
    launch(monkeypatch, *flags, "--output_dir", tmp_path / "run")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (
        load_file(tmp_path / "run" / "model.safetensors").keys() == load_file(trained[0] / "model.safetensors").keys()
    )
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    launch(monkeypatch, "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "resumed")
    assert_same_run(tmp_path / "run", tmp_path / "resumed")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_to_the_same_bits(trained, phantoms, tmp_path, monkeypatch, number):
    folder, _ = trained
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "runs" / "classifier"
    arguments = ["--dataset_name", phantoms, *TINY, "--num_train_epochs", 2]
    process = subprocess.Popen(command(*arguments, "--checkpointing_steps", 1), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not any(output.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert not (output / "model.safetensors").exists()
    if number == signal.SIGTERM:
        assert "continue with --resume_from_checkpoint latest" in stderr
    launch(monkeypatch, "--resume_from_checkpoint", "latest")
    assert_same_run(folder, output)


def test_eval_only_repeats_the_runs_own_test(trained, phantoms, tmp_path, monkeypatch):
    folder, _ = trained
    launch(
        monkeypatch,
        "--eval_only",
        "--model_name_or_path",
        folder,
        "--dataset_name",
        phantoms,
        "--output_dir",
        tmp_path / "e",
    )
    pd.testing.assert_frame_equal(predictions(tmp_path / "e"), predictions(folder))
    assert not (tmp_path / "e" / "model.safetensors").exists()
    values = json.loads((tmp_path / "e" / "metrics.json").read_text())["splits"]
    assert values["test"] == pytest.approx(
        json.loads((folder / "metrics.json").read_text())["splits"]["test"], rel=1e-5
    )


def test_two_processes_score_as_one_does(trained, phantoms, tmp_path):
    folder, _ = trained
    evaluate = ["--eval_only", "--eval_batch_size", 8, "--model_name_or_path", folder, "--dataset_name", phantoms]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(command(*evaluate, "--output_dir", one), check=True)
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script, *arguments = command(*evaluate, "--output_dir", two)[1:]
    result = subprocess.run([sys.executable, *both, script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "2 process(es)" in result.stdout
    pd.testing.assert_frame_equal(predictions(one), predictions(two))


def test_fine_tuning_starts_from_the_earlier_weights(trained, phantoms, tmp_path, monkeypatch, capsys):
    folder, _ = trained
    tuned = [word if word != "test_resnet" else str(folder) for word in SHORT if word != "--no_pretrained"]
    still = ["--learning_rate", "0", "--ema_max_decay", "0"]
    launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / "same", *tuned, *still)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "same"))
    convolutions = [name for name in first if "conv" in name and first[name].ndim == 4]
    assert convolutions and all(torch.equal(first[name], second[name]) for name in convolutions)
    nevus = ["--target", "melanoma_vs_nevus", "--dataset_name", phantoms, "--output_dir", tmp_path / "head"]
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, *nevus, *tuned)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "nevus, melanoma" in error and "--ignore_mismatched_sizes" in error
    launch(monkeypatch, *nevus, *tuned, "--ignore_mismatched_sizes", "--overwrite_output_dir")
    assert json.loads((tmp_path / "head" / "config.json").read_text())["label_names"] == ["nevus", "melanoma"]


def test_forgetting_is_measured_on_the_earlier_test_split(trained, tmp_path, monkeypatch, capsys):
    folder, _ = trained
    tuned = [word if word != "test_resnet" else str(folder) for word in SHORT if word != "--no_pretrained"]
    data = tmp_path / "dark"
    phantom = Phantom(num_images=100, image_size=32, seed=7, skin_type_proportions=(0, 0, 0, 0, 1, 1))
    prepare_parquet(phantom, str(data))
    run = ["--dataset_name", data, *tuned, "--measure_forgetting"]
    launch(monkeypatch, *run, "--output_dir", tmp_path / "tuned")
    before, after = predictions(folder), predictions(tmp_path / "tuned", "earlier_test")
    assert before["image_id"].tolist() == after["image_id"].tolist() and (before["score"] != after["score"]).any()
    assert not set(after["image_id"]) & set(predictions(tmp_path / "tuned")["image_id"])
    assert set(after["threshold"]) == set(predictions(tmp_path / "tuned")["threshold"])
    comparison = pd.read_csv(tmp_path / "tuned" / "forgetting" / "comparison.csv")
    assert len(comparison) and "on the earlier data" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        launch(monkeypatch, "--dataset_name", data, *SHORT, "--measure_forgetting", "--output_dir", tmp_path / "none")
    assert "must be the folder of an earlier run" in capsys.readouterr().err


def test_the_original_protocol_reports_every_type_with_counts_and_intervals(tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    labels = {"melanoma": "melanoma,malignant melanoma,malignant", "nevus": "halo nevus,benign melanocyte,benign"}
    labels["acne"] = "acne,inflammatory,non-neoplastic"
    rows = ["md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url"]
    rng = np.random.default_rng(0)
    for number in range(252):  # 15 melanomas, 15 nevi and 12 of acne of every type
        noise = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((64, 48))
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG")
        name, scale = hashlib.md5(buffer.getvalue()).hexdigest(), 1 + number % 6
        (raw / f"{name}.jpg").write_bytes(buffer.getvalue())
        kind = "melanoma" if number < 90 else "nevus" if number < 180 else "acne"
        rows.append(f"{name},{scale},{scale},{labels[kind]},,https://www.dermaamin.com/{number}.jpg")
    (raw / "fitzpatrick17k.csv").write_text("\n".join(rows) + "\n")
    short = [*TINY, "--max_train_steps", "2"]
    launch(monkeypatch, "--protocol", "original", "--data_dir", raw, *short, "--output_dir", tmp_path / "run")
    table = predictions(tmp_path / "run")
    assert table.groupby(["fitzpatrick", "label"]).size().tolist() == [3] * 12, "a fifth of each type and class"
    assert set(table["diagnosis"]) == {"melanoma", "halo nevus"}
    output = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in output.splitlines() if line.strip()}
    for name in ("I", "II", "III", "IV", "V", "VI"):
        assert lines[name][1:4] == ["6", "6", "3"] and "estimable" in lines[name], lines[name]
    assert "balanced accuracy" in output and "[" in " ".join(lines["all"]) and "13 melanomas and 100 benign" in output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["label_names"] == ["nevus", "melanoma"]
    assert "--protocol original" in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(SystemExit):
        other = ["--dataset_config_name", "all", "--data_dir", raw, "--output_dir", tmp_path / "other"]
        launch(monkeypatch, "--protocol", "original", *short, *other)
    assert "--dataset_config_name all: --protocol original" in capsys.readouterr().err


def test_the_diagnosis_itself_as_target(phantoms, tmp_path, monkeypatch, capsys):
    run = ["--target", "diagnosis", "--dataset_name", phantoms, "--output_dir", tmp_path / "d", *SHORT]
    launch(monkeypatch, *run, "--gradient_accumulation_steps", 2, "--report_to", "tensorboard")
    table = predictions(tmp_path / "d")
    assert table["label"].tolist() == (table["diagnosis"] == "melanoma").astype(int).tolist()
    events = event_accumulator.EventAccumulator(str(next((tmp_path / "d" / "logs").glob("events*"))))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/roc_auc")] == [3]
    evaluate = ["--eval_only", "--model_name_or_path", tmp_path / "d", "--dataset_name", phantoms]
    with pytest.raises(SystemExit):
        launch(monkeypatch, *evaluate, "--output_dir", tmp_path / "e")
    assert "--target melanoma_vs_rest: the model tells melanoma, nevus apart" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten_unasked(trained, phantoms, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(SystemExit):
        launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", folder, *SHORT)
    assert "not empty" in capsys.readouterr().err and (folder / "metrics.json").read_bytes() == before


def test_both_trainings_log_each_step_once_although_they_were_killed_and_resumed(phantoms, tmp_path, monkeypatch):
    """Killed after step 20 and before it had a checkpoint of it, a run goes on from step 10."""
    import train_diffusion

    tiny = ["--resolution", "16", "--block_out_channels", "16", "32", "--attention_resolutions", "8"]
    tiny += ["--train_batch_size", "8", "--num_inference_steps", "2", "--validation_images", "10"]
    for script, flags in ((train_classifier, TINY[:-2]), (train_diffusion, tiny)):
        folder = tmp_path / script.__name__
        steps = ["--max_train_steps", 30, "--checkpointing_steps", 10, "--validation_steps", 20]
        run = ["--dataset_name", phantoms, "--output_dir", folder, *flags, *steps, "--checkpoints_total_limit", 9]
        monkeypatch.setattr(train_classifier, "main", script.main)
        launch(monkeypatch, *run)
        for step in (20, 30):
            shutil.rmtree(folder / f"checkpoint-{step}")
        launch(monkeypatch, "--resume_from_checkpoint", "latest", "--output_dir", folder)
        events = event_accumulator.EventAccumulator(str(folder / "logs")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30], script.__name__
        validations = [tag for tag in events.Tags()["scalars"] if tag.startswith("validation/")]
        assert validations
        for tag in validations:
            assert [event.step for event in events.Scalars(tag)] == [20, 30], script.__name__
