import copy
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from scipy.special import expit
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.calibration import Calibration, calibrate
from melanoma_fair_xai.classifier.export import ClassifierInfo, export_classifier, fold_calibration, load_classifier
from melanoma_fair_xai.classifier.models import create_classifier, last_layer
from melanoma_fair_xai.data.images import Preprocessing, normalise, open_rgb, pixel_transform

FAMILIES = {"resnet18": 64, "mobilenetv2_100": 64, "convnext_atto": 96, "vit_tiny_patch16_224": 64}
LABELS = ["benign", "melanoma"]
CALIBRATION = Calibration(slope=1.7, intercept=-0.4)

# What a stranger runs: no line of this repository can be imported.
STRANGER = """
import hashlib, json, sys
sys.modules["melanoma_fair_xai"] = sys.modules["dataset_scripts"] = None
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

def digest(model):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())).hexdigest()

image, results = Image.open("lesion.png"), {}
for family in sys.argv[1:]:
    with torch.no_grad():
        for route in (f"local-dir:{family}", f"hf-hub:user/{family}"):
            model = timm.create_model(route, pretrained=True).eval()
            transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
            results[f"{family} timm pixels"] = transform(image)[None]
            results[f"{family} {route.split(':')[0]}"] = model(transform(image)[None])
            results[f"{family} {route.split(':')[0]} weights"] = digest(model)
        pixels = AutoImageProcessor.from_pretrained(family)(image, return_tensors="pt")["pixel_values"]
        model = AutoModelForImageClassification.from_pretrained(family).eval()
        results[f"{family} transformers pixels"], results[f"{family} transformers"] = pixels, model(pixels).logits
        results[f"{family} transformers weights"] = digest(model)
    answers = pipeline("image-classification", family)(image, function_to_apply="none")
    scores = {answer["label"]: answer["score"] for answer in answers}
    results[f"{family} pipeline"] = [[scores[name] for name in ("benign", "melanoma")]]
np.savez("results.npz", **results)
"""


def train(model: nn.Module, image_size: int, steps: int = 3) -> None:
    """A few steps on noise: fresh nets have zero-initialised layers, and their batch norms stand at the identity."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, image_size, image_size, generator=generator) + 0.3
        loss = nn.functional.cross_entropy(model.train()(images), torch.arange(8) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@functools.cache
def train_once(family: str, label_names: tuple[str, ...]) -> nn.Module:
    torch.manual_seed(0)
    model = create_classifier(family, label_names, pretrained=False, image_size=FAMILIES[family], drop_rate=0.1)
    nn.init.normal_(last_layer(model).weight, std=0.1)
    train(model, FAMILIES[family])
    return model.eval()


def trained(family: str, label_names: list[str] = LABELS) -> nn.Module:
    return copy.deepcopy(train_once(family, tuple(label_names)))


def describe(model: nn.Module, **changes) -> ClassifierInfo:
    values = dict(
        label_names=LABELS,
        positive_labels=["melanoma"],
        threshold=0.3125,
        threshold_rule="sensitivity=0.9",
        preprocessing=Preprocessing.from_model(model),
        calibration=CALIBRATION,
        training={"target": "melanoma_vs_rest"},
    )
    return ClassifierInfo(**{**values, **changes})


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


@pytest.fixture(scope="module")
def lesion() -> Image.Image:
    rows, columns = np.mgrid[0:300, 0:400]
    inside = ((rows - 150) / 80) ** 2 + ((columns - 230) / 60) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 10, (300, 400, 3))
    skin = np.where(inside[..., None], [90, 60, 50], [220, 180, 160]) + noise
    return Image.fromarray(skin.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder_of_families(tmp_path_factory, lesion):
    folder = tmp_path_factory.mktemp("stranger")
    lesion.save(folder / "lesion.png")
    for family in FAMILIES:
        model = trained(family)
        (folder / family).mkdir()
        export_classifier(model, folder / family, describe(model))
        # The same two files as the Hub's clients keep them, for hf-hub:ID without a network.
        repository = folder / "hub" / f"models--user--{family}"
        (repository / "snapshots").mkdir(parents=True)
        (repository / "snapshots" / ("0" * 40)).symlink_to(folder / family)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    return folder


@pytest.fixture(scope="module")
def results(folder_of_families):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder_of_families / "hub")}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [sys.executable, "-c", STRANGER, *FAMILIES], cwd=folder_of_families, env=environment, check=True, timeout=300
    )
    return dict(np.load(folder_of_families / "results.npz"))


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_four_ways_with_equal_calibrated_logits(results, lesion, family):
    model = trained(family)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    raw = logits(model, transform(lesion)[None]).double().numpy()
    published = results[f"{family} local-dir"]
    # Equal weights give close logits only: loaders differ in how weights are aligned in memory, and so the kernels.
    for route in ("hf-hub", "transformers", "pipeline"):
        np.testing.assert_allclose(results[f"{family} {route}"], published, atol=1e-5)
    for route in ("hf-hub", "transformers"):
        assert results[f"{family} {route} weights"] == results[f"{family} local-dir weights"]
    np.testing.assert_allclose(
        expit(published[:, 1] - published[:, 0]),
        expit(CALIBRATION.slope * (raw[:, 1] - raw[:, 0]) + CALIBRATION.intercept),
        atol=1e-5,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_routes_see_the_same_pixels_of_the_whole_image(results, lesion, family):
    size = FAMILIES[family]
    pixels = results[f"{family} timm pixels"]
    assert pixels.shape == (1, 3, size, size)
    np.testing.assert_array_equal(results[f"{family} transformers pixels"], pixels)
    config = timm.data.resolve_model_data_config(timm.create_model(family))
    mean, std = (np.array(config[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[config["interpolation"]]
    squashed = np.asarray(lesion.resize((size, size), resample)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels[0], (squashed - mean) / std, atol=1e-5)


def test_a_16_bit_image_scores_as_in_a_pipeline(folder_of_families, lesion, tmp_path):
    folder, path = folder_of_families / "resnet18", tmp_path / "lesion.png"
    Image.fromarray(np.asarray(lesion.convert("L")).astype(np.uint16)).save(path)
    model, info = load_classifier(folder)
    pixels = pixel_transform(info.preprocessing)(open_rgb(path.read_bytes()))[None]
    ours = logits(model, normalise(pixels, info.preprocessing)).softmax(1)[0, 1].item()
    scores = {a["label"]: a["score"] for a in transformers.pipeline("image-classification", str(folder))(str(path))}
    assert abs(ours - scores["melanoma"]) < 1e-5


def test_config_is_plain_json_without_the_sources_particulars(folder_of_families):
    config = json.loads((folder_of_families / "resnet18" / "config.json").read_text())
    assert config["operating_point"] == {
        "positive_labels": ["melanoma"],
        "threshold": 0.3125,
        "rule": "sensitivity=0.9",
    }
    assert config["calibration"] == {"slope": 1.7, "intercept": -0.4, "folded": True}
    assert config["label_names"] == LABELS
    assert config["training"] == {"target": "melanoma_vs_rest"}
    assert "num_classes" not in config["model_args"]
    # To the byte as earlier versions wrote it, whose exports are out there.
    assert json.dumps(config["pretrained_cfg"]) == (
        '{"num_classes": 2, "fixed_input_size": false, "first_conv": "conv1", "classifier": "fc", '
        '"input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], '
        '"std": [0.229, 0.224, 0.225], "crop_pct": 1.0, "crop_mode": "squash", "pool_size": null}'
    )
    for particular in ("a1_in1k", "url", "http", "license", "hf_hub_id", "test_input_size", "test_crop_pct"):
        assert particular not in json.dumps(config)


def test_folder_holds_two_files_and_what_was_there(tmp_path):
    (tmp_path / "training_args.json").write_text("{}")
    model = trained("resnet18")
    export_classifier(model, tmp_path, describe(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "training_args.json",
    ]


def test_reading_back(folder_of_families):
    original = trained("vit_tiny_patch16_224")
    model, info = load_classifier(folder_of_families / "vit_tiny_patch16_224")
    assert info == describe(original)
    assert info.positive == [1]
    assert info.preprocessing == Preprocessing.from_model(model)
    assert not model.training
    images = torch.randn(4, 3, 64, 64)
    expected = calibrate(logits(original, images).numpy(), CALIBRATION)
    difference = logits(model, images).numpy()
    np.testing.assert_allclose(difference[:, 1] - difference[:, 0], expected[:, 1] - expected[:, 0], atol=1e-5)


def data_parallel(model):
    return nn.DataParallel(model)


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_data_parallel(model):
    return torch.compile(nn.DataParallel(model), backend="eager")


def channels_last(model):
    return model.to(memory_format=torch.channels_last)


def prepared_in_bf16(model):
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)  # or it decides the precision of later tests
    return prepared


@pytest.mark.parametrize(
    "wrap",
    [data_parallel, compiled, compiled_data_parallel, channels_last, prepared_in_bf16],
    ids=lambda wrap: wrap.__name__,
)
def test_wrapped_models_export_as_the_plain_one(tmp_path, wrap):
    images = torch.randn(2, 3, 64, 64)
    plain = trained("resnet18")
    expected = logits(plain, images)
    wrapped = wrap(trained("resnet18"))
    before = {key: tensor.clone() for key, tensor in wrapped.state_dict().items()}
    export_classifier(wrapped, tmp_path, describe(trained("resnet18"), calibration=Calibration()))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(timm.create_model("resnet18").state_dict())
    model, _ = load_classifier(tmp_path)
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(logits(model, images), expected, atol=1e-5, rtol=0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in wrapped.state_dict().items())


def test_exporting_leaves_the_model_as_it_is(tmp_path):
    model, images = trained("mobilenetv2_100"), torch.randn(2, 3, 64, 64)
    before = logits(model, images)
    export_classifier(model, tmp_path, describe(model))
    assert torch.equal(logits(model, images), before)


def test_temperature_of_many_classes_is_folded(tmp_path):
    names = ["bcc", "mel", "nv"]
    model, images = trained("resnet18", names), torch.randn(3, 3, 64, 64)
    info = describe(model, label_names=names, positive_labels=["mel"], calibration=Calibration(slope=0.4))
    export_classifier(model, tmp_path, info)
    published, read = load_classifier(tmp_path)
    torch.testing.assert_close(logits(published, images), 0.4 * logits(model, images))
    assert read == info and read.positive == [1]


@pytest.mark.parametrize("positive", [0, 1])
def test_fold_is_calibrate(positive):
    model, images = trained("resnet18"), torch.randn(4, 3, 64, 64)
    expected = calibrate(logits(model, images).numpy(), CALIBRATION, positive)
    fold_calibration(model, CALIBRATION, positive)
    np.testing.assert_allclose(logits(model, images).numpy(), expected, atol=1e-5)


def test_a_convolution_as_last_layer_is_folded():
    model = timm.create_model("mobilenetv2_035", num_classes=2)
    model.classifier = nn.Sequential()
    head = nn.Conv2d(4, 2, 1)
    model.get_classifier = lambda: head
    features = torch.randn(3, 4, 1, 1)
    expected = calibrate(head(features).flatten(1).detach().numpy(), CALIBRATION)
    fold_calibration(model, CALIBRATION)
    np.testing.assert_allclose(head(features).flatten(1).detach().numpy(), expected, atol=1e-5)


def test_a_last_layer_that_is_not_linear_is_refused(tmp_path):
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2)
    with pytest.raises(UserError, match="no calibration can be folded into its last layer"):
        export_classifier(model, tmp_path, describe(model))
    assert not any(tmp_path.iterdir())


@pytest.fixture
def exported(tmp_path, folder_of_families):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder_of_families / "resnet18" / name).read_bytes())
    return tmp_path


def edit(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("operating_point"), "no operating_point: not written by train_classifier.py"),
        (lambda c: c.pop("label_names"), "no label_names"),
        (lambda c: c["pretrained_cfg"].pop("mean"), "config.json: pretrained_cfg has no mean: not written by"),
        (lambda c: c.update(pretrained_cfg=[]), "config.json: pretrained_cfg has no input_size"),
        (
            lambda c: c["pretrained_cfg"].update(input_size=[1, 64, 64]),
            r"pretrained_cfg.input_size cannot be \[1, 64",
        ),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 64.5, 64]), "pretrained_cfg.input_size cannot be"),
        (lambda c: c["pretrained_cfg"].update(input_size=64), "pretrained_cfg.input_size cannot be 64"),
        (
            lambda c: c["pretrained_cfg"].update(interpolation="cubic"),
            "interpolation cannot be 'cubic'",
        ),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5]), "pretrained_cfg.mean cannot be"),
        (lambda c: c["pretrained_cfg"].update(mean=["a", 0.5, 0.5]), "pretrained_cfg.mean cannot be"),
        (lambda c: c["pretrained_cfg"].update(std=[0.2, 0, 0.2]), "pretrained_cfg.std cannot be"),
        (lambda c: c["pretrained_cfg"].update(crop_pct=None), "pretrained_cfg.crop_pct cannot be None"),
        (lambda c: c["pretrained_cfg"].update(crop_pct=0), "pretrained_cfg.crop_pct cannot be 0"),
        (lambda c: c["pretrained_cfg"].update(crop_mode="centre"), "pretrained_cfg.crop_mode cannot be 'centre'"),
        (lambda c: c["operating_point"].update(threshold="high"), "not as train_classifier.py writes it"),
        (lambda c: c["operating_point"].update(threshold=None), "not as train_classifier.py writes it"),
        (lambda c: c["operating_point"].update(threshold=float("nan")), "no usable operating point"),
        (lambda c: c["operating_point"].update(positive_labels=[]), "no usable operating point"),
        (lambda c: c["operating_point"].update(positive_labels=["mel"]), "positive label mel is not among its labels"),
        (lambda c: c.update(architecture="resnet17"), "its architecture, 'resnet17', is no model of timm"),
        (lambda c: c.pop("architecture"), "its architecture, None, is no model of timm"),
        (
            lambda c: c["pretrained_cfg"].update(nonsense=1),
            "json: timm .* cannot build this model .*'nonsense'",
        ),
        (lambda c: c["model_args"].update(nonsense=1), "cannot build this model"),
        (lambda c: c["label_names"].append("third"), r"fc.weight is \(2, 512\) there and \(3, 512\)"),
    ],
)
def test_damaged_configs(exported, change, message):
    edit(exported, change)
    with pytest.raises(UserError, match=message):
        load_classifier(exported)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", b'{"architecture": "resnet18", ', "not readable as JSON"),
        ("config.json", b"\xff\xfe\x00", "not readable as JSON"),
        ("config.json", b"[]", "its architecture, None, is no model"),
        ("config.json", None, "not an exported classifier"),
        ("model.safetensors", None, "no such file of weights"),
        ("model.safetensors", b"", "not a whole safetensors file"),
        ("model.safetensors", b"PK\x03\x04 a zip", "a pickle"),
    ],
)
def test_damaged_files(exported, name, content, message):
    (exported / name).unlink()
    if content is not None:
        (exported / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_classifier(exported)


def test_weights_cut_short(exported):
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_classifier(exported)


def test_one_flipped_bit_in_the_weights_is_found(exported):
    path = exported / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for load in (lambda: load_classifier(exported), lambda: create_classifier(str(exported), ["benign", "melanoma"])):
        with pytest.raises(UserError, match="model.safetensors: not the weights that were exported, by their SHA-256"):
            load()
    edit(exported, lambda c: c.pop("_sha256"))  # as earlier versions wrote it
    load_classifier(exported)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="neither a timm model nor a folder|no such folder"):
        load_classifier(tmp_path / "nowhere")


def test_a_pickle_beside_the_config_is_not_read(exported):
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    with pytest.raises(UserError, match="model.safetensors: no such file"):
        load_classifier(exported)
