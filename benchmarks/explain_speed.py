"""How fast the study's fidelity is computed: beside the study's own loop, and beside the bare batched forwards.

    python -m benchmarks.explain_speed [--num_images 32] [--loop_images 4]

ResNet-18 at 224 px, random weights, 19 percentiles, fp32, images of noise. The loop is the original study's: for each
image and percentile two forward passes and two Grad-CAMs at batch size 1. All times are per image, medians of rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from captum.attr import LayerAttribution, LayerGradCam

from melanoma_fair_xai.classifier.models import WHOLE_IMAGE
from melanoma_fair_xai.explain.attributions import Explainer, LogOdds
from melanoma_fair_xai.explain.fidelity import PERCENTILES, Scorer, seeded_noise, study_curves

SIZE = 224
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description="The study's fidelity beside its loop and the bare forwards.")
    parser.add_argument("--num_images", type=int, default=32)
    parser.add_argument("--loop_images", type=int, default=2, help="images of the loop in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # timm's zeros would hide blocks
    data_config = timm.data.resolve_model_data_config(model) | WHOLE_IMAGE
    net = LogOdds(model, data_config, [1]).eval().to(memory_format=torch.channels_last)
    images = torch.rand(arguments.num_images, 3, SIZE, SIZE)
    targets = torch.arange(len(images)) % 2
    contenders: dict[str, tuple[Callable[[], None], int]] = {
        "study's loop": (lambda: loop(net, images[: arguments.loop_images], targets), arguments.loop_images),
        "bare batched forwards": (lambda: bare(net, images), len(images)),
        "bare batched forwards, frozen net": (lambda: bare(frozen, images), len(images)),
        "ours": (lambda: ours(net, explainer, scorer, images, targets), len(images)),
    }
    explainer, scorer = Explainer(net, "gradcam", (3, SIZE, SIZE), "layer4"), Scorer(net, 64)
    scorer(images[:2], targets[:2])
    frozen = scorer.net
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for function, _ in contenders.values():  # warm-up, on few images
        function() if function is contenders["bare batched forwards"][0] else None
    for _ in range(arguments.rounds):
        for name, (function, count) in contenders.items():
            start = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - start) / count)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "seconds_per_image": medians,
        "times_as_fast_as_the_loop": medians["study's loop"] / medians["ours"],
        "share_of_bare_forwards": medians["bare batched forwards"] / medians["ours"],
        "share_of_bare_forwards_of_the_frozen_net": medians["bare batched forwards, frozen net"] / medians["ours"],
    }
    print(json.dumps(result, indent=2))


def loop(net: LogOdds, images: torch.Tensor, targets: torch.Tensor) -> None:
    """The study's: per image and percentile two forwards and two Grad-CAMs, for blackened and for random pixels."""
    gradcam = LayerGradCam(net, net.model.layer4)
    for image, target in zip(images.split(1), targets.tolist(), strict=False):
        for percentile in PERCENTILES:
            for fill in (torch.zeros_like(image), torch.rand_like(image)):
                values = LayerAttribution.interpolate(gradcam.attribute(image, target), (SIZE, SIZE), "bilinear")
                values = values[0, 0].detach().numpy()
                above = torch.from_numpy(values > np.percentile(values[values > 0], percentile))
                with torch.no_grad():
                    net(torch.where(above, fill, image))[0, target].sigmoid()


@torch.inference_mode()
def bare(net: torch.nn.Module, images: torch.Tensor) -> None:
    """As many forward passes in batches of 64 as the curves have points, on the images as they are."""
    for batch in images.repeat(2 * len(PERCENTILES), 1, 1, 1).split(64):
        net(batch)


def ours(net: LogOdds, explain: Explainer, scorer: Scorer, images: torch.Tensor, targets: torch.Tensor) -> None:
    """Maps, scores and both curves."""
    for number, batch in enumerate(images.split(BATCH)):
        own = targets[number * BATCH : number * BATCH + len(batch)]
        ids = [str(number * BATCH + row) for row in range(len(batch))]
        noise = seeded_noise(ids, 0, "picture", (3, SIZE, SIZE), batch)
        study_curves(scorer, batch, explain(batch, own, [0] * len(batch)), own, scorer(batch, own), noise)


if __name__ == "__main__":
    main()
