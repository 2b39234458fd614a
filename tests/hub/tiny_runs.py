"""Run folders as a training leaves them, made without training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import timm
import torch

from melanoma_fair_xai.classifier.export import ClassifierInfo, export_classifier
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.diffusion.data import Conditions
from melanoma_fair_xai.diffusion.export import export_pipeline, make_pipeline
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.diffusion.process import make_noise_scheduler
from melanoma_fair_xai.engine.run_folder import LOCK_NAME

PREPROCESSING = Preprocessing((3, 32, 32), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 1.0, "squash")
HOME = "/home/somebody/secret"  # what must not be published
CARD = f"""---
license: cc-by-nc-4.0
library_name: {{library}}
---

# A model for tests

Trained with `--data_dir {HOME}/HAM10000 --output_dir "~/runs/own run"`, see https://example.org/a/b.

![shown]({{figure}})
"""


def write_common(folder: Path, library: str, figure: str) -> None:
    """What every run leaves: card, settings, figures, and what is nobody else's business."""
    files = {
        "README.md": CARD.format(library=library, figure=figure),
        "training_args.json": json.dumps({"data_dir": f"{HOME}/HAM10000", "output_dir": "runs/own", "seed": 3}),
        "metrics.json": "{}",
        "split_manifest.csv": "image_id,lesion_id,split\nISIC_1,HAM_1,test\n",
        "skipped.csv": f"image_id,file,reason\nISIC_2,{HOME}/ISIC_2.jpg,zero bytes\n",
        "logs/events.out": "log",
        "checkpoint-10/optimizer.bin": "state",
        LOCK_NAME: "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in (figure, str(Path(figure).with_name("not_shown.png"))):
        (folder / name).parent.mkdir(exist_ok=True)
        lesion().save(folder / name)


def classifier_run(folder: Path, seed: int = 0) -> Path:
    """An exported net with random weights, and the files of a finished training."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(network.fc.weight, std=0.3)
    training = {"target": "melanoma_vs_rest", "started_from": f"{HOME}/runs/r18"}
    names = ["benign", "melanoma"]
    info = ClassifierInfo(names, names[1:], 0.4 + 0.1 * seed, "youden", PREPROCESSING, training=training)
    write_common(folder, "timm", "figures/roc.png")
    export_classifier(network, folder, info)
    (folder / "fairness.csv").write_text("group_column,group,n\nsex,female,10\n", encoding="utf-8")
    (folder / "predictions").mkdir(exist_ok=True)
    pd.DataFrame({"image_id": ["ISIC_1"], "score": [0.5]}).to_parquet(folder / "predictions" / "test.parquet")
    return folder


def lesion() -> PIL.Image.Image:
    """A photograph of 4:3, dark in the middle."""
    rows, columns = np.mgrid[0:60, 0:80]
    inside = ((rows - 30) / 16) ** 2 + ((columns - 46) / 12) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 10, (60, 80, 3))
    return PIL.Image.fromarray((np.where(inside[..., None], 80, 200) + noise).clip(0, 255).astype(np.uint8))


def generator_run(folder: Path, seed: int = 0) -> Path:
    """An untrained pipeline of 16 pixels, and the files of a finished training."""
    torch.manual_seed(seed)
    vocabularies = {"diagnosis": ["mel", "nv"], "sex": ["female", "male"]}
    counts = {"diagnosis": {"mel": 100, "nv": 900}, "sex": {"female": 500, "male": 500}, "age": {"40": 1000}}
    networks = create_networks(
        Conditions(vocabularies, counts),
        resolution=16,
        block_out_channels=[16, 32],
        layers_per_block=1,
        attention_resolutions=[8],
    )
    write_common(folder, "diffusers", "samples/step-000010.png")
    export_pipeline(make_pipeline(*networks, make_noise_scheduler("v_prediction", "linear")), folder)
    return folder
