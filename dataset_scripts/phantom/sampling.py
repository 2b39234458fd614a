"""What is drawn: lesions, views of them and their records, by random numbers that hang on (seed, lesion, image) alone.

So the first images do not change with `num_images`, and a setting such as `tone_bias` changes nothing but what it
governs: every variable is drawn in a fixed order and whether or not a setting uses it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..schema import MELANOMA_NAMES, SKIN_TYPES, UNKNOWN
from ..skin_colour import lightness_at
from .drawing import ARTEFACTS, Lesion, View
from .settings import TONE_BIAS_GRADES, PhantomSettings

# ITA in degrees by skin type, from the classes of Chardon, Cretois and Hourseau (1991) and Del Bino and Bernerd
# (2013): very light over 55, light 41 to 55, intermediate 28 to 41, tan 10 to 28, brown -30 to 10, dark below -30.
ITA_RANGES = {"I": (55, 68), "II": (41, 55), "III": (28, 41), "IV": (10, 28), "V": (-30, 10), "VI": (-52, -30)}

# How often each artefact is there, whatever the label and the tone, unless it is the confounder.
ARTEFACT_RATES = {"hair": 0.35, "bubbles": 0.12, "ink": 0.10, "ruler": 0.15, "dark_corner": 0.15}

# Each of asymmetry, border irregularity, variegation and diameter is a logistic function of a normal variable whose
# mean differs by this many standard deviations between melanoma and nevus: four such signs give an AUC near 0.94.
CLASS_DISTANCE = 1.12
DIAMETERS_MM = (4.0, 13.5)

SITES = ["back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot", UNKNOWN]
SITE_SHARES = [0.22, 0.21, 0.14, 0.11, 0.10, 0.08, 0.06, 0.04, 0.04]


def sample_lesion(settings: PhantomSettings, number: int) -> tuple[Lesion, dict]:
    """Lesion `number` and its record: the schema's columns that all its images share, and the planted truth."""
    rng = np.random.default_rng([settings.seed, number])
    class_draw, noise_draw, type_draw, hidden_draw, tone_draw, contrast_draw, views_draw = rng.uniform(size=7)
    melanoma = bool(class_draw < settings.melanoma_share)
    skin_type, recorded_type = _skin_type(settings.skin_type_proportions, type_draw, hidden_draw)
    low, high = ITA_RANGES[skin_type]
    ita = low + (high - low) * tone_draw
    visibility = 1 - settings.tone_bias * TONE_BIAS_GRADES[skin_type]

    signs = rng.standard_normal(4) + (CLASS_DISTANCE / 2) * (1 if melanoma else -1)
    asymmetry, irregularity, variegation, size = 1 / (1 + np.exp(-1.4 * signs))
    lesion = Lesion(
        seed=(settings.seed, number, 0),
        skin_lab=_skin_colour(ita, rng),
        asymmetry=asymmetry,
        border_irregularity=irregularity,
        variegation=variegation,
        diameter=DIAMETERS_MM[0] + (DIAMETERS_MM[1] - DIAMETERS_MM[0]) * size,
        contrast=14 + 9 * contrast_draw,
        visibility=visibility,
        elongation=rng.uniform(0.02, 0.16),
        edge_width=rng.uniform(0.12, 0.4),
        network=rng.uniform(0.3, 1) * (rng.uniform() < 0.65),
        globules=int(rng.poisson(7) * (rng.uniform() < 0.4)),
    )
    labelled = melanoma != bool(noise_draw < settings.label_noise)
    record = {
        "lesion_number": number,
        "views": 1 + int(views_draw * settings.images_per_lesion),
        "lesion_id": f"phantom_{settings.seed}_{number:06d}",
        "diagnosis": "melanoma" if labelled else "nevus",
        "melanoma": MELANOMA_NAMES[labelled],
        **_sample_person(rng, melanoma),
        "fitzpatrick": recorded_type,
        "source": "phantom",
        "true_melanoma": MELANOMA_NAMES[melanoma],
        "ita": ita,
        "contrast": lesion.contrast * visibility,
        **{name: getattr(lesion, name) for name in ("asymmetry", "border_irregularity", "variegation", "diameter")},
    }
    return lesion, record


def _skin_type(weights: Sequence[float], draw: float, hidden_draw: float) -> tuple[str, str]:
    """(the type that is drawn, the type that the record states)."""
    weights = np.asarray(weights, dtype=float)
    cumulative = np.cumsum(weights[:6]) / weights[:6].sum()
    skin_type = SKIN_TYPES[int(np.searchsorted(cumulative, draw, side="right"))]
    hidden = hidden_draw < 1 - weights[:6].sum() / weights.sum()
    return skin_type, UNKNOWN if hidden else skin_type


def _skin_colour(ita: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A skin's (L*, a*, b*) with exactly this ITA. Dark skin has less yellow, as skin has, which keeps L* over 32."""
    darkness = np.clip((-5 - ita) / 30, 0, 1)
    yellow = 16 + rng.uniform(-1.8, 1.8) - 2.8 * darkness
    return lightness_at(ita, yellow), rng.uniform(9, 14) - 1.5 * darkness, yellow


def _sample_person(rng: np.random.Generator, melanoma: bool) -> dict:
    """Age in years in steps of five (None for a few), sex and localization."""
    age = 5 * round(np.clip(rng.normal(58 if melanoma else 48, 16), 5, 90) / 5)
    known = rng.uniform() < 0.97
    sex = rng.choice(["female", "male", UNKNOWN], p=[0.48, 0.49, 0.03])
    return {
        "age": float(age) if known else None,
        "sex": str(sex),
        "localization": str(rng.choice(SITES, p=SITE_SHARES)),
    }


def sample_view(settings: PhantomSettings, record: dict, view_number: int) -> View:
    """One image of the lesion with this record: its pose, light and artefacts."""
    seed = (settings.seed, record["lesion_number"], 1 + view_number)
    rng = np.random.default_rng(seed)
    melanoma = record["true_melanoma"] == "melanoma"
    draws = rng.uniform(size=len(ARTEFACTS))
    return View(
        seed=seed,
        rotation=rng.normal(0, 0.3),
        shift=tuple(rng.uniform(-0.14, 0.14, 2)),
        scale=rng.uniform(0.94, 1.06),
        lightness_shift=rng.normal(0, 0.3),
        light_gradient=tuple(rng.uniform(-0.035, 0.035, 2)),
        artefacts=tuple(
            name for name, draw in zip(ARTEFACTS, draws, strict=True) if draw < artefact_rate(settings, name, melanoma)
        ),
    )


def artefact_rate(settings: PhantomSettings, name: str, melanoma: bool) -> float:
    """The probability of an artefact on an image."""
    rate, strength = ARTEFACT_RATES[name], settings.confounder_strength
    if name != settings.confounder:
        return rate
    return rate + strength * (1 - rate) if melanoma else rate * (1 - strength)


def sample_records(settings: PhantomSettings) -> pd.DataFrame:
    """One row per image: the schema's columns and the planted truth, names for labels, images still to be drawn."""
    records: list[dict] = []
    number = 0
    while len(records) < settings.num_images:
        _, record = sample_lesion(settings, number)
        for view_number in range(min(record.pop("views"), settings.num_images - len(records))):
            record |= {
                "image_id": f"{record['lesion_id']}_{view_number}",
                "artefacts": " ".join(sample_view(settings, record, view_number).artefacts),
                "view_number": view_number,
                "split": "",
            }
            records.append(dict(record))
        number += 1
    return pd.DataFrame(records).astype({"age": object})
