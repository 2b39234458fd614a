"""The training script, run for real and small, with data, flags and rates that are wrong."""

import io
import os

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from test_train_classifier import SHORT, TINY, launch

from dataset_scripts.splits import read_manifest, write_manifest
from melanoma_fair_xai.engine.run_folder import remove


def write_ham10000(folder, images: int = 160) -> pd.DataFrame:
    """A raw folder in the layout of HAM10000, of drawn noise."""
    (folder / "HAM10000_images_part_1").mkdir(parents=True)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "lesion_id": [f"HAM_{i // 2:07d}" for i in range(images)],
            "image_id": [f"ISIC_{i:07d}" for i in range(images)],
            "dx": np.repeat(np.resize(["nv", "mel", "nv", "bkl"], images // 2), 2),
            "dx_type": "histo",
            "age": 50.0,
            "sex": "female",
            "localization": "back",
        }
    )
    for name in table["image_id"]:
        noise = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
        noise.save(folder / "HAM10000_images_part_1" / f"{name}.jpg")
    table.to_csv(folder / "HAM10000_metadata.csv", index=False)
    return table


def test_twenty_broken_files_are_listed_and_lose_nothing_else(tmp_path, monkeypatch):
    table = write_ham10000(tmp_path / "raw")
    broken = table["image_id"].iloc[::8].tolist()
    assert len(broken) == 20
    for number, name in enumerate(broken):
        path = tmp_path / "raw" / "HAM10000_images_part_1" / f"{name}.jpg"
        content = path.read_bytes()
        if number % 5 == 4:
            path.unlink()
        else:
            path.write_bytes([content[: len(content) // 2], b"", b"<html>not found</html>", b"text"][number % 5])
    data = ["--dataset_name", "ham10000", "--data_dir", tmp_path / "raw", "--output_dir", tmp_path / "run", *SHORT]
    launch(monkeypatch, *data, "--max_skipped_share", "0.2")
    skipped = pd.read_csv(tmp_path / "run" / "skipped.csv")
    assert sorted(skipped["image_id"]) == sorted(broken) and skipped["reason"].str.len().min() > 0
    used = read_manifest(str(tmp_path / "run" / "split_manifest.csv"))
    assert set(used["image_id"]) == set(table["image_id"]) - set(broken)


def test_images_that_only_decoding_shows_broken_are_listed_too(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for number in range(80):
        buffer = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "JPEG")
        content = buffer.getvalue()
        (folder / f"{number}.jpg").write_bytes(content[:400] if number in (5, 6) else content)
        rows.append((f"{number}.jpg", ["mole", "cancer"][number % 2], f"person{number // 2}"))
    pd.DataFrame(rows, columns=["file_name", "what", "person"]).to_csv(folder / "metadata.csv", index=False)
    own = ["--label_column_name", "what", "--positive_labels", "cancer", "--lesion_column_name", "person"]
    launch(monkeypatch, "--dataset_name", folder, *own, "--output_dir", tmp_path / "run", *SHORT)
    assert len(pd.read_csv(tmp_path / "run" / "skipped.csv")) == 2
    assert len(read_manifest(str(tmp_path / "run" / "split_manifest.csv"))) == 78


def write_bitmaps(folder, images: int = 80) -> list[str]:
    """A user's own folder of noise, whose sizes in bytes say nothing of the content; returns the flags for it."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    rows = [(f"{i}.bmp", f"i{i:02d}", ["mole", "cancer"][i // 2 % 2], f"person{i // 2:02d}") for i in range(images)]
    for name, *_ in rows:
        PIL.Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / name)
    table = pd.DataFrame(rows, columns=["file_name", "image_id", "what", "person"])
    table.to_csv(folder / "metadata.csv", index=False)
    flags = ["--label_column_name", "what", "--positive_labels", "cancer", "--lesion_column_name", "person"]
    return ["--dataset_name", folder, *flags]


def test_a_run_is_not_resumed_on_other_data_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    run, data, fixed = tmp_path / "run", tmp_path / "data", tmp_path / "splits.csv"
    manifest = pd.DataFrame({"image_id": [f"i{i:02d}" for i in range(80)]})
    manifest["lesion_id"] = [f"person{i // 2:02d}" for i in range(80)]
    manifest["split"] = np.repeat(["train", "validation", "test"], [48, 16, 16])
    write_manifest(manifest, str(fixed))
    flags = [*write_bitmaps(data), "--split_manifest", fixed, "--output_dir", run, *SHORT]
    launch(monkeypatch, *flags, "--checkpointing_steps", 2)
    for done in ("README.md", "model.safetensors", "checkpoint-3"):  # as if it had been killed after step 2
        remove(run / done)
    written = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def refused(said: str) -> bool:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            launch(monkeypatch, *flags, "--resume_from_checkpoint", "latest")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == written
        return stop.value.code == 2 and f"checkpoint-2: written with {said}" in capsys.readouterr().err

    before, content = (data / "0.bmp").stat(), (data / "0.bmp").read_bytes()
    (data / "0.bmp").write_bytes(content[:-1] + bytes([content[-1] ^ 255]))  # of equal size
    os.utime(data / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert refused("content of the images")
    (data / "0.bmp").write_bytes(content)
    moved = manifest["split"].to_numpy().copy()
    moved[:16], moved[64:] = "test", "train"  # as many images of either split, of other lesions
    write_manifest(manifest.assign(split=moved), str(fixed))
    assert refused("split manifest")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name", "ham10000"], ["--data_dir"]),
        (["--dataset_name", "ham10000", "--data_dir", "nowhere"], ["nowhere", "--data_dir"]),
        (["--dataset_name", "nowhere"], ["nowhere", "ham10000, fitzpatrick17k, phantom"]),
        (["--model_name_or_path", "resnet19"], ["resnet19", "resnet18"]),
        (["--model_name_or_path", "."], ["not an exported classifier"]),
        (["--pretrained_weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--split_manifest", "nowhere.csv"], ["nowhere.csv"]),
        (["--threshold_rule", "best"], ["--threshold_rule", "youden"]),
        (["--target", "benign"], ["--target"]),
        (["--train_batchsize", "4"], ["--train_batchsize", "--train_batch_size"]),
        (["--confirmed_by_histology"], ["dx_type"]),
        (["--max_train_samples", "1"], ["training split has no"]),
        (["--resume_from_checkpoint", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_user_errors_take_two_lines_and_leave_nothing(arguments, words, phantoms, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    defaults = {"--dataset_name": [phantoms], "--model_name_or_path": ["test_resnet"]}
    for flag, value in defaults.items():
        arguments = arguments if flag in arguments else [flag, *value, *arguments]
    if "test_resnet" in arguments and "--pretrained_weights" not in arguments:
        arguments = [*arguments, "--no_pretrained"]
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, *arguments, "--image_size", 32, "--report_to", "none", "--output_dir", "run")
    error = capfd.readouterr().err
    assert stop.value.code == 2
    message = error[error.index("error: ") :]
    assert len(message.strip().splitlines()) <= 2 and "Traceback" not in error
    assert all(word in message for word in words), message
    # Nothing is left; or, where resuming failed, a folder that is known as a run's and can be resumed.
    left = {path.name for path in tmp_path.glob("run/*")}
    assert not (tmp_path / "run").exists() or (
        "--resume_from_checkpoint" in arguments and "training_args.json" in left
    )


def test_a_diverging_loss_stops_with_its_step_and_leaves_the_checkpoints(phantoms, tmp_path, monkeypatch, capsys):
    arguments = ["--dataset_name", phantoms, "--output_dir", tmp_path / "run", *TINY, "--max_grad_norm", "1e9"]
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, *arguments, "--learning_rate", "1e30", "--checkpointing_steps", 1, "--lr_warmup_steps", 0)
    assert stop.value.code == 2 and "at step" in capsys.readouterr().err
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "model.safetensors").exists()
