"""Make every released result again, stage by stage: data, trainings, explanations, generated lesions, and the cards.

    python -m release.reproduce --data_dir raw/ham10000 --weights mobilenetv2_100.safetensors --dry_run
    python -m release.reproduce --data_dir raw/ham10000 --weights mobilenetv2_100.safetensors
    python -m release.reproduce --data_dir raw/ham10000 --weights mobilenetv2_100.safetensors --stages cards

A stage that has left its last file is not run again. After an interruption give the same command again: trainings and
generation go on, other stages start anew. The weights are those of timm's mobilenetv2_100, for means and deviations of
0.5, as safetensors.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.flags import Parser
from melanoma_fair_xai.diffusion.validation import draw_sheet
from melanoma_fair_xai.hub.explanation import take_figure
from release.tables import CARDS, CLASSIFIERS, GENERATORS, update_readme

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSIFIER, GENERATOR = "runs/ham10000-mobilenetv2", "runs/ham10000-generator"
EXPLAINED, HEATMAPS, QUALITY = f"{CLASSIFIER}-explained", f"{CLASSIFIER}-heatmaps", f"{GENERATOR}-quality"
IMAGES, SITES, STUDY = f"{GENERATOR}-images", f"{GENERATOR}-sites", "runs/ham10000-synthetic"
# Phantoms whose lesions fade on dark skin, which is scarce among them; and a generator's even mix of skin types.
FADED, FADED_GENERATOR, EVEN = "data/faded-phantoms", "runs/faded-generator", "runs/faded-generator-even"
FADED_STUDY = "runs/faded-synthetic"
BACKBONES, DEPTHS, LIFT = "runs/ham10000-backbones", "runs/ham10000-depths", "runs/ham10000-lift"


@dataclass(frozen=True)
class Stage:
    """`hours` are of one core of a 2.8 GHz Xeon; where the file `leaves` stands, the stage is done."""

    name: str
    hours: float
    leaves: str
    command: list[str]


def main() -> None:
    parser = Parser(prog="python -m release.reproduce", description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", required=True, help="folder of the raw HAM10000")
    parser.add_argument("--weights", required=True, help="ImageNet weights of mobilenetv2_100 as safetensors")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="only these, in the plan's order")
    parser.add_argument("--dry_run", action="store_true", help="print the plan, and do nothing")
    arguments = parser.parse_args()
    for path in (arguments.data_dir, arguments.weights):
        if not Path(path).exists():
            raise UserError(f"{path}: no such file or folder")
    chosen = choose(plan(arguments.data_dir, arguments.weights), arguments.stages)
    print(describe(chosen))
    if arguments.dry_run:
        return
    for stage in chosen:
        if not Path(stage.leaves).is_file():
            run(stage.name, stage.command)
    if arguments.stages is None or "cards" in arguments.stages:
        write_cards()


def plan(data_dir: str, weights: str) -> list[Stage]:
    """All stages but the cards, which are made each time."""
    source = ["--data_dir", data_dir]
    real = ["--dataset_name", "ham10000", *source]
    resume, anew = "--resume_from_checkpoint latest".split(), "--overwrite_output_dir"
    pretrained = ["--pretrained_weights", weights, *"--model_name_or_path mobilenetv2_100".split()]
    pretrained += "--image_mean 0.5 0.5 0.5 --image_std 0.5 0.5 0.5 --learning_rate 3e-4".split()
    weak = "--min_crop_area 0.8 --color_jitter 0.1".split()
    pretrained += weak
    scratch = [*weak, *"--no_pretrained --image_size 64 --num_train_epochs 8 --model_name_or_path".split()]

    def stage(name: str, hours: float, folder: str, leaves: str, script: str, *flags: str) -> Stage:
        return Stage(name, hours, f"{folder}/{leaves}", [*script.split(), *flags, "--output_dir", folder])

    def classifier(name: str, hours: float, flags: list[str], more: str) -> Stage:
        flags = [*real, *resume, *flags, *more.split()]
        return stage(name, hours, f"runs/ham10000-{name}", "README.md", "train_classifier.py", *flags)

    def generated(name: str, hours: float, folder: str, *flags: str) -> Stage:
        flags = ("--model_name_or_path", GENERATOR, *"--guidance_scale 1 --batch_size 32".split(), *flags)
        return stage(name, hours, folder, "metadata.csv", "generate.py", *flags)

    return [
        stage("data", 0.1, "data/ham10000", "README.md", "-m dataset_scripts.ham10000", *source, anew),
        classifier("mobilenetv2", 1.6, pretrained, "--image_size 128 --num_train_epochs 4 --cross_validation 5"),
        classifier(
            "mobilenetv2-nevus",
            0.2,
            pretrained,
            "--image_size 128 --num_train_epochs 6 --target melanoma_vs_nevus --confirmed_by_histology",
        ),
        classifier("resnet18", 1.7, scratch, "resnet18 --cross_validation 5"),
        classifier("resnet34", 0.6, scratch, "resnet34"),
        classifier("resnet50", 0.8, scratch, "resnet50"),
        classifier("resnet101", 1.5, scratch, "resnet101"),
        stage(
            *("backbones", 0.1, BACKBONES, "comparison.csv", "-m melanoma_fair_xai.fairness compare", CLASSIFIER),
            *"runs/ham10000-resnet18 --group_by sex age_band ita_tertile".split(),
        ),
        stage(
            *("depths", 0.1, DEPTHS, "comparison.csv", "-m melanoma_fair_xai.fairness compare"),
            *"runs/ham10000-resnet18/fold-0 runs/ham10000-resnet34 runs/ham10000-resnet50 --group_by sex".split(),
        ),
        stage(
            *("lift", 0.2, LIFT, "test/comparison.csv", "-m benchmarks.lift", f"{CLASSIFIER}/fold-0"),
            *"--group_by age_band".split(),
        ),
        stage(
            *("explained", 0.2, EXPLAINED, "report.html", "explain.py"),
            *("--model_name_or_path", f"{CLASSIFIER}/fold-0", *real, "--split", "test", "--max_samples", "304"),
            *(*"--trap ruler dark_corner erase_lesion --eval_batch_size 16".split(), anew),
        ),
        stage(
            *("generator", 2.0, GENERATOR, "README.md", "train_diffusion.py", *real, *resume),
            *"--preset 64-small --class_balanced_sampling".split(),
        ),
        generated("images", 0.3, IMAGES, "--like", "ham10000", *source, "--num_images", "1024"),
        generated(
            *("sites", 0.1, SITES, *"--grid --diagnosis mel nv --localization".split()),
            *("face", "back", "abdomen", "lower extremity", "--num_images", "32"),
        ),
        stage(
            *("quality", 0.1, QUALITY, "quality.json", "-m melanoma_fair_xai.diffusion.quality", IMAGES),
            *("--real", "ham10000", *source, "--feature_model", f"{CLASSIFIER}/fold-0"),
        ),
        # Heat maps that can be shown: no patient stands behind a generated lesion.
        stage(
            *("heatmaps", 0.1, HEATMAPS, "report.html", "explain.py", "--model_name_or_path", f"{CLASSIFIER}/fold-0"),
            *("--dataset_name", SITES, "--split", "train", "--label_column_name", "diagnosis"),
            *(*"--positive_labels mel --target melanoma --gallery 3 --eval_batch_size 16".split(), anew),
        ),
        stage(
            *("synthetic", 0.6, STUDY, "comparison.csv", "-m benchmarks.synthetic", "--synthetic_dir", IMAGES),
            *(*real, *pretrained, *"--image_size 64 --max_train_samples 1000 --max_train_steps 150".split()),
            *"--lr_warmup_steps 20 --group_by sex age_band".split(),
        ),
        stage(
            *("faded-phantoms", 0.1, FADED, "README.md", "-m dataset_scripts.phantom", "--tone_bias", "0.8"),
            *("--skin_type_proportions", *"0.24 0.24 0.2 0.16 0.09 0.07".split(), "--melanoma_share", "0.5"),
            *("--num_images", "5000", "--images_per_lesion", "1", "--image_size", "32", anew),
        ),
        stage(
            *("faded-generator", 0.4, FADED_GENERATOR, "README.md", "train_diffusion.py", "--dataset_name", FADED),
            *("--preset", "32-tiny", *resume),
        ),
        stage(
            *("faded-images", 0.3, EVEN, "metadata.csv", "generate.py", "--model_name_or_path", FADED_GENERATOR),
            *("--like", FADED, "--balance", "melanoma,fitzpatrick", "--num_images", "3000"),
            *"--guidance_scale 1 --batch_size 32".split(),
        ),
        stage(
            *("faded-synthetic", 0.5, FADED_STUDY, "comparison.csv", "-m benchmarks.synthetic"),
            *("--synthetic_dir", EVEN, "--dataset_name", FADED),
            *"--model_name_or_path resnet10t --no_pretrained --image_size 32".split(),
            *(*weak, *"--max_train_steps 600 --group_by fitzpatrick_group".split()),
        ),
    ]


def choose(stages: list[Stage], names: list[str] | None) -> list[Stage]:
    """The stages of these names, all for None. UserError for a name that is none."""
    known = [*(stage.name for stage in stages), "cards"]
    for name in names or []:
        if name not in known:
            raise UserError(f"--stages {name}: choose from {', '.join(known)}")
    return [stage for stage in stages if names is None or stage.name in names]


def describe(stages: list[Stage]) -> str:
    """The plan with what is done, and how long the rest takes."""
    lines = [f"{'stage':18} {'core hours':>10}  command"]
    left = 0.0
    for stage in stages:
        done = Path(stage.leaves).is_file()
        left += 0 if done else stage.hours
        lines.append(f"{stage.name:18} {'done' if done else f'{stage.hours:.1f}':>10}  {' '.join(stage.command)}")
    return "\n".join([*lines, f"to do: about {left:.1f} hours of one core, less on more cores and far less on a GPU"])


def run(name: str, command: list[str]) -> None:
    """One stage. UserError if it fails; it has said why."""
    print(f"--- {name}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [str(REPOSITORY / command[0]), *command[1:]] if command[0].endswith(".py") else command
    done = subprocess.run([sys.executable, *words], env=environment)
    if done.returncode:
        raise UserError(f"{name}: ended with exit code {done.returncode}; give the same command again to go on")


def write_cards() -> None:
    """Into model_cards/, of every run that is whole: its card, and the table of all of them."""
    for name in [*CLASSIFIERS, *GENERATORS]:
        folder = Path("runs", name)
        if not (folder / "README.md").is_file():
            continue
        taken = []
        if str(folder) == CLASSIFIER and Path(EXPLAINED, "report.html").is_file():
            taken = ["--explanation", EXPLAINED]
        if str(folder) == GENERATOR and Path(QUALITY, "quality.json").is_file():
            taken = ["--quality", QUALITY]
        shutil.rmtree(CARDS / name, ignore_errors=True)
        card = ["-m", "melanoma_fair_xai.hub", "card", str(folder), *taken, "--output", str(CARDS / name)]
        run(f"card of {name}", card)
    if Path(SITES, "metadata.csv").is_file():
        draw_sites(Path(SITES), Path(SITES, "sheet.png"))
    for made, shown, copy in (
        ("data/ham10000/README.md", "ham10000/README.md", shutil.copyfile),
        (f"{BACKBONES}/comparison.csv", "comparisons/backbones.csv", shutil.copyfile),
        (f"{DEPTHS}/comparison.csv", "comparisons/depths.csv", shutil.copyfile),
        (f"{LIFT}/validation/comparison.csv", "comparisons/lift-validation.csv", shutil.copyfile),
        (f"{LIFT}/test/comparison.csv", "comparisons/lift-test.csv", shutil.copyfile),
        (f"{STUDY}/comparison.csv", "comparisons/synthetic.csv", shutil.copyfile),
        (f"{FADED_STUDY}/comparison.csv", "comparisons/faded.csv", shutil.copyfile),
        (f"{FADED_GENERATOR}/samples/step-003000.png", "faded_phantoms.png", shutil.copyfile),
        (f"{SITES}/sheet.png", "generated_by_site.jpg", take_figure),
        (f"{HEATMAPS}/figures/gallery.png", "heatmaps.jpg", take_figure),
    ):
        if Path(made).is_file():
            (CARDS / shown).parent.mkdir(exist_ok=True)
            copy(Path(made), CARDS / shown)
    update_readme()


def draw_sites(folder: Path, figure: Path) -> None:
    """Generated lesions, body sites down and diagnoses across, each as often as it was drawn."""
    table = pd.read_csv(folder / "metadata.csv")
    table = table.sort_values(["localization", "diagnosis"], kind="stable")
    images = np.stack([np.asarray(PIL.Image.open(folder / name).convert("RGB")) for name in table["file_name"]])
    sites = list(table["localization"].drop_duplicates())
    columns = list(table["diagnosis"][table["localization"] == sites[0]])
    draw_sheet(images, sites, columns, figure, "generated lesions, no patients")


if __name__ == "__main__":
    run_command(main)
