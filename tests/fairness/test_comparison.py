"""Models with thresholds of their own, and models that were trained with several seeds."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness import compare
from melanoma_fair_xai.fairness.bootstrap import estimate_parts
from melanoma_fair_xai.fairness.estimates import rate, roc_auc, subtract
from melanoma_fair_xai.fairness.metrics import AT_FIXED, METRICS
from melanoma_fair_xai.fairness.predictions import Validation, read_validation
from melanoma_fair_xai.fairness.sample import make_sample
from melanoma_fair_xai.fairness.seeds import pool
from melanoma_fair_xai.fairness.thresholds import ChosenThresholds, ThresholdChooser, WeightedMetricsAtChosen
from melanoma_fair_xai.fairness.weighted import WeightedMetrics

RULES = ("youden", "sensitivity=0.8", "specificity=0.7")


def drawn(seed: int, n: int, effect: float = 1.5, decimals: int = 2) -> pd.DataFrame:
    """A predictions table of `n` images, two of each lesion."""
    rng = np.random.default_rng(seed)
    label = (np.arange(n) // 2) % 3 == 0
    score = expit(effect * label - 1 + rng.normal(size=n)).round(decimals)
    table = pd.DataFrame({"image_id": range(n), "lesion_id": np.arange(n) // 2, "label": label.astype(int)})
    return table.assign(score=score, fold=0, threshold=0.5)


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_are_chosen_as_if_images_stood_as_often_as_they_weigh(rule):
    table, weights = drawn(0, 60), np.random.default_rng(1).integers(0, 4, (60, 20))
    scores, labels = table["score"].to_numpy(), table["label"].to_numpy().astype(bool)
    thresholds = ThresholdChooser(scores, labels, rule).choose(weights.astype(float))
    for threshold, times in zip(thresholds, weights.T, strict=True):
        again = np.repeat(scores, times), np.repeat(labels, times)
        own = ThresholdChooser(*again, rule).choose(np.ones((times.sum(), 1)))[0]
        assert ((again[0] >= threshold) == (again[0] >= own)).all()
    labels = np.arange(60) < 1  # weights that leave a class without images leave no threshold
    weights[0] = [0, 1] * 10
    missing = np.isnan(ThresholdChooser(scores, labels, rule).choose(weights.astype(float)))
    assert missing.tolist() == [True, False] * 10


@pytest.mark.parametrize("rule", RULES)
def test_decisions_follow_the_threshold_of_their_replicate_and_fold(rule):
    """Against a loop over replicates, folds and images; lesions of validation and test overlap."""
    test, validation = drawn(0, 80), drawn(1, 60).assign(fold=np.arange(60) % 2)
    test["fold"] = np.arange(80) % 2
    sample = make_sample(test["label"], test["score"], test["lesion_id"], test["fold"], test["threshold"])
    codes = validation["lesion_id"].to_numpy() + 20  # ten of them are tested, too
    parts = [validation["fold"] == fold for fold in (0, 1)]
    scores, melanoma = validation["score"].to_numpy(), validation["label"].to_numpy() == 1
    choosers = [ThresholdChooser(scores[part], melanoma[part], rule) for part in parts]
    metrics = WeightedMetricsAtChosen(sample, ChosenThresholds(choosers, [codes[part] for part in parts]))
    weights = np.random.default_rng(2).integers(0, 3, (50, 15)).astype(float)
    own = metrics.drawn(weights)
    found = {name: METRICS[name].value(metrics, own) for name, metric in METRICS.items() if metric.at_threshold}
    for draw in range(15):
        counts = np.zeros((2, 2))
        for fold, part in enumerate(parts):
            threshold = choosers[fold].choose(weights[codes[part]][:, [draw]])[0]
            for row in test[test["fold"] == fold].itertuples():
                counts[row.label, int(row.score >= threshold)] += weights[row.lesion_id, draw]
        (passed, false), (missed, true) = counts
        expected = {"sensitivity": true / (true + missed), "specificity": passed / (passed + false)}
        expected |= {"balanced_accuracy": sum(expected.values()) / 2, "ppv": true / (true + false)}
        expected |= {"npv": passed / (passed + missed)}
        assert {name: values[draw] for name, values in found.items()} == pytest.approx(expected)


def test_rates_at_a_fixed_rate_are_those_of_a_loop_over_thresholds():
    table = drawn(3, 120).assign(fold=lambda t: t["lesion_id"] % 2)
    table.loc[110:113, "fold"] = 2  # has no melanoma, so that no threshold finds them
    weights = np.random.default_rng(4).integers(0, 3, (60, 6)).astype(float)
    ranking = WeightedMetrics(make_sample(table["label"], table["score"], table["lesion_id"], table["fold"])).ranking
    values = {1: ranking.sensitivity_at(0.8, weights), 0: ranking.specificity_at(0.8, weights)}
    for draw in range(6):
        best, of = {0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}
        for fold in (0, 1):
            part = table[table["fold"] == fold]
            label, score, weight = part["label"].to_numpy(), part["score"].to_numpy(), weights[part["lesion_id"], draw]
            sums = {k: weight[label == k].sum() for k in (0, 1)}
            rights = [(weight * ((score >= t) == label)) for t in (*np.unique(score), 1.1)]
            rights = [{k: right[label == k].sum() for k in (0, 1)} for right in rights]
            for wanted in (0, 1):
                best[wanted] += max(r[wanted] for r in rights if r[1 - wanted] >= 0.8 * sums[1 - wanted] - 1e-9)
                of[wanted] += sums[wanted]
        for wanted in (0, 1):
            assert values[wanted][draw] == pytest.approx(best[wanted] / of[wanted])


def test_a_threshold_that_was_chosen_adds_its_own_variance():
    """At sensitivity=.9 that of validation adds to that of test: the share found of another sample of melanomas."""
    rng, count = np.random.default_rng(5), {"test": 400, "validation": 300}
    labels = {name: np.arange(3 * n) < n for name, n in count.items()}
    scores = {name: expit(1.5 * of + rng.normal(size=len(of))) for name, of in labels.items()}
    chooser = ThresholdChooser(scores["validation"], labels["validation"], "sensitivity=0.9")
    threshold = float(chooser.choose(np.ones((900, 1)))[0])
    sample = make_sample(labels["test"], scores["test"], thresholds=threshold)
    strata = np.concatenate([labels["test"], labels["validation"] + 2])
    chosen = {"one": ChosenThresholds([chooser], [1200 + np.arange(900)])}
    estimates = [
        estimate_parts({"one": sample}, strata, 2000, np.random.default_rng(6), chosen=known)["one"]
        for known in ({}, chosen)
    ]
    conditional, carried = (of["sensitivity"] for of in estimates)
    found = conditional.value
    assert carried.value == found and conditional.variance == pytest.approx(found * (1 - found) / 400, rel=0.01)
    assert carried.variance == pytest.approx(conditional.variance + 0.9 * 0.1 / 300, rel=0.15)
    assert estimates[0]["brier"].interval() == estimates[1]["brier"].interval()


def two_models(n: int = 300) -> tuple[dict[str, pd.DataFrame], dict[str, Validation]]:
    """Two models whose thresholds were chosen for a sensitivity of .8, and what they were chosen on."""
    tables, validation = {}, {}
    for number, name in enumerate(("first", "second")):
        scored = drawn(10 + number, n, decimals=9).assign(lesion_id=lambda t: t["lesion_id"] + 10_000)
        threshold = ThresholdChooser(scored["score"].to_numpy(), scored["label"].to_numpy() == 1, "sensitivity=0.8")
        tables[name] = drawn(20 + number, n, decimals=9).assign(threshold=threshold.choose(np.ones((n, 1)))[0])
        validation[name] = Validation(scored, "sensitivity=0.8")
    return tables, validation


def test_sensitivities_at_own_thresholds_are_tested_only_where_the_choice_is_known():
    tables, validation = two_models()
    found = {}
    for name, known in (("known", validation), ("unknown", None), ("of one", {"first": validation["first"]})):
        result = compare(tables, [], n_resamples=300, validation=known)
        found[name] = {row.metric: row for row in result.differences}
        decisions = {metric for metric, row in found[name].items() if row.conditional}
        assert decisions == (set() if name == "known" else {m for m, row in METRICS.items() if row.at_threshold})
        assert np.isfinite(found[name]["sensitivity"].p_holm) == (name == "known")
        assert all(np.isfinite(found[name][metric].p_holm) for metric in ("roc_auc", *AT_FIXED))
        text = result.to_markdown()
        assert ("| sensitivity, given the thresholds |" in text) == (name != "known")
        assert ("| sensitivity |" in text) == (name == "known")
        assert ("are conditional on these thresholds" in text) == (name != "known")
        assert ("include that another validation set" in text) == (name == "known")
        assert f"Holm over {4 if name == 'known' else 3} differences" in text
    known, unknown = (found[name]["sensitivity"] for name in ("known", "unknown"))
    assert known.value == unknown.value and known.high - known.low > 1.2 * (unknown.high - unknown.low)
    assert found["known"]["roc_auc"].low == found["unknown"]["roc_auc"].low


def test_folds_of_every_training_have_the_thresholds_that_were_chosen_for_them():
    """Two seeds of two folds whose rows come in other orders: those of a wrong fold would decide otherwise."""
    tables, validation = {}, {}
    for model in ("first", "second"):
        parts, scored = [], []
        for seed in (0, 1):
            for fold in (seed, 1 - seed):
                number = 100 * (model == "second") + 10 * seed + fold
                known = drawn(number, 90, effect=1 + fold, decimals=9).assign(fold=fold, seed=seed)
                chooser = ThresholdChooser(known["score"].to_numpy(), known["label"].to_numpy() == 1, "youden")
                own = drawn(500 + number, 90, effect=1 + fold, decimals=9).assign(fold=fold, seed=seed)
                own[["image_id", "lesion_id"]] += 1000 * fold
                parts.append(own.assign(threshold=chooser.choose(np.ones((90, 1)))[0]))
                scored.append(known.assign(lesion_id=known["lesion_id"] + 5000 + 1000 * fold))
        tables[model] = pd.concat(parts, ignore_index=True)
        validation[model] = Validation(pd.concat(scored, ignore_index=True), "youden")
    rows = {row.metric: row for row in compare(tables, [], n_resamples=50, validation=validation).differences}
    for model, table in tables.items():
        found = table[table["label"] == 1].groupby("seed").apply(lambda t: (t["score"] >= t["threshold"]).mean())
        value = rows["sensitivity"].baseline_value if model == "first" else rows["sensitivity"].model_value
        assert value == pytest.approx(found.mean())


def test_validation_that_does_not_give_the_threshold_is_refused():
    tables, validation = two_models()
    other = {**validation, "second": Validation(validation["second"].table, "specificity=0.95")}
    with pytest.raises(UserError, match="second: specificity=0.95 gives the threshold"):
        compare(tables, [], n_resamples=100, validation=other)
    benign = validation["second"].table.assign(label=0)
    with pytest.raises(UserError, match="both classes"):
        compare(tables, [], n_resamples=100, validation={**validation, "second": Validation(benign, "youden")})


def test_a_rule_agrees_with_what_it_gave_before_scores_were_rounded_and_with_nothing_else():
    labels = np.tile([False, True], 100)
    scores = np.sort(np.random.default_rng(0).uniform(size=200))
    youden, sensitive = (ThresholdChooser(scores, labels, rule) for rule in ("youden", "sensitivity=0.9"))
    # Of classes that alternate all thresholds are as good by Youden's rule, but for an image.
    assert youden.agrees(scores[3]) and youden.agrees(scores[150])
    given = sensitive.choose(np.ones((200, 1)))[0]
    place = np.searchsorted(scores, given)
    assert sensitive.agrees(scores[place - 1]) and sensitive.agrees(scores[place + 1])
    assert not sensitive.agrees(scores[place - 5]) and not sensitive.agrees(scores[place + 5])
    apart = ThresholdChooser(np.sort(scores), np.arange(200) >= 100, "youden")
    assert apart.agrees(scores[99]) and not apart.agrees(scores[90]) and not apart.agrees(scores[110])


def test_a_runs_folder_says_what_its_threshold_was_chosen_on(tmp_path):
    _, validation = two_models()
    assert read_validation(tmp_path) is None
    (tmp_path / "predictions").mkdir()
    validation["first"].table.to_parquet(tmp_path / "predictions" / "validation.parquet")
    assert read_validation(tmp_path) is None
    (tmp_path / "training_args.json").write_text(json.dumps({"threshold_rule": "sensitivity=0.8"}))
    known = read_validation(tmp_path)
    assert known.rule == "sensitivity=0.8"
    pd.testing.assert_frame_equal(known.table, validation["first"].table)


def test_the_mean_over_trainings_has_students_interval_where_lesions_differ():
    """Every training on lesions of its own: nothing but what the trainings differ by."""
    labels = np.arange(60) % 3 == 0
    differences = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scores = [expit(labels + rng.normal(size=60)) for _ in range(2)]
        first, second = (roc_auc(make_sample(labels, s, np.arange(60) + 100 * seed)) for s in scores)
        shift = 100 * seed + np.arange(60)
        first, second = (type(e)(**{**vars(e), "lesions": shift}) for e in (first, second))
        differences.append(subtract(first, second))
    values = [difference.value for difference in differences]
    low, high = pool(differences, lesions=20).interval()
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected)


def test_trainings_that_agree_are_one_training():
    sample = make_sample(np.arange(60) % 3 == 0, np.random.default_rng(0).random(60), thresholds=0.5)
    one = subtract(rate(sample, sample.labels, sample.decisions), rate(sample, ~sample.labels, sample.decisions))
    both = pool([one, one], lesions=20)
    assert (both.value, both.variance) == pytest.approx((one.value, one.variance))
    half = stats.t.ppf(0.975, 19) * np.sqrt(one.variance)
    assert both.interval() == pytest.approx((one.value - half, one.value + half))
    assert pool([one], lesions=20) is one


def trained(seeds: int, effects: tuple[float, float], spread: float) -> dict[str, pd.DataFrame]:
    """Two models that were trained with so many seeds and tested on the same images."""
    rng, tables = np.random.default_rng(8), {}
    base = drawn(9, 240)
    noise = rng.normal(size=240)
    for name, effect in zip(("first", "second"), effects, strict=True):
        parts = []
        for seed in range(seeds):
            moved = effect + spread * (-1) ** seed * (name == "second")
            parts.append(
                base.assign(score=expit(moved * base["label"] + noise + 0.3 * rng.normal(size=240)), seed=seed)
            )
        tables[name] = pd.concat(parts, ignore_index=True)
    return tables


def test_images_of_several_trainings_count_once_and_seeds_that_disagree_widen():
    single = {name: t[t["seed"] == 0] for name, t in trained(2, (1.0, 1.6), 0.0).items()}
    alone = {row.metric: row for row in compare(single, [], n_resamples=200).differences}
    result = compare(trained(4, (1.0, 1.6), 0.0), [], n_resamples=200)
    agreed = {row.metric: row for row in result.differences}
    torn = {row.metric: row for row in compare(trained(4, (1.0, 1.6), 0.8), [], n_resamples=200).differences}
    for rows in (alone, agreed, torn):
        assert {(row.n, row.lesions, row.melanomas) for row in rows.values()} == {(240, 120, 80)}
    widths = [rows["roc_auc"].high - rows["roc_auc"].low for rows in (alone, agreed, torn)]
    assert 0.5 * widths[0] < widths[1] < 1.1 * widths[0] and widths[2] > 2 * widths[1]
    assert agreed["roc_auc"].p < 0.01 < 0.05 < torn["roc_auc"].p
    assert result.trainings == 4 and "trained with 4 seeds" in result.to_markdown()
    assert "seeds" not in compare(single, [], n_resamples=100).to_markdown()


def test_an_image_that_stands_twice_without_a_seed_is_refused():
    tables = {name: t.drop(columns="seed").assign(fold=t["seed"]) for name, t in trained(2, (1, 1), 0).items()}
    with pytest.raises(UserError, match="more than once.*column seed"):
        compare(tables, [], n_resamples=100)
    short = trained(3, (1, 1), 0)
    with pytest.raises(UserError, match="same images"):
        compare({**short, "second": short["second"][short["second"]["seed"] < 2]}, [], n_resamples=100)
