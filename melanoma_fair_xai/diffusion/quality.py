"""How good generated images are, and which are copies of training images, beside what real images score.

    python -m melanoma_fair_xai.diffusion.quality SYNTHETIC_DIR --real ham10000 --data_dir RAW --feature_model runs/r18

Held-out real images (validation and test) are split in two halves by lesion. Generated images are compared with the
first half, and so is the second: what it scores is the floor, which no generator can be told from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_scripts.schema import MELANOMA_NAMES
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.flags import Parser, flag

# All else is imported where it is used, so that --help and wrong flags answer at once.
if TYPE_CHECKING:
    import argparse

    import torch

    from melanoma_fair_xai.data.images import Preprocessing

FACTS_NAME = "quality.json"  # what was measured, and with what
# How the files begin that a later report may replace.
REPORT = {"quality.md": "# Quality of generated images", "quality.csv": "scope,n_generated,"}
REPORT |= {"copies.csv": "image_id,", "copy_shares.csv": "scope,n,copies,", FACTS_NAME: '{\n  "feature_model":'}


@dataclass
class QualityArguments:
    real: str = flag(help="The data set that the generator was trained on.")
    feature_model: str = flag(help="A timm model, or the folder or Hub id of a classifier.")
    data_dir: str | None = flag(None, "Its raw files (ham10000, fitzpatrick17k).")
    dataset_config_name: str | None = flag(None, "Its configuration.")
    output_dir: str = flag("quality", "Folder to write.")
    feature_weights: str | None = flag(None, "Safetensors file of the timm model's weights; default: timm's own.")
    image_size: int | None = flag(None, "Of the timm model; default: its own.", low=1)
    image_mean: list[float] | None = flag(None, "That the weights want, where not timm's own.", low=0, high=1, count=3)
    image_std: list[float] | None = flag(None, "Likewise.", above=0, count=3)
    seed: int = flag(0, "Of subsets and halves.", low=0)


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("synthetic_dir", help="what generate.py wrote")
    parser.add_flags(QualityArguments)
    arguments = parser.parse_args()
    from melanoma_fair_xai.engine.launch import explained_errors

    with explained_errors("--image_size", "run the same command again"):
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    from dataset_scripts.splits import assign_folds, lesion_strata
    from melanoma_fair_xai.base.files import atomic_path, check_replaceable, write_json
    from melanoma_fair_xai.base.tables import write_csv
    from melanoma_fair_xai.data.loading import is_synthetic, load_records, load_synthetic
    from melanoma_fair_xai.diffusion import sample_report
    from melanoma_fair_xai.engine.launch import create_accelerator

    check_replaceable(arguments.output_dir, REPORT)
    accelerator = create_accelerator()
    real = load_records(arguments.real, arguments.dataset_config_name, arguments.data_dir)
    if is_synthetic(real.table).any():
        raise UserError(f"--real {arguments.real}: holds generated images; name the real data set")
    synthetic = load_synthetic(arguments.synthetic_dir, real)
    network, preprocessing = feature_network(arguments)
    # A generator sees the centre square of a photograph, not all of it squeezed into one.
    preprocessing = replace(preprocessing, crop_mode="center", crop_pct=1.0)
    generated, described = (
        sample_report.describe(accelerator, records, network, preprocessing) for records in (synthetic, real)
    )
    split = described.table["split"]
    training, held_out = (
        described.select((split == "train").to_numpy()),
        described.select((split != "train").to_numpy()),
    )
    lesions = held_out.table["lesion_id"]
    half = assign_folds(lesions, lesion_strata(lesions, held_out.table["diagnosis"]), 2, arguments.seed)
    metrics = sample_report.compare(generated, held_out.select(half == 0), held_out.select(half == 1), arguments.seed)
    copies = sample_report.find_copies(generated, training, held_out)
    shares = sample_report.copy_shares(copies)

    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("quality.csv", metrics), ("copies.csv", copies), ("copy_shares.csv", shares)):
        write_csv(table, folder / name)
    sample_report.plot_nearest_pairs(copies, generated, training, folder / "nearest_pairs.png")
    write_json(folder / FACTS_NAME, facts(arguments))
    text = sample_report.to_markdown(
        metrics, shares, Path(arguments.synthetic_dir).name + (" (phantoms)" if real.are_phantoms else "")
    )
    with atomic_path(folder / "quality.md") as path:
        path.write_text(text, encoding="utf-8")
    print(f"{text}\nreport: {folder / 'quality.md'}\ncopies: {folder / 'copies.csv'}, {folder / 'nearest_pairs.png'}")


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and with what: how the images were generated (null where generate.py did not say)."""
    from melanoma_fair_xai.diffusion.generation import read_settings

    made = read_settings(Path(arguments.synthetic_dir))
    names = ("weights", "scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "precision")
    return {"feature_model": Path(arguments.feature_model).name, "seed": arguments.seed} | {
        name: made.get(name) for name in names
    }


def feature_network(arguments: argparse.Namespace) -> tuple[torch.nn.Module, Preprocessing]:
    """The network whose features are compared, and its pre-processing."""
    from melanoma_fair_xai.classifier.export import load_classifier
    from melanoma_fair_xai.classifier.models import create_classifier, is_timm_name
    from melanoma_fair_xai.data.images import Preprocessing

    if not is_timm_name(arguments.feature_model):
        network, info = load_classifier(arguments.feature_model)
        return network, info.preprocessing
    network = create_classifier(
        arguments.feature_model,
        MELANOMA_NAMES,
        pretrained_weights=arguments.feature_weights,
        mean=arguments.image_mean,
        std=arguments.image_std,
        image_size=arguments.image_size,
    )
    return network, Preprocessing.from_model(network)


if __name__ == "__main__":
    run_command(main)
