"""Calibrated scores and the operating threshold, both fitted on validation predictions only."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.fairness.thresholds import ThresholdChooser


@dataclass(frozen=True)
class Calibration:
    """Calibrated logits: `slope * logits`, plus `intercept` for the positive class of two; 1 and 0 change nothing."""

    slope: float = 1.0
    intercept: float = 0.0


def fit_platt(logit_difference: np.ndarray, labels: np.ndarray) -> Calibration:
    """Platt scaling: the slope and intercept for which sigmoid(slope * difference + intercept) is most likely.

    The targets are Platt's (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, so the fit stays finite on classes
    that a threshold separates. A negative slope says that the model ranks validation images worse than chance.

    Args:
        logit_difference: (n,) logit of the positive class minus logit of the other.
        labels: (n,) 0 or 1.

    Raises:
        UserError: one class is absent, or a logit is not finite.

    Platt, "Probabilistic outputs for support vector machines" (1999), section 2.2; Lin, Lin and Weng, "A note on
    Platt's probabilistic outputs", Machine Learning 68 (2007), eq. 5.
    """
    difference, labels = _checked(logit_difference, labels)
    positives, negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = difference.mean(), difference.std()
    if spread == 0:  # an untrained net can give one score to all: the slope is then anyone's guess
        rate = targets.mean()
        return Calibration(1.0, float(np.log(rate / (1 - rate)) - centre))
    standardised = (difference - centre) / spread

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * standardised + parameters[1]
        residuals = expit(logits) - targets
        return (np.logaddexp(0, logits) - targets * logits).mean(), np.array(
            [(residuals * standardised).mean(), residuals.mean()]
        )

    slope, intercept = minimize(loss_and_gradient, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Calibration(float(slope / spread), float(intercept - slope * centre / spread))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Temperature scaling: the slope 1 / T for which softmax(logits / T) is most likely, with T from 0.05 to 20.

    The bounds keep T finite where every image is classified correctly (T would go to 0) or at random (to infinity).

    Args:
        logits: (n, classes).
        labels: (n,) class indices.

    Raises:
        UserError: a logit is not finite.

    Guo et al., "On calibration of modern neural networks" (ICML 2017), eq. 9.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    _check_finite(logits)

    def loss(log_slope: float) -> float:
        return -log_softmax(np.exp(log_slope) * logits, axis=1)[np.arange(len(labels)), labels].mean()

    limit = np.log(20)
    return Calibration(float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), options={"xatol": 1e-9}).x)))


def calibrate(logits: np.ndarray, calibration: Calibration, positive: int = 1) -> np.ndarray:
    """Calibrated (n, classes) logits in float64; `positive` is the class that the intercept is added to."""
    calibrated = calibration.slope * np.asarray(logits, np.float64)
    calibrated[:, positive] += calibration.intercept
    return calibrated


def choose_threshold(scores: np.ndarray, labels: np.ndarray, rule: str) -> float:
    """The threshold of a rule of `ThresholdChooser` on scores (n,) in [0, 1] and labels (n,), 0 or 1.

    Raises UserError for an unknown rule, a class that is absent, and a score that is not finite.
    """
    scores, labels = _checked(scores, labels)
    return float(ThresholdChooser(scores, labels, rule).choose(np.ones((len(scores), 1)))[0])


def _checked(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, labels = np.asarray(values, np.float64), np.asarray(labels).astype(bool)
    _check_finite(values)
    if labels.all() or not labels.any():
        only = "positive" if labels.any() else "negative"
        raise UserError(
            f"validation: all {len(labels)} images are {only}, so neither calibration nor a threshold can be chosen\n"
            "use more images, or another --fold"
        )
    return values, labels


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError(
            "validation: the model's outputs are not finite; lower --learning_rate, or use --mixed_precision no"
        )
