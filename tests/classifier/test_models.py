import copy
import pickle

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.export import ClassifierInfo, export_classifier
from melanoma_fair_xai.classifier.models import (
    create_classifier,
    has_folded_batch_norms,
    last_layer,
    load_weights,
    parameter_groups,
    read_weights,
    restore_batch_norm_statistics,
)
from melanoma_fair_xai.data.images import Preprocessing

LABELS = ["benign", "melanoma"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """The Hub as it is without a network and with an empty cache; the path is that cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def imagenet_state():
    torch.manual_seed(1)
    return timm.create_model("resnet18", num_classes=1000).state_dict()


@pytest.fixture
def weights_file(tmp_path, imagenet_state):
    path = tmp_path / "resnet18.safetensors"
    save_file(imagenet_state, path)
    return path


def put_in_cache(cache, repo_id: str):
    """A folder that the Hub's clients take for the cached repository."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def export(folder, model: nn.Module, label_names: list[str] = LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = Preprocessing.from_model(model)
    export_classifier(model, folder, ClassifierInfo(label_names, label_names[1:2], 0.4, "youden", preprocessing))
    return str(folder)


def bodies_equal(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items() if not key.startswith("fc.")
    )


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "vit_tiny_patch16_224"])
def test_by_name(name):
    model = create_classifier(name, ["a", "b", "c"], pretrained=False, image_size=64, drop_rate=0.25)
    assert model.training
    preprocessing = Preprocessing.from_model(model)
    assert (preprocessing.crop_mode, preprocessing.crop_pct) == ("squash", 1.0)
    assert preprocessing.input_size == (3, 64, 64)
    assert logits(model, torch.zeros(2, *preprocessing.input_size)).shape == (2, 3)


def test_dropout_stands_before_the_last_layer():
    model = create_classifier("resnet18", LABELS, pretrained=False, drop_rate=0.9)
    features = torch.randn(1, 512, 2, 2)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.parametrize("name", ["mixer_s32_224", "maxvit_rmlp_pico_rw_256"])
def test_image_size_that_the_model_cannot_take(name):
    with pytest.raises(
        UserError, match="--image_size 72: .*; try a multiple of 32, or leave the flag out for its own"
    ):
        create_classifier(name, LABELS, pretrained=False, image_size=72)


def test_a_size_that_is_such_a_multiple_already_is_not_advised_again():
    with pytest.raises(UserError, match="cannot take such images; leave the flag out for its own 224"):
        create_classifier("mixer_s32_224", LABELS, pretrained=False, image_size=64)


def test_mean_and_std_replace_the_names_own():
    model = create_classifier("resnet18", LABELS, pretrained=False, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    preprocessing = Preprocessing.from_model(model)
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet81", "did you mean resnet18"),
        ("resnet18.nonsense", r"did you mean resnet18\."),
        ("no-such-thing-at-all", "timm.list_models"),
        ("runs/first/r18", "runs/first/r18: no such folder"),
        ("nobody/nothing", "nobody/nothing: no such folder, and not to be had from the Hub"),
        ("deit_tiny_distilled_patch16_224", "no calibration can be folded"),
    ],
)
def test_unusable_names(name, message):
    with pytest.raises(UserError, match=message):
        create_classifier(name, LABELS, pretrained=False)


def test_without_a_network_both_ways_out_are_named():
    with pytest.raises(UserError, match="(?s)resnet18.*--pretrained_weights FILE.*--no_pretrained") as raised:
        create_classifier("resnet18", LABELS)
    assert len(str(raised.value).splitlines()) == 2


def test_timms_weights_come_from_the_hub(offline, imagenet_state):
    snapshot = put_in_cache(offline, timm.get_pretrained_cfg("resnet18").hf_hub_id)
    save_file(imagenet_state, snapshot / "model.safetensors")
    assert bodies_equal(create_classifier("resnet18", LABELS), imagenet_state)
    (snapshot / "model.safetensors").write_bytes((snapshot / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        create_classifier("resnet18", LABELS)
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UserError, match="(?s)no safetensors weights.*--no_pretrained"):
        create_classifier("resnet18", LABELS)


@pytest.mark.parametrize("classes", [1000, 1001, 2, 0])
def test_weights_from_a_file_with_any_head(tmp_path, classes):
    source = timm.create_model("resnet18", num_classes=classes)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    model = create_classifier("resnet18", LABELS, pretrained_weights=str(path))
    assert bodies_equal(model, source.state_dict())
    assert last_layer(model).weight.shape == (2, 512)
    assert (classes == 2) == torch.equal(
        last_layer(model).weight, source.state_dict().get("fc.weight", torch.zeros(2, 512))
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrapped_models_are_no_obstacle(tmp_path, imagenet_state, prefix):
    path = tmp_path / "wrapped.safetensors"
    save_file({prefix + key: tensor for key, tensor in imagenet_state.items()}, path)
    assert bodies_equal(create_classifier("resnet18", LABELS, pretrained_weights=str(path)), imagenet_state)


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "resnet50",
            r"not the weights of resnet18: layer1.0.conv1.weight is \(64, 64, 1, 1\) there and \(64, 64, 3, 3\)",
        ),
        ("resnet34", "not the weights of resnet18: the model has no layer1.2"),
        ("mobilenetv2_100", "not the weights of resnet18: conv1.weight is missing"),
    ],
)
def test_weights_of_another_architecture(tmp_path, source, message):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model(source).state_dict(), path)
    with pytest.raises(UserError, match=f"other.safetensors: {message}"):
        create_classifier("resnet18", LABELS, pretrained_weights=str(path))


def test_a_missing_tensor_is_named(tmp_path, imagenet_state):
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor for key, tensor in imagenet_state.items() if key != "layer2.0.bn1.bias"}, path)
    with pytest.raises(UserError, match="layer2.0.bn1.bias is missing"):
        create_classifier("resnet18", LABELS, pretrained_weights=str(path))


def test_tensors_that_no_one_misses(tmp_path, imagenet_state):
    state = {key: tensor for key, tensor in imagenet_state.items() if not key.endswith("num_batches_tracked")}
    state["layer1.0.attn_mask"] = torch.zeros(3)
    load_weights(timm.create_model("resnet18", num_classes=1000), state, "weights.safetensors")


def break_file(path, damage: str) -> None:
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1_000_000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "html":
        path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    elif damage == "torch pickle":
        torch.save({"fc.weight": torch.zeros(2)}, path)
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"fc.weight": [0.0]}))
    else:
        path.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        ("truncated", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
        ("html", "not a whole safetensors file"),
        ("torch pickle", "a pickle, which can run code"),
        ("pickle", "a pickle, which can run code"),
        ("missing", "no such file"),
    ],
)
def test_unreadable_weights(weights_file, damage, message):
    break_file(weights_file, damage)
    with pytest.raises(UserError, match=f"resnet18.safetensors: {message}"):
        create_classifier("resnet18", LABELS, pretrained_weights=str(weights_file))


@pytest.mark.parametrize("from_hub", [False, True])
def test_an_earlier_classifier_brings_weights_and_preprocessing(tmp_path, offline, from_hub):
    torch.manual_seed(2)
    model = create_classifier("resnet18", LABELS, pretrained=False, image_size=96, mean=[0.1, 0.2, 0.3])
    model.pretrained_cfg.update(crop_mode="center", crop_pct=0.9)
    source = "user/lesions" if from_hub else str(tmp_path / "run")
    export(put_in_cache(offline, source) if from_hub else tmp_path / "run", model)
    again = create_classifier(source, LABELS)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(logits(again, images), logits(model, images), atol=1e-5, rtol=0)
    assert Preprocessing.from_model(again) == Preprocessing.from_model(model)


def test_a_vit_can_be_fine_tuned_at_another_size(tmp_path):
    folder = export(
        tmp_path / "run", create_classifier("vit_tiny_patch16_224", LABELS, pretrained=False, image_size=96)
    )
    model = create_classifier(folder, LABELS, image_size=64)
    assert logits(model, torch.zeros(1, 3, 64, 64)).shape == (1, 2)


@pytest.mark.parametrize("label_names", [["nevus", "melanoma"], ["melanoma", "benign"], ["mel", "nv", "bkl"]])
def test_a_changed_head_must_be_asked_for(tmp_path, label_names):
    model = create_classifier("resnet18", LABELS, pretrained=False)
    folder = export(tmp_path / "run", model)
    with pytest.raises(UserError, match=f"benign, melanoma; asked for are {', '.join(label_names)}\n.*--ignore_mism"):
        create_classifier(folder, label_names)
    changed = create_classifier(folder, label_names, ignore_mismatched_sizes=True)
    assert bodies_equal(changed, model.state_dict())
    assert last_layer(changed).weight.shape == (len(label_names), 512)
    assert not torch.equal(last_layer(changed).weight[:2], last_layer(model).weight)


@pytest.mark.parametrize("flag, arguments", [("no_pretrained", {"pretrained": False}), ("pretrained_weights", {})])
def test_an_earlier_classifier_has_its_own_weights(tmp_path, weights_file, flag, arguments):
    folder = export(tmp_path / "run", create_classifier("resnet18", LABELS, pretrained=False))
    if flag == "pretrained_weights":
        arguments = {"pretrained_weights": str(weights_file)}
    with pytest.raises(UserError, match=f"--{flag}"):
        create_classifier(folder, LABELS, **arguments)


def test_a_folder_that_holds_no_classifier(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(UserError, match="not an exported classifier: it holds no config.json"):
        create_classifier(str(tmp_path), LABELS)


def test_offline_fixture_is_offline():
    with pytest.raises(OSError):
        huggingface_hub.snapshot_download("user/lesions")


def test_parameter_groups_hold_each_parameter_once_and_decay_matrices_only():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2)
    groups = parameter_groups(model, 0.05, 1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert by_decay[0.05].isdisjoint(by_decay[0.0]) and by_decay[0.05] | by_decay[0.0] == set(names.values())
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"} <= by_decay[0.0]
    assert {"head.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= by_decay[0.05]


def test_layer_decay_slows_each_block_by_the_same_factor():
    model = timm.create_model("resnet18", num_classes=2)
    groups = parameter_groups(model, 0.05, 1e-3, layer_decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    downwards = [model.fc, model.layer4[1], model.layer4[0], model.layer3[1], model.layer3[0]]
    assert [
        rates[id(block.weight if block is model.fc else block.conv1.weight)] for block in downwards
    ] == pytest.approx([1e-3 * 0.5**depth for depth in range(5)])
    bias = next(group for group in groups if any(p is model.fc.bias for p in group["params"]))
    assert bias["weight_decay"] == 0


def folded(name: str = "mobilenetv2_035") -> nn.Module:
    """As after folding: identity statistics, with the scale in the convolutions and the shift in the bias."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.5)
            module.running_var.fill_(1 - module.eps)
        elif isinstance(module, nn.Conv2d):
            module.weight.data *= 1.5
    return model


def drift_in_train_mode(model: nn.Module, images: torch.Tensor) -> float:
    """How far train mode stands from evaluation mode, relative to how far images stand apart."""
    expected = logits(model, images)
    with torch.no_grad():
        return ((model.train()(images) - expected).std() / expected.std()).item()


def test_folded_batch_norms_are_told_from_fresh_and_from_trained_ones():
    model = timm.create_model("resnet18")
    assert not has_folded_batch_norms(model)
    assert not has_folded_batch_norms(timm.create_model("vit_tiny_patch16_224", img_size=32))
    assert has_folded_batch_norms(folded())
    nn.init.ones_(model.bn1.bias)
    model(torch.randn(4, 3, 32, 32))
    assert not has_folded_batch_norms(model)


def test_restored_batch_norms_leave_the_function_and_allow_training():
    # In float64, since a random net magnifies rounding from layer to layer.
    model, images = folded().double(), torch.randn(24, 3, 64, 64, dtype=torch.float64) + 0.5
    before = logits(model, images)
    assert drift_in_train_mode(folded().double(), images) > 0.5
    # Batches of unequal size: the statistics are those of the images, not of the batches.
    restore_batch_norm_statistics(model, [images[:5], images[5:]])
    torch.testing.assert_close(logits(model, images), before, atol=1e-6, rtol=1e-6)
    assert not has_folded_batch_norms(model)
    assert drift_in_train_mode(model, images) < 1e-3


def test_restored_statistics_are_those_of_the_layers_input():
    model, images = folded(), torch.randn(8, 3, 64, 64)
    restore_batch_norm_statistics(model, [images[:3], images[3:]])
    with torch.no_grad():
        inputs = model.conv_stem(images)
    torch.testing.assert_close(model.bn1.running_mean, inputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.bn1.running_var, inputs.var(dim=(0, 2, 3), correction=0))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_given_mobilenet_on_real_lesions(real_data):
    path = real_data.parent / "weights" / "mobilenetv2_100_imagenet1001_dequant_timm.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in a folder weights/ beside the real data")
    half = [0.5, 0.5, 0.5]
    torch.manual_seed(4)
    model = create_classifier(
        "mobilenetv2_100", LABELS, pretrained_weights=str(path), mean=half, std=half, image_size=96
    )
    assert torch.equal(model.conv_stem.weight, load_file(path)["conv_stem.weight"])
    assert has_folded_batch_norms(model)
    images = real_lesions(real_data, model, 32)
    assert drift_in_train_mode(copy.deepcopy(model), images) > 0.5
    before = logits(model, images)
    restore_batch_norm_statistics(model, images.split(8))
    torch.testing.assert_close(logits(model, images), before, atol=1e-4, rtol=1e-4)
    assert drift_in_train_mode(model, images) < 1e-2


def real_lesions(real_data, model: nn.Module, count: int) -> torch.Tensor:
    paths = sorted((real_data / "ham10000").glob("HAM10000_images_part_1/*.jpg"))[:count]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return torch.stack([transform(Image.open(path)) for path in paths])


def test_weights_are_read_without_unpickling(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pickle"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()
