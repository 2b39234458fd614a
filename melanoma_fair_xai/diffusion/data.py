"""What a generator learns from: pixels with the conditions that are known of them, and each sample's own noise."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd
import torch

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import say
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.diffusion.lesion_conditioner import Category, Measure, make_encoders


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What can be asked of a generator: names by category, and training images per name or band of a measure."""

    vocabularies: dict[str, list[str]]
    counts: dict[str, dict[str, int]]

    def config(self) -> dict[str, Any]:
        """The arguments of a `LesionConditioner` that say what it is asked."""
        rows = [condition.config() for name, condition in CONDITIONS.items() if name in self.counts]
        return {"vocabularies": self.vocabularies, "counts": self.counts, "conditions": rows}

    @functools.cached_property
    def encoders(self) -> dict[str, Category | Measure]:
        return make_encoders(**self.config())

    @property
    def names(self) -> list[str]:
        return list(self.encoders)

    def encode(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """The columns of a table as the conditioner takes them: int64 ids (the last for unknown), float32 with NaN.

        Names that training never saw are unknown.
        """
        return {name: encoder.encode(condition_column(table, name)).numpy() for name, encoder in self.encoders.items()}

    def unknown(self) -> dict[str, Any]:
        """The encoded value of each condition that stands for unknown."""
        return {name: encoder.encode([None]).numpy()[0] for name, encoder in self.encoders.items()}


def find_conditions(table: pd.DataFrame, asked: list[str], where: str) -> Conditions:
    """The conditions that a training table gives, by default all that are known for at least one image.

    `asked` names those of them to use: UserError if one is not there, or unknown for every image.
    """
    for name in asked:
        if name not in table:
            raise UserError(f"--conditions {name}: {where} has no column {name}; leave it out")
    vocabularies, counts = {}, {}
    for name, condition in CONDITIONS.items():
        if name not in table or (asked and name not in asked):
            continue
        values = condition_column(table, name)
        values = values[values.notna()]
        if values.empty:
            if asked:
                raise UserError(f"--conditions {name}: {where} knows it of no training image; leave it out")
            continue
        if condition.is_measure:
            encoder = Measure(**condition.config(), counts={})
            counts[name] = values.map(lambda value, encoder=encoder: encoder.parse(value)[0]).value_counts().to_dict()
        else:
            if strange := sorted(set(values) - set(condition.names or values)):
                say(f"warning: {where}: {name} {', '.join(strange)} cannot be asked for and counts as unknown")
            vocabularies[name] = [word for word in condition.names or sorted(set(values)) if word != UNKNOWN]
            counts[name] = {word: int((values == word).sum()) for word in vocabularies[name]}
    if not counts:
        *others, last = CONDITIONS
        raise UserError(f"{where}: no {', '.join(others)} or {last} is known of any training image")
    return Conditions(vocabularies, counts)


def condition_column(table: pd.DataFrame, name: str) -> pd.Series:
    """What a table knows of a condition, read cell by cell: names, or float64 of a measure; missing where unknown."""
    condition = CONDITIONS[name]
    cells = [condition.parse(cell, f"column {name}, row {row}") for row, cell in enumerate(table[name])]
    return pd.Series(cells, index=table.index, dtype=float if condition.is_measure else object)


class DiffusionDataset(torch.utils.data.Dataset):
    """By (epoch, index): the row of an image, the one of the eight symmetries that it takes, timestep, the seed of its
    noise, and the conditions that are left. The device gathers pixels and draws noise: it is faster than any loader.

    All random numbers of a sample come from a generator of its own, (seed, epoch, index): they do not depend on
    batches, workers, processes or restarts.

    Args:
        rows: those to train on, (n,).
        encoded: conditions of the rows, as `Conditions.encode` gives them.
        unknown: encoded values that stand for unknown.
        condition_dropout: share of samples of which a random part of the conditions is hidden, each with a probability
            that is drawn for the sample, so that any number of conditions is given equally often: where two of them
            say nearly the same, as skin type and ITA do, either must be learned without the other, too.
        unconditional_share: share of samples of which all conditions are hidden.
    """

    def __init__(
        self,
        rows: np.ndarray,
        encoded: dict[str, np.ndarray],
        unknown: dict[str, Any],
        *,
        seed: int,
        num_train_timesteps: int = 1000,
        condition_dropout: float = 0.5,
        unconditional_share: float = 0.1,
    ):
        self.rows, self.encoded, self.unknown, self.seed = rows, encoded, unknown, seed
        self.num_train_timesteps = num_train_timesteps
        self.condition_dropout, self.unconditional_share = condition_dropout, unconditional_share

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = sample_generator(self.seed, epoch, index)
        timestep, symmetry = rng.integers(self.num_train_timesteps), rng.integers(8)
        all_hidden, some_hidden = rng.uniform(size=2) < (self.unconditional_share, self.condition_dropout)
        hidden = all_hidden | (some_hidden & (rng.uniform(size=len(self.encoded)) < rng.uniform()))
        conditions = {
            name: self.unknown[name] if hide else values[index]
            for (name, values), hide in zip(self.encoded.items(), hidden.tolist(), strict=True)
        }
        return {
            "rows": int(self.rows[index]),
            "symmetries": int(symmetry),
            "noise_seeds": int(rng.integers(2**63)),
            "timesteps": int(timestep),
            "conditions": {name: torch.tensor(value) for name, value in conditions.items()},
        }


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, H, W, 3), uint8, as float32 images (N, 3, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def turned(images: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, H), each in one of the eight symmetries of the square, 0 to 7 in `symmetries` (N,): lesions
    have no upright side, while colour and size carry meaning and stay."""
    for bit, turn in enumerate((lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT)):
        images = torch.where((symmetries >> bit & 1).bool()[:, None, None, None], turn(images), images)
    return images


def seeded_noise(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise (N, *shape) where the seeds (N,) are, of each image by its own: the same in any batch."""
    generator = torch.Generator(seeds.device)
    draws = [torch.randn(shape, generator=generator.manual_seed(seed), device=seeds.device) for seed in seeds.tolist()]
    return torch.stack(draws)


def centre_square(resolution: int) -> Preprocessing:
    """The shorter side to `resolution`, then the centre: squeezing into a square would change a lesion's shape, and
    quarter turns would do so both ways."""
    half = (0.5, 0.5, 0.5)
    return Preprocessing((3, resolution, resolution), "bicubic", half, half, crop_pct=1.0, crop_mode="center")
