"""Every sentence of a model's card that hangs on something is read where that holds, and missed where it does not."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from card_runs import write_card, write_generator, write_results

from melanoma_fair_xai.hub import classifier_card, generator_card

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "melanoma_fair_xai" / "hub" / "templates"
EXPLANATION = ROOT / "model_cards" / "examples" / "quickstart" / "explanation"
QUALITY = ROOT / "model_cards" / "ham10000-generator" / "quality"
EARLIER = {"id": "x", "name": "Other data", "licence": "mit", "citation": "@misc{other}", "about": ""}
UNSAID = "Where the images come from, and who labelled them, the data set does not say."


class Case(NamedTuple):
    """A condition as a template has it, what makes it change its side, and for each of its places in the template the
    words that only the one side has, and those that only the other has ("" where it says nothing)."""

    condition: str
    change: Callable[[Path], None]
    words: list[tuple[str, str]]


def change_json(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


def fact(*path: str, value: object) -> Callable[[Path], None]:
    """Sets a value of card_data.json."""

    def change(facts: dict) -> None:
        for name in path[:-1]:
            facts = facts[name]
        facts[path[-1]] = value

    return lambda folder: change_json(folder, "card_data.json", change)


def many_labels(folder: Path) -> None:
    names = [f"label{number}" for number in range(11)]
    change_json(folder, "config.json", lambda c: c.update(label_names=names, operating_point=POINT))


def explained(folder: Path) -> None:
    shutil.copytree(EXPLANATION, folder / "explanation")


def explained_fold(folder: Path) -> None:
    explained(folder)
    fact("folds", value=5)(folder)


def skin_types(folder: Path) -> None:
    def add(config: dict) -> None:
        config["counts"]["fitzpatrick"] = {"I": 300, "VI": 40}
        config["vocabularies"]["fitzpatrick"] = ["I", "VI"]

    change_json(folder, "conditioner/config.json", add)


def pairs(folder: Path) -> None:
    table = pd.read_csv(folder / "fairness.csv", dtype=str, keep_default_na=False)
    table["group_column"] = table["group_column"].replace("sex", "sex*fitzpatrick")
    table.to_csv(folder / "fairness.csv", index=False)


POINT = {"positive_labels": ["label3"], "threshold": 0.5, "rule": "youden"}
SHARED = [
    Case(
        "facts.training.smoke",
        fact("training", "smoke", value=True),
        [("", "**Smoke run.** Training had")],
    ),
    Case('facts.commit or "unknown"', fact("commit", value=None), [("c0ffee |", "commit unknown |")] * 2),
    Case('data.licence or "unknown"', fact("data", "licence", value=None), [("data: cc-by-nc-4.0", "data: unknown")]),
    Case(f'data.about or "{UNSAID}"', fact("data", "about", value=""), [("Medical University of Vienna", UNSAID)]),
]
CLASSIFIER = [
    *SHARED,
    Case("data.phantoms", fact("data", "phantoms", value=True), [("", "**Phantom data.** This model was trained")]),
    Case("label_names | length <= 10", many_labels, [("logits of benign, melanoma;", "| 11 logits;")]),
    Case(
        "facts.folds",
        explained_fold,
        [
            ("Scores are calibrated on validation.", "This folder holds 5 models, one a fold"),
            ("the test split was opened once", "AUC counts pairs within a fold"),
            ("Platt scaling", "Each fold's model is calibrated"),
            ("Thresholds that were chosen on validation", "Each fold's threshold was chosen"),
            ("", "Of the model of fold 0"),
        ],
    ),
    Case(
        "facts.before_calibration", fact("before_calibration", value=None), [("Platt scaling (slope", "A temperature")]
    ),
    Case(
        "facts.settings.confirmed_by_histology",
        fact("settings", "confirmed_by_histology", value=True),
        [("", "Only records whose diagnosis histopathology confirmed")],
    ),
    Case(
        "facts.generated_images",
        fact("generated_images", value=1200),
        [("No generated image was used.", "The training split holds 1,200 generated images")],
    ),
    Case(
        "facts.settings.class_balanced_sampling",
        fact("settings", "class_balanced_sampling", value=False),
        [("Classes are drawn equally often, and the calibration", "Classes are drawn as often as they are.")],
    ),
    Case(
        'facts.settings.mitigation == "none"',
        fact("settings", "mitigation", value="group_dro"),
        [("Nothing was done to make groups equal.", "For groups, training used `group_dro`")],
    ),
    Case("pairs", pairs, [("were not evaluated.", "Pairs of groups: sex\\*fitzpatrick, above.")]),
    Case("explanation", explained, [("Not measured. Whether a heat map", "beside maps that know nothing of the net")]),
    Case(
        'earlier.licence or "licence unknown"',
        fact("start", "data", value=[EARLIER, EARLIER | {"name": "More", "licence": None}]),
        [("", "from Other data before (mit), which binds it too. The weights had learned from More before (licence")],
    ),
    Case("data.citation", fact("data", "citation", value=""), [("CITATION.cff says, and the data:", "cff says.")]),
    Case("cited", fact("start", "data", value=[EARLIER, EARLIER | {"citation": ""}]), [("", "@misc{other} ``` -->")]),
]
GENERATOR = [
    *SHARED,
    Case(
        "data.phantoms",
        fact("data", "phantoms", value=True),
        [("", "**Phantom data.** This model learned"), ("It draws what its training images", "It draws drawings.")],
    ),
    Case(
        "has_skin_types",
        skin_types,
        [
            ("by diagnosis, all other", "by diagnosis and skin type, all other"),
            ("**The training data record no skin types", "Skin types are those that the data set records."),
        ],
    ),
    Case(
        "quality",
        lambda folder: shutil.copytree(QUALITY, folder / "quality"),
        [("of training images: not measured.", "compared by the features of")],
    ),
    Case(
        "data.citation",
        fact("data", "citation", value=""),
        [("CITATION.cff says, and the data:", "CITATION.cff says."), ("@article{tschandl2018ham10000", "")],
    ),
]
KINDS = {
    "classifier.md": (CLASSIFIER, classifier_card.write_classifier_card),
    "diffusion.md": (GENERATOR, generator_card.write_generator_card),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run folder of each kind, with its card."""
    root = tmp_path_factory.mktemp("sentences")
    write_results(root / "classifier.md", ["I", "VI"])
    write_card(root / "classifier.md", types=("I", "VI"))
    write_generator(root / "diffusion.md")
    for name, (_, write) in KINDS.items():
        fact("commit", value="c0ffee")(root / name)
        write(root / name)
    return {name: root / name for name in KINDS}


def read(folder: Path) -> str:
    """The card in one line. An end of it is marked, so that the last words can be told."""
    return " ".join((folder / "README.md").read_text().split()) + " -->"


@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind, (cases, _) in KINDS.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else value.condition,
)
def test_a_condition_changes_what_hangs_on_it(kind, case, folders, tmp_path):
    folder = shutil.copytree(folders[kind], tmp_path / "run")
    before = read(folder)
    case.change(folder)
    KINDS[kind][1](folder)
    after = read(folder)
    for only_before, only_after in case.words:
        assert only_before in before and (not only_before or only_before not in after), only_before
        assert only_after in after and (not only_after or only_after not in before), only_after


@pytest.mark.parametrize("kind", KINDS)
def test_every_condition_of_the_template_has_a_case_for_each_of_its_places(kind):
    text = (TEMPLATES / kind).read_text()
    found = Counter(re.findall(r"\{% (?:el)?if (.*?) %\}", text))
    found += Counter(re.findall(r"\{\{[^{}]*?\sif ([\w.]+)(?: else|\s*\}\})", text))
    found += Counter(re.findall(r"[\w.]+ or \"[^\"]*\"", text))
    found += Counter(re.findall(r"\{% for [^%]*? if (.*?) %\}", text))
    assert {case.condition: len(case.words) for case in KINDS[kind][0]} == dict(found)
