"""timm classifiers: from a name, from a file of weights, or from an earlier run's folder or Hub id."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import timm.optim
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import weights_problem
from melanoma_fair_xai.base.hub_client import hub_problem, local_folder, look_for_hub
from melanoma_fair_xai.data.images import Preprocessing

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

# The whole 4:3 photograph is seen: a centre crop would cut lesions that lie at its edge.
WHOLE_IMAGE = {"crop_mode": "squash", "crop_pct": 1.0}


def create_classifier(
    model_name_or_path: str,
    label_names: Sequence[str],
    *,
    pretrained: bool = True,
    pretrained_weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    drop_rate: float = 0.0,
    ignore_mismatched_sizes: bool = False,
    revision: str | None = None,
) -> nn.Module:
    """A timm model with one logit per label name.

    Its pre-processing is `Preprocessing.from_model(model)`: for a timm name, the whole image squashed to a
    square; for an earlier classifier, what that one used.

    Args:
        model_name_or_path: a timm name, optionally with a tag; or the folder or Hub id of an exported classifier, from
            which architecture, weights and pre-processing come.
        label_names: the classes in the order of the logits.
        pretrained: timm's own weights for a timm name, from the Hub or its cache; False for random ones.
        pretrained_weights: a safetensors file to take instead; its head is kept only if it has as many classes.
        mean, std: three channel values each, for images in [0, 1], where the weights want others than that name's own.
        image_size: height and width in pixels, where it is not the model's own.
        drop_rate: dropout before the last layer.
        ignore_mismatched_sizes: replace the head of an earlier classifier whose label names differ.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: an unknown name, unreachable or unreadable weights, weights of another architecture, another head,
            an image size that the architecture cannot take, or a last layer that cannot hold a calibration.
    """
    if is_timm_name(model_name_or_path):
        if revision:
            raise UserError(
                f"--revision {revision}: {model_name_or_path} is a timm model; give a tag, as in resnet18.a1_in1k"
            )
        model = _create_by_name(model_name_or_path, len(label_names), pretrained, pretrained_weights, drop_rate)
    else:
        folder = find_classifier(model_name_or_path, revision)
        if not pretrained or pretrained_weights:
            flag = "--pretrained_weights" if pretrained_weights else "--no_pretrained"
            raise UserError(f"{flag}: the weights come from {model_name_or_path}; drop the flag, or give a timm name")
        model = _create_from_classifier(folder, label_names, drop_rate, ignore_mismatched_sizes)
    last_layer(model)
    changes = {"mean": mean, "std": std}
    model.pretrained_cfg.update({name: tuple(value) for name, value in changes.items() if value is not None})
    if image_size is not None:
        _set_image_size(model, image_size)
    return model


def _create_by_name(name: str, num_classes: int, pretrained: bool, weights: str | None, drop_rate: float) -> nn.Module:
    overlay: dict[str, Any] = dict(WHOLE_IMAGE)
    download = pretrained and not weights
    if download:
        overlay["file"] = str(_download_timm_weights(name))
    try:
        model = timm.create_model(
            name, pretrained=download, pretrained_cfg_overlay=overlay, num_classes=num_classes, drop_rate=drop_rate
        )
    except SafetensorError as error:
        raise UserError(f"{overlay['file']}: damaged ({error}); delete it to have it downloaded again") from None
    except (RuntimeError, TypeError) as error:
        raise UserError(f"--model_name_or_path {name}: timm cannot build it as a classifier ({error})") from None
    if not download or timm.get_pretrained_cfg(name).num_classes != num_classes:
        _start_small(last_layer(model))
    if weights:
        state = read_weights(weights)
        head = _head_tensors(model)
        own = model.state_dict()
        if any(key not in state or state[key].shape != own[key].shape for key in head):
            state = {key: value for key, value in state.items() if key not in head}
        load_weights(model, state, weights, optional=head)
    return model


def _create_from_classifier(
    folder: Path, label_names: Sequence[str], drop_rate: float, ignore_mismatched_sizes: bool
) -> nn.Module:
    saved = read_config(folder).get("label_names")
    same = saved is not None and list(saved) == list(label_names)
    if not same and not ignore_mismatched_sizes:
        named = ", ".join(saved) if saved else "classes without names"
        raise UserError(
            f"{folder}: its classes are {named}; asked for are {', '.join(label_names)}\n"
            "choose the --target that it was trained for, or start a new last layer with --ignore_mismatched_sizes"
        )
    return build_saved(folder, len(label_names), keep_head=same, drop_rate=drop_rate)


def build_saved(folder: Path, num_classes: int, *, keep_head: bool = True, drop_rate: float = 0.0) -> nn.Module:
    """The model in a folder with config.json and model.safetensors, with its weights, less the head if asked.

    Raises UserError for a config that timm cannot build, and for weights that are damaged or do not fit it.
    """
    try:
        # pretrained=False: timm would also take a pickle for the weights.
        model = timm.create_model(f"local-dir:{folder}", num_classes=num_classes, drop_rate=drop_rate)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG_NAME}: timm {timm.__version__} cannot build this model ({error})") from None
    path = folder / WEIGHTS_NAME
    state = read_weights(path)
    if problem := weights_problem(folder / CONFIG_NAME):
        raise UserError(problem)
    head = () if keep_head else _head_tensors(model)
    if not keep_head:
        _start_small(last_layer(model))
    load_weights(model, {key: value for key, value in state.items() if key not in head}, path, optional=head)
    return model


def is_timm_name(name: str) -> bool:
    """Whether timm builds a model of this name, its tag (after the dot) included."""
    return timm.is_model(name) and ("." not in name or name in timm.list_models(pretrained=True))


def find_classifier(folder_or_id: str, revision: str | None = None) -> Path:
    """The folder of an exported classifier: the one named, or the local copy of a Hub id's config and weights.

    Raises UserError, with the nearest timm names, where there is neither.
    """
    folder_or_id = folder_or_id.removeprefix("local-dir:").removeprefix("hf-hub:")
    if is_timm_name(folder_or_id) and not Path(folder_or_id).is_dir():
        raise UserError(
            f"{folder_or_id}: a net of timm's that has not learned this task; give the folder or Hub id of a model "
            "that train_classifier.py wrote"
        )
    if "/" not in folder_or_id and not Path(folder_or_id).is_dir():
        known = timm.list_models(pretrained="." in folder_or_id)
        close = difflib.get_close_matches(folder_or_id, known, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
        raise UserError(f"{folder_or_id}: neither a timm model nor a folder; {hint}")
    return local_folder(folder_or_id, [CONFIG_NAME, WEIGHTS_NAME], revision)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a classifier's folder; UserError if it is missing, damaged, or not that of a timm model."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: not an exported classifier: it holds no {CONFIG_NAME}") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); export or download the model again") from None
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{path}: its architecture, {architecture!r}, is no model of timm {timm.__version__}")
    return config


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, without the prefixes of parallel and compiled models.

    Raises UserError for a file that is missing, damaged, or a pickle: reading a pickle can run code.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        state = load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as file:
            start = file.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise UserError(
                f"{path}: a pickle, which can run code when it is read, so it is not\n"
                "convert it with safetensors.torch.save_file on a machine where you trust it"
            ) from None
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from None
    return timm.models.clean_state_dict(state)


def load_weights(
    model: nn.Module, state: dict[str, torch.Tensor], path: str | Path, optional: Sequence[str] = ()
) -> None:
    """Load tensors by name; all must fit, and only those in `optional` may be missing.

    Raises UserError naming `path` and the first tensor that is missing, of another shape, or of a layer that the model
    lacks.
    """
    problem = _first_misfit(model, state, optional)
    if problem:
        raise UserError(f"{path}: not the weights of {model.pretrained_cfg['architecture']}: {problem}")
    model.load_state_dict(state, strict=False)


def _first_misfit(model: nn.Module, state: dict[str, torch.Tensor], optional: Sequence[str]) -> str | None:
    for key, tensor in model.state_dict().items():
        if key not in state:
            # Converters from other frameworks leave this counter out, and nothing here reads it.
            if key not in optional and not key.endswith("num_batches_tracked"):
                return f"{key} is missing"
        elif state[key].shape != tensor.shape:
            return f"{key} is {tuple(state[key].shape)} there and {tuple(tensor.shape)} in the model"
    # A deeper model's file holds all of a shallower one. Buffers of layers that are there (Swin's attn_mask) are no
    # sign of that: older versions of timm saved them, newer ones compute them.
    layers = {name for name, _ in model.named_modules()}
    surplus = next((key for key in state if key.rpartition(".")[0] not in layers), None)
    return surplus and f"the model has no {surplus}"


def last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer that gives the logits.

    Raises UserError unless it is one linear layer or 1x1 convolution with a bias, which can take up a calibration.
    """
    layer = model.get_classifier()
    linear = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    if not linear or layer.bias is None:
        name = model.pretrained_cfg["architecture"]
        raise UserError(
            f"--model_name_or_path {name}: no calibration can be folded into its last layer ({type(layer).__name__})\n"
            "choose a model that ends in one linear layer with a bias, as ResNets do"
        )
    return layer


@torch.no_grad()
def _start_small(layer: nn.Linear | nn.Conv2d) -> None:
    """Start a new last layer near zero: timm's own start gives some nets a first loss of 10, which wrecks them."""
    layer.weight.normal_(std=0.01)
    layer.bias.zero_()


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: no weight decay of biases, norms and what the model itself exempts (tokens, positions).

    With a `layer_decay` below 1 every block below the head learns at that share of the rate of the one above it (Clark
    et al., "ELECTRA", ICLR 2020, section 3.1), as timm tells the blocks apart.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if layer_decay == 1:
        return timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    groups = timm.optim.param_groups_layer_decay(model, weight_decay, exempt, layer_decay=layer_decay)
    return [{**group, "lr": learning_rate * group["lr_scale"]} for group in groups]


def has_folded_batch_norms(model: nn.Module) -> bool:
    """Whether trained batch norms stand at identity statistics, as after folding them into the convolutions.

    Fresh batch norms have identity statistics too, but all-zero biases.
    """
    norms = _batch_norms(model)
    identity = all(
        not norm.running_mean.any() and torch.allclose(norm.running_var, norm.running_var.new_ones(()), atol=2e-3)
        for norm in norms
    )
    return bool(norms) and identity and any(norm.bias.any() for norm in norms)


@torch.no_grad()
def restore_batch_norm_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Give every batch norm the statistics of its input on some images, and scale and shift that undo them.

    The function in evaluation mode stays the same, and train mode, which normalises by the batch, comes close to it,
    so that weights with folded batch norms can be fine-tuned. One pass is enough: no layer's input changes.

    Args:
        model: is left in evaluation mode.
        batches: normalised images (n, channels, height, width) on the model's device.
    """
    model.eval()
    moments: dict[nn.Module, torch.Tensor] = {}

    def record(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        variance, mean = (moment.double().cpu() for moment in torch.var_mean(values, dim=1, correction=0))
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean**2]) * values.shape[1]
        moments[norm] = moments.get(norm, 0) + sums

    hooks = [norm.register_forward_pre_hook(record) for norm in _batch_norms(model)]
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, (count, total, squares) in moments.items():
        new_mean = total / count
        new_variance = (squares / count - new_mean**2).clamp(min=0)
        old_mean, old_variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
        scale = norm.weight.double().cpu() / (old_variance + norm.eps).sqrt()
        norm.bias.copy_(norm.bias.double().cpu() + scale * (new_mean - old_mean))
        norm.weight.copy_(scale * (new_variance + norm.eps).sqrt())
        norm.running_mean.copy_(new_mean)
        norm.running_var.copy_(new_variance)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.affine and norm.track_running_stats]


def _head_tensors(model: nn.Module) -> list[str]:
    """Names of the last layer's tensors in the state dict."""
    layer = last_layer(model)
    prefix = next(name for name, module in model.named_modules() if module is layer)
    return [f"{prefix}.{name}" for name in layer.state_dict()]


def _set_image_size(model: nn.Module, image_size: int) -> None:
    channels, *own = Preprocessing.from_model(model).input_size
    if [image_size, image_size] == own:
        return
    try:
        if model.pretrained_cfg.get("fixed_input_size"):
            model.set_input_size(img_size=(image_size, image_size))
        with torch.no_grad():  # not every model that needs a multiple of its patch or window says so
            model.eval()(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, AttributeError, RuntimeError, ValueError):
        other = "try a multiple of 32, or " if image_size % 32 else ""
        raise UserError(
            f"--image_size {image_size}: this model cannot take such images; {other}leave the flag out for its own "
            f"{own[0]}"
        ) from None
    model.train()
    model.pretrained_cfg["input_size"] = (channels, image_size, image_size)


def _download_timm_weights(name: str) -> Path:
    config = timm.get_pretrained_cfg(name)
    ways_out = "give a local file with --pretrained_weights FILE, or train from random weights with --no_pretrained"
    if config is None or not config.hf_hub_id:
        raise UserError(f"--model_name_or_path {name}: timm has no weights for it on the Hub\n{ways_out}")
    names = [WEIGHTS_NAME, "open_clip_model.safetensors"]
    look_for_hub()
    try:
        # Not through timm, which would also take a pickle.
        folder = Path(huggingface_hub.snapshot_download(config.hf_hub_id, allow_patterns=names))
    except OSError as error:
        reason = hub_problem(error) or _first_line(error)
        raise UserError(f"{config.hf_hub_id}: cannot fetch the weights ({reason})\n{ways_out}") from None
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{config.hf_hub_id}: no safetensors weights there\n{ways_out}")
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
