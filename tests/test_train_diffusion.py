"""The training script run for real, small: what it leaves, that it repeats itself, and says what is wrong."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import load
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing import event_accumulator

import train_diffusion
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.diffusion.arguments import PRESETS
from melanoma_fair_xai.diffusion.data import find_conditions
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.engine.sampler import balanced_weights
from melanoma_fair_xai.engine.training import ema_decay

TINY = ["--resolution", "16", "--block_out_channels", "16", "32", "--attention_resolutions", "8"]
TINY += ["--train_batch_size", "8", "--num_inference_steps", "2", "--validation_images", "10"]
SHORT = [*TINY, "--max_train_steps", "4", "--report_to", "none"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def launch(monkeypatch, *arguments: object) -> None:
    """Run the script in this process, as `python train_diffusion.py ARGUMENTS` would."""
    monkeypatch.setattr(sys, "argv", ["train_diffusion.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_command(train_diffusion.main)


def refusal(monkeypatch, capsys, *arguments: object) -> str:
    """What the script says on stderr, in one or two lines, when it ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    error = error[error.index("error: ") :]
    assert error.count("\n") <= 2 and "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """A run of 15 steps and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        steps = ["--max_train_steps", 15, "--validation_steps", 10, "--checkpointing_steps", 5, "--ema_max_decay", 0.9]
        launch(patch, "--dataset_name", phantoms, "--output_dir", folder, *TINY, *steps)
    return folder


def test_a_run_leaves_what_it_should(trained):
    files = ["model_index.json", "pipeline_lesion.py", "conditioner/lesion_conditioner.py", f"unet/{WEIGHTS}"]
    files += ["training_args.json", "split_manifest.csv", "skipped.csv", "metrics.json"]
    files += ["samples/step-000010.png", "samples/step-000015.png", "README.md", "card_data.json"]
    assert not [name for name in files if not (trained / name).is_file()]
    assert sorted(path.name for path in trained.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-15"]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [row["step"] for row in metrics["history"]] == [10, 15]
    errors = [metrics["history"][0][f"error_t{start}-{start + 199}"] for start in range(0, 1000, 200)]
    assert all(0 < error < 3 for error in errors)
    arguments = json.loads((trained / "training_args.json").read_text())
    assert (arguments["preset"], arguments["learning_rate"]) == ("32-tiny", 8e-4)


def test_the_card_shows_the_last_sheet_and_the_losses_beside_it(trained):
    card, metrics = (trained / "README.md").read_text(), json.loads((trained / "metrics.json").read_text())
    assert "](samples/step-000015.png)" in card and "**Phantom data.**" in card and "**Smoke run.**" in card
    assert f"| {metrics['history'][-1]['error_t0-199']:.4f} |" in card
    counts = json.loads((trained / "conditioner" / "config.json").read_text())["counts"]
    assert f"nevus ({counts['diagnosis']['nevus']})" in card


def test_what_is_published_is_the_average_of_both_networks(trained):
    checkpoint = trained / "checkpoint-15"
    for number, name in enumerate(("unet", "conditioner")):
        published = load_file(trained / name / WEIGHTS)
        last = load_file(checkpoint / ("model_1.safetensors" if number else "model.safetensors"))
        average = load(checkpoint / f"custom_checkpoint_{1 + number}.pkl")["shadow"]
        assert published.keys() == average.keys()
        assert all(torch.equal(published[key], average[key]) for key in average)
        assert not all(torch.equal(published[key], last[key]) for key in last)


def test_tracker_has_losses_and_samples(trained):
    events = event_accumulator.EventAccumulator(str(next((trained / "logs").glob("events*"))))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/error_t800-999")] == [10, 15]
    assert [event.step for event in events.Images("samples")] == [10, 15]


def test_the_sheet_has_skin_types_and_diagnoses(trained):
    """As many cells as conditions: 6 rows of types and 2 columns of diagnoses, white between them."""
    sheet = np.asarray(PIL.Image.open(trained / "samples" / "step-000015.png").convert("L"))
    assert sheet.shape[0] > sheet.shape[1] > 100 and sheet.std() > 10


@pytest.mark.parametrize("drawn", [True, False])
def test_a_run_on_drawings_says_that_it_says_nothing_about_patients(trained, drawn):
    text = train_diffusion.summary(trained, 3.25, SimpleNamespace(are_phantoms=drawn))
    assert ("the samples say nothing about patients" in text) == drawn
    assert "samples: " + str(trained / "samples" / "step-000015.png") in text and "3.2 images/s" in text


def test_the_published_pipeline_generates(trained):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(trained, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="training saw"):
        (image,) = pipeline("melanoma", fitzpatrick="VI", num_inference_steps=2).images
    assert image.size == (16, 16)
    with pytest.raises(ValueError, match="it knows melanoma .* nevus"):
        pipeline("seborrheic keratosis")


def test_dry_run_says_what_would_be_and_writes_nothing(phantoms, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "none"
    launch(monkeypatch, "--dataset_name", phantoms, "--preset", "32-tiny", "--dry_run", "--output_dir", folder)
    text = capsys.readouterr().out
    for part in ("preset 32-tiny: resolution 32, haar_levels 0", "steps per epoch", "memory", ".6 GFLOP", "hours at"):
        assert part in text
    assert "nevus (" in text and "fitzpatrick: I (" in text
    unet, _ = create_networks(
        find_conditions(datasets.load_dataset(str(phantoms), split="train").to_pandas(), ["age"], ""),
        **{key: PRESETS["32-tiny"][key] for key in ("resolution", "block_out_channels")},
        layers_per_block=1,
        attention_resolutions=[8],
    )
    assert f"UNet {sum(p.numel() for p in unet.parameters()):,}" in text
    assert not folder.exists()


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_other_predictions_train_and_generate(phantoms, tmp_path, monkeypatch, prediction_type):
    options = ["--prediction_type", prediction_type, "--gradient_checkpointing", "--gradient_accumulation_steps", 2]
    options += ["--class_balanced_sampling", "--diagnosis_labels", "melanoma", "--conditions", "diagnosis", "age"]
    launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / "run", *SHORT, *options)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "run", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.conditioner.names == ("diagnosis", "age")
    assert pipeline.conditioner.config.vocabularies == {"diagnosis": ["benign", "melanoma"]}
    assert pipeline.scheduler.config.prediction_type == prediction_type
    assert pipeline.scheduler.config.rescale_betas_zero_snr == (prediction_type == "sample")
    assert np.isfinite(pipeline(num_inference_steps=2, output_type="np").images).all()


def test_horizon_of_the_average_and_balanced_weights():
    assert 1 / (1 - ema_decay(10_000)) == pytest.approx(500)
    assert ema_decay(10) == 0
    weights = balanced_weights(np.array(["nv", "mel", "nv", "nv"], dtype=object))
    assert weights[1] == pytest.approx(weights[[0, 2, 3]].sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "15"], "--resolution 15: cannot be halved 1 times"),
        (["--preset", "1024-huge"], "--preset: invalid choice: '1024-huge'"),
        (["--conditions", "skin"], "--conditions: invalid choice: 'skin'"),
        (["--dataset_name", "nowhere"], "--dataset_name nowhere: cannot be loaded"),
        (["--prediction_type", "flow"], "invalid choice: 'flow'"),
        (["--resume_from_checkpoint", "runs/none/checkpoint-3"], "no such folder"),
    ],
)
def test_mistakes_are_refused(phantoms, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    error = refusal(monkeypatch, capsys, "--dataset_name", phantoms, *SHORT, *arguments)
    assert message in error
    assert not list(tmp_path.rglob("checkpoint-*"))


def own_folder(tmp_path: Path, columns: dict[str, list[str]]) -> Path:
    """A user's own images with a metadata.csv."""
    folder = tmp_path / "own"
    folder.mkdir()
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        PIL.Image.new("RGB", (16, 16), (200, 15 * number, 100)).save(folder / name)
    rows = zip(names, *columns.values(), strict=True)
    (folder / "metadata.csv").write_text("\n".join([",".join(["file_name", *columns]), *map(",".join, rows)]))
    return folder


def test_missing_and_empty_columns(tmp_path, monkeypatch, capsys):
    lesions = [str(number) for number in range(12)]
    folder = own_folder(tmp_path, {"dx": ["mel", "nv"] * 6, "lesion_id": lesions, "sex": [""] * 12})
    run = ["--dataset_name", folder, "--output_dir", tmp_path / "run", *SHORT]
    own = ["--label_column_name", "dx", "--positive_labels", "mel"]
    assert "no column diagnosis_name; give --label_column_name, one of" in refusal(
        monkeypatch, capsys, *run, "--label_column_name", "diagnosis_name", "--positive_labels", "mel"
    )
    error = refusal(monkeypatch, capsys, *run, *own, "--conditions", "diagnosis", "sex")
    assert "--conditions sex: " in error and "of no training image" in error
    launch(monkeypatch, *run, *own, "--overwrite_output_dir")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert pipeline.conditioner.names == ("diagnosis",)
    with pytest.raises(ValueError, match="sex: this model has no such condition"):
        pipeline(sex="female")


def test_a_loss_that_explodes_stops_with_the_last_checkpoint_intact(phantoms, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    steps = ["--max_train_steps", 60, "--checkpointing_steps", 1, "--lr_warmup_steps", 0, "--max_grad_norm", 1e9]
    rate = ["--learning_rate", 10, "--report_to", "none", "--checkpoints_total_limit", 100]
    error = refusal(monkeypatch, capsys, "--dataset_name", phantoms, "--output_dir", folder, *TINY, *steps, *rate)
    assert (
        "the loss explodes" in error or "the loss is" in error
    ) and "checkpoints written before are intact" in error
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())
    assert not list(folder.glob(".partial*"))


def test_a_full_disk_while_saving_leaves_the_earlier_checkpoints(
    phantoms, tmp_path, monkeypatch, capsys, file_size_limit
):
    run = ["--dataset_name", phantoms, "--output_dir", tmp_path / "run", *TINY, "--report_to", "none"]
    launch(monkeypatch, *run, "--max_train_steps", 4, "--checkpointing_steps", 2, "--checkpoints_total_limit", 9)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with file_size_limit(200_000):  # settings fit, weights do not
        error = refusal(monkeypatch, capsys, "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-2")
    assert "checkpoint-4: could not be written (" in error and "earlier checkpoints are intact" in error
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-2"]
    launch(monkeypatch, "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-4").is_dir()


def test_the_literal_command_resumes(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    launch(monkeypatch, "--resume_from_checkpoint", "latest", "--dataset_name", phantoms, *SHORT, "--seed", 3)
    assert "nothing to resume in runs/diffusion: starting" in capsys.readouterr().out
    launch(monkeypatch, "--resume_from_checkpoint", "latest")
    assert "resuming from checkpoint-4 of 4 steps" in capsys.readouterr().out
    error = refusal(monkeypatch, capsys, "--resume_from_checkpoint", "latest", "--seed", 4)
    assert "--seed 4: the run in runs/diffusion has 3" in error


def test_another_seed_gives_another_run(trained, phantoms, tmp_path, monkeypatch):
    arguments = json.loads((trained / "training_args.json").read_text())
    for seed in (arguments["seed"], 1):
        steps = ["--max_train_steps", 15, "--ema_max_decay", 0.9, "--seed", seed, "--report_to", "none"]
        launch(monkeypatch, "--dataset_name", phantoms, "--output_dir", tmp_path / str(seed), *TINY, *steps)
    first, same, other = (load_file(folder / "unet" / WEIGHTS) for folder in (trained, tmp_path / "0", tmp_path / "1"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--block_out_channels", 16, 48], "block_out_channels [16, 32], but this run has [16, 48]"),
        (["--haar_levels", 1], "haar_levels 0, but this run has 1"),
    ],
)
def test_resuming_with_another_architecture_is_refused(trained, phantoms, tmp_path, monkeypatch, capsys, change, said):
    other = shutil.copytree(trained / "checkpoint-15", tmp_path / "moved" / "checkpoint-15")
    run = ["--dataset_name", phantoms, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", other, *TINY]
    error = refusal(monkeypatch, capsys, *run, "--max_train_steps", 15, *change)
    assert f"checkpoint-15: written with {said}" in error


def test_a_damaged_checkpoint_is_refused_by_name(trained, tmp_path, monkeypatch, capsys):
    moved = shutil.copytree(trained, tmp_path / "moved")
    path = moved / "checkpoint-15" / "model_1.safetensors"
    save_file({"nothing": torch.zeros(1)}, path)
    error = refusal(monkeypatch, capsys, "--resume_from_checkpoint", moved / "checkpoint-15")
    assert "model_1.safetensors is not what was written" in error


def test_phantoms_without_known_conditions_are_no_training_set():
    with pytest.raises(UserError, match="no diagnosis, sex"):
        find_conditions(datasets.Dataset.from_dict({"image_id": ["a"]}).to_pandas(), [], "here")
