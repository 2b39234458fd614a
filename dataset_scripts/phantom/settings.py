"""What can be asked of phantoms."""

from dataclasses import dataclass

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.flags import flag

from ..settings import SplitSettings
from .drawing import ARTEFACTS

# The share of --tone_bias by which lesions on a skin type lose their colour.
TONE_BIAS_GRADES = {"I": 0.0, "II": 0.0, "III": 0.0, "IV": 0.0, "V": 0.8, "VI": 1.0}


def check_confounder(name: str) -> None:
    """Raise UserError for what is no artefact."""
    if name not in ARTEFACTS:
        raise UserError(f"--confounder {name}: unknown; the known ones are {', '.join(ARTEFACTS)}")


@dataclass
class PhantomSettings(SplitSettings):
    """What to draw.

    A lesion has 1 to `images_per_lesion` images, which differ in pose, light and artefacts. With `tone_bias` its whole
    colour difference from its skin is multiplied by 1 - tone_bias * grade, with the grades of TONE_BIAS_GRADES. Of its
    usual rate r and confounder_strength s, a `confounder` is on melanomas at the rate r + s (1 - r) and on others at
    r (1 - s). `label_noise` flips diagnoses; `true_melanoma` keeps the truth.
    """

    num_images: int = flag(1000, "Images to draw.", low=1)
    image_size: int = flag(128, "Pixels a side.", low=16, high=1024)
    images_per_lesion: int = flag(2, "A lesion has one to this many images.", low=1)
    melanoma_share: float = flag(0.3, "Probability of a melanoma.", low=0, high=1)
    skin_type_proportions: list[float] = flag(
        [0.16, 0.2, 0.2, 0.16, 0.14, 0.11, 0.03],
        "Weights of I to VI, and of unknown: skin of any of the others, unlabelled.",
        low=0,
    )
    tone_bias: float = flag(0.0, "How much of the lesion's contrast dark skin loses.", low=0, high=1)
    confounder: str | None = flag(None, f"Artefact tied to melanoma: {', '.join(ARTEFACTS)}.", check=check_confounder)
    confounder_strength: float = flag(0.9, "How closely it is tied.", low=0, high=1)
    label_noise: float = flag(0.0, "Share of lesions whose diagnosis is flipped.", low=0, high=1)

    def check(self) -> None:
        """Raise UserError for weights of which no skin type can be drawn."""
        weights = self.skin_type_proportions
        if len(weights) not in (6, 7) or not sum(weights[:6]) > 0:
            raise UserError(
                f"--skin_type_proportions {' '.join(f'{weight:g}' for weight in weights)}: give six weights for I to "
                "VI, not all zero, and if you like a seventh for unknown"
            )
