"""The mean over trainings of a difference, with what seeds and what lesions add to its variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import stdtrit

from .estimates import Bootstrapped, Difference, Estimate, covariance


@dataclass(frozen=True)
class Pooled(Estimate):
    """The mean of the differences of several trainings; Student's limits around it."""

    error: float
    degrees: float

    def bounds(self, alpha: np.ndarray | float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        half = stdtrit(self.degrees, 1 - np.asarray(alpha, dtype=float) / 2) * self.error
        return self.value - half, self.value + half


def pool(differences: Sequence[Estimate], lesions: float) -> Estimate:
    """The mean of one difference as each training estimates it; of a single training the difference itself.

    Trainings are a sample of those that might have been: what their differences vary by and what common lesions add
    make up the variance, so that the interval is for another training and for other lesions. This is the analysis of
    several readers of the same cases by Obuchowski and Rockette, Communications in Statistics 24 (1995), with Hillis's
    degrees of freedom, Statistics in Medicine 26 (2007), eq. 12, in which the covariance counts as of `lesions`.
    """
    if len(differences) == 1:
        (one,) = differences
        if (
            isinstance(one, Difference)
            and isinstance(one.first, Bootstrapped)
            and isinstance(one.second, Bootstrapped)
        ):
            return Pooled(one.value, one.lesions, one.influence, float(np.sqrt(one.variance)), max(lesions - 1, 1))
        return one
    values = np.array([difference.value for difference in differences])
    seeds = values.var(ddof=1) / len(values)
    shared = max(float(np.mean([covariance(*pair) for pair in combinations(differences, 2)])), 0.0)
    variance = seeds + shared
    parts = seeds**2 / (len(values) - 1) + shared**2 / max(lesions - 1, 1)
    codes, place = np.unique(np.concatenate([d.lesions for d in differences]), return_inverse=True)
    influence = np.bincount(place, np.concatenate([d.influence for d in differences])) / len(values)
    degrees = variance**2 / parts if parts > 0 else np.inf
    return Pooled(float(values.mean()), codes, influence, float(np.sqrt(variance)), float(degrees))
