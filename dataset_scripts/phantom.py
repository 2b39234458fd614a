"""Phantoms: drawn skin lesions with known truth, the embedded default data set. No patient stands behind any of them.

As a command, `python -m dataset_scripts.phantom --output_dir data/phantom` writes Parquet that
`load_dataset("data/phantom")` reads; `Phantom(num_images=200, image_size=64)` is the builder; under datasets 3.6 this
file is also a loading script. Every random number hangs on (seed, lesion, image) alone: the first images do not change
with `num_images`, and a setting such as `tone_bias` changes nothing but what it governs.
"""

import hashlib
import inspect
import io
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import PIL.Image

from melanoma_fair_xai.base.errors import UserError, run_command

from .builder import (
    LesionBuilder,
    LesionConfig,
    check_output_dir,
    command_parser,
    next_step,
    prepare_parquet,
    summarise,
)
from .common import MELANOMA_NAMES, SKIN_TYPES, UNKNOWN, record_features
from .phantom_drawing import ARTEFACTS, Lesion, View, draw_phantom
from .publishing import add_push_flags, check_dataset_push, push_dataset
from .skin_colour import lab_to_rgb
from .splits import manifest_hash

LICENSE = "apache-2.0"
CITATION = ""  # none to cite: they are drawn here
DIAGNOSES = ["nevus", "melanoma"]

# ITA in degrees by skin type, from the classes of Chardon, Cretois and Hourseau (1991) and Del Bino and Bernerd
# (2013): very light over 55, light 41 to 55, intermediate 28 to 41, tan 10 to 28, brown -30 to 10, dark below -30.
ITA_RANGES = {"I": (55, 68), "II": (41, 55), "III": (28, 41), "IV": (10, 28), "V": (-30, 10), "VI": (-52, -30)}
TONE_BIAS_GRADES = {"I": 0.0, "II": 0.0, "III": 0.0, "IV": 0.0, "V": 0.8, "VI": 1.0}

# How often each artefact is there, whatever the label and the tone, unless it is the confounder.
ARTEFACT_RATES = {"hair": 0.35, "bubbles": 0.12, "ink": 0.10, "ruler": 0.15, "dark_corner": 0.15}

# Each of asymmetry, border irregularity, variegation and diameter is a logistic function of a normal variable whose
# mean differs by this many standard deviations between melanoma and nevus: four such signs give an AUC near 0.94.
CLASS_DISTANCE = 1.12
DIAMETERS_MM = (4.0, 13.5)

SITES = ["back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot", UNKNOWN]
SITE_SHARES = [0.22, 0.21, 0.14, 0.11, 0.10, 0.08, 0.06, 0.04, 0.04]

TRUTH_FEATURES = {
    "true_melanoma": datasets.ClassLabel(names=MELANOMA_NAMES),
    "ita": datasets.Value("float32"),
    "contrast": datasets.Value("float32"),
    "asymmetry": datasets.Value("float32"),
    "border_irregularity": datasets.Value("float32"),
    "variegation": datasets.Value("float32"),
    "diameter": datasets.Value("float32"),
    "artefacts": datasets.Value("string"),
    "artefact_mask": datasets.Image(),
}
ARTEFACT_BITS = {name: 1 << bit for bit, name in enumerate(ARTEFACTS)}


class PhantomConfig(LesionConfig):
    """What to draw.

    num_images, image_size: how many images of how many pixels a side (16 to 1024).
    images_per_lesion: a lesion has 1 to this many images, differing in pose, light and artefacts.
    melanoma_share: the probability of a melanoma. skin_type_proportions: weights of I to VI, and a seventh of
        `unknown` (skin of any of the others, unlabelled).
    tone_bias: 0 to 1; a lesion's whole colour difference from its skin is multiplied by 1 - tone_bias * grade, with
        the grades of TONE_BIAS_GRADES.
    confounder: an artefact tied to melanoma; of its usual rate r and confounder_strength s (0 to 1), melanomas have it
        at the rate r + s (1 - r) and the others at r (1 - s).
    label_noise: the share of lesions whose diagnosis is flipped; `true_melanoma` keeps the truth.
    """

    def __init__(
        self,
        num_images: int = 1000,
        image_size: int = 128,
        images_per_lesion: int = 2,
        melanoma_share: float = 0.3,
        skin_type_proportions: Sequence[float] = (0.16, 0.2, 0.2, 0.16, 0.14, 0.11, 0.03),
        tone_bias: float = 0.0,
        confounder: str | None = None,
        confounder_strength: float = 0.9,
        label_noise: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_images = num_images
        self.image_size = image_size
        self.images_per_lesion = images_per_lesion
        self.melanoma_share = melanoma_share
        self.skin_type_proportions = skin_type_proportions
        self.tone_bias = tone_bias
        self.confounder = confounder
        self.confounder_strength = confounder_strength
        self.label_noise = label_noise

    def check(self) -> None:
        """Raise UserError for a value that cannot be drawn."""
        for name in ("num_images", "images_per_lesion"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; give 1 or more")
        if not 16 <= self.image_size <= 1024:
            raise UserError(f"--image_size is {self.image_size}; give 16 to 1024 pixels")
        for name in ("melanoma_share", "tone_bias", "confounder_strength", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; give a share from 0 to 1")
        weights = np.asarray(self.skin_type_proportions, dtype=float)
        usable = np.isfinite(weights).all() and (weights >= 0).all() and weights[:6].sum() > 0
        if len(weights) not in (6, 7) or not usable:
            raise UserError(
                f"--skin_type_proportions is {' '.join(f'{weight:g}' for weight in weights)}; give six weights for I "
                "to VI, not negative and not all zero, and if you like a seventh for unknown"
            )
        if self.confounder not in (None, *ARTEFACTS):
            raise UserError(f"--confounder {self.confounder}: unknown; the known ones are {', '.join(ARTEFACTS)}")


class Phantom(LesionBuilder):
    """Drawn lesions in the common record schema, followed by the planted truth (TRUTH_FEATURES).

    `artefact_mask` holds, pixel by pixel, the sum of ARTEFACT_BITS of the artefacts that altered it.
    """

    BUILDER_CONFIG_CLASS = PhantomConfig
    pretty_name = "Phantoms: drawn lesions, no patient"
    about = (
        "Drawings made by a program: no patient, no camera and no diagnosis stands behind them. Skin type, sex, age "
        "and body site were drawn at random, and the truth is known because it was planted."
    )
    tags = (*LesionBuilder.tags, "phantom", "synthetic")

    def __init__(self, *args, hash: str | None = None, **kwargs):
        super().__init__(*args, hash=hash or _source_hash(), **kwargs)
        self.config.check()

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Phantoms: drawn skin lesions with known truth, no patient.",
            features=record_features(DIAGNOSES, extra=TRUTH_FEATURES),
            license=LICENSE,
        )

    def scan(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        records = sample_records(self.config)
        return records, pd.DataFrame(columns=["image_id", "file", "reason"])

    def _generate_examples(self, records: list[dict]):
        for row in records:
            lesion, truth = sample_lesion(self.config, row["lesion_number"])
            view = sample_view(self.config, truth, row["view_number"])
            image, mask, artefacts = draw_phantom(lesion, view, self.config.image_size)
            artefact_mask = np.zeros_like(mask, dtype=np.uint8)
            for name, altered in artefacts.items():
                artefact_mask[altered] |= ARTEFACT_BITS[name]
            drawn = {"image": image, "mask": mask.astype(np.uint8) * 255, "artefact_mask": artefact_mask}
            encoded = {name: {"path": f"{row['image_id']}.png", "bytes": _png(drawn[name])} for name in drawn}
            yield row["image_id"], {name: encoded.get(name, row.get(name)) for name in self.info.features}


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # noise does not compress, and more takes longer
    return file.getvalue()


def _source_hash() -> str:
    """A hash of the code that draws: after a change of it the cache must not serve the drawings of before."""
    digest = hashlib.sha256()
    for function in (draw_phantom, sample_lesion, lab_to_rgb):
        with open(inspect.getsourcefile(function), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


# --- sampling: what is drawn -----------------------------------------------------------------------------------------
# Every variable is drawn in a fixed order and whether or not a setting uses it.


def sample_lesion(config: PhantomConfig, number: int) -> tuple[Lesion, dict]:
    """Lesion `number` and its record: the schema's columns that all its images share, and the planted truth."""
    rng = np.random.default_rng([config.seed, number])
    class_draw, noise_draw, type_draw, hidden_draw, tone_draw, contrast_draw, views_draw = rng.uniform(size=7)
    melanoma = bool(class_draw < config.melanoma_share)
    skin_type, recorded_type = _skin_type(config.skin_type_proportions, type_draw, hidden_draw)
    low, high = ITA_RANGES[skin_type]
    ita = low + (high - low) * tone_draw
    visibility = 1 - config.tone_bias * TONE_BIAS_GRADES[skin_type]

    signs = rng.standard_normal(4) + (CLASS_DISTANCE / 2) * (1 if melanoma else -1)
    asymmetry, irregularity, variegation, size = 1 / (1 + np.exp(-1.4 * signs))
    lesion = Lesion(
        seed=(config.seed, number, 0),
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
    labelled = melanoma != bool(noise_draw < config.label_noise)
    record = {
        "lesion_number": number,
        "views": 1 + int(views_draw * config.images_per_lesion),
        "lesion_id": f"phantom_{config.seed}_{number:06d}",
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
    return 50 + yellow * np.tan(np.radians(ita)), rng.uniform(9, 14) - 1.5 * darkness, yellow


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


def sample_view(config: PhantomConfig, record: dict, view_number: int) -> View:
    """One image of the lesion with this record: its pose, light and artefacts."""
    seed = (config.seed, record["lesion_number"], 1 + view_number)
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
            name for name, draw in zip(ARTEFACTS, draws, strict=True) if draw < artefact_rate(config, name, melanoma)
        ),
    )


def artefact_rate(config: PhantomConfig, name: str, melanoma: bool) -> float:
    """The probability of an artefact on an image."""
    rate, strength = ARTEFACT_RATES[name], config.confounder_strength
    if name != config.confounder:
        return rate
    return rate + strength * (1 - rate) if melanoma else rate * (1 - strength)


def sample_records(config: PhantomConfig) -> pd.DataFrame:
    """One row per image: the schema's columns and the planted truth, names for labels, images still to be drawn."""
    records: list[dict] = []
    number = 0
    while len(records) < config.num_images:
        _, record = sample_lesion(config, number)
        for view_number in range(min(record.pop("views"), config.num_images - len(records))):
            record |= {
                "image_id": f"{record['lesion_id']}_{view_number}",
                "artefacts": " ".join(sample_view(config, record, view_number).artefacts),
                "view_number": view_number,
                "split": "",
            }
            records.append(dict(record))
        number += 1
    return pd.DataFrame(records).astype({"age": object})


# --- the command -----------------------------------------------------------------------------------------------------

CARD = """
# Phantoms: drawn lesions, no patient

{num_images:,} phantom images of {image_size} px. A phantom is a drawing: no patient, no camera and no diagnosis
stands behind it, and a score on phantoms says nothing about people. They serve to test software, because their truth
is known.

| planted truth | value |
|---|---|
| share of melanomas | {melanoma_share:g} |
| tone_bias (colour difference of the lesion on type V and VI multiplied by {factors}) | {tone_bias:g} |
| confounder (artefact tied to melanoma) | {confounder} |
| label_noise (share of flipped labels) | {label_noise:g} |
| seed | {seed} |

Beside the common schema the columns `true_melanoma`, `ita` (degrees), `contrast` (L*), `asymmetry`,
`border_irregularity`, `variegation` (0 to 1), `diameter` (mm) and `artefacts` hold the truth of each phantom.
`mask` is the lesion, also where an artefact covers it; `artefact_mask` is a sum of bits: {bits}.
"""


def card_text(config: PhantomConfig) -> str:
    """The body of the data set's card."""
    factors = (1 - config.tone_bias * TONE_BIAS_GRADES[name] for name in ("V", "VI"))
    settings = {name: getattr(config, name) for name in ("num_images", "image_size", "melanoma_share", "tone_bias")}
    return CARD.format(
        **settings,
        confounder=f"{config.confounder}, strength {config.confounder_strength:g}" if config.confounder else "none",
        factors=" and ".join(f"{factor:g}" for factor in factors),
        label_noise=config.label_noise,
        seed=config.seed,
        bits=", ".join(f"{bit} {name}" for name, bit in ARTEFACT_BITS.items()),
    )


def main() -> None:
    defaults = PhantomConfig()
    parser = command_parser("Draw phantoms (no patient) as Parquet with splits by lesion.", "data/phantom")

    def add(name: str, help: str, **kwargs) -> None:
        default = getattr(defaults, name)
        shown = " ".join(map(str, default)) if "nargs" in kwargs else "none" if default is None else default
        parser.add_argument(f"--{name}", default=default, help=f"{help} (default: {shown})", **kwargs)

    add("num_images", "images to draw", type=int)
    add("image_size", "pixels a side, 16 to 1024", type=int)
    add("images_per_lesion", "a lesion has one to this many images", type=int)
    add("melanoma_share", "probability of a melanoma", type=float)
    add("skin_type_proportions", "weights of I to VI, and of unknown", type=float, nargs="+")
    add("tone_bias", "0 to 1: how much of the lesion's contrast dark skin loses", type=float)
    add("confounder", f"artefact tied to melanoma: {', '.join(ARTEFACTS)}")
    add("confounder_strength", "0 to 1: how closely it is tied", type=float)
    add("label_noise", "share of lesions whose diagnosis is flipped", type=float)
    add_push_flags(parser)
    args = parser.parse_args()
    builder = Phantom(**{name: value for name, value in vars(args).items() if hasattr(defaults, name)})
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    check_dataset_push(args)
    prepare_parquet(builder, args.output_dir, card_text(builder.config), args.overwrite_output_dir, args.num_proc)
    print(f"phantoms (drawn, no patient): {summarise(sample_records(builder.config))}")
    print(f"split manifest {manifest_hash(builder.manifest)[:16]}")
    print(next_step(args.output_dir, "phantom"))
    push_dataset(args)


if __name__ == "__main__":
    run_command(main)
