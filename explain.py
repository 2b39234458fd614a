"""Explain a classifier's decisions, and measure how far the explanation can be trusted.

    python explain.py --model_name_or_path runs/r18 --dataset_name ham10000 --data_dir RAW --split test \
        --method gradcam --output_dir report/
    python explain.py --model_name_or_path runs/r18 --images a.jpg folder/ --output_dir report/

`accelerate launch explain.py ...` shares the work among processes. Run the same command again to go on after an
interruption. What is in --output_dir is described in the README.
"""

from __future__ import annotations

import collections
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.flags import flag
from melanoma_fair_xai.data.arguments import DataArguments
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME, parse_arguments, save_arguments, settings
from melanoma_fair_xai.explain.methods import METHODS
from melanoma_fair_xai.explain.traps import TRAPS

# All else is imported where it is used, so that --help and wrong flags answer at once.
if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd
    from accelerate import Accelerator

    from melanoma_fair_xai.classifier.export import ClassifierInfo
    from melanoma_fair_xai.data.loading import Records
    from melanoma_fair_xai.explain.record import Source


@dataclass
class SplitArguments(DataArguments):
    dataset_name: str | None = flag(None, "As for train_classifier.py: a name, folder or Hub id; or give --images.")
    split: str = flag("test", "The images to explain: a split of the data set, or all.")


@dataclass
class ExplainArguments:
    model_name_or_path: str = flag(help="Folder or Hub id of a classifier of train_classifier.py.")
    revision: str | None = flag(None, "Revision of the model on the Hub.")
    method: Literal[tuple(METHODS)] = flag("gradcam", "How maps are made, by captum.")
    layer: str | None = flag(None, "Layer of Grad-CAM; default: the last fine enough.")
    list_layers: bool = flag(False, "Print the layers that Grad-CAM can take, and end.")
    target: Literal["predicted", "melanoma"] = flag(
        "predicted", "What is explained: what the model decides, or melanoma."
    )
    trap: list[Literal[tuple(TRAPS)]] = flag([], "Paste or erase, and see the score.")
    images: list[str] = flag([], "Image files and folders, instead of a data set.")
    max_samples: int | None = flag(None, "So many images, drawn by the seed.", low=1)
    gallery: int = flag(4, "Images of each error type on the page of examples; 0: none.", low=0)
    output_dir: str = flag("runs/explanation", "The folder of the report.", free=True)
    overwrite_output_dir: bool = flag(False, "Replace an earlier report in --output_dir.", free=True)
    eval_batch_size: int = flag(64, "Images and changed copies in a forward pass.", low=1)
    seed: int = flag(0, "Fixes every random number, by image.", low=0)


def main() -> None:
    arguments, data = parse_arguments(ExplainArguments, SplitArguments)
    if not arguments.list_layers:
        check(arguments, data)
    from accelerate.utils import set_seed

    from melanoma_fair_xai.base.files import plain
    from melanoma_fair_xai.classifier.export import load_classifier
    from melanoma_fair_xai.engine.launch import create_accelerator, explained_errors, on_main_process
    from melanoma_fair_xai.engine.run_folder import open_run_folder
    from melanoma_fair_xai.engine.weights import weights_hash
    from melanoma_fair_xai.explain.attributions import Explainer, LogOdds
    from melanoma_fair_xai.explain.batches import BatchExplainer, Options
    from melanoma_fair_xai.explain.layers import describe_layers, map_layers
    from melanoma_fair_xai.explain.page import REPORT_NAME, VERSIONS, Facts, write_report
    from melanoma_fair_xai.explain.record import Record

    model, info = load_classifier(arguments.model_name_or_path, arguments.revision)
    if arguments.list_layers:
        print(describe_layers(map_layers(model, info.preprocessing.input_size)))
        return
    set_seed(arguments.seed)
    with explained_errors("--eval_batch_size", "run the same command again"):
        accelerator = create_accelerator()
        options = Options(
            arguments.method,
            arguments.layer,
            arguments.target,
            tuple(arguments.trap),
            arguments.eval_batch_size,
            arguments.seed,
        )
        # A layer that is not there is said before anything is read or written.
        net = LogOdds(model, info.preprocessing, info.positive)
        layer = Explainer(net, arguments.method, info.preprocessing.input_size, arguments.layer).layer
        overwrite = arguments.overwrite_output_dir
        with open_run_folder(accelerator, arguments.output_dir, resume=not overwrite, overwrite=overwrite) as folder:
            made_of = {"weights": weights_hash(model), "threshold": info.threshold, **VERSIONS}
            made_with = {**settings(arguments, data), **plain(made_of)}
            on_main_process(accelerator, lambda: check_folder(folder, made_with))
            records, source, content = load_images(accelerator, arguments, data, info)
            record = Record(folder, source, options.batch_size)

            def begin() -> bool:
                check_folder(folder, {"content": content})
                save_arguments(folder / ARGUMENTS_NAME, arguments, data, **made_of, content=content)
                records.write_skipped(folder)
                if is_whole := (folder / REPORT_NAME).is_file():
                    record.remove()
                return is_whole

            if on_main_process(accelerator, begin):
                accelerator.print(f"report: {folder / REPORT_NAME}, made before by the same command")
                return
            record.complete(accelerator, BatchExplainer(model, info, options, accelerator.device))
            if accelerator.is_main_process:
                table = full_table(records.table, record.table(), info)
                facts = Facts(
                    model=arguments.model_name_or_path,
                    data=data.dataset_name or f"{len(source.ids)} images by name",
                    split="" if arguments.images else data.split,
                    phantoms=records.are_phantoms,
                    layer=layer,
                    options=options,
                    skipped=int((~records.skipped["image_id"].isin(records.table["image_id"])).sum()),
                    command=" ".join(["python", *sys.argv]),
                )
                print(write_report(folder, table, record, facts, arguments.gallery))
                record.remove()


def check(arguments: ExplainArguments, data: SplitArguments) -> None:
    """UserError for flags that do not go together, before anything is loaded."""
    if bool(arguments.images) == bool(data.dataset_name):
        raise UserError("give either --images, or --dataset_name with --split")
    if Path(arguments.output_dir).resolve() == Path(arguments.model_name_or_path).resolve():
        raise UserError(f"--output_dir {arguments.output_dir}: the model's own folder; choose another")


def check_folder(folder: Path, made_with: dict[str, Any]) -> None:
    """UserError if the folder has an explanation that was made with anything else, or another run."""
    from melanoma_fair_xai.hub.card import read_json

    earlier = read_json(folder, ARGUMENTS_NAME) if (folder / ARGUMENTS_NAME).is_file() else made_with
    for name, value in made_with.items():
        if earlier.get(name) != value:
            there = f"made with {name} {earlier[name]}, not {value}" if name in earlier else "holds another run"
            raise UserError(
                f"--output_dir {folder}: {there};\n"
                "choose another folder, or replace what a run wrote there with --overwrite_output_dir"
            )


def load_images(
    accelerator: Accelerator, arguments: ExplainArguments, data: SplitArguments, info: ClassifierInfo
) -> tuple[Records, Source, str]:
    """The records to explain and their pixels and masks, as the model sees them; what cannot be used is set aside."""
    import numpy as np

    from dataset_scripts.schema import SKIPPED_NAME
    from melanoma_fair_xai.data.cache import PixelCache, decode_once
    from melanoma_fair_xai.data.loading import UNUSABLE
    from melanoma_fair_xai.data.masks import decode_masks, lesion_masks
    from melanoma_fair_xai.engine.launch import on_main_process, once_per_machine
    from melanoma_fair_xai.explain.batches import Images
    from melanoma_fair_xai.explain.record import CHUNK, Source, content_digest

    def load() -> tuple[Records, PixelCache]:
        records = name_images(arguments.images) if arguments.images else load_split(data, info)
        records = records.select(chosen(records.table, arguments))
        return records, decode_once(records.images, info.preprocessing)

    records, cache = once_per_machine(accelerator, load)
    records = records.without(cache.problems, 1.0 if arguments.images else data.max_skipped_share)
    usable = (records.table["split"] != UNUSABLE).to_numpy()
    if not usable.any():
        first = records.skipped.iloc[0]
        raise UserError(f"--images: none can be used; the first: {first['image_id']}: {first['reason']}")
    if accelerator.is_main_process and not usable.all():
        print(f"{(~usable).sum()} of {len(usable)} images cannot be used, see {SKIPPED_NAME}", file=sys.stderr)
    records, places = records.select(usable), np.flatnonzero(usable)
    ids = records.table["image_id"].tolist()
    has_artefacts = records.masks is not None and "artefact_mask" in records.masks.column_names

    def read(rows: np.ndarray) -> tuple[Images, dict[int, str]]:
        masks, problems = lesion_masks(records, rows, info.preprocessing)
        artefacts = decode_masks(records.masks, "artefact_mask", rows, info.preprocessing) if has_artefacts else None
        return Images([ids[row] for row in rows], cache.pixels[places[rows]], masks, artefacts), problems

    def look_through() -> tuple[str, np.ndarray, dict[int, str]]:
        masked, all_problems = np.zeros(len(ids), dtype=bool), {}

        def batches() -> Iterator[Images]:
            for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // CHUNK)):
                batch, problems = read(rows)
                masked[rows] = batch.masks.any((1, 2))
                all_problems.update(problems)
                yield batch

        return content_digest(batches()), masked, all_problems

    content, masked, problems = on_main_process(accelerator, look_through)
    records = records.listing({row: f"mask: {problem}" for row, problem in problems.items()})
    reason = f" (the first: {next(iter(problems.values()))})" if problems else ""
    erasers = [trap for trap in arguments.trap if TRAPS[trap].needs_masks]
    if erasers and not masked.any():
        raise UserError(
            f"--trap {erasers[0]}: needs lesion masks, and these images have none that can be used{reason}"
        )
    if accelerator.is_main_process and not masked.all():
        print(
            f"{(~masked).sum()} of {len(masked)} images have no usable lesion mask{reason}: "
            "what is measured against masks, or erases by them, leaves these out",
            file=sys.stderr,
        )
    return records, Source(ids, lambda rows: read(rows)[0]), content


def load_split(data: SplitArguments, info: ClassifierInfo) -> Records:
    """The images of a split that answer the question which the model was trained on."""
    from melanoma_fair_xai.data.targets import apply_target

    question = info.training.get("target", "melanoma_vs_rest")
    records, _, _ = apply_target(data.load(), question, label_names=info.label_names)
    splits = ["train", "validation", "test"] if data.split == "all" else [data.split]
    keep = records.table["split"].isin(splits).to_numpy()
    if not keep.any():
        known = ", ".join(sorted(set(records.table["split"])))
        raise UserError(f"--split {data.split}: {records.name} has no such images; its splits are {known}")
    return records.select(keep)


def chosen(table: pd.DataFrame, arguments: ExplainArguments) -> np.ndarray:
    """Which rows --max_samples leaves, bool (n,)."""
    import numpy as np

    order = np.random.default_rng(arguments.seed).permutation(len(table))
    return np.isin(np.arange(len(table)), order[: arguments.max_samples])


def name_images(paths: list[str]) -> Records:
    """Records without labels of image files, and of those in folders. UserError for a path that is not there."""
    import datasets
    import pandas as pd

    from dataset_scripts.schema import UNKNOWN
    from melanoma_fair_xai.base.images import IMAGE_FORMATS, IMAGE_SUFFIXES, is_image
    from melanoma_fair_xai.data.loading import Records, say

    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            found = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES or is_image(p)]
            others = collections.Counter(p.suffix or p.name for p in inside if p not in set(found))
            left_out = ", ".join(f"{count} {kind}" for kind, count in others.most_common(10))
            if not found:
                raise UserError(f"--images {path}: no images in this folder ({left_out or 'it is empty'})")
            if others:
                say(f"--images {path}: left out what is no {', '.join(IMAGE_FORMATS)}: {left_out}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"--images {path}: no such file or folder")
    names = list(dict.fromkeys(str(file) for file in files))
    features = datasets.Features({"image": datasets.Image(decode=False)})
    images = datasets.Dataset.from_list([{"image": {"bytes": None, "path": n}} for n in names], features=features)
    table = pd.DataFrame({"image_id": names, "lesion_id": names, "split": "test", "source": UNKNOWN})
    return Records("images", images, table, pd.DataFrame(columns=["image_id", "file", "reason"]))


def full_table(records: pd.DataFrame, explained: pd.DataFrame, info: ClassifierInfo) -> pd.DataFrame:
    """One row per image: who it is, its label (where known), score, threshold and error type, then every measure."""
    import numpy as np

    from melanoma_fair_xai.explain.summary import error_types

    table = records.reset_index(drop=True).drop(columns="split")
    if "melanoma" in table:
        table = table.rename(columns={"melanoma": "label"})
    else:
        table["label"] = np.nan
    table["threshold"] = info.threshold
    table["error"] = error_types(table["label"], explained["decided"])
    return table.merge(explained, on="image_id", validate="one_to_one")


if __name__ == "__main__":
    run_command(main)
