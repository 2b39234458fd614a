"""What is given and got by hand: Series, lists, no lesions, no bootstrap, one metric, wide tables and families."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness import compare, evaluate, evaluate_predictions, mean_by_group, read_predictions
from melanoma_fair_xai.fairness.figures import plot_forest
from melanoma_fair_xai.fairness.intervals import benjamini_hochberg
from melanoma_fair_xai.fairness.metrics import METRICS


def drawn(n: int = 300, gap: float = 0.0) -> pd.DataFrame:
    """A predictions table with three columns of groups; in the first half of `site` scores tell less, by `gap`."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 3 == 0
    table = pd.DataFrame({"image_id": range(n), "lesion_id": range(n), "label": label.astype(int), "threshold": 0.5})
    table["site"] = np.where(np.arange(n) < n // 2, "arm", "back")
    for name in ("sex", "camera"):
        table[name] = rng.choice(["a", "b"], n)
    effect = 2.0 - gap * (table["site"] == "arm")
    return table.assign(fold=0, score=1 / (1 + np.exp(-(effect * label - 1 + rng.normal(size=n)))))


def test_a_series_with_another_index_is_refused_and_a_shuffled_table_is_not():
    table = drawn()
    shuffled = table.sample(frac=1, random_state=1)
    with pytest.raises(UserError, match="score: its index is not that of label"):
        evaluate(table["label"], shuffled["score"], n_resamples=0)
    with pytest.raises(UserError, match="group column site: its index"):
        evaluate(table["label"], table["score"], {"site": shuffled["site"]}, n_resamples=0)
    with pytest.raises(UserError, match="group column site: its index"):
        evaluate(table["label"], table["score"], shuffled[["site"]], n_resamples=0)
    first = evaluate(table["label"], table["score"], table[["site"]], n_resamples=0)
    for again in (
        evaluate(shuffled["label"], shuffled["score"], shuffled[["site"]], n_resamples=0),
        evaluate(table["label"], table["score"].tolist(), {"site": table["site"].to_numpy()}, n_resamples=0),
        evaluate_predictions(shuffled.drop(columns=["lesion_id", "threshold"]), ["site"], n_resamples=0),
    ):
        values = [{(row.group, row.metric): row.value for row in r.by_group} for r in (first, again)]
        assert values[0] == pytest.approx(values[1], nan_ok=True)


def test_one_column_of_groups_may_be_given_as_it_is():
    table = drawn()
    for groups, name in ((table["site"], "site"), (table["site"].tolist(), "group"), (table["site"].array, "group")):
        report = evaluate(table["label"], table["score"], groups, n_resamples=0)
        assert list(report.groups) == [name] and {row.group for row in report.by_group} == {"arm", "back"}
    with pytest.raises(UserError, match="group: 299 values for 300 labels"):
        evaluate(table["label"], table["score"], table["site"].tolist()[1:])


def test_without_lesions_every_image_is_one(tmp_path):
    table = drawn().drop(columns="lesion_id")
    table.to_parquet(tmp_path / "test.parquet")
    report = evaluate_predictions(read_predictions(tmp_path / "test.parquet"), ["site"], n_resamples=50)
    assert report.overall[0].lesions == 300 and "No lesion ids were given" in report.to_markdown()
    assert "No lesion ids" not in evaluate_predictions(drawn(), ["site"], n_resamples=50).to_markdown()
    rows = [compare({"a": t, "b": t.assign(score=t["score"] ** 2)}, [], n_resamples=50) for t in (table, drawn())]
    assert str(rows[0].differences) == str(rows[1].differences)  # nan is not nan
    means = [mean_by_group(t, ["score"], [], lesion) for t, lesion in ((table, None), (drawn(), "lesion_id"))]
    pd.testing.assert_frame_equal(*means)


def test_without_a_bootstrap_its_metrics_are_point_estimates():
    table = drawn()
    report, full = (evaluate_predictions(table, ["site"], n_resamples=n) for n in (0, 50))
    for row, other in zip(report.overall + report.by_group, full.overall + full.by_group, strict=True):
        assert row.value == pytest.approx(other.value, nan_ok=True) and row.estimable == other.estimable
        closed = METRICS[row.metric].closed_form is not None
        assert np.isfinite(row.low) == closed and (not closed or (row.low, row.high) == (other.low, other.high))
    assert {row.metric for row in report.contrasts if row.estimable} == {
        m for m, r in METRICS.items() if r.closed_form
    }
    for wrong in (1, -1):
        with pytest.raises(UserError, match=f"n_resamples: {wrong}"):
            evaluate_predictions(table, ["site"], n_resamples=wrong)


def test_metrics_and_level_are_those_that_are_asked_for():
    table = drawn()
    report = evaluate_predictions(table, ["site"], metrics=["sensitivity", "roc_auc"], alpha=0.2, n_resamples=0)
    assert [row.metric for row in report.overall] == ["roc_auc", "sensitivity"]
    assert (
        {row.metric for row in report.contrasts}
        == {row.metric for row in report.worst_group}
        == {"roc_auc", "sensitivity"}
    )
    wider = {row.metric: row for row in evaluate_predictions(table, ["site"], n_resamples=0).overall}
    for row in report.overall:
        assert wider[row.metric].low < row.low < row.value < row.high < wider[row.metric].high
    text = report.to_markdown()
    assert "hold 80 % intervals" in text and "95 %" not in text and "| ROC AUC | sensitivity |" not in text
    figure = plot_forest(report.overall, report.by_group, "site", "", report.plan.alpha)
    assert "value and 80 % interval" in figure.get_suptitle()
    for wrong in ({"metrics": ["auc"]}, {"metrics": "roc_auc"}, {"alpha": 1.5}, {"family": "bonferroni"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}: "):
            evaluate_predictions(table, ["site"], n_resamples=0, **wrong)


def test_a_report_says_in_one_line_what_it_is_of():
    table = drawn()
    report = evaluate_predictions(table, ["site", "sex"], n_resamples=0)
    assert repr(report) == "FairnessReport(300 images, 300 lesions, 100 melanomas, by site, sex)"
    assert repr(evaluate(table["label"], table["score"], n_resamples=0)).endswith("100 melanomas)")
    comparison = compare({"a": table, "b": table}, [], n_resamples=0)
    assert repr(comparison) == "Comparison(b against a: 300 images)"


def test_a_wide_table_and_the_gaps_are_those_of_the_rows():
    report = evaluate_predictions(drawn(gap=1.0), ["site", "sex"], n_resamples=30)
    wide = report.to_wide()
    assert len(wide) == 5 and list(wide.columns.get_level_values(0).unique()) == list(METRICS)
    for row in report.overall + report.by_group:
        cells = wide.xs((row.group_column, row.group), level=("group_column", "group"))
        assert cells.index[0] == (row.n, row.lesions, row.melanomas, row.melanoma_lesions)
        assert cells[row.metric].iloc[0].tolist() == pytest.approx([row.value, row.low, row.high], nan_ok=True)
    gaps = report.difference()
    values = {(row.group_column, row.group, row.metric): row.value for row in report.by_group}
    assert gaps["site", "roc_auc"] == pytest.approx(
        values["site", "back", "roc_auc"] - values["site", "arm", "roc_auc"]
    )
    assert set(gaps.index.get_level_values(0)) == {"site", "sex"} and (gaps >= 0).all()


def test_false_discovery_rates_are_those_of_statsmodels():
    p = np.array([0.04, np.nan, 0.001, 0.3, 0.012, 0.012, 1.0])
    expected = multipletests(p[~np.isnan(p)], method="fdr_bh")[1]
    found = benjamini_hochberg(p)
    assert found[~np.isnan(p)] == pytest.approx(expected) and np.isnan(found[1])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@pytest.mark.parametrize("family, method, field", [("holm", "holm", "p_holm"), ("benjamini-hochberg", "fdr_bh", "q")])
def test_a_family_of_all_columns_adjusts_everything_that_is_tested(family, method, field):
    columns = ["site", "sex", "camera"]
    table = drawn(gap=1.2)
    alone = evaluate_predictions(table, columns, n_resamples=0)
    assert {row.group_column for row in alone.contrasts if not np.isnan(row.p)} == {"site"}
    assert all(np.isnan(row.p_holm) for row in alone.worst_group)
    assert "Nothing else is adjusted" in alone.to_markdown() and "not adjusted, of equal" in alone.to_markdown()
    report = evaluate_predictions(table, columns, family=family, n_resamples=0)
    tested = [row for row in (*report.contrasts, *report.worst_group) if not np.isnan(row.p)]
    assert len(tested) == 3 * 2 + 3 * 4
    assert [getattr(row, field) for row in tested] == pytest.approx(
        multipletests([row.p for row in tested], method=method)[1]
    )
    other = "q" if field == "p_holm" else "p_holm"
    assert all(np.isnan(getattr(row, other)) for row in tested)
    assert field in report.to_pandas() and report.to_pandas()[field].notna().sum() == len(tested)
    text = report.to_markdown()
    assert "All 18 p-values of this report are adjusted together" in text and "6 contrasts" in text
    assert (
        "not adjusted" not in text and ("q (FDR)" in text) == (field == "q") and ("p (Holm)" in text) == (field != "q")
    )
    models = {"a": table, "b": table.assign(score=np.sqrt(table["score"] * table["threshold"]))}
    result = compare(models, columns, family=family, n_resamples=50)
    tested = [row for row in result.differences if not np.isnan(row.p)]
    assert {row.group_column for row in tested} == {"all", *columns}
    assert [getattr(row, field) for row in tested] == pytest.approx(
        multipletests([row.p for row in tested], method=method)[1]
    )
    assert "in all images and in each group of every column" in result.to_markdown()
