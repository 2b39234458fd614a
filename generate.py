"""Generate lesions with a trained or published generator: a folder of images with a table of what was asked for.

    python generate.py --model_name_or_path runs/diffusion --num_images 256 --diagnosis mel --sex female --age 55 \
        --localization back --seed 0 --output_dir synthetic/

The folder is an ImageFolder that `load_dataset` and `train_classifier.py --synthetic_dir` read. Run the same command
again to go on after an interruption.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.flags import default_of, flag
from melanoma_fair_xai.diffusion.arguments import SAMPLERS
from melanoma_fair_xai.diffusion.conditions import CONDITIONS
from melanoma_fair_xai.engine.arguments import parse_arguments

# All else is imported where it is used, so that --help and wrong flags answer at once.
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from accelerate import Accelerator

    from melanoma_fair_xai.data.loading import Records
    from melanoma_fair_xai.diffusion.copies import CopyFinder

ATTEMPTS = 10  # at an image, before a copy is let through and said to be one


# One flag per condition.
ConditionArguments = make_dataclass(
    "ConditionArguments",
    [
        (
            name,
            list[float] if condition.is_measure else list[str],
            flag([], f"{condition.help()}; one or several, mixed at random.", low=condition.low, high=condition.high),
        )
        for name, condition in CONDITIONS.items()
    ],
)


@dataclass
class GenerateArguments(ConditionArguments):
    model_name_or_path: str = flag("runs/diffusion", "Folder or Hub id of a generator.", free=True)
    revision: str | None = flag(None, "Revision of the model on the Hub.", free=True)
    trust_remote_code: bool = flag(False, "Run the Python files that came with the model.")
    output_dir: str = flag("synthetic", "Folder of the images and metadata.csv.", free=True)
    num_images: int | None = flag(None, "Default: one, one of each, or one per table row.", low=1)
    grid: bool = flag(False, "Every combination of the values instead of a random mix.")
    conditions: str | None = flag(None, "A CSV with one row per image instead of values.")
    like: str | None = flag(None, "Draw conditions as they occur together in this data set's training split.")
    balance: str | None = flag(None, "With --like: columns whose combinations are evened out (melanoma,fitzpatrick).")
    reject_copies: str | None = flag(None, "Make images anew that copy the training split of this data set.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    data_dir: str | None = flag(None, "Its raw files (ham10000, fitzpatrick17k).", free=True)
    scheduler: Literal[tuple(SAMPLERS)] = flag("dpm-solver++", "Sampler.")
    num_inference_steps: int = flag(25, "Its steps.", low=1)
    guidance_scale: float = flag(1.5, "1 samples what is asked for, more exaggerates it.", low=0)
    guidance_interval: list[float] = flag(
        [0.0, 1.0], "Share of the noise levels at which guidance is on.", low=0, high=1, count=2
    )
    batch_size: int = flag(16, "Images at a time and process.", low=1)
    precision: Literal["fp32", "bf16", "fp16"] = flag("fp32", "Of the networks.")
    image_format: Literal["png", "jpg"] = flag("png", "png is without loss.")
    seed: int = flag(0, "Fixes conditions and images.", low=0)


def main() -> None:
    (arguments,) = parse_arguments(GenerateArguments)
    check_arguments(arguments)
    from melanoma_fair_xai.base.files import plain
    from melanoma_fair_xai.diffusion.generation import check_conditions, load_pipeline
    from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors, on_main_process
    from melanoma_fair_xai.engine.weights import weights_hash

    with explained_errors("--batch_size", "run the same command again"):
        accelerator = create_accelerator()
        pipeline = load_pipeline(arguments.model_name_or_path, arguments.revision, arguments.trust_remote_code)
        records = load_data(accelerator, arguments, pipeline.conditioner.names)
        conditions = plan(arguments, pipeline, records)
        notes = check_conditions(pipeline.conditioner, conditions, arguments.conditions or "conditions")
        accelerator.print("\n".join(f"warning: {note}" for note in notes), end="\n" if notes else "")
        weights = weights_hash(pipeline.unet, pipeline.conditioner)
        settings = plain({**asdict(arguments), "weights": weights})
        folder = Path(arguments.output_dir)
        with contextlib.ExitStack() as stack:
            on_main_process(accelerator, lambda: stack.enter_context(open_folder(folder, settings)))
            finder = copy_finder(accelerator, records, pipeline) if arguments.reject_copies else None
            generate(accelerator, pipeline, conditions, folder, arguments, finder)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_metadata(folder, conditions, settings)


def check_arguments(arguments: GenerateArguments) -> None:
    """UserError for flags that contradict one another, or ask for nothing."""
    given = [name for name in CONDITIONS if getattr(arguments, name)]
    sources = [flag for flag in ("conditions", "like") if getattr(arguments, flag)] + (
        ["grid"] if arguments.grid else []
    )
    if len(sources) > 1 or (given and set(sources) & {"conditions", "like"}):
        first, second = (sources + given)[:2]
        raise UserError(f"--{first} and --{second} both say what to generate; give one of them")
    if arguments.grid and not given:
        raise UserError("--grid: give the values to combine, such as --diagnosis mel nv --sex female male")
    if arguments.balance and not arguments.like:
        raise UserError("--balance evens out what --like draws from; give --like DATASET, too")
    if arguments.like and arguments.reject_copies not in (None, arguments.like):
        raise UserError(f"--reject_copies {arguments.reject_copies}: give the data set of --like, {arguments.like}")
    interval = arguments.guidance_interval
    if interval[0] > interval[1]:
        raise UserError(f"--guidance_interval {interval[0]} {interval[1]}: give the lower share first, as in 0.2 0.8")


def load_data(accelerator: Accelerator, arguments: GenerateArguments, names: Sequence[str]) -> Records | None:
    """The data set that the conditions `names` are drawn from or copies are looked for in, if any."""
    from melanoma_fair_xai.data.loading import ColumnNames, is_synthetic, load_records
    from melanoma_fair_xai.engine.launch import once_per_machine

    name = arguments.like or arguments.reject_copies
    if name is None:
        return None
    columns = ColumnNames(groups=tuple(names) if arguments.like else ())
    records = once_per_machine(
        accelerator, lambda: load_records(name, arguments.dataset_config_name, arguments.data_dir, columns)
    )
    if is_synthetic(records.table).any():
        raise UserError(f"{name}: holds generated images; name the real data set")
    return records


def copy_finder(accelerator: Accelerator, records: Records, pipeline: Any) -> CopyFinder:
    from melanoma_fair_xai.data.cache import decode_once
    from melanoma_fair_xai.diffusion.copies import CopyFinder
    from melanoma_fair_xai.diffusion.data import centre_square
    from melanoma_fair_xai.diffusion.networks import image_size
    from melanoma_fair_xai.engine.launch import once_per_machine

    square = centre_square(image_size(pipeline.unet))
    cache = once_per_machine(accelerator, lambda: decode_once(records.images, square))
    return CopyFinder.of(cache.pixels, (records.table["split"] == "train").to_numpy())


def plan(arguments: GenerateArguments, pipeline: Any, records: Records | None) -> pd.DataFrame:
    """What to ask for, one row per image."""
    import pandas as pd

    from melanoma_fair_xai.diffusion.generation import (
        drawn_conditions,
        grid_conditions,
        mixed_conditions,
        read_conditions,
    )

    number = arguments.num_images
    if arguments.conditions:
        table = read_conditions(arguments.conditions)
        if number not in (None, len(table)):
            raise UserError(f"--num_images {number}: {arguments.conditions} has {len(table)} rows; leave the flag out")
        return table
    if arguments.like:
        if number is None:
            raise UserError("--like: say how many with --num_images")
        balance = arguments.balance.split(",") if arguments.balance else []
        training = records.table[records.table["split"] == "train"]
        return drawn_conditions(training, pipeline.conditioner.names, balance, number, arguments.seed)
    values = {
        name: [condition.parse(value, f"--{name}") for value in getattr(arguments, name)]
        for name, condition in CONDITIONS.items()
        if getattr(arguments, name)
    }
    if not values:  # nothing asked for: as training had it
        return pd.DataFrame(index=range(number or 1))
    return grid_conditions(values, number) if arguments.grid else mixed_conditions(values, number or 1, arguments.seed)


@contextlib.contextmanager
def open_folder(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or go on in one that the same command began, locked until the block or the process ends.

    UserError if it holds anything else, or is in use by another process.
    """
    from melanoma_fair_xai.base.files import PARTIAL_PREFIX, made_folder, write_json
    from melanoma_fair_xai.diffusion.generation import SETTINGS_NAME
    from melanoma_fair_xai.engine.run_folder import lock_folder

    check_folder(folder, settings)  # before a lock is written to what may be the user's own
    with made_folder(folder), lock_folder(folder):
        check_folder(folder, settings)
        for path in folder.glob(f"{PARTIAL_PREFIX}*"):
            path.unlink()
        write_json(folder / SETTINGS_NAME, settings)
        yield


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """UserError for a folder that another command has begun, or not generate.py."""
    from melanoma_fair_xai.base.files import PARTIAL_PREFIX
    from melanoma_fair_xai.diffusion.generation import SETTINGS_NAME, read_settings
    from melanoma_fair_xai.engine.run_folder import LOCK_NAME

    # The model may have been moved: its weights are compared by their hash.
    free = {field.name for field in fields(GenerateArguments) if field.metadata["free"]}
    defaults = {field.name: default_of(field) for field in fields(GenerateArguments)}
    if (folder / SETTINGS_NAME).is_file():
        earlier = defaults | read_settings(folder)  # an earlier version may not have had some of the flags
        for name, value in settings.items():
            if name not in free and earlier.get(name) != value:
                raise UserError(
                    f"--output_dir {folder}: made with {name} {earlier.get(name)}, not {value}; choose another folder"
                )
    elif folder.is_dir() and not all(
        path.name == LOCK_NAME or path.match(f"{PARTIAL_PREFIX}*{SETTINGS_NAME}") for path in folder.iterdir()
    ):
        raise UserError(f"--output_dir {folder}: holds files that generate.py did not write; choose another folder")


def image_path(folder: Path, index: int, image_format: str) -> Path:
    return folder / f"{index:06d}.{image_format}"


def generate(
    accelerator: Accelerator,
    pipeline: Any,
    conditions: pd.DataFrame,
    folder: Path,
    arguments: GenerateArguments,
    finder: CopyFinder | None,
) -> None:
    """Make what is not there yet or torn; whole batches are dealt to the processes in turn."""
    import diffusers
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from melanoma_fair_xai.diffusion.generation import generate_batch, image_seed, read_record, write_image
    from melanoma_fair_xai.engine.launch import on_main_process

    sampler = getattr(diffusers, SAMPLERS[arguments.scheduler])
    pipeline.scheduler = sampler.from_config(pipeline.scheduler.config)
    pipeline.to(
        accelerator.device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    )
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": arguments.num_inference_steps, "guidance_scale": arguments.guidance_scale}
    options["guidance_interval"] = tuple(arguments.guidance_interval)
    missing = [i for i in range(len(conditions)) if read_record(image_path(folder, i, arguments.image_format)) is None]
    missing = on_main_process(accelerator, lambda: missing)
    batches = [missing[i : i + arguments.batch_size] for i in range(0, len(missing), arguments.batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(total=len(missing), desc="generating", unit="image", disable=not accelerator.is_main_process)
    for batch in mine:
        todo = {index: 0 for index in batch}  # attempts so far
        while todo:
            indices = list(todo)
            seeds = [image_seed(arguments.seed, index, todo[index]) for index in indices]
            images = generate_batch(pipeline, conditions.iloc[indices], seeds, arguments.batch_size, **options)
            copies = finder.are_copies(images) if finder else np.zeros(len(images), dtype=bool)
            for index, seed, image, copy in zip(indices, seeds, images, copies, strict=True):
                if copy and todo[index] + 1 < ATTEMPTS:
                    todo[index] += 1
                    continue
                record = {"seed": seed, "rejected": todo.pop(index), "copy": bool(copy), "synthetic": True}
                write_image(image, image_path(folder, index, arguments.image_format), record)
        bar.update(len(batch) * accelerator.num_processes)
    bar.close()


def write_metadata(folder: Path, conditions: pd.DataFrame, settings: dict[str, Any]) -> None:
    """metadata.csv, with which the folder is an ImageFolder, and what to do with it."""
    import pandas as pd

    from melanoma_fair_xai.base.publication import without_local_paths
    from melanoma_fair_xai.base.tables import write_csv
    from melanoma_fair_xai.diffusion.generation import METADATA_NAME, read_record

    paths = [image_path(folder, index, settings["image_format"]) for index in range(len(conditions))]
    records = [read_record(path) for path in paths]
    table = pd.DataFrame(
        {"file_name": [path.name for path in paths], "image_id": [f"synthetic-{p.stem}" for p in paths]}
    )
    for name in CONDITIONS:
        table[name] = conditions[name].to_numpy() if name in conditions else None
    table["seed"] = [record["seed"] for record in records]
    for name in ("scheduler", "num_inference_steps", "guidance_scale"):
        table[name] = settings[name]
    table["model"], table["revision"] = without_local_paths(settings["model_name_or_path"]), settings["revision"]
    table["weights"], table["synthetic"] = settings["weights"], True
    if settings["reject_copies"]:
        table["rejected"] = [record["rejected"] for record in records]
        table["copy"] = [record["copy"] for record in records]
        print(
            f"{table['rejected'].sum()} likely copies made anew, {table['copy'].sum()} left after {ATTEMPTS} attempts"
        )
    table["lesion_id"] = table["image_id"]
    write_csv(table.replace("unknown", None), folder / METADATA_NAME)
    print(f"{len(table)} images and {METADATA_NAME} in {folder}; read them with")
    print(f"  load_dataset('imagefolder', data_dir='{folder}')")


if __name__ == "__main__":
    run_command(main)
