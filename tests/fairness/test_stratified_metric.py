import os
from pathlib import Path

import datasets
import evaluate as hf_evaluate
import numpy as np
import PIL.Image
import pytest
import transformers

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness import evaluate
from melanoma_fair_xai.fairness.evaluator import StratifiedEvaluator
from melanoma_fair_xai.fairness.metrics import METRICS, Metric

METRIC = Path(__file__).resolve().parents[2] / "metrics" / "stratified_fairness"


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return hf_evaluate.load(os.fspath(METRIC), cache_dir=os.fspath(tmp_path))


@pytest.fixture(scope="module")
def data() -> dict[str, list]:
    rng = np.random.default_rng(0)
    lesion = rng.integers(0, 150, 400)
    label = (lesion % 3 == 0).astype(int)
    score = 1 / (1 + np.exp(-(1.5 * label - 1 + rng.normal(size=400))))
    group = np.where(lesion % 2, "I-II", "V-VI")
    return {
        "predictions": score.tolist(),
        "references": label.tolist(),
        "groups": group.tolist(),
        "lesion_ids": [f"lesion{i}" for i in lesion],
    }


def test_batches_give_what_the_library_gives(metric, data):
    for rows in (slice(0, 150), slice(150, 400)):
        metric.add_batch(**{name: values[rows] for name, values in data.items()})
    results = metric.compute(threshold=0.4, n_resamples=100)
    report = evaluate(
        data["references"],
        data["predictions"],
        {"group": data["groups"]},
        lesion_ids=data["lesion_ids"],
        thresholds=0.4,
        n_resamples=100,
    )
    for row in report.overall:
        assert results[row.metric] == pytest.approx(row.value)
        if row.metric != "ece":
            assert (results[f"{row.metric}_low"], results[f"{row.metric}_high"]) == pytest.approx((row.low, row.high))
    assert [row["value"] for row in results["by_group"]] == [row.value for row in report.by_group]
    assert [row["p_holm"] for row in results["contrasts"]] == pytest.approx(
        [row.p_holm for row in report.contrasts], nan_ok=True
    )


def test_a_metric_that_is_added_to_the_table_comes_with_its_limits(metric, data, monkeypatch):
    value = lambda weighted, weights: 1 - weighted.npv(weights)  # noqa: E731
    monkeypatch.setitem(
        METRICS, "false_omission_rate", Metric("false omission rate", value, "lower", at_threshold=True)
    )
    results = metric.compute(**data, threshold=0.4, n_resamples=100)
    low, value, high = (results[f"false_omission_rate{end}"] for end in ("_low", "", "_high"))
    assert low < value < high and value == pytest.approx(1 - results["npv"])
    assert "ece" in results and "ece_low" not in results
    groups = [row["group"] for row in results["by_group"] if row["metric"] == "false_omission_rate"]
    assert groups == ["I-II", "V-VI"]


def test_it_combines_with_itself(metric, data, tmp_path):
    other = hf_evaluate.load(os.fspath(METRIC), cache_dir=os.fspath(tmp_path / "other"))
    both = hf_evaluate.combine({"first": metric, "second": other}, force_prefix=True)
    results = both.compute(**data, n_resamples=50)
    assert results["first_roc_auc"] == results["second_roc_auc"] > 0.5


def test_an_evaluator_passes_the_columns_of_a_split(metric, phantoms, tmp_path):
    split = datasets.load_dataset(os.fspath(phantoms), cache_dir=os.fspath(tmp_path))["train"]
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic",
        id2label={0: "benign", 1: "melanoma"}, label2id={"benign": 0, "melanoma": 1},
    )  # fmt: skip
    transformers.set_seed(0)
    pipeline = transformers.pipeline(
        "image-classification",
        model=transformers.ResNetForImageClassification(config),
        image_processor=transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    )
    evaluator = StratifiedEvaluator("sex", threshold=0.5, n_resamples=50)
    results = evaluator.compute(pipeline, data=split, metric=metric, label_column="melanoma")
    scores = [{item["label"]: item["score"] for item in pipeline(row["image"])}["melanoma"] for row in split]
    sex = [split.features["sex"].names[value] for value in split["sex"]]
    expected = evaluate(
        split["melanoma"][:], scores, {"group": sex}, lesion_ids=split["lesion_id"][:], thresholds=0.5, n_resamples=50
    )
    found = {(row["group"], row["metric"]): row for row in results["by_group"]}
    for row in expected.by_group:
        assert found[row.group, row.metric]["n"] == row.n
        assert found[row.group, row.metric]["value"] == pytest.approx(row.value, abs=1e-5, nan_ok=True)
    every = StratifiedEvaluator("sex", None, threshold=0.5, n_resamples=2)
    rows = every.compute(pipeline, data=split, metric=metric, label_column="melanoma")["by_group"]
    assert len(split) == sum(row["lesions"] for row in rows if row["metric"] == "roc_auc")
    with pytest.raises(UserError, match="no column hospital"):
        StratifiedEvaluator("hospital").compute(pipeline, data=split, metric=metric, label_column="melanoma")
    with pytest.raises(UserError, match="benign"):
        StratifiedEvaluator("sex", positive_labels=["mel"]).compute(
            pipeline, data=split, metric=metric, label_column="melanoma"
        )


def test_an_evaluator_opens_images_alone(metric, tmp_path):
    """And no PostScript, which Pillow would give to Ghostscript."""
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "lesion.eps")
    cell = {"bytes": (tmp_path / "lesion.eps").read_bytes(), "path": "lesion.jpg"}
    columns = {"image": [cell], "label": [1], "sex": ["female"], "lesion_id": ["a"]}
    split = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    evaluator = StratifiedEvaluator("sex")
    with pytest.raises(PIL.UnidentifiedImageError):
        evaluator.compute(lambda images, top_k: list(images), data=split, metric=metric, label_column="label")


def test_groups_and_lesions_may_be_numbers_or_missing(metric, data):
    number = {"I-II": 1, "V-VI": 2.0}
    groups = [number[group] for group in data["groups"]]
    groups[:3] = None, float("nan"), np.float64("nan")
    lesions = [int(name.removeprefix("lesion")) for name in data["lesion_ids"]]
    named = [{1: "1", 2.0: "2"}.get(group, "unknown") for group in groups]
    results = metric.compute(**data | {"groups": groups, "lesion_ids": lesions}, n_resamples=50)
    expected = metric.compute(**data | {"groups": named}, n_resamples=50)
    np.testing.assert_equal(results, expected)
    assert {row["group"] for row in results["by_group"]} == {"1", "2", "unknown"}
    for row in range(400):  # one by one
        metric.add(
            prediction=data["predictions"][row],
            reference=data["references"][row],
            groups=groups[row],
            lesion_ids=np.int64(lesions[row]),
        )
    np.testing.assert_equal(metric.compute(n_resamples=50), expected)
    with pytest.raises(UserError, match="lesion_id: no value in row 1"):
        metric.compute(**{name: values[:2] for name, values in data.items()} | {"lesion_ids": [7, None]})
