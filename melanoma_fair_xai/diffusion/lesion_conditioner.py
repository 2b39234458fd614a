"""From what is known of a lesion to the vector that steers the UNet. Published beside its weights."""

import dataclasses
import math
import numbers
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

UNKNOWN = "unknown"
SKIN_TYPES = ("I", "II", "III", "IV", "V", "VI")
RARE = 50  # training images, below which asking for a value warns
# The conditions of models whose config.json does not say them, as that of the first ones does not.
FIRST_CONDITIONS = (
    {"name": "diagnosis"},
    {"name": "sex"},
    {"name": "localization"},
    {"name": "fitzpatrick"},
    {"name": "age", "unit": "years", "low": 0.0, "high": 120.0, "width": 10.0},
    {"name": "ita", "unit": "degrees", "low": -180.0, "high": 180.0, "width": 10.0},
)


class LesionConditioner(ModelMixin, ConfigMixin):
    """The sum of one learned vector per condition, through a small network, as `class_labels` for a UNet2DModel.

    Args:
        embedding_dim: length of the vector, 4 x block_out_channels[0] of the UNet.
        vocabularies: the names that each category can take, in order, without `unknown`.
        counts: training images per condition, by name of a category or lower end of a band of a measure. What is not
            in here is no condition of this model.
        frequencies: Fourier features of a measure use so many frequencies (Tancik et al. 2020, arXiv:2006.10739).
        conditions: `name` of each, of measures also `unit`, `low`, `high`, and `width` of the bands.

    Each condition has a learned vector of its own for `unknown`, so that any subset can be given. `names` are those of
    this model, and `seen` says what training saw of each. Raises ValueError for names or counts of no condition.
    """

    @register_to_config
    def __init__(
        self,
        embedding_dim: int,
        vocabularies: dict[str, list[str]],
        counts: dict[str, dict[str, int]],
        frequencies: int = 6,
        conditions: Sequence[dict[str, Any]] = FIRST_CONDITIONS,
    ):
        super().__init__()
        self.encoders = make_encoders(conditions, vocabularies, counts)
        self.names = tuple(self.encoders)
        words = {name: encoder.words for name, encoder in self.encoders.items() if isinstance(encoder, Category)}
        measures = [name for name in self.names if name not in words]
        # The last row is that of `unknown`.
        self.embeddings = nn.ModuleDict({name: nn.Embedding(len(words[name]) + 1, embedding_dim) for name in words})
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
        measure = self.encoders[name]
        # Half a period over the whole range at first: the slowest feature tells all values apart.
        angles = (
            math.pi
            * (values - measure.low)
            / (measure.high - measure.low)
            * 2.0 ** torch.arange(self.config.frequencies, device=values.device, dtype=values.dtype)
        )
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def encode(self, values: Mapping[str, Sequence], number: int) -> dict[str, torch.Tensor]:
        """Names or ids of categories and numbers of measures, `number` of each, as tensors on the model's device.

        int64 (N,) of ids, the id after the last standing for unknown; float32 (N,) of measures, NaN for unknown.
        None, NaN and "unknown" are unknown, and so is every condition that is left out; a skin type's number is no id,
        1 to 6 are I to VI, and -1 is unknown. Raises ValueError for a value that training never saw, with those that
        it did; warns with the count for one that it hardly saw.
        """
        if "fitzpatrick" in values:
            values = {**values, "fitzpatrick": [skin_type(value) for value in values["fitzpatrick"]]}
        for name, given in values.items():
            if name not in self.names and not all(map(is_unknown, given)):
                raise ValueError(f"{name}: this model has no such condition; it has {', '.join(self.names)}")
            for value in given:
                if not is_unknown(value):
                    self.encoders[name].check(value)
        return {
            name: encoder.encode(values.get(name, [None] * number)).to(self.device)
            for name, encoder in self.encoders.items()
        }

    def seen(self, name: str) -> str:
        """The values of a condition that training saw, with counts, as a text."""
        return self.encoders[name].seen()


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The values of one condition as numbers, and how many training images had each."""

    name: str
    counts: Mapping[str, int]

    def encode(self, values: Iterable) -> torch.Tensor:
        """(N,) of N values; one that the condition cannot have is taken for unknown."""
        return torch.tensor([self.parse(value)[1] for value in values], dtype=self.dtype)

    def check(self, value: Any) -> None:
        """ValueError for a value that training never saw; a warning for one that it hardly saw."""
        key, _ = self.parse(value)
        if key is None:
            raise ValueError(f"{self.name} {value!r}: {self.refusal()}")
        count = self.counts.get(key, 0)
        if count == 0:
            raise ValueError(f"{self.name} {value}: training never saw it; it saw {self.seen()}")
        if count < RARE:
            warnings.warn(f"{self.name} {value}: training saw {count} such images only", stacklevel=2)

    def seen(self) -> str:
        """The values that training saw, with counts, as a text."""
        counts = {title: self.counts.get(key, 0) for key, title in self.titles().items()}
        return ", ".join(f"{title} ({count:,})" for title, count in counts.items() if count) or "none"


@dataclasses.dataclass(frozen=True)
class Category(_Encoder):
    """One of some `words`, or its id, which is its place among them; the id after the last stands for unknown."""

    words: Sequence[str]
    dtype = torch.int64

    def parse(self, value: Any) -> tuple[str | None, int]:
        """What `counts` calls a value, None for what is none, and its id."""
        # A bool is no id, although Python counts it as an int.
        if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= value < len(self.words):
            value = self.words[value]
        return (value, self.words.index(value)) if value in self.words else (None, len(self.words))

    def titles(self) -> dict[str, str]:
        return {word: word for word in self.words}

    def refusal(self) -> str:
        return f"unknown to this model; it knows {self.seen()}"


@dataclasses.dataclass(frozen=True)
class Measure(_Encoder):
    """A number of `unit` from `low` to `high`, counted in bands of `width`; NaN stands for unknown."""

    unit: str
    low: float
    high: float
    width: float
    dtype = torch.float32

    def parse(self, value: Any) -> tuple[str | None, float]:
        """What `counts` calls a value's band, which is its lower end, None for what is no value, and the number."""
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not self.low <= value <= self.high:
            return None, math.nan
        return f"{min(math.floor(value / self.width) * self.width, self.high - self.width):g}", float(value)

    def titles(self) -> dict[str, str]:
        return {key: f"{key} to {float(key) + self.width:g}" for key in sorted(self.counts, key=float)}

    def refusal(self) -> str:
        return f"not a number of {self.unit} from {self.low:g} to {self.high:g}"


def make_encoders(
    conditions: Iterable[Mapping[str, Any]], vocabularies: Mapping[str, Sequence[str]], counts: Mapping[str, Mapping]
) -> dict[str, Category | Measure]:
    """One for each condition that is counted; arguments as `LesionConditioner` has them, ValueError as there."""
    # In the order of `conditions`, not of `counts`: config.json is sorted otherwise, and sums depend on the order.
    rows = {row["name"]: row for row in conditions}
    if wrong := {*vocabularies, *counts} - {*rows}:
        raise ValueError(f"{min(wrong)} is no condition; the known ones are {', '.join(rows)}")
    return {
        name: Measure(**row, counts=counts[name])
        if "unit" in row
        else Category(**row, counts=counts[name], words=vocabularies[name])
        for name, row in rows.items()
        if name in counts
    }


def is_unknown(value: Any) -> bool:
    """Whether a value says that nothing is known, or that it does not matter."""
    return value is None or value == UNKNOWN or value != value  # NaN


def skin_type(value: Any) -> str:
    """I to VI, also of 1 to 6, of lower case and of "type IV"; "unknown" for -1 and nothing; else the value as text.

    Types are numbered from 1, so that a number is never an id.
    """
    text = re.sub(r"^((fitzpatrick|skin|photo|type|fst)(\s+|[_-])?)*", "", str(value).strip().lower())
    text = text.removesuffix(".0").upper()
    if text in ("", "-1", "NAN", "NONE", "UNKNOWN"):
        return UNKNOWN
    return SKIN_TYPES[int(text) - 1] if text in list("123456") else text if text in SKIN_TYPES else str(value)
