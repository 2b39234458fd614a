"""Publishing a prepared data set on the Hub."""

import argparse
from pathlib import Path

from melanoma_fair_xai.base.hub_client import open_repository, publish
from melanoma_fair_xai.base.publication import CARD_NAME, Publication, collect, read_card

from .common import LOCAL_USE_ONLY, UserError
from .splits import MANIFEST_NAME

DATASET_FILES = (CARD_NAME, MANIFEST_NAME, "data/*/*.parquet")
DATASET_EXTRAS = ("*.csv",)


def dataset_publication(folder: Path) -> Publication:
    """What of a prepared data set is published. UserError for a folder that is none, is not whole, or may not be."""
    if LOCAL_USE_ONLY in (read_card(folder).data.get("tags") or []):
        raise UserError(
            f"{folder}: its images may not be passed on, see its card; publish models trained on it instead"
        )
    return collect(folder, "dataset", DATASET_FILES, DATASET_EXTRAS)


def add_repository_flags(parser: argparse.ArgumentParser) -> None:
    """Who may see the repository, and what the version is called."""
    parser.add_argument("--no_hub_private_repo", dest="hub_private_repo", action="store_false", help="make it public")
    parser.add_argument("--hub_tag", help="name of the version (default: the next of v1, v2, ...)")


def add_push_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that prepares a data set, which `check_dataset_push` and `push_dataset` obey."""
    parser.add_argument("--push_to_hub", action="store_true", help="publish the data set once it is prepared")
    parser.add_argument("--hub_dataset_id", help="USER/NAME there (default: your user and the folder's name)")
    add_repository_flags(parser)


def check_dataset_push(args: argparse.Namespace) -> None:
    """Before a long preparation: UserError if its result could not be pushed. Makes the repository."""
    if args.push_to_hub:
        open_repository(_dataset_id(args), "dataset", args.hub_private_repo)


def push_dataset(args: argparse.Namespace) -> None:
    """Publish what a command has prepared, if it was asked to, and say where."""
    if args.push_to_hub:
        publication = dataset_publication(Path(args.output_dir))
        print(publish(publication, _dataset_id(args), args.hub_private_repo, args.hub_tag))


def _dataset_id(args: argparse.Namespace) -> str:
    return args.hub_dataset_id or Path(args.output_dir).resolve().name
