"""Preparing a data set: a folder of Parquet with its card, split manifest and list of what was skipped."""

import glob
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX, atomic_path, file_digest, locked, made_folder
from melanoma_fair_xai.base.processes import available_cores
from melanoma_fair_xai.base.publication import CARD_NAME

from .builder import LesionBuilder
from .dataset_card import dataset_card
from .schema import SKIPPED_NAME
from .sources import SOURCES
from .splits import MANIFEST_NAME

CHUNKING = b"content_defined_chunking"  # where `datasets` says in a file how its pages were cut
SHARD = re.compile(r"data/[0-9a-f]{12}/(?P<split>\w+)-\d{5}-of-\d{5}\.parquet")


def is_written_here(name: str) -> bool:
    """Whether a preparation writes a file of this path in its folder."""
    tables = (table for source in SOURCES.values() for table in source.tables)
    return name in (CARD_NAME, MANIFEST_NAME, SKIPPED_NAME, *tables) or SHARD.fullmatch(name) is not None


def check_output_dir(output_dir: str, overwrite: bool) -> None:
    """Raise UserError if a data set must not be written there; for asking before a long download, too."""
    if os.path.lexists(output_dir) and not os.path.isdir(output_dir):
        raise UserError(f"{output_dir}: is a file; choose another --output_dir")
    if os.path.isdir(output_dir) and os.listdir(output_dir):
        if not overwrite:
            raise UserError(f"{output_dir}: not empty; choose another --output_dir or give --overwrite_output_dir")
        if not os.path.isfile(os.path.join(output_dir, MANIFEST_NAME)):
            raise UserError(f"{output_dir}: not a prepared data set, so it will not be overwritten")
        paths = (os.path.join(root, name) for root, _, names in os.walk(output_dir) for name in names)
        foreign = [path for path in paths if not is_written_here(os.path.relpath(path, output_dir))]
        if foreign:
            raise UserError(f"{min(foreign)}: not of a prepared data set, and would be lost; move it elsewhere")


def prepare_parquet(
    builder: LesionBuilder, output_dir: str, overwrite: bool = False, num_proc: int | None = None
) -> None:
    """Write a data set as Parquet with the image bytes inside, its card (`README.md`), manifest and list of skipped.

    The folder appears whole or not at all; an earlier one stays until the new one is whole. Its bytes do not depend on
    `num_proc`, the number of processes (default: as many as there are cores). Afterwards `load_dataset(output_dir)`
    reads it with any version of datasets, and never from a stale cache.
    Raises UserError if the folder holds anything and `overwrite` is not given, holds anything but a prepared data set,
    or is being prepared by another process.
    """
    output_dir = os.path.realpath(output_dir)
    parent, name = os.path.split(output_dir)
    partial = os.path.join(parent, PARTIAL_PREFIX + name)
    made, previous = (os.path.join(partial, part) for part in ("made", "previous"))
    busy = f"{output_dir}: another process prepares a data set there"
    with made_folder(partial), locked(os.path.join(partial, "lock"), busy, wait=False):
        _put_back(previous, output_dir)
        try:
            check_output_dir(output_dir, overwrite)
            for left in (made, previous):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            os.makedirs(made)
            builder.num_proc = num_proc or available_cores()
            _fill(builder, made)
            if os.path.isdir(output_dir):
                os.replace(output_dir, previous)
            os.replace(made, output_dir)
        finally:
            _put_back(previous, output_dir)
            shutil.rmtree(partial, ignore_errors=True)


def _put_back(previous: str, output_dir: str) -> None:
    """Undo the first of two renames if the second was not to be."""
    if os.path.isdir(previous) and not os.path.isdir(output_dir):
        os.rename(previous, output_dir)


def data_problem(folder: str | os.PathLike) -> str | None:
    """Why the data of a prepared folder are not what was prepared, or None; other folders have no such problem."""
    try:
        (config,) = DatasetCard.load(os.path.join(folder, CARD_NAME)).data["configs"]
        patterns = [part["path"] for part in config["data_files"]]
        (data,) = {os.path.dirname(pattern) for pattern in patterns}
    except Exception:  # no card, or not one of ours
        return None
    if not re.fullmatch("data/[0-9a-f]{12}", data):
        return None
    shards = [sorted(glob.glob(os.path.join(glob.escape(str(folder)), pattern))) for pattern in patterns]
    if _data_name(*sum(shards, [])) == data:
        return None
    return (
        f"{os.path.join(folder, data)}: not the files that were prepared, whose content gave it that name; prepare "
        f"them again,\nor, if it was you who changed them, give it a name of your own, there and in {CARD_NAME}"
    )


def _data_name(*shards: str) -> str:
    return f"data/{file_digest(*shards)[:12]}"


def next_step(output_dir: str, name: str) -> str:
    """What a command says at its end: where the data set is, and how to train on it."""
    launch = f"accelerate launch train_classifier.py --dataset_name {output_dir} --output_dir runs/{name}"
    return f"written to {output_dir}; train on it:\n  {launch}"


def _fill(builder: LesionBuilder, folder: str) -> None:
    built = os.path.join(folder, "built")
    builder.download_and_prepare(built, file_format="parquet")
    shards = {name: _shards(built, f"{builder.dataset_name}-{name}") for name in builder.info.splits}
    for path in sum(shards.values(), []):
        _add_page_checksums(path)
    # load_dataset caches a folder by its card alone: with its content in the names there, nothing stale is served.
    data = _data_name(*sum(shards.values(), []))
    os.makedirs(os.path.join(folder, data))
    for name, paths in shards.items():
        for number, path in enumerate(paths):
            os.replace(path, os.path.join(folder, data, f"{name}-{number:05d}-of-{len(paths):05d}.parquet"))
    for path in glob.glob(f"{glob.escape(built)}/*.csv"):  # the manifest, the skipped, and what a data set adds
        os.replace(path, os.path.join(folder, os.path.basename(path)))
    shutil.rmtree(built)
    for name in os.listdir(folder):
        if name.endswith(".lock"):
            os.remove(os.path.join(folder, name))
    card = dataset_card(builder, {name: f"{data}/{name}-*.parquet" for name in shards})
    with open(os.path.join(folder, CARD_NAME), "w", encoding="utf-8") as file:
        file.write(card)


def _add_page_checksums(path: str) -> None:
    """Write a Parquet file anew as it is, but with a checksum of each page, which `datasets` does not write."""
    with pq.ParquetFile(path) as file, atomic_path(path) as partial:
        group = file.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        stored = {column.path_in_schema: column.compression for column in columns}
        options: dict[str, Any] = {
            "compression": {name: "none" if kind == "UNCOMPRESSED" else kind for name, kind in stored.items()},
            "use_dictionary": [column.path_in_schema for column in columns if column.has_dictionary_page],
            "write_page_index": True,
        }
        chunking = file.metadata.metadata.get(CHUNKING)
        if chunking:  # lets the Hub store once what versions have in common
            options["use_content_defined_chunking"] = json.loads(chunking)
        with pq.ParquetWriter(partial, file.schema_arrow, write_page_checksum=True, **options) as writer:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number)
                writer.write_table(rows, len(rows))
            if chunking:
                writer.add_key_value_metadata({CHUNKING: chunking})


def _shards(folder: str, prefix: str) -> list[str]:
    """The Parquet files of one split as `datasets` names them: prefix.parquet, or prefix-00000-of-00002.parquet ..."""
    pattern = re.compile(re.escape(prefix) + r"(-\d+-of-\d+)?\.parquet")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if pattern.fullmatch(name)]


def summarise(records: Mapping[str, Sequence]) -> str:
    """Counts to check a loader against: images, lesions, and images and lesions per diagnosis."""
    frame = pd.DataFrame({name: np.asarray(records[name]) for name in ("image_id", "lesion_id", "diagnosis")})
    lines = [f"{len(frame):,} images, {frame['lesion_id'].nunique():,} lesions"]
    for name, rows in sorted(frame.groupby("diagnosis"), key=lambda item: -len(item[1])):
        lines.append(f"  {name}: {len(rows):,} images, {rows['lesion_id'].nunique():,} lesions")
    return "\n".join(lines)
