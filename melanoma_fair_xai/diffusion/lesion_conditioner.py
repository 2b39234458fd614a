"""From what is known of a lesion to the vector that steers the UNet. Published beside its weights."""

import math
import numbers
import warnings
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

UNKNOWN = "unknown"
CATEGORIES = ("diagnosis", "sex", "localization", "fitzpatrick")
# Measures, each with its range and the width of the bands in which training images are counted.
MEASURES = {"age": (0.0, 120.0, 10.0), "ita": (-180.0, 180.0, 10.0)}
UNITS = {"age": "years", "ita": "degrees"}
RARE = 50  # training images, below which asking for a value warns


class LesionConditioner(ModelMixin, ConfigMixin):
    """The sum of one learned vector per condition, through a small network, as `class_labels` for a UNet2DModel.

    Args:
        embedding_dim: length of the vector, 4 x block_out_channels[0] of the UNet.
        vocabularies: the names that each category (diagnosis, sex, localization, fitzpatrick) can take, in order,
            without `unknown`.
        counts: training images per condition, by name, or by the lower end of the band of a measure (age in years,
            ita in degrees); a measure is a condition if it is in here.
        frequencies: Fourier features of a measure use so many frequencies (Tancik et al. 2020, arXiv:2006.10739).

    Each condition has a learned vector of its own for `unknown`, so that any subset can be given.
    """

    @register_to_config
    def __init__(
        self,
        embedding_dim: int,
        vocabularies: dict[str, list[str]],
        counts: dict[str, dict[str, int]],
        frequencies: int = 6,
    ):
        super().__init__()
        # In a fixed order: the config that a saved one is loaded from is sorted otherwise, and sums depend on it.
        names = tuple(name for name in (*CATEGORIES, *MEASURES) if name in counts)
        wrong = sorted((set(vocabularies) | set(counts)) - set(names))
        if wrong:
            raise ValueError(f"{wrong[0]} is no condition; the known ones are {', '.join((*CATEGORIES, *MEASURES))}")
        self.names = names
        self.embeddings = nn.ModuleDict(
            # The last row is that of `unknown`.
            {name: nn.Embedding(len(vocabularies[name]) + 1, embedding_dim) for name in names if name in CATEGORIES}
        )
        measures = [name for name in names if name in MEASURES]
        self.measures = nn.ModuleDict({name: nn.Linear(2 * frequencies, embedding_dim) for name in measures})
        self.unknown = nn.ParameterDict({name: nn.Parameter(torch.zeros(embedding_dim)) for name in measures})
        self.project = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )

    def forward(self, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 (N, embedding_dim) of `conditions` as `encode` gives them."""
        parts = [self.embeddings[name](conditions[name]) for name in self.embeddings]
        for name, layer in self.measures.items():
            values = conditions[name].to(layer.weight.dtype)[:, None]
            known = values.isfinite()
            features = layer(self._fourier(name, values.nan_to_num(0.0)))
            parts.append(torch.where(known, features, self.unknown[name]))
        return self.project(torch.stack(parts).sum(dim=0))

    def _fourier(self, name: str, values: torch.Tensor) -> torch.Tensor:
        low, high, _ = MEASURES[name]
        # Half a period over the whole range at first: the slowest feature tells all values apart.
        angles = (
            math.pi
            * (values - low)
            / (high - low)
            * 2.0 ** torch.arange(self.config.frequencies, device=values.device, dtype=values.dtype)
        )
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def encode(self, values: dict[str, Sequence], number: int) -> dict[str, torch.Tensor]:
        """Names or ids of categories and numbers of measures, `number` of each, as tensors on the model's device.

        int64 (N,) of ids, the id after the last standing for unknown; float32 (N,) of measures, NaN for unknown.
        None, NaN and "unknown" are unknown, and so is every condition that is left out. Raises ValueError for a value
        that training never saw, with those that it did; warns with the count for one that it hardly saw.
        """
        for name, given in values.items():
            if name not in self.names and any(not _is_unknown(value) for value in given):
                raise ValueError(f"{name}: this model has no such condition; it has {', '.join(self.names)}")
        return {
            name: torch.tensor(
                [self._encode_one(name, value) for value in values.get(name, [None] * number)],
                dtype=torch.float32 if name in MEASURES else torch.int64,
                device=self.device,
            )
            for name in self.names
        }

    def _encode_one(self, name: str, value) -> int | float:
        if _is_unknown(value):
            return math.nan if name in MEASURES else len(self.config.vocabularies[name])
        key, encoded = self._measure(name, value) if name in MEASURES else self._category(name, value)
        count = self.config.counts[name].get(key, 0)
        if count == 0:
            raise ValueError(f"{name} {value}: training never saw it; it saw {self.seen(name)}")
        if count < RARE:
            warnings.warn(f"{name} {value}: training saw {count} such images only", stacklevel=2)
        return encoded

    def _category(self, name: str, value) -> tuple[str, int]:
        words = self.config.vocabularies[name]
        if value in words:
            return value, words.index(value)
        # A bool is no id, although Python counts it as an int.
        if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= value < len(words):
            return words[value], int(value)
        raise ValueError(f"{name} {value!r}: unknown to this model; it knows {self.seen(name)}")

    def _measure(self, name: str, value) -> tuple[str, float]:
        low, high, _ = MEASURES[name]
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        if not low <= number <= high:
            raise ValueError(f"{name} {value!r}: not a number of {UNITS[name]} from {low:g} to {high:g}")
        return band(name, number), number

    def seen(self, name: str) -> str:
        """The values of a condition that training saw, with counts, as a text."""
        counts = self.config.counts.get(name, {})
        if name in MEASURES:
            width = MEASURES[name][2]
            named = {f"{key} to {float(key) + width:g}": counts[key] for key in sorted(counts, key=float)}
        else:
            named = {word: counts.get(word, 0) for word in self.config.vocabularies[name]}
        return ", ".join(f"{key} ({count:,})" for key, count in named.items() if count) or "none"


def band(name: str, value: float) -> str:
    """The band of a measure that a value lies in, as `counts` has it: its lower end."""
    low, high, width = MEASURES[name]
    return f"{min(math.floor(value / width) * width, high - width):g}"


def _is_unknown(value) -> bool:
    return value is None or value == UNKNOWN or (isinstance(value, float) and math.isnan(value))
