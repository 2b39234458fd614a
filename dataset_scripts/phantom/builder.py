"""The builder of phantoms: drawn lesions in the common record schema, followed by the planted truth."""

import dataclasses
import inspect
import io
from typing import Any

import datasets
import numpy as np
import pandas as pd
import PIL.Image

from melanoma_fair_xai.base.files import file_digest

from ..builder import LesionBuilder, LesionConfig
from ..schema import MELANOMA_NAMES, SKIPPED_COLUMNS
from ..skin_colour import lab_to_rgb
from ..sources import SOURCES
from .drawing import ARTEFACT_BITS, draw_phantom
from .sampling import sample_lesion, sample_records, sample_view
from .settings import TONE_BIAS_GRADES, PhantomSettings

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


@dataclasses.dataclass
class PhantomConfig(PhantomSettings, LesionConfig):
    """What to draw."""


class Phantom(LesionBuilder):
    """Drawn lesions in the common record schema, followed by the planted truth (TRUTH_FEATURES).

    `artefact_mask` holds, pixel by pixel, the sum of ARTEFACT_BITS of the artefacts that altered it.
    """

    BUILDER_CONFIG_CLASS = PhantomConfig
    source = SOURCES["phantom"]
    diagnoses = ("nevus", "melanoma")
    own_columns = TRUTH_FEATURES

    def __init__(self, *args, hash: str | None = None, **kwargs):
        super().__init__(*args, hash=hash or _source_hash(), **kwargs)
        self.config.check()

    def scan(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return sample_records(self.config), pd.DataFrame(columns=SKIPPED_COLUMNS)

    @staticmethod
    def make_example(config: PhantomConfig, row: dict[str, Any]) -> dict[str, Any]:
        lesion, truth = sample_lesion(config, row["lesion_number"])
        view = sample_view(config, truth, row["view_number"])
        image, mask, artefacts = draw_phantom(lesion, view, config.image_size)
        artefact_mask = np.zeros_like(mask, dtype=np.uint8)
        for name, altered in artefacts.items():
            artefact_mask[altered] |= ARTEFACT_BITS[name]
        drawn = {"image": image, "mask": mask.astype(np.uint8) * 255, "artefact_mask": artefact_mask}
        return row | {name: {"path": f"{row['image_id']}.png", "bytes": _png(drawn[name])} for name in drawn}

    def card_text(self) -> str:
        config = self.config
        factors = (1 - config.tone_bias * TONE_BIAS_GRADES[name] for name in ("V", "VI"))
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(PhantomSettings)}
        tied = f"{config.confounder}, strength {config.confounder_strength:g}" if config.confounder else "none"
        return CARD.format(
            **settings | {"confounder": tied},
            factors=" and ".join(f"{factor:g}" for factor in factors),
            bits=", ".join(f"{bit} {name}" for name, bit in ARTEFACT_BITS.items()),
        )


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # noise does not compress, and more takes longer
    return file.getvalue()


def _source_hash() -> str:
    """A hash of the code that draws: after a change of it the cache must not serve the drawings of before."""
    return file_digest(*map(inspect.getsourcefile, (draw_phantom, sample_lesion, lab_to_rgb)))[:16]
