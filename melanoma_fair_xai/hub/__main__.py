"""Make the card of a finished run again.

python -m melanoma_fair_xai.hub card runs/r18 --explanation runs/r18-explained
"""

import argparse
from pathlib import Path

from dataset_scripts.common import UserError, run_command
from melanoma_fair_xai.hub import explanation, quality
from melanoma_fair_xai.hub.card import read_json
from melanoma_fair_xai.hub.classifier_card import write_classifier_card
from melanoma_fair_xai.hub.generator_card import write_generator_card
from melanoma_fair_xai.hub.record import CARD_DATA_NAME

WRITERS = {"classifier": write_classifier_card, "generator": write_generator_card}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m melanoma_fair_xai.hub")
    commands = parser.add_subparsers(required=True)
    _add_card(commands.add_parser("card", help="write the card of a finished run again, to the same bytes"))
    options = parser.parse_args()
    options.command(options)


def _add_card(parser: argparse.ArgumentParser) -> None:
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
    kind = read_json(options.run, CARD_DATA_NAME).get("kind")
    if kind not in WRITERS:
        raise UserError(f"{options.run / CARD_DATA_NAME}: of kind {kind}; there are {', '.join(WRITERS)}")
    for report, module, wanted in (
        (options.explanation, explanation, "classifier"),
        (options.quality, quality, "generator"),
    ):
        if report and kind != wanted:
            raise UserError(f"{report}: measures a {wanted}, and {options.run} is a {kind}")
        if report:
            module.take(report, options.run)
    print(f"card: {WRITERS[kind](options.run, options.output)}")


if __name__ == "__main__":
    run_command(main)
