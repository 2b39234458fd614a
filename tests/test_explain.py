"""The script run for real, small: what it leaves, that it repeats itself on two processes, and what it refuses."""

import io
import json
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import explain
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.classifier.export import ClassifierInfo, export_classifier
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.engine.arguments import save_arguments, settings
from melanoma_fair_xai.explain.controls import CONTROLS
from melanoma_fair_xai.explain.measures import COMPARED, MEASURES
from melanoma_fair_xai.explain.methods import METHODS, Method
from melanoma_fair_xai.hub import explanation

sys.path.append(str(Path(__file__).parent / "engine"))
from toy_runs import CONTEXT, running  # noqa: E402

CONTEXT.set_forkserver_preload(["explain", "captum.attr", "timm", "matplotlib.figure"])

REPOSITORY = Path(explain.__file__).parent
PREPROCESSING = Preprocessing((3, 32, 32), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 1.0, "squash")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An exported net with random weights, whose threshold lies in the middle of its scores."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(network.fc.weight, std=0.3)
    folder = tmp_path_factory.mktemp("model")
    info = ClassifierInfo(
        ["benign", "melanoma"], ["melanoma"], 0.5, "youden", PREPROCESSING, training={"target": "melanoma_vs_rest"}
    )
    export_classifier(network, folder, info)
    return folder


def launch(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, arguments)])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_command(explain.main)


def failure(monkeypatch, capsys, *arguments: object) -> str:
    """What it says as it ends with exit code 2, at most two lines."""
    with pytest.raises(SystemExit) as stop:
        launch(monkeypatch, *arguments)
    error = capsys.readouterr().err
    message = error[error.index("error: ") :].strip()
    assert stop.value.code == 2 and "Traceback" not in error and len(message.splitlines()) <= 2, error
    return message


@pytest.fixture(scope="module")
def report(model, phantoms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "report"
    arguments = ["--model_name_or_path", model, "--dataset_name", phantoms, "--output_dir", folder]
    arguments += ["--trap", "ruler", "erase_lesion", "--eval_batch_size", "32", "--layer", "layer2", "--gallery", "2"]
    script = [sys.executable, str(REPOSITORY / "explain.py"), *map(str, arguments)]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "centre Gaussian" in result.stdout and "phantoms, drawn lesions" in result.stdout
    return folder


def test_the_table_has_every_measure_of_every_image_and_control(report):
    table = pd.read_parquet(report / "attributions.parquet")
    assert len(table) == table["image_id"].nunique() > 20
    for measure in COMPARED:
        for control in CONTROLS:
            assert f"{measure}__{control}" in table
    usable = table["map_problem"] == ""
    assert usable.sum() > 10
    assert table.loc[usable, list(MEASURES)].notna().all().all()
    assert table.loc[~usable, list(MEASURES)].isna().all().all()
    # The mask as a map is in the mask, and no random map of a net is.
    np.testing.assert_allclose(table[["energy_in_mask__mask", "pointing_game__mask", "iou__mask"]], 1, atol=1e-6)
    decided = table["score"] >= table["threshold"]
    names = {(1, True): "TP", (0, True): "FP", (0, False): "TN", (1, False): "FN"}
    assert table["error"].tolist() == [names[pair] for pair in zip(table["label"], decided, strict=True)]
    assert {"trap_ruler_change", "trap_erase_lesion_turned", "spearman_shuffled_1", "ssim_shuffled_0"} <= set(table)


def test_maps_and_curves_go_with_the_table(report):
    table = pd.read_parquet(report / "attributions.parquet")
    with np.load(report / "attributions.npz") as file:
        assert file["ids"].tolist() == table["image_id"].tolist()
        assert file["maps"].shape == (len(table), 32, 32) and file["maps"].dtype == np.float32
        np.testing.assert_allclose(file["blacken_method"].mean(1), table["fidelity_blacken"], atol=1e-6)
    overlay = PIL.Image.open(report / "overlays" / f"{table['image_id'][0]}.jpg")
    assert overlay.size == (3 * 256, 256)


def test_summaries_are_means_of_the_table(report):
    table = pd.read_parquet(report / "attributions.parquet")
    comparison = pd.read_csv(report / "controls.csv").set_index("measure")
    for name, sign in (("insertion_blur", 1), ("deletion_blur", -1)):
        difference = sign * (table[name] - table[f"{name}__centre"])
        assert comparison.loc[name, "mean"] == pytest.approx(table[name].mean())
        assert comparison.loc[name, "over_centre"] == pytest.approx(difference.mean())
        assert comparison.loc[name, "over_centre_low"] < difference.mean() < comparison.loc[name, "over_centre_high"]
    groups = pd.read_csv(report / "groups.csv")
    assert {"all", "fitzpatrick_group", "fitzpatrick", "sex", "age_band", "diagnosis", "error"} == set(
        groups["group_column"]
    )
    row = groups[(groups["group"] == "female") & (groups["measure"] == "insertion_blur")].iloc[0]
    chosen = table[table["sex"] == "female"]["insertion_blur"].dropna()
    assert row["n"] == len(chosen) and (not row["estimable"] or row["mean"] == pytest.approx(chosen.mean()))


def test_the_page_needs_nothing_beside_itself(report):
    page = (report / "report.html").read_text()
    assert "Phantoms." in page and "centre Gaussian" in page and "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(links) >= 6 and all(link.startswith("data:image/png;base64,") for link in links)
    for text in ("fidelity, blackened", "pointing game", "erase_lesion", "ruler"):
        assert text in page


def test_a_card_takes_the_summary_of_its_own_models_report(report, model, tmp_path):
    run = shutil.copytree(model, tmp_path / "run")
    assert explanation.read(run) is None
    explanation.take(report, run)
    found, comparison = explanation.read(run), pd.read_csv(report / "controls.csv").set_index("measure")
    assert found["method"].startswith("Grad-CAM") and found["images"] == len(
        pd.read_parquet(report / "attributions.parquet")
    )
    line = next(line for line in found["table"].splitlines() if "deletion AUC, blur" in line)
    row = comparison.loc["deletion_blur"]
    for value in (row["mean"], row["low"], row["high"], row["random"], row["centre"], row["randomised"]):
        assert f"{value:.3f}".replace("-", "−") in line
    assert line.endswith("| yes |" if row["over_centre_low"] > 0 else "| no |")
    assert [text.split(" changes")[0] for text in found["traps"]] == ["A pasted ruler", "Erasing the lesion"]
    assert set(found["figures"]) == {"controls", "gallery"} and all(
        (run / f).is_file() for f in found["figures"].values()
    )
    (run / explanation.GROUPS_TABLE).unlink()
    with pytest.raises(UserError, match="no explanation/groups.csv"):
        explanation.read(run)
    config = json.loads((run / "config.json").read_text())
    config["operating_point"]["threshold"] = 0.4
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="explains another model"):
        explanation.take(report, run)


PLANTED = """
from melanoma_fair_xai.explain.methods import METHODS, Method
METHODS["input_x_gradient"] = Method("input times gradient (Shrikumar et al. 2016)", "InputXGradient")
import explain
explain.main()
"""


def test_a_method_takes_a_row_to_be_a_flag_and_on_the_page_and_the_card(model, phantoms, tmp_path, monkeypatch):
    flags = ["--model_name_or_path", model, "--dataset_name", phantoms, "--max_samples", 12, "--eval_batch_size", 16]
    flags += ["--method", "input_x_gradient", "--output_dir", tmp_path / "report"]
    script = [sys.executable, "-c", PLANTED, *map(str, flags)]
    result = subprocess.run(script, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "report" / "attributions.npz") as file:
        assert (file["maps"] < 0).any() and (file["maps"] > 0).any()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "input times gradient (Shrikumar et al. 2016) of" in page and "negative against it" in page
    run = shutil.copytree(model, tmp_path / "run")
    explanation.take(tmp_path / "report", run)
    monkeypatch.setitem(METHODS, "input_x_gradient", Method("planted", "InputXGradient"))
    assert explanation.read(run)["method"] == "planted"


@pytest.mark.slow
def test_two_processes_find_what_one_finds(report, model, phantoms, tmp_path):
    arguments = json.loads((report / "training_args.json").read_text())
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--model_name_or_path", model, "--dataset_name", phantoms, "--output_dir", tmp_path / "two"]
    flags += ["--trap", *arguments["trap"], "--eval_batch_size", 32, "--layer", "layer2"]
    result = subprocess.run([*both, REPOSITORY / "explain.py", *map(str, flags)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, two = (pd.read_parquet(folder / "attributions.parquet") for folder in (report, tmp_path / "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    first, second = (np.load(folder / "attributions.npz") for folder in (report, tmp_path / "two"))
    assert all(np.array_equal(first[name], second[name], equal_nan=name != "ids") for name in first)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_files(model, phantoms, tmp_path, record_property):
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    folder = tmp_path / "report"
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(phantoms), "--eval_batch_size", "12"]
    flags += ["--trap", "ruler", "erase_lesion", "--layer", "layer2", "--gallery", "2"]

    def finish() -> str:
        with running(folder, *flags, module="explain") as run:
            assert run.wait(600) == [0], run.text
            return run.text

    finish()
    whole = contents(folder)
    assert len([name for name in whole if name.startswith("overlays/")]) > 20
    assert not [name for name in whole if name.startswith("unfinished/")]
    shutil.rmtree(folder)
    kept = []
    for _ in range(3):
        batches = generator.randint(1, 11)
        with running(folder, *flags, module="explain") as run:
            run.wait_until(lambda batches=batches: len(list(folder.glob("unfinished/0*.npz"))) >= batches)
            time.sleep(generator.uniform(0, 2))
            run.kill()
        kept.append(len(list(folder.glob("unfinished/0*.npz"))))
        finish()
        assert contents(folder) == whole, f"seed {seed}, {kept[-1]} batches kept"
        assert "made before by the same command" in finish()
        assert contents(folder) == whole
        shutil.rmtree(folder)
    record_property(
        "measured", f"explain.py, seed {seed}: killed with {kept} of 11 batches: 0 of {len(whole)} files differ"
    )


def test_the_same_command_finds_its_report_whole(report, model, phantoms, monkeypatch, capsys):
    flags = ["--model_name_or_path", model, "--dataset_name", phantoms, "--output_dir", report]
    flags += ["--trap", "ruler", "erase_lesion", "--eval_batch_size", "32", "--layer", "layer2", "--gallery", "2"]
    before = contents(report)
    launch(monkeypatch, *flags)
    assert capsys.readouterr().out == f"report: {report / 'report.html'}, made before by the same command\n"
    assert contents(report) == before
    assert "made with seed 0, not 1" in failure(monkeypatch, capsys, *flags, "--seed", "1")


def test_an_explanation_of_something_else_is_not_gone_on_with(tmp_path):
    arguments, data = explain.ExplainArguments(model_name_or_path="model"), explain.SplitArguments(dataset_name="data")
    made_with = {**settings(arguments, data), "weights": "a", "threshold": 0.1, "torch": "2"}
    explain.check_folder(tmp_path, made_with)
    save_arguments(
        tmp_path / "training_args.json", arguments, data, weights="a", threshold=0.1, torch="2", content="b"
    )
    explain.check_folder(tmp_path, made_with)
    explain.check_folder(tmp_path, settings(replace(arguments, output_dir="moved"), replace(data, data_dir="moved")))
    explain.check_folder(tmp_path, {"content": "b"})
    others = [{name: "other"} for name in ("weights", "threshold", "torch", "content")]
    changes = {"method": "occlusion", "eval_batch_size": 8, "trap": ["ink"], "max_samples": 4}
    others += [settings(replace(arguments, **{name: value})) for name, value in changes.items()]
    for other in [*others, settings(replace(data, split="train"))]:
        with pytest.raises(UserError, match=r"made with \w+ .*, not .*;\n.*--overwrite_output_dir"):
            explain.check_folder(tmp_path, other)
    save_arguments(tmp_path / "training_args.json", data)
    with pytest.raises(UserError, match="holds another run;"):
        explain.check_folder(tmp_path, made_with)


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_odd_images_by_name(model, tmp_path, monkeypatch, capsys):
    """Greyscale, CMYK, 16 bits, turned by EXIF, huge, by odd names; what cannot be used is listed or said."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    colour = PIL.Image.fromarray(noise).resize((400, 300), PIL.Image.Resampling.BICUBIC)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    deep = np.asarray(colour.convert("L")).astype(np.uint16)
    files = {
        "plain.png": encoded(colour, "PNG"),
        "grey.png": encoded(colour.convert("L"), "PNG"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "deep.png": encoded(PIL.Image.fromarray(deep), "PNG"),
        "deeper.png": encoded(PIL.Image.fromarray(deep * 257), "PNG"),
        "old.jfif": encoded(colour, "JPEG", quality=95),
        "IMG_0001": encoded(colour, "PNG"),
        "1.2.840": encoded(colour, "PNG"),
        "turned.png": encoded(colour.rotate(180), "PNG", exif=exif),
        "huge.png": encoded(colour.resize((9000, 6000)), "PNG", compress_level=1),
        "flat.png": encoded(PIL.Image.new("RGB", (50, 50), "white"), "PNG"),
        "broken.jpg": encoded(colour, "JPEG")[:900],
        "page.jpg": b"<html>not found</html>",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name in ("notes.txt", "README", ".DS_Store"):
        (folder / name).write_text("no image")
    (folder / "moving.gif").write_bytes(encoded(colour, "GIF"))
    unusable = {"broken.jpg", "page.jpg", "deeper.png"}
    launch(
        monkeypatch, "--model_name_or_path", model, "--images", folder, "--output_dir", tmp_path / "r", "--gallery", 3
    )
    table = pd.read_parquet(tmp_path / "r" / "attributions.parquet")
    score = dict(zip(table["image_id"].map(lambda name: Path(name).name), table["score"], strict=True))
    skipped = pd.read_csv(tmp_path / "r" / "skipped.csv")
    assert {Path(name).name for name in skipped["image_id"]} == unusable
    assert set(score) == set(files) - unusable
    said = capsys.readouterr().err
    assert "3 of 13 images cannot be used" in said and "13 of 13 images" not in said
    assert "left out what is no JPEG, PNG, BMP, TIFF, WEBP: 1 README, 1 .gif, 1 .txt" in said
    assert score["IMG_0001"] == score["1.2.840"] == pytest.approx(score["plain.png"], abs=1e-6)
    assert score["old.jfif"] == pytest.approx(score["plain.png"], abs=0.05)
    assert score["turned.png"] == pytest.approx(score["plain.png"], abs=1e-6)
    assert score["deep.png"] == pytest.approx(score["grey.png"], abs=1e-3)
    assert score["huge.png"] == pytest.approx(score["plain.png"], abs=0.1)
    assert (table["error"] == "unknown").all() and table["energy_in_mask"].isna().all()
    assert table["insertion_blur"].notna().any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "layr3"], ["layr3: no such layer", "layer3", "--list_layers"]),
        (["--layer", "fc"], ["fc: its output is no map"]),
        (["--method", "lime"], ["lime", "gradcam", "occlusion"]),
        (["--trap", "rule"], ["--trap", "'rule'", "ruler", "erase_background"]),
        (["--model_name_or_path", "."], ["not an exported classifier"]),
        (["--model_name_or_path", "resnet18"], ["resnet18: a net of timm's that has not learned this task"]),
        (["--split", "isic"], ["--split isic", "test, train, validation"]),
        (["--images", "nowhere.jpg"], ["either --images, or --dataset_name"]),
        (["--max_samples", "0"], ["--max_samples 0"]),
        (["--dataset_name", "nowhere"], ["nowhere", "ham10000"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_user_errors_take_two_lines_and_leave_nothing(
    arguments, words, model, phantoms, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for flag, value in {"--model_name_or_path": model, "--dataset_name": phantoms}.items():
        arguments = arguments if flag in arguments else [flag, value, *arguments]
    message = failure(monkeypatch, capsys, *arguments, "--output_dir", "r")
    assert all(word in message for word in words), message
    assert not (tmp_path / "r").exists()


def test_what_images_by_name_cannot_have_is_refused(model, tmp_path, monkeypatch, capsys):
    PIL.Image.new("RGB", (40, 40), "brown").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    common = ["--model_name_or_path", model, "--output_dir", tmp_path / "r"]
    (tmp_path / "moving").mkdir()
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "moving" / "a.gif")
    for arguments, words in (
        (["--images", tmp_path / "c.png"], "no such file or folder"),
        (["--images", tmp_path / "empty"], r"no images in this folder \(it is empty\)"),
        (["--images", tmp_path / "moving"], r"no images in this folder \(1 .gif\)"),
        (["--images", tmp_path / "b.png"], "none can be used; the first: .*b.png: zero bytes"),
        (["--images", tmp_path / "a.png", "--trap", "ruler", "erase_lesion"], "--trap erase_lesion: needs lesion mas"),
    ):
        assert re.search(words, failure(monkeypatch, capsys, *common, *arguments))
    alone = ["--model_name_or_path", model, "--images", tmp_path / "a.png", "--output_dir", model]
    assert "the model's own folder" in failure(monkeypatch, capsys, *alone, "--overwrite_output_dir")
    assert (model / "model.safetensors").is_file()


def test_masks_that_cannot_be_used_are_said_and_listed(model, tmp_path, monkeypatch, capsys):
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 1
    lines = ["file_name,mask_file_name,melanoma,lesion_id"]
    (tmp_path / "own").mkdir()
    for row in range(6):
        PIL.Image.new("RGB", (40, 40), (200, 150, 100 + row)).save(tmp_path / "own" / f"{row}.png")
        PIL.Image.fromarray(mask if row < 4 else mask[:20]).save(tmp_path / "own" / f"m{row}.png")
        lines.append(f"{row}.png,m{row}.png,{row % 2},l{row}")
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(lines))
    common = ["--model_name_or_path", model, "--dataset_name", tmp_path / "own", "--split", "all", "--gallery", 0]
    launch(monkeypatch, *common, "--trap", "erase_lesion", "--output_dir", tmp_path / "r")
    size = "its size (40, 20) is not the image's (40, 40)"
    assert f"2 of 6 images have no usable lesion mask (the first: {size}): what" in capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "r" / "attributions.parquet")
    assert table["trap_erase_lesion_change"].notna().sum() == table["energy_in_mask__mask"].notna().sum() == 4
    assert pd.read_csv(tmp_path / "r" / "skipped.csv")["reason"].tolist() == [f"mask: {size}"] * 2
    assert "could not be used" not in (tmp_path / "r" / "report.html").read_text()
    for row in range(6):
        PIL.Image.new("L", (40, 40)).save(tmp_path / "own" / f"m{row}.png")
    said = failure(monkeypatch, capsys, *common, "--trap", "erase_lesion", "--output_dir", tmp_path / "s")
    assert "needs lesion masks, and these images have none that can be used (the first: it is empty)" in said


def test_a_net_whose_maps_are_constant_or_not_finite_is_reported(model, phantoms, tmp_path, monkeypatch, recwarn):
    """A head of zeros says the same of every image, and its maps are nothing but zeros; one of NaN says nothing."""
    from melanoma_fair_xai.classifier.export import load_classifier

    for value, problem in ((0.0, "constant"), (float("nan"), "not finite")):
        network, info = load_classifier(model)
        torch.nn.init.constant_(network.fc.weight, value)
        folder = tmp_path / problem
        folder.mkdir()
        export_classifier(network, folder, info)
        report = tmp_path / f"report {problem}"
        data = ["--dataset_name", phantoms, "--max_samples", 12, "--output_dir", report]
        launch(monkeypatch, "--model_name_or_path", folder, *data)
        table = pd.read_parquet(report / "attributions.parquet")
        assert (table["map_problem"] == problem).all() and table["fidelity_blacken"].isna().all()
        assert f"12 {problem}" in (report / "report.html").read_text()
        plain, heat, lines = np.split(np.asarray(PIL.Image.open(next((report / "overlays").glob("*.jpg")))), 3, axis=1)
        assert np.abs(plain.astype(int) - heat).mean() < 2 and np.abs(plain.astype(int) - lines).mean() < 2
    assert not [warning for warning in recwarn if "egend" in str(warning.message)]


def test_layers_are_listed(model, monkeypatch, capsys):
    launch(monkeypatch, "--model_name_or_path", model, "--list_layers")
    assert re.search(r"layer2 .*4 x 4", capsys.readouterr().out)
