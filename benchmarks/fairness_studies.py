"""The data sets that the fairness report's intervals and tests are measured on, and what comes of each.

The scores of a lesion's images share a part: a normal lesion effect with the share ICC of the variance. Melanomas lie
higher by what gives the AUC, and scores are the true probabilities where one image of six shows a melanoma, so that
every metric's true value is known. Unless a study says otherwise a lesion has 1 to 4 images, 1.85 on average, and
there are five benign lesions for every melanoma.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtr, ndtri, stdtrit
from scipy.stats import norm

from melanoma_fair_xai.fairness import compare, evaluate, mean_by_group
from melanoma_fair_xai.fairness.bootstrap import estimate_parts
from melanoma_fair_xai.fairness.comparison import COMPARED
from melanoma_fair_xai.fairness.estimates import Area, Estimate, subtract
from melanoma_fair_xai.fairness.family import adjust
from melanoma_fair_xai.fairness.intervals import holm, p_value, square_and_add
from melanoma_fair_xai.fairness.metrics import AT_FIXED, METRICS
from melanoma_fair_xai.fairness.predictions import Validation
from melanoma_fair_xai.fairness.resampling import bootstrap_strata, bootstrap_weights
from melanoma_fair_xai.fairness.sample import Sample, make_sample
from melanoma_fair_xai.fairness.thresholds import ThresholdChooser
from melanoma_fair_xai.fairness.worst_group import homogeneity

BENIGN_PER_MELANOMA = 5
SIZES, SIZE_SHARES = [1, 2, 3, 4], [0.5, 0.25, 0.15, 0.1]
REPLICATES = 100  # of the bootstrap in each data set: the noisier standard error covers, if anything, less often
FAMILY = [name for name, metric in METRICS.items() if metric.tested]
RANKED = [name for name, metric in METRICS.items() if metric.closed_form]

# What a data set says of (kind, quantity): whether the interval covers or the test rejects, None where there is none.
# Kinds that end in "before" are of methods that the report has left.
Outcome = dict[tuple[str, str], bool | None]


@dataclass(frozen=True)
class Study:
    """`draw` makes a data set of a cell, whose values `parameters` name, and says what came of it."""

    draw: Callable[..., Outcome]
    parameters: tuple[str, ...]
    cells: list[tuple]


def photographed(rng: np.random.Generator, lesions: int) -> np.ndarray:
    """Images of each lesion, 1 to 4."""
    return rng.choice(SIZES, lesions, p=SIZE_SHARES)


def of_patients(rng: np.random.Generator, patients: int) -> np.ndarray:
    """Images of each patient, 1 to 60, most of them of a few."""
    return np.clip(np.ceil(rng.pareto(0.8, patients)), 1, 60).astype(int)


def draw_noise(rng: np.random.Generator, lesion: np.ndarray, icc: float) -> np.ndarray:
    """Standard normal, correlated by `icc` within a lesion."""
    shared = rng.normal(size=lesion.max() + 1)[lesion]
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=len(lesion))


def shift_of(auc: float) -> float:
    """The distance of two unit normals with this AUC."""
    return np.sqrt(2) * ndtri(auc)


def probability(z: np.ndarray, auc: float) -> np.ndarray:
    """The probability of melanoma at z, which is increasing in z."""
    shift = shift_of(auc)
    return expit(shift * z - shift**2 / 2 - np.log(BENIGN_PER_MELANOMA))


@cache
def true_values(auc: float) -> dict[str, float]:
    """Every metric of infinitely many images, at the threshold where sensitivity and specificity are equal."""
    shift, prevalence = shift_of(auc), 1 / (1 + BENIGN_PER_MELANOMA)
    z = np.linspace(-9, 12, 400_001)
    width = z[1] - z[0]
    melanoma, benign = norm.pdf(z - shift), norm.pdf(z)
    p, rate = probability(z, auc), float(ndtr(shift / 2))
    above = prevalence * ndtr(shift - z), (1 - prevalence) * ndtr(-z)
    return {
        "roc_auc": auc,
        "sensitivity": rate,
        "specificity": rate,
        "balanced_accuracy": rate,
        "ppv": prevalence * rate / (prevalence * rate + (1 - prevalence) * (1 - rate)),
        "npv": (1 - prevalence) * rate / ((1 - prevalence) * rate + prevalence * (1 - rate)),
        "auprc": width * float((melanoma * above[0] / (above[0] + above[1])).sum()),
        "brier": width * float((prevalence * melanoma * (1 - p) ** 2 + (1 - prevalence) * benign * p**2).sum()),
        "calibration_intercept": 0.0,
        "calibration_slope": 1.0,
    }


def draw_lesions(
    rng: np.random.Generator, melanomas: int, sizes: Callable = photographed, benign: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion (n,) and label (n,) of each image; in a cohort, where `benign` is None, `melanomas` are expected."""
    count = melanomas + (benign if benign is not None else BENIGN_PER_MELANOMA * melanomas)
    malignant = np.arange(count) < melanomas
    if benign is None:
        malignant = rng.random(count) < melanomas / count
    lesion = np.repeat(np.arange(count), sizes(rng, count))
    return lesion, malignant[lesion].astype(int)


def scored(lesion: np.ndarray, label: np.ndarray, noise: np.ndarray, auc: float, scale: float | None = None) -> Sample:
    """A model of this AUC on given lesions, labels and noise, whose scores mean what they say for the AUC `scale`."""
    scale = scale or auc
    scores = probability(noise + label * shift_of(auc), scale)
    return make_sample(label, scores, lesion, thresholds=float(probability(shift_of(scale) / 2, scale)))


def draw_group(
    rng: np.random.Generator, melanomas: int, auc: float, icc: float, scale: float | None = None, **lesions
) -> Sample:
    lesion, label = draw_lesions(rng, melanomas, **lesions)
    return scored(lesion, label, draw_noise(rng, lesion, icc), auc, scale)


def apart(samples: list[Sample]) -> list[Sample]:
    """Samples with lesions of their own."""
    starts = np.cumsum([0, *(sample.lesions.max() + 1 for sample in samples)])
    return [replace(one, lesions=one.lesions + start) for one, start in zip(samples, starts[:-1], strict=True)]


def estimated(rng: np.random.Generator, parts: list[Sample], case_control: bool = False) -> list[dict[str, Estimate]]:
    """The estimates of each part, by metric; parts that share lesions are of one sample."""
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "lesions")}
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    strata = bootstrap_strata(replace(parts[0], **rows), groups, case_control)
    return list(estimate_parts(dict(enumerate(parts)), strata, REPLICATES, rng).values())


def covers(estimate: Estimate | None, truth: float) -> bool | None:
    if estimate is None:
        return None
    low, high = estimate.interval()
    return bool(low <= truth <= high)


def _coverage(estimates: dict[str, Estimate], truth: dict[str, float], kind: str = "coverage") -> Outcome:
    return {(kind, METRICS[name].title): covers(estimates.get(name), truth[name]) for name in truth}


def cohort(rng: np.random.Generator, auc: float, icc: float, melanomas: int) -> Outcome:
    """A group of a cohort: `melanomas` are expected among its lesions. Before, the bootstrap kept their number."""
    sample, truth = draw_group(rng, melanomas, auc, icc), true_values(auc)
    drawn = {name: value for name, value in truth.items() if name not in RANKED}
    fixed = estimated(rng, [sample], case_control=True)[0]
    return _coverage(estimated(rng, [sample])[0], truth) | _coverage(fixed, drawn, "coverage before")


def case_control(rng: np.random.Generator, auc: float, icc: float, melanomas: int) -> Outcome:
    """So many melanomas, and five times as many benign lesions, by design."""
    sample = draw_group(rng, melanomas, auc, icc, benign=BENIGN_PER_MELANOMA * melanomas)
    return _coverage(estimated(rng, [sample], case_control=True)[0], true_values(auc))


def differences(rng: np.random.Generator, auc: float, icc: float, melanomas: int) -> Outcome:
    """From a group to one of the same size, and to a model on the same lesions that is worse by .05 AUC."""
    lesion, label = draw_lesions(rng, melanomas)
    noise = draw_noise(rng, lesion, icc)
    mixed = np.sqrt(0.7) * noise + np.sqrt(0.3) * draw_noise(rng, lesion, icc)  # they correlate by .84
    first, other = apart([scored(lesion, label, noise, auc), draw_group(rng, melanomas, auc, icc)])
    found = estimated(rng, [first, other, scored(lesion, label, mixed, auc - 0.05)])
    outcome: Outcome = {}
    truth, other_truth = true_values(auc), true_values(auc - 0.05)
    for name in truth:
        for kind, place, gap in (("groups", 1, 0.0), ("models", 2, truth[name] - other_truth[name])):
            known = name in found[0] and name in found[place]
            difference = subtract(found[0][name], found[place][name]) if known else None
            outcome["coverage", f"{METRICS[name].title}, {kind}"] = covers(difference, gap)
    return outcome


def logit_limits(area: Area, alpha: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's limits of an area inside (0, 1), symmetric on the logit scale."""
    spread = np.sqrt(area.variance) / (area.value * (1 - area.value))
    half = stdtrit(area.degrees, 1 - np.asarray(alpha) / 2) * spread
    return expit(logit(area.value) - half), expit(logit(area.value) + half)


def near_one(rng: np.random.Generator, auc: float, melanomas: int, images: str) -> Outcome:
    """Melanomas at 1:49, of single images or of 1 to 4 whose scores have ICC .6.

    Before, limits were symmetric on the logit scale; those of an area of exactly 1 are left out.
    """
    sizes, icc = (lambda _, count: np.ones(count, int), 0.0) if images == "1" else (photographed, 0.6)
    sample = draw_group(rng, melanomas, auc, icc, sizes=sizes, benign=49 * melanomas)
    estimate = METRICS["roc_auc"].closed_form(sample)
    low, high = logit_limits(estimate, 0.05) if estimate.value < 1 else (np.nan, np.nan)
    before = None if np.isnan(low) else bool(low <= auc <= high)
    return {("coverage", "ROC AUC"): covers(estimate, auc), ("coverage before", "ROC AUC"): before}


def unequal(rng: np.random.Generator, auc: float, icc: float, patients: int) -> Outcome:
    """Patients with 1 to 60 images, so many of them with melanomas and five times as many without."""
    sample = draw_group(rng, patients, auc, icc, sizes=of_patients, benign=BENIGN_PER_MELANOMA * patients)
    truth = {name: true_values(auc)[name] for name in RANKED}
    return _coverage(estimated(rng, [sample], case_control=True)[0], truth)


def few_missed(rng: np.random.Generator, sensitivity: float, icc: float, lesions: int) -> Outcome:
    """Lesions of five images, few of which are missed."""
    lesion = np.repeat(np.arange(lesions), 5)
    found = draw_noise(rng, lesion, icc) < ndtri(sensitivity)
    sample = make_sample(np.ones(len(lesion), int), np.where(found, 0.9, 0.1), lesion, thresholds=0.5)
    low, high = METRICS["sensitivity"].closed_form(sample).interval()
    return {
        ("coverage", "sensitivity"): bool(low <= sensitivity <= high),
        ("coverage", "its lower limit (97.5 nominal)"): bool(low <= sensitivity),
    }


def _images(count: int) -> Callable:
    return lambda _, lesions: np.full(lesions, count)


# By design: melanoma lesions, images of each lesion (or 1 to 4), ICC and AUC of each group.
UNEVEN = {
    "5 images a lesion against 1, ICC 0": [(60, _images(5), 0.0, 0.85), (60, _images(1), 0.0, 0.85)],
    "large group of 1 image a lesion, small of 5 alike": [(80, _images(1), 0.0, 0.85), (20, _images(5), 0.9, 0.85)],
    "60/40/15 melanomas, ICC 0, AUC .75": [(n, photographed, 0.0, 0.75) for n in (60, 40, 15)],
    "60/40/15 melanomas, ICC .3, AUC .92": [(n, photographed, 0.3, 0.92) for n in (60, 40, 15)],
    "20/20/10 melanomas, ICC .6, AUC .75": [(n, photographed, 0.6, 0.75) for n in (20, 20, 10)],
    "200/100/30 melanomas, ICC .6, AUC .92": [(n, photographed, 0.6, 0.92) for n in (200, 100, 30)],
    "60/60/60 melanomas, ICC .3, AUC .85/.85/.75": [(60, photographed, 0.3, auc) for auc in (0.85, 0.85, 0.75)],
    "100/50/20 melanomas, ICC .3, AUC .9/.9/.8": [(100, photographed, 0.3, 0.9), (50, photographed, 0.3, 0.9)]
    + [(20, photographed, 0.3, 0.8)],
}
TWO_CAMERAS = "200 lesions by two cameras, ICC .5"


def equal_performance(rng: np.random.Generator, design: str) -> Outcome:
    """The test of equal performance; the last two designs have a gap."""
    if design == TWO_CAMERAS:
        lesion = np.repeat(np.arange(200), 2)
        label, noise = (lesion < 60).astype(int), draw_noise(rng, lesion, 0.5)
        parts = [scored(lesion[k::2], label[k::2], noise[k::2], 0.85) for k in (0, 1)]
        gap = False
    else:
        groups = UNEVEN[design]
        aucs = [auc for *_, auc in groups]
        parts = apart([draw_group(rng, n, auc, icc, max(aucs), sizes=sizes) for n, sizes, icc, auc in groups])
        gap = len(set(aucs)) > 1
    outcome: Outcome = {}
    for name in RANKED:
        p = homogeneity([METRICS[name].closed_form(part) for part in parts])
        outcome["power" if gap else "size", METRICS[name].title] = None if math.isnan(p) else bool(p < 0.05)
    return outcome


def _adjusted(parts: list[Sample]) -> dict[tuple[str, int], float]:
    """Holm's p-values of the report's family: AUC and sensitivity of groups 1 and 2 against group 0."""
    found = {}
    for metric in FAMILY:
        reference, *others = (METRICS[metric].closed_form(part) for part in parts)
        found |= {(metric, group): subtract(other, reference).p_value() for group, other in enumerate(others, 1)}
    return dict(zip(found, holm(np.array(list(found.values()))), strict=True))


def false_alarms(rng: np.random.Generator, counts: str, auc: float, icc: float) -> Outcome:
    """Three groups without a gap: any adjusted p-value of the report's family."""
    parts = apart([draw_group(rng, int(count), auc, icc) for count in counts.split("/")])
    return {("size", "any Holm p < .05"): min(_adjusted(parts).values()) < 0.05}


def power(rng: np.random.Generator, gap: float, melanomas: int) -> Outcome:
    """Whether a planted gap of types V-VI is found, beside 200 and 100 melanoma lesions, AUC .9 there, ICC .3."""
    groups = (200, 0.9), (100, 0.9), (melanomas, 0.9 - gap)
    p = _adjusted(apart([draw_group(rng, count, auc, 0.3, 0.9) for count, auc in groups]))
    return {("power", METRICS[metric].title): bool(p[metric, 2] < 0.05) for metric in FAMILY}


def _two_models(rng: np.random.Generator, melanomas: int, aucs: tuple[float, float], rho: float) -> list[Sample]:
    lesion, label = draw_lesions(rng, melanomas)
    noise = draw_noise(rng, lesion, 0.3)
    mixed = rho * noise + np.sqrt(1 - rho**2) * draw_noise(rng, lesion, 0.3)
    return [scored(lesion, label, one, auc) for one, auc in zip((noise, mixed), aucs, strict=True)]


def paired(rng: np.random.Generator, gap: float, rho: float, melanomas: int) -> Outcome:
    """Two models on the same lesions, the second worse by `gap` from AUC .85, their noise correlated by `rho`.

    Before, logit limits of both were squared and added, with the correlation that the common lesions give.
    """
    first, second = (METRICS["roc_auc"].closed_form(s) for s in _two_models(rng, melanomas, (0.85, 0.85 - gap), rho))
    difference, kind = subtract(first, second), "power" if gap else "size"

    def squared(alpha):
        return square_and_add(*((e.value, logit_limits(e, alpha)) for e in (first, second)), difference.shared)

    return {
        ("coverage", "difference of ROC AUC"): covers(difference, gap),
        (kind, "difference of ROC AUC"): difference.p_value() < 0.05,
        (f"{kind} before", "difference of ROC AUC"): p_value(squared) < 0.05,
    }


# By design: AUC of both models in the reference and in the two other groups.
LEVELLED = {
    "no gap, no change": [(0.85, 0.85)] * 3,
    "a gap, no change": [(0.9, 0.9), (0.9, 0.9), (0.8, 0.8)],
    "a gap, all lose as much": [(0.9, 0.86), (0.9, 0.86), (0.8, 0.75)],
    "levelled down": [(0.93, 0.78), (0.93, 0.93), (0.78, 0.78)],
}


def levelling_down(rng: np.random.Generator, design: str) -> Outcome:
    """Whether a comparison of 100, 60 and 40 melanoma lesions has a flag, and one in bold; noise correlated by .9."""
    tables = []
    groups = [_two_models(rng, n, aucs, 0.9) for n, aucs in zip((100, 60, 40), LEVELLED[design], strict=True)]
    for model in (0, 1):
        parts = apart([pair[model] for pair in groups])
        sites = [_table(part).assign(site=site) for part, site in zip(parts, "abc", strict=True)]
        tables.append(pd.concat(sites, ignore_index=True).assign(image_id=lambda table: table.index))
    result = compare({"first": tables[0], "second": tables[1]}, ["site"], {"site": "a"}, n_resamples=10)
    kind = "power" if design == "levelled down" else "size"
    flags = result.levelling_down
    return {(kind, "any flag"): bool(flags), (kind, "any in bold"): any(row.loss_is_clear for row in flags)}


def _table(sample: Sample) -> pd.DataFrame:
    columns = {"lesion_id": "lesions", "label": "labels", "score": "scores", "threshold": "thresholds"}
    table = pd.DataFrame({name: getattr(sample, attribute) for name, attribute in columns.items()})
    return table.assign(label=table["label"].astype(int), image_id=table.index, fold=0)


def _holds_zero(rows: list, kind: str = "size") -> Outcome:
    return {
        (kind, COMPARED[row.metric].title): None if math.isnan(row.low) else not row.low <= 0 <= row.high
        for row in rows
        if row.metric in TESTED
    }


TESTED = [*FAMILY, "specificity", *AT_FIXED]


def thresholds(rng: np.random.Generator, rule: str, melanomas: int, validated: int) -> Outcome:
    """Two models with one ROC curve, AUC .85, whose thresholds a rule chose on so many melanoma lesions of validation.

    Their noise is correlated by .84. Before, sensitivities were compared as if thresholds had not been chosen.
    """
    test, validation = (_two_models(rng, count, (0.85, 0.85), 0.84) for count in (melanomas, validated))
    tables, chosen = {}, {}
    for name, tested, scored_before in zip("ab", test, validation, strict=True):
        chooser = ThresholdChooser(scored_before.scores, scored_before.labels, rule)
        threshold = chooser.choose(np.ones((len(scored_before), 1)))[0]
        tables[name] = _table(replace(tested, thresholds=np.full(len(tested), threshold)))
        apart_from_test = scored_before.lesions + tested.lesions.max() + 1
        chosen[name] = Validation(_table(replace(scored_before, lesions=apart_from_test)), rule)
    known = compare(tables, [], n_resamples=REPLICATES, validation=chosen).differences
    unknown = compare(tables, [], n_resamples=0).differences
    before = _holds_zero([row for row in unknown if row.conditional], "size before")
    return _holds_zero(known) | before


def trainings(rng: np.random.Generator, deviation: float, seeds: int, melanomas: int) -> Outcome:
    """Two ways of training that are worth the same, AUC .85 on average, with several seeds each.

    The AUC of a training deviates from that mean, and the noise of any two is correlated by .9. Before, seeds were
    pooled as folds are, so that every image counted as often as there were seeds.
    """
    lesion, label = draw_lesions(rng, melanomas)
    noise = draw_noise(rng, lesion, 0.3)
    tables = {}
    for name in "ab":
        parts = []
        for seed in range(seeds):
            mixed = np.sqrt(0.9) * noise + np.sqrt(0.1) * draw_noise(rng, lesion, 0.3)
            parts.append(_table(scored(lesion, label, mixed, 0.85 + rng.normal() * deviation, 0.85)).assign(seed=seed))
        tables[name] = pd.concat(parts, ignore_index=True)
    rows = [row for row in compare(tables, [], n_resamples=REPLICATES).differences if row.metric in TESTED]
    pooled = [make_sample(t["label"], t["score"], t["lesion_id"], t["seed"], t["threshold"]) for t in tables.values()]
    outcome = _holds_zero(rows)
    for name in FAMILY:
        low, high = subtract(*map(METRICS[name].closed_form, pooled)).interval()
        outcome["size before", METRICS[name].title] = not low <= 0 <= high
    return outcome


def means(rng: np.random.Generator, shape: str, icc: float, lesions: int) -> Outcome:
    """The mean of a measure; before, percentiles of a bootstrap of 500 replicates."""
    lesion = np.repeat(np.arange(lesions), photographed(rng, lesions))
    noise = draw_noise(rng, lesion, icc)
    values, truth = (noise, 0.0) if shape == "normal" else (np.exp(0.5 * noise), math.exp(0.125))
    row = mean_by_group(pd.DataFrame({"lesion_id": lesion, "value": values}), ["value"], []).iloc[0]
    sums = np.stack([np.bincount(lesion, values), np.bincount(lesion)])
    blocks = [sums @ weights for weights in bootstrap_weights(np.zeros(lesions, dtype=int), 500, rng)]
    totals, images = np.concatenate(blocks, axis=1)
    low, high = np.quantile(totals / images, [0.025, 0.975])
    return {
        ("coverage", "mean"): bool(row["low"] <= truth <= row["high"]),
        ("coverage before", "mean"): bool(low <= truth <= high),
    }


def several_columns(rng: np.random.Generator, columns: int, melanomas: int) -> Outcome:
    """So many columns of two to four groups without any gap, AUC .85, ICC .3: whether any p-value is below .05."""
    sample = draw_group(rng, melanomas, 0.85, 0.3)
    lesions = sample.lesions.max() + 1
    groups = {f"column {k}": rng.integers(0, 2 + k % 3, lesions)[sample.lesions].astype(str) for k in range(columns)}
    report = evaluate(
        sample.labels, sample.scores, groups, sample.lesions, thresholds=sample.thresholds, n_resamples=0,
        family="holm",
    )  # fmt: skip
    every = [*report.contrasts, *report.worst_group]
    primary = holm(np.array([row.p for row in report.contrasts if row.group_column == "column 0"]))
    equal = np.array([row.p for row in report.worst_group])
    return {
        ("size", "primary contrasts, Holm"): bool((primary < 0.05).any()),
        ("size", "equal performance, not adjusted"): bool((equal < 0.05).any()),
        ("size", "all columns, Holm"): any(row.p_holm < 0.05 for row in every),
        ("size", "all columns, false discovery rate"): any(
            row.q < 0.05 for row in adjust(every, "benjamini-hochberg")
        ),
    }


GRID = [(auc, icc, count) for auc in (0.75, 0.92) for icc in (0.0, 0.3, 0.6) for count in (15, 20, 40, 100)]
FIXED = [(auc, icc, count) for auc in (0.75, 0.92) for icc in (0.0, 0.6) for count in (10, 20, 40)]
GRID_OF = ("AUC", "ICC", "melanoma lesions")
STUDIES = {
    "cohort": Study(cohort, GRID_OF, GRID),
    "case_control": Study(case_control, GRID_OF, FIXED),
    "differences": Study(differences, GRID_OF, GRID),
    "near_one": Study(
        near_one, ("AUC", "melanoma lesions", "images"),
        [(auc, n, images) for auc in (0.95, 0.98, 0.995) for n in (10, 20, 40) for images in ("1", "1 to 4")],
    ),
    "unequal": Study(
        unequal, ("AUC", "ICC", "melanoma patients"),
        [(auc, icc, n) for auc in (0.75, 0.92) for icc in (0.0, 0.3, 0.6) for n in (20, 40, 80)],
    ),
    "few_missed": Study(
        few_missed, ("sensitivity", "ICC", "lesions"),
        [(rate, icc, n) for rate in (0.9, 0.98) for icc in (0.0, 0.5, 0.9) for n in (10, 40)],
    ),
    "equal_performance": Study(equal_performance, ("design",), [(name,) for name in (TWO_CAMERAS, *UNEVEN)]),
    "false_alarms": Study(
        false_alarms, ("melanoma lesions", "AUC", "ICC"),
        [("60/40/15", 0.75, 0.0), ("60/40/15", 0.92, 0.3), ("20/20/10", 0.75, 0.6), ("20/20/10", 0.92, 0.3)]
        + [("200/100/30", 0.92, 0.6)],
    ),
    "power": Study(
        power, ("gap in AUC", "melanoma lesions of V-VI"),
        [(gap, n) for gap in (0.05, 0.1, 0.2) for n in (10, 20, 40, 80, 160)],
    ),
    "paired": Study(
        paired, ("gap in AUC", "correlation", "melanoma lesions"),
        [(gap, rho, n) for gap in (0.0, 0.03) for rho in (0.84, 0.95) for n in (20, 40, 100)],
    ),
    "levelling_down": Study(levelling_down, ("design",), [(name,) for name in LEVELLED]),
    "thresholds": Study(
        thresholds, ("rule", "melanoma lesions", "of validation"),
        [(rule, n, m) for rule in ("youden", "sensitivity=0.9", "specificity=0.9")
         for n, m in ((20, 20), (60, 60), (200, 60), (200, 200))],
    ),
    "trainings": Study(
        trainings, ("deviation of AUC", "seeds", "melanoma lesions"),
        [(deviation, 3, n) for deviation in (0.0, 0.01, 0.03) for n in (40, 200)] + [(0.01, 5, n) for n in (40, 200)],
    ),
    "means": Study(
        means, ("shape", "ICC", "lesions"),
        [(shape, icc, n) for shape in ("normal", "lognormal") for icc in (0.0, 0.6) for n in (10, 20, 40)],
    ),
    "several_columns": Study(
        several_columns, ("columns", "melanoma lesions"), [(1, 100), (5, 100), (5, 300)]
    ),
}  # fmt: skip
