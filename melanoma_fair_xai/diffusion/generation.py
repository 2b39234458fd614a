"""What generate.py is made of: conditions to ask for, a seed per image, and images that say how they were made."""

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import filelock
import numpy as np
import pandas as pd
import PIL.Image
import PIL.PngImagePlugin
import torch
from diffusers.utils import HF_MODULES_CACHE

from dataset_scripts.raw_files import read_table
from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import READ_ERRORS, UserError, read_problem
from melanoma_fair_xai.base.files import atomic_path, read_file, weights_problem
from melanoma_fair_xai.base.hub_client import local_folder
from melanoma_fair_xai.base.images import image_content_problem, open_image
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.diffusion.data import condition_column
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner, is_unknown
from melanoma_fair_xai.diffusion.pipeline_lesion import LesionPipeline

RECORD_KEY = "lesion"  # of the text in a PNG; in a JPEG it is the comment
METADATA_NAME = "metadata.csv"
SETTINGS_NAME = "generate_args.json"  # in a folder of generated images
# Of model_index.json, where the pipeline is one of ours.
PARTS = {
    "_class_name": ["pipeline_lesion", "LesionPipeline"],
    "unet": ["diffusers", "UNet2DModel"],
    "conditioner": ["lesion_conditioner", "LesionConditioner"],
}


def load_pipeline(
    name_or_path: str, revision: str | None = None, trust_remote_code: bool = False
) -> diffusers.DiffusionPipeline:
    """A generator from a folder or Hub id, made of this package's own classes. UserError if there is none.

    The Python files that came with it run only with `trust_remote_code`, which any other pipeline needs.
    """
    # Not by its id: diffusers does not load one from the cache where the Hub cannot be reached.
    files = ["*.json", "*.safetensors", *(["*.py"] if trust_remote_code else [])]
    folder = local_folder(name_or_path, files, revision)
    try:
        if problem := weights_problem(folder / LesionPipeline.config_name):
            raise UserError(problem)
        pipeline = (_foreign_pipeline if trust_remote_code else _own_pipeline)(folder)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise UserError(
            f"--model_name_or_path {name_or_path}: no generator that can be loaded ({read_problem(error)}); give the "
            "folder or Hub id of what train_diffusion.py exported"
        ) from None
    if not hasattr(pipeline, "conditioner"):
        raise UserError(f"--model_name_or_path {name_or_path}: a {type(pipeline).__name__}, not a LesionPipeline")
    return pipeline


def _own_pipeline(folder: Path) -> LesionPipeline:
    index = json.loads((folder / LesionPipeline.config_name).read_text(encoding="utf-8"))
    for part, expected in PARTS.items():
        if index.get(part) != expected:
            raise UserError(
                f"{folder}: its {part.strip('_')} is {index.get(part)}, not {expected}, so its own code is needed; "
                "--trust_remote_code runs that, if you trust it"
            )
    return LesionPipeline(
        # use_safetensors, or a pickle would do
        diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True),
        LesionConditioner.from_pretrained(folder, subfolder="conditioner", use_safetensors=True),
        diffusers.DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler"),
        index.get("band_scales"),
    )


def _foreign_pipeline(folder: Path) -> diffusers.DiffusionPipeline:
    Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
    # Each load copies the pipeline's code to the same place, where another process may be reading it.
    with filelock.FileLock(Path(HF_MODULES_CACHE, "lesion_pipeline.lock")):
        return diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, use_safetensors=True)


def read_settings(folder: Path) -> dict[str, Any]:
    """How generate.py made a folder, empty if it does not say. UserError for a file that is damaged."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); generate into another folder") from None


def mixed_conditions(values: Mapping[str, Sequence], number: int, seed: int) -> pd.DataFrame:
    """`number` rows, each condition drawn evenly and independently from its values."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {name: [given[i] for i in rng.integers(len(given), size=number)] for name, given in values.items()}
    )


def grid_conditions(values: Mapping[str, Sequence], number: int | None) -> pd.DataFrame:
    """Every combination of the values, the last condition changing fastest, over and over up to `number` rows."""
    combinations = list(itertools.product(*values.values()))
    rows = itertools.islice(itertools.cycle(combinations), number or len(combinations))
    return pd.DataFrame(rows, columns=list(values))


def drawn_conditions(
    table: pd.DataFrame, names: Sequence[str], balance: Sequence[str], number: int, seed: int
) -> pd.DataFrame:
    """`number` rows of the conditions `names` as they occur together in `table`, drawn with replacement.

    With `balance` every combination of these columns that occurs is drawn equally often, unknown ones left out.
    UserError for a column that is not there.
    """
    for name in balance:
        if name not in table:
            raise UserError(f"--balance {name}: no such column; choose from {', '.join(table.columns)}")
        table = table[table[name] != UNKNOWN]
    if table.empty:
        raise UserError(f"--balance {','.join(balance)}: no image has all of them known")
    weights = None
    if balance:
        keys = table[list(balance)].astype(str).agg("|".join, axis=1)
        weights = 1 / keys.map(keys.value_counts())
        weights = weights / weights.sum()
    rows = np.random.default_rng(seed).choice(len(table), size=number, p=weights)
    drawn = table.iloc[rows].reset_index(drop=True)
    return pd.DataFrame({name: condition_column(drawn, name) for name in names})


def read_conditions(path: str) -> pd.DataFrame:
    """A CSV with one row per image and a column per condition, empty for unknown; numbers for measures.

    A row without any value is an image of which nothing is asked.

    UserError that lists every unknown column and every cell that can be no value of its condition.
    """
    table = read_table(path, blank_rows=True)
    lines = table.pop("line")
    problems = [f"column {name}: choose from {', '.join(CONDITIONS)}" for name in table if name not in CONDITIONS]
    read: dict[str, list] = {name: [] for name in table}
    for name in filter(CONDITIONS.get, table):
        for line, cell in zip(lines, table[name], strict=True):
            try:
                read[name].append(CONDITIONS[name].parse(cell, f"line {line}"))
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was generated\n  " + "\n  ".join(problems))
    if table.empty:
        raise UserError(f"{path}: no rows; give one per image")
    return pd.DataFrame(read, index=lines, dtype=object)


def check_conditions(conditioner: LesionConditioner, table: pd.DataFrame, where: str) -> list[str]:
    """What the model warns of among the rows; UserError that lists every row that it refuses."""
    problems, notes = [], []
    for row, values in table.iterrows():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name, value in values.items():
                try:
                    conditioner.encode({name: [plain_value(value)]}, 1)
                except ValueError as error:
                    problems.append(f"{'line' if table.index.name else 'image'} {row}: {error}")
        notes += [str(note.message) for note in caught]
    if problems:
        raise UserError(f"{where}: {len(problems)} problem(s), nothing was generated\n  " + "\n  ".join(problems))
    return list(dict.fromkeys(notes))


def plain_value(value: Any) -> str | float | None:
    """A cell as the pipeline takes it: None for unknown."""
    if is_unknown(value):
        return None
    return value if isinstance(value, str) else float(value)


def image_seed(seed: int, index: int, attempt: int = 0) -> int:
    """The seed of an image, from 0 to 2**63 - 1; `attempt` counts images that were rejected before it."""
    return int(sample_generator(seed, attempt, index).integers(2**63))


def write_image(image: PIL.Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write an image whole or not at all, with a record of how it was made inside (JSON)."""
    text = json.dumps(record)
    with atomic_path(path) as partial:
        if path.suffix == ".png":
            information = PIL.PngImagePlugin.PngInfo()
            information.add_text(RECORD_KEY, text)
            image.save(partial, format="png", pnginfo=information)
        else:
            image.save(partial, format="jpeg", quality=95, comment=text)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in an image that `write_image` wrote; None if it is not there, torn, or none of ours."""
    try:
        content = read_file(path)
        if image_content_problem(content):
            return None
        with open_image(content) as image:
            image.load()
            text = image.info.get(RECORD_KEY) or image.info.get("comment")
        return dict(json.loads(text))
    except (*READ_ERRORS, ValueError, TypeError):
        return None


def generate_batch(
    pipeline: diffusers.DiffusionPipeline,
    conditions: pd.DataFrame,
    seeds: Sequence[int],
    batch_size: int,
    **options: Any,
) -> list[PIL.Image.Image]:
    """One image per row and seed. The batch is filled up to `batch_size`: the last bits depend on its size alone."""
    filler = batch_size - len(conditions)
    rows = pd.concat([conditions, conditions.iloc[[-1] * filler]]) if filler else conditions
    columns = {name: [plain_value(value) for value in rows[name]] for name in rows}
    generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *[0] * filler]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once for all images before the first one was made
        images = pipeline(**columns, batch_size=batch_size, generator=generators, **options).images
    return images[: len(conditions)]
