"""Publishing a prepared data set on the Hub."""

from dataclasses import replace
from pathlib import Path

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.hub_client import open_repository, publish
from melanoma_fair_xai.base.publication import CARD_NAME, Publication, collect, read_card

from .prepare import data_problem
from .schema import SKIPPED_NAME
from .settings import DatasetPushArguments
from .sources import LOCAL_USE_ONLY, SOURCES
from .splits import MANIFEST_NAME

EVERY_VERSION = (CARD_NAME, "*.csv", "data/*/*.parquet")  # whatever an earlier one may have published


def dataset_publication(folder: Path) -> Publication:
    """What of a prepared data set is published: the data that its card names, and the tables that are written with it.

    UserError for a folder that is none, is not whole, or may not be.
    """
    card = read_card(folder).data
    if LOCAL_USE_ONLY in (card.get("tags") or []):
        raise UserError(
            f"{folder}: its images may not be passed on, see its card; publish models trained on it instead"
        )
    shards = [part["path"] for config in card.get("configs") or [] for part in config["data_files"]]
    if not shards or not all(path.startswith("data/") for path in shards):
        raise UserError(f"{folder}: not a prepared data set, whose card names its files in data/; prepare it first")
    tables = [table for source in SOURCES.values() for table in source.tables]
    publication = collect(folder, "dataset", (CARD_NAME, MANIFEST_NAME, *shards), (SKIPPED_NAME, *tables))
    publication = replace(publication, patterns=EVERY_VERSION)
    if problem := data_problem(folder):
        raise UserError(problem)
    return publication


def check_dataset_push(push: DatasetPushArguments, output_dir: str) -> None:
    """Before a long preparation: UserError if its result could not be pushed. Makes the repository."""
    if push.push_to_hub:
        open_repository(_dataset_id(push, output_dir), "dataset", push.hub_private_repo)


def push_dataset(push: DatasetPushArguments, output_dir: str) -> None:
    """Publish what a command has prepared in --output_dir, if it was asked to, and say where."""
    if push.push_to_hub:
        publication = dataset_publication(Path(output_dir))
        print(publish(publication, _dataset_id(push, output_dir), push.hub_private_repo, push.hub_tag))


def _dataset_id(push: DatasetPushArguments, output_dir: str) -> str:
    return push.hub_dataset_id or Path(output_dir).resolve().name
