"""The card against the report that it was made of, read back as the Hub would read it."""

import json
import re

import datasets
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from dataset_scripts.ham10000 import CITATION
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.fairness import evaluate_predictions
from melanoma_fair_xai.hub.card import INDEXED, write_classifier_card

COMMAND = "accelerate launch train_classifier.py"


def predictions(types: list[str], n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n)],
            "lesion_id": [f"lesion{i}" for i in range(n)],
            "label": labels,
            "score": np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0, 1),
            "fold": 0,
            "threshold": 0.5,
            "fitzpatrick": rng.choice(types, n),
            "sex": np.where(np.arange(n) < 15, "male", "female"),
        }
    )


def write(folder, name: str, types: list[str], source: str = "clinic"):
    table = predictions(types)
    columns = table[["image_id", "lesion_id"]].assign(melanoma=table["label"], split="test", source=source)
    records = Records(name, datasets.Dataset.from_dict({}), columns, pd.DataFrame())
    report = evaluate_predictions(table, n_resamples=100)
    report.write(folder)
    (folder / "training_args.json").write_text(json.dumps({"seed": 3, "target": "melanoma_vs_rest", "fold": "0/5"}))
    point = {"positive_labels": ["melanoma"], "threshold": 0.51234, "rule": "youden"}
    (folder / "config.json").write_text(json.dumps({"label_names": ["benign", "melanoma"], "operating_point": point}))
    write_classifier_card(folder, "resnet18, melanoma vs rest", "test", report, records, COMMAND)
    return ModelCard.load(folder / "README.md"), report


def test_the_metadata_carry_every_estimable_stratum_and_nothing_else(tmp_path):
    card, report = write(tmp_path, "ham10000", ["I", "II", "VI", "unknown"])
    rows = [row for row in report.overall + report.by_group if row.metric in INDEXED and row.estimable]
    results = card.data.eval_results
    assert len(results) == len(rows) > 20
    assert len({(result.metric_name, result.metric_type) for result in results}) == len(results)
    for result, row in zip(results, rows, strict=True):
        assert result.metric_value == pytest.approx(row.value) and type(result.metric_value) is float
        assert (result.metric_args["n"], result.metric_args["melanomas"]) == (row.n, row.melanomas)
        assert result.metric_args["interval_95"] == pytest.approx([row.low, row.high])
    assert "!!python" not in (tmp_path / "README.md").read_text()
    assert card.data.license == "cc-by-nc-4.0" and card.data.pipeline_tag == "image-classification"


def test_the_text_says_who_it_is_for_and_for_whom_it_was_not_tested(tmp_path):
    card, report = write(tmp_path, "ham10000", ["I", "II", "VI"])
    text = card.text
    for words in ("Not a medical device", "does not rule out melanoma", "**0.5123**", COMMAND, "Seed 3", CITATION):
        assert words in text, words
    assert "Skin types that the split does not hold: III, IV, V." in text
    assert "`sex`, too few lesions to tell: male (15 images" in text
    assert "Phantom data" not in text and "phantom" not in card.data.tags
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[2] == "## Performance by group, split `test`" and "### All images" in text
    assert "\n\n\n" not in text
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) >= 3 and all((tmp_path / link).is_file() for link in links)


def test_no_skin_types_and_phantoms_are_said(tmp_path):
    card, _ = write(tmp_path, "phantom", ["unknown"], source="phantom")
    assert "No skin types are recorded" in card.text and "Phantom data." in card.text
    assert "phantom" in card.data.tags and card.data.license == "apache-2.0"


def test_a_prepared_folder_tells_its_licence_and_an_unknown_one_has_none(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("---\nlicense: cc-by-4.0\npretty_name: Own data\n---\n# Own\n")
    card, _ = write(tmp_path, str(tmp_path / "own"), ["I", "V"])
    assert card.data.license == "cc-by-4.0" and "Own data, target" in card.text
    assert card.data.eval_results[0].dataset_name == "Own data"
    card, _ = write(tmp_path, "nowhere", ["I", "V"])
    assert card.data.license == "other" and "Licence of the data: unknown" in card.text
