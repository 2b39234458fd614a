"""Publishing a finished run on the Hub: the model, its card and what the card shows, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import weights_problem
from melanoma_fair_xai.base.hub_client import open_repository, publish
from melanoma_fair_xai.base.publication import CARD_NAME, Publication, collect, file_problem, read_card
from melanoma_fair_xai.hub.arguments import HubArguments

CARD_DATA_NAME = "card_data.json"
CLASSIFIER_FILES = (CARD_NAME, "config.json", "model.safetensors")
GENERATOR_FILES = (
    CARD_NAME,
    "model_index.json",
    "pipeline_lesion.py",
    "conditioner/config.json",
    "conditioner/lesion_conditioner.py",
    "conditioner/diffusion_pytorch_model*.safetensors",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model*.safetensors",
)
RUN_EXTRAS = (CARD_DATA_NAME, "fairness.csv", "metrics.json", "training_args.json")
RUN_EXTRAS += ("figures/*", "samples/*", "unet/diffusion_pytorch_model*.index.json")


def model_publication(folder: Path) -> Publication:
    """What of a run folder is published. UserError for one that is not finished, not whole, or no model's."""
    read_card(folder)  # first: a run without it is not finished, whatever else it lacks
    if (folder / "fold-0").is_dir():
        raise UserError(
            f"{folder}: a cross-validation, one model a fold; push one of them, such as {folder / 'fold-0'}"
        )
    if (folder / "data").is_dir():
        raise UserError(f"{folder}: a data set; name its repository with --hub_dataset_id")
    files = GENERATOR_FILES if (folder / "model_index.json").is_file() else CLASSIFIER_FILES
    publication = collect(folder, "model", files, RUN_EXTRAS, run_file_problem)
    if problem := weights_problem(folder / files[1]):  # by its config or index
        raise UserError(problem)
    recorded = folder / CARD_DATA_NAME  # the code that trained, which need not be the one that publishes
    if recorded.is_file():
        if reason := file_problem(recorded):
            raise UserError(f"{recorded}: {reason}; finish the run again")
        publication = replace(publication, code=json.loads(recorded.read_text(encoding="utf-8"))["commit"])
    return publication


def run_file_problem(path: Path) -> str | None:
    """As `file_problem`, for weights too."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                return None
        except SafetensorError as error:
            return f"not a whole safetensors file ({error})"
    return file_problem(path)


def check_push(hub: HubArguments, output_dir: str) -> None:
    """Before a training: UserError if its model could not be pushed afterwards. Makes the repository."""
    open_repository(_repo_id(hub, output_dir), "model", hub.hub_private_repo)


def push_run(hub: HubArguments, output_dir: str) -> None:
    """Publish the finished run in --output_dir, and say where."""
    publication = model_publication(Path(output_dir))
    print(publish(publication, _repo_id(hub, output_dir), hub.hub_private_repo, hub.hub_tag))


def _repo_id(hub: HubArguments, output_dir: str) -> str:
    return hub.hub_model_id or Path(output_dir).resolve().name
