"""What the fairness report's intervals and tests are worth, by simulation: coverage, false alarms, power.

    python -m benchmarks.fairness_coverage coverage
    python -m benchmarks.fairness_coverage differences
    python -m benchmarks.fairness_coverage false_alarms
    python -m benchmarks.fairness_coverage power

Lesions have 1 to 4 images (1.85 on average). The scores of a lesion's images share a part: a normal lesion effect with
the share ICC of the variance. Melanomas lie higher by what gives the AUC, and scores are the true probabilities, so
that every metric's true value is known. There are five benign lesions for every melanoma.
"""

import argparse
from dataclasses import replace

import numpy as np
from scipy.special import expit, ndtr, ndtri
from scipy.stats import norm
from tqdm.auto import tqdm

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.tables import markdown_table
from melanoma_fair_xai.fairness.bootstrap import estimate_parts
from melanoma_fair_xai.fairness.estimates import subtract
from melanoma_fair_xai.fairness.intervals import holm
from melanoma_fair_xai.fairness.metrics import METRICS
from melanoma_fair_xai.fairness.resampling import lesion_classes
from melanoma_fair_xai.fairness.sample import Sample, make_sample
from melanoma_fair_xai.fairness.worst_group import permutation_p_values

BENIGN_PER_MELANOMA = 5
SIZES, SIZE_SHARES = [1, 2, 3, 4], [0.5, 0.25, 0.15, 0.1]
INTERVALS = [name for name, metric in METRICS.items() if not metric.point_estimate]
FAMILY = [name for name, metric in METRICS.items() if metric.tested]
DIFFERENCES = ("roc_auc", "sensitivity", "specificity")


def draw_lesions(rng: np.random.Generator, melanomas: int) -> tuple[np.ndarray, np.ndarray]:
    """The lesion (n,) and label (n,) of each image."""
    count = melanomas * (1 + BENIGN_PER_MELANOMA)
    lesion = np.repeat(np.arange(count), rng.choice(SIZES, count, p=SIZE_SHARES))
    return lesion, (lesion < melanomas).astype(int)


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


class Hits:
    """How often intervals hold the true value, by name."""

    def __init__(self):
        self.covered: dict[str, int] = {}
        self.given: dict[str, int] = {}

    def add(self, name: str, interval: tuple[float, float] | None, truth: float) -> None:
        if interval is not None and np.isfinite(interval[0]):
            self.given[name] = self.given.get(name, 0) + 1
            self.covered[name] = self.covered.get(name, 0) + int(interval[0] <= truth <= interval[1])

    def cell(self, name: str, data_sets: int) -> str:
        """Per cent covered, with the share of data sets that gave an interval where it is under 99 %."""
        given = self.given.get(name, 0)
        if not given:
            return "–"
        note = f" ({100 * given / data_sets:.0f} %)" if given < 0.99 * data_sets else ""
        return f"{100 * self.covered[name] / given:.1f}{note}"


CELLS = [(auc, icc, count) for auc in (0.75, 0.92) for icc in (0.0, 0.3, 0.6) for count in (10, 20, 40, 60)]


def coverage(data_sets: int, n_resamples: int) -> str:
    """Per cent of data sets whose interval holds the true value, by AUC, ICC and number of melanoma lesions."""
    rows = []
    for cell in tqdm(CELLS, unit="cell"):
        rows.append([*map(str, cell), *coverage_of_cell(*cell, data_sets, n_resamples)])
        tqdm.write(" ".join(rows[-1]))
    return markdown_table(["AUC", "ICC", "melanoma lesions", *(METRICS[name].title for name in INTERVALS)], rows)


def coverage_of_cell(auc: float, icc: float, count: int, data_sets: int, n_resamples: int) -> list[str]:
    """One row of the table."""
    rng, hits, truth = np.random.default_rng([int(100 * auc), int(10 * icc), count]), Hits(), true_values(auc)
    for _ in range(data_sets):
        sample, _ = draw_groups(rng, (count,), (auc,), icc)
        estimates = estimate_parts({"all": sample}, lesion_classes(sample), n_resamples, rng)["all"]
        for name in INTERVALS:
            hits.add(name, estimates[name].interval() if name in estimates else None, truth[name])
    return [hits.cell(name, data_sets) for name in INTERVALS]


def differences(data_sets: int) -> str:
    """The same for differences: of two groups of equal size under one model, and of two models on the same lesions."""
    rows = []
    for cell in tqdm(CELLS, unit="cell"):
        rows.append([*map(str, cell), *differences_of_cell(*cell, data_sets)])
        tqdm.write(" ".join(rows[-1]))
    header = [f"{METRICS[name].title}, {kind}" for kind in ("groups", "models") for name in DIFFERENCES]
    return markdown_table(["AUC", "ICC", "melanoma lesions", *header], rows)


def differences_of_cell(auc: float, icc: float, count: int, data_sets: int) -> list[str]:
    """One row; the other model's AUC is lower by .05, and its noise correlates by .84 with the first's."""
    rng, hits = np.random.default_rng([int(100 * auc), int(10 * icc), count, 1]), Hits()
    truth, other_truth = true_values(auc), true_values(auc - 0.05)
    for _ in range(data_sets):
        lesion, label = draw_lesions(rng, count)
        noise = draw_noise(rng, lesion, icc)
        mixed = np.sqrt(0.7) * noise + np.sqrt(0.3) * draw_noise(rng, lesion, icc)
        first, model = draw_scores(lesion, label, noise, auc), draw_scores(lesion, label, mixed, auc - 0.05)
        second, _ = draw_groups(rng, (count,), (auc,), icc)
        apart = replace(second, lesions=second.lesions + len(first))
        for name in DIFFERENCES:
            estimate = METRICS[name].closed_form(first)
            gap, change = (subtract(estimate, METRICS[name].closed_form(other)).interval() for other in (apart, model))
            hits.add(f"groups {name}", gap, 0.0)
            hits.add(f"models {name}", change, truth[name] - other_truth[name])
    return [hits.cell(f"{kind} {name}", data_sets) for kind in ("groups", "models") for name in DIFFERENCES]


def draw_scores(lesion: np.ndarray, label: np.ndarray, noise: np.ndarray, auc: float) -> Sample:
    """A model of this AUC on given lesions, labels and noise."""
    scores = probability(noise + label * shift_of(auc), auc)
    return make_sample(label, scores, lesion, thresholds=float(probability(shift_of(auc) / 2, auc)))


def draw_groups(
    rng: np.random.Generator, counts: tuple[int, ...], aucs: tuple[float, ...], icc: float
) -> tuple[Sample, np.ndarray]:
    """Groups with so many melanoma lesions and these AUCs, at one threshold; the sample, and the groups (n,)."""
    parts, offset = [], 0
    for group, (count, auc) in enumerate(zip(counts, aucs, strict=True)):
        lesion, label = draw_lesions(rng, count)
        scores = probability(draw_noise(rng, lesion, icc) + label * shift_of(auc), max(aucs))
        parts.append((label, scores, lesion + offset, np.full(len(label), group)))
        offset += lesion.max() + 1
    labels, scores, lesions, groups = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    threshold = float(probability(shift_of(max(aucs)) / 2, max(aucs)))
    return make_sample(labels, scores, lesions, thresholds=threshold), groups


def adjusted(sample: Sample, groups: np.ndarray) -> dict[tuple[str, int], float]:
    """Holm's p-values of the report's family: AUC and sensitivity of groups 1 and 2 against group 0."""
    parts = [sample.select(groups == group) for group in range(3)]
    found = {}
    for metric in FAMILY:
        reference, *others = (METRICS[metric].closed_form(part) for part in parts)
        found |= {(metric, group): subtract(other, reference).p_value() for group, other in enumerate(others, 1)}
    return dict(zip(found, holm(np.array(list(found.values()))), strict=True))


def false_alarms(data_sets: int) -> str:
    """The share of data sets without a gap in which any adjusted p-value, or the permutation p-value, is below .05."""
    cells = [
        ((60, 40, 15), 0.75, 0.0),
        ((60, 40, 15), 0.92, 0.3),
        ((20, 20, 10), 0.75, 0.6),
        ((20, 20, 10), 0.92, 0.3),
        ((200, 100, 30), 0.92, 0.6),
    ]
    rows = []
    for counts, auc, icc in tqdm(cells, unit="cell"):
        rng = np.random.default_rng([*counts, int(100 * auc), int(10 * icc)])
        alarms = gaps = 0
        permuted = data_sets // 2
        for number in range(data_sets):
            sample, groups = draw_groups(rng, counts, (auc,) * 3, icc)
            alarms += min(adjusted(sample, groups).values()) < 0.05
            if number < permuted:
                gaps += permutation_p_values(sample, groups, {"roc_auc": [0, 1, 2]}, 99, rng)["roc_auc"] <= 0.05
        shares = _per_cent(alarms, data_sets), _per_cent(gaps, permuted)
        rows.append(["/".join(map(str, counts)), f"{auc}", f"{icc}", *shares])
        tqdm.write(" ".join(rows[-1]))
    header = ["melanoma lesions I-II/III-IV/V-VI", "AUC", "ICC", "any Holm p < .05"]
    return markdown_table([*header, f"permutation p of the AUC gap ≤ .05 ({data_sets // 2} data sets)"], rows)


def power(data_sets: int) -> str:
    """How often a planted gap is found, against the number of melanoma lesions of types V-VI."""
    rows = []
    for gap in (0.05, 0.1, 0.2):
        for count in tqdm((10, 20, 40, 80, 160), unit="size", desc=f"gap {gap}"):
            rng = np.random.default_rng([int(100 * gap), count])
            found = dict.fromkeys(FAMILY, 0)
            for _ in range(data_sets):
                p = adjusted(*draw_groups(rng, (200, 100, count), (0.9, 0.9, 0.9 - gap), 0.3))
                for metric in FAMILY:
                    found[metric] += p[metric, 2] < 0.05
            sensitivity = ndtr(shift_of(0.9) / 2) - ndtr(shift_of(0.9 - gap) - shift_of(0.9) / 2)
            shares = [_per_cent(value, data_sets) for value in found.values()]
            rows.append([f"{gap}", f"{sensitivity:.2f}", f"{count}", *shares])
            tqdm.write(" ".join(rows[-1]))
    header = ["gap in AUC", "gap in sensitivity", "melanoma lesions of V-VI", "AUC gap found", "sensitivity gap found"]
    return markdown_table(header, rows)


def _per_cent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage, false alarms and power of the fairness report.")
    parser.add_argument("what", choices=("coverage", "differences", "false_alarms", "power"))
    parser.add_argument("--data_sets", type=int, help="per cell; default 2000, for false_alarms 1000, for power 200")
    parser.add_argument("--n_resamples", type=int, default=100, help="bootstrap replicates in each data set")
    arguments = parser.parse_args()
    if arguments.what == "coverage":
        table = coverage(arguments.data_sets or 2000, arguments.n_resamples)
    elif arguments.what == "differences":
        table = differences(arguments.data_sets or 2000)
    elif arguments.what == "false_alarms":
        table = false_alarms(arguments.data_sets or 1000)
    else:
        table = power(arguments.data_sets or 200)
    print(table)


if __name__ == "__main__":
    run_command(main)
