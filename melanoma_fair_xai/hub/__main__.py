"""Make the card of a finished run again, and publish what is finished.

python -m melanoma_fair_xai.hub card runs/r18 --explanation runs/r18-explained
python -m melanoma_fair_xai.hub push runs/r18 --hub_model_id USER/NAME --dry_run
python -m melanoma_fair_xai.hub push data/ham10000 --hub_dataset_id USER/NAME
"""

import argparse
from pathlib import Path

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.flags import Parser
from melanoma_fair_xai.base.push_arguments import RepositoryArguments

# What does the work is imported by what is asked for: cards take torch along, and neither pushing nor --help needs it.


def main() -> None:
    parser = Parser(prog="python -m melanoma_fair_xai.hub")
    commands = parser.add_subparsers(required=True)
    _add_card(commands.add_parser("card", help="write the card of a finished run again, to the same bytes"))
    _add_push(commands.add_parser("push", help="publish a finished run, or a prepared data set, as one commit"))
    options = parser.parse_args()
    options.command(options)


def _add_card(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="the run, or a folder that --output has written")
    parser.add_argument(
        "--explanation", type=Path, metavar="REPORT_DIR", help="first take in what explain.py measured of a classifier"
    )
    parser.add_argument(
        "--quality",
        type=Path,
        metavar="REPORT_DIR",
        help="first take in what diffusion.quality measured of a generator",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the card, its figures and the data it is made of here instead",
    )
    parser.set_defaults(command=_card)


def _card(options: argparse.Namespace) -> None:
    from melanoma_fair_xai.hub import explanation, quality
    from melanoma_fair_xai.hub.card import read_json
    from melanoma_fair_xai.hub.classifier_card import write_classifier_card
    from melanoma_fair_xai.hub.generator_card import write_generator_card
    from melanoma_fair_xai.hub.publish import CARD_DATA_NAME

    writers = {"classifier": write_classifier_card, "generator": write_generator_card}
    kind = read_json(options.run, CARD_DATA_NAME).get("kind")
    if kind not in writers:
        raise UserError(f"{options.run / CARD_DATA_NAME}: of kind {kind}; there are {', '.join(writers)}")
    for report, module, wanted in (
        (options.explanation, explanation, "classifier"),
        (options.quality, quality, "generator"),
    ):
        if report and kind != wanted:
            raise UserError(f"{report}: measures a {wanted}, and {options.run} is a {kind}")
        if report:
            module.take(report, options.run)
    print(f"card: {writers[kind](options.run, options.output)}")


def _add_push(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, help="the run, or the data set")
    name = parser.add_mutually_exclusive_group(required=True)
    name.add_argument("--hub_model_id", help="USER/NAME of the model's repository")
    name.add_argument("--hub_dataset_id", help="USER/NAME of the data set's repository")
    parser.add_flags(RepositoryArguments)
    parser.add_argument("--dry_run", action="store_true", help="list files, sizes and licence; send nothing")
    parser.set_defaults(command=_push)


def _push(options: argparse.Namespace) -> None:
    from dataset_scripts.publishing import dataset_publication
    from melanoma_fair_xai.base.hub_client import check_repo_id, publish
    from melanoma_fair_xai.hub.publish import model_publication

    repo_id = options.hub_dataset_id or options.hub_model_id
    check_repo_id(repo_id)
    publication = (dataset_publication if options.hub_dataset_id else model_publication)(options.folder)
    if options.dry_run:
        print(publication.describe(repo_id, options.hub_private_repo))
    else:
        print(publish(publication, repo_id, options.hub_private_repo, options.hub_tag))


if __name__ == "__main__":
    run_command(main)
