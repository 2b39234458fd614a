"""Rendered cards of each kind held against the checklists beside their templates, item by item.

CLEAR Derm: Daneshjou et al. 2022, JAMA Dermatology 158:90. TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378. Model
Cards: Mitchell et al. 2019, arXiv:1810.03993.
"""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from card_runs import write_card, write_generator, write_results

from melanoma_fair_xai.hub.generator_card import write_generator_card

TEMPLATES = Path(__file__).parents[2] / "melanoma_fair_xai" / "hub" / "templates"
CHECKLISTS = pd.read_csv(TEMPLATES / "checklists.csv", dtype=str, keep_default_na=False)
KINDS = ["classifier", "generator", "dataset"]


@pytest.fixture(scope="module")
def cards(tmp_path_factory, phantoms):
    """The sections of a card of each kind by heading; what stands before the first is `top`."""
    folder = tmp_path_factory.mktemp("cards")
    write_results(folder / "classifier", ["I", "III", "unknown"])
    write_card(folder / "classifier", types=("I", "III", "unknown"))
    write_generator(folder / "generator")
    write_generator_card(folder / "generator")
    shutil.copytree(phantoms, folder / "dataset")
    return {kind: sections((folder / kind / "README.md").read_text()) for kind in KINDS}


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(["top", *parts[1::2]], parts[::2], strict=True))


def test_every_item_of_the_three_checklists_is_there():
    assert CHECKLISTS["checklist"].value_counts().to_dict() == {"CLEAR Derm": 25, "TRIPOD+AI": 52, "Model Cards": 9}
    assert not CHECKLISTS.duplicated(["checklist", "item"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_is_answered_or_it_is_said_why_it_does_not_apply(kind, cards):
    unanswered = []
    for row in CHECKLISTS.to_dict("records"):
        heading, _, words = row[kind].partition(": ")
        found = [text for name, text in cards[kind].items() if heading and name.startswith(heading)]
        answered = found and words and " ".join(words.split()) in " ".join(found[0].split())
        if not answered and (row[kind] or not row["where_it_does_not_apply"]):
            unanswered.append((row["checklist"], row["item"], row[kind]))
    assert not unanswered
