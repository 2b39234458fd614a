"""How fast the study's fidelity is computed: beside the study's own loop, and beside the bare batched forwards.

    python -m benchmarks.explain_speed [--num_images 8] [--loop_images 1] [--rounds 3]

ResNet-18 at 224 px, random weights, 19 percentiles, fp32, images of noise. The loop is the original study's: for each
image and percentile two forward passes and two Grad-CAMs at batch size 1. On a CPU explain.py freezes the net that
gives scores (batch norms become parts of convolutions), so the loop runs with either net, and ours too. All times are
per image, medians of interleaved rounds. Run it on an otherwise idle machine.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import timm
import torch
from captum.attr import LayerAttribution, LayerGradCam

from melanoma_fair_xai.classifier.models import WHOLE_IMAGE
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.explain.attributions import Explainer, LogOdds
from melanoma_fair_xai.explain.fidelity import PERCENTILES, Scorer, seeded_noise, study_curves

SIZE = 224
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="The study's fidelity beside its loop and the bare forwards.")
    parser.add_argument("--num_images", type=int, default=8, help="images in a round, explained together")
    parser.add_argument("--loop_images", type=int, default=1, help="images of the loop in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # timm's zeros would hide blocks
    preprocessing = replace(Preprocessing.from_model(model), **WHOLE_IMAGE)
    net = LogOdds(model, preprocessing, [1]).eval().to(memory_format=torch.channels_last)
    images = torch.rand(arguments.num_images, 3, SIZE, SIZE)
    targets = torch.arange(len(images)) % 2
    explainer = Explainer(net, "gradcam", (3, SIZE, SIZE), "layer4")
    frozen, plain = Scorer(net, BATCH), Scorer(net, BATCH)
    plain.is_frozen = True  # so that it leaves the net as it is
    for scorer in (frozen, plain):
        scorer(images, targets)  # freezes the one, and warms up
    few = images[: arguments.loop_images]
    contenders: dict[str, tuple[Callable[[], None], int]] = {
        "study's loop": (lambda: loop(net, net, few, targets), len(few)),
        "study's loop, scores by the frozen net": (lambda: loop(net, frozen.net, few, targets), len(few)),
        "ours, net not frozen": (lambda: ours(explainer, plain, images, targets), len(images)),
        "ours": (lambda: ours(explainer, frozen, images, targets), len(images)),
        "bare batched forwards of the frozen net": (lambda: bare(frozen.net, images), len(images)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        for name, (function, count) in contenders.items():
            start = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - start) / count)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.3f} s per image", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    looped, looped_frozen, unfrozen, own, forwards = medians.values()
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "seconds_per_image": medians,
        "times_as_fast_as_the_loop": looped / own,
        "times_as_fast_with_the_frozen_net_in_both": looped_frozen / own,
        "times_as_fast_with_the_net_frozen_in_neither": looped / unfrozen,
        "share_of_bare_forwards": forwards / own,
    }
    print(json.dumps(result, indent=2))


def loop(net: LogOdds, scored: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> None:
    """The study's: per image and percentile two forwards and two Grad-CAMs, for blackened and for random pixels.

    `scored` gives the scores; Grad-CAM needs the net's own layers and gradients.
    """
    gradcam = LayerGradCam(net, net.model.layer4)
    for image, target in zip(images.split(1), targets.tolist(), strict=False):
        for percentile in PERCENTILES:
            for fill in (torch.zeros_like(image), torch.rand_like(image)):
                values = LayerAttribution.interpolate(gradcam.attribute(image, target), (SIZE, SIZE), "bilinear")
                values = values[0, 0].detach().numpy()
                above = torch.from_numpy(values > np.percentile(values[values > 0], percentile))
                with torch.inference_mode():
                    scored(torch.where(above, fill, image))[0, target].sigmoid()


@torch.inference_mode()
def bare(net: torch.nn.Module, images: torch.Tensor) -> None:
    """As many forward passes in full batches as the curves have points, on the images as they are."""
    copies = 2 * len(PERCENTILES) * len(images)
    batch = images.repeat(-(-BATCH // len(images)), 1, 1, 1)[:BATCH]
    for start in range(0, copies, BATCH):
        net(batch[: copies - start])


def ours(explain: Explainer, scorer: Scorer, images: torch.Tensor, targets: torch.Tensor) -> None:
    """Maps, scores and both curves."""
    noise = seeded_noise([str(row) for row in range(len(images))], 0, "picture", (3, SIZE, SIZE), images)
    maps = explain(images, targets, [0] * len(images))
    study_curves(scorer, images, maps, targets, scorer(images, targets), noise)


if __name__ == "__main__":
    main()
