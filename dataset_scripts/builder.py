"""The builders' common half: splitting, skipping, generating, and preparing a folder of Parquet with its card."""

import argparse
import copy
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import datasets
import numpy as np
import pandas as pd
from huggingface_hub import DatasetCardData

from melanoma_fair_xai.base.errors import UserError

from .common import MELANOMA_NAMES, content_hash, read_bytes
from .splits import (
    MANIFEST_NAME,
    assign_folds,
    check_disjoint,
    fold_split,
    lesion_strata,
    manifest_hash,
    write_manifest,
)

SKIPPED_NAME = "skipped.csv"
SPLIT_ORDER = ["train", "validation", "test"]


class LesionConfig(datasets.BuilderConfig):
    """What every data set can be asked: the seed of the splits, and what share of unusable images still passes."""

    def __init__(self, seed: int = 0, max_skipped_share: float = 0.05, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.max_skipped_share = max_skipped_share


class LesionBuilder(datasets.GeneratorBasedBuilder):
    """A builder whose subclass says what lies in the raw folder; splits, skipping and the manifest are done here.

    A subclass defines `_info` (with `record_features`, licence, citation and homepage), `stratify_by`, `pretty_name`,
    `tags`, `about` (where the images come from, who labelled them, who is missing) and `scan`. After preparation the
    folder also holds `split_manifest.csv` and `skipped.csv` (image_id, file, reason).
    """

    BUILDER_CONFIG_CLASS = LesionConfig
    VERSION = datasets.Version("1.0.0")
    stratify_by: tuple[str, ...] = ("melanoma", "fitzpatrick")
    pretty_name: str | None = None
    about: str = ""
    tags: tuple[str, ...] = ("medical", "dermatology", "melanoma", "skin-lesion")

    def __init__(self, *args, data_dir: str | None = None, hash: str | None = None, **kwargs):
        if data_dir is not None:
            # The cache is keyed by the path alone; without the content, files changed in place would be served stale.
            data_dir = os.path.abspath(os.path.expanduser(data_dir))
            hash = hashlib.sha256(f"{hash}{content_hash(data_dir)}".encode()).hexdigest()[:16]
        super().__init__(*args, data_dir=data_dir, hash=hash, **kwargs)
        if self.config.seed < 0:
            raise UserError(f"--seed {self.config.seed}: give 0 or more")
        if not 0 <= self.config.max_skipped_share <= 1:
            raise UserError(f"--max_skipped_share {self.config.max_skipped_share:g}: give a share from 0 to 1")
        self.records: pd.DataFrame | None = None
        self.manifest: pd.DataFrame | None = None
        self.skipped: pd.DataFrame | None = None

    def scan(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What lies in the raw folder, as (records, skipped).

        Records: the schema's columns, names for labels, `image` and `mask` as references (mask may be None), and
        `split` where the publisher fixed one (else empty). Skipped: image_id, file and reason of what cannot be used;
        an image that is in both is kept without its mask. Raises UserError for a folder that cannot be read at all.
        """
        raise NotImplementedError

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        records, self.skipped = self.scan()
        self._check_share(records["image_id"])
        own = (records["split"] == "").to_numpy()
        rows = records[own]
        strata = lesion_strata(rows["lesion_id"], *(rows[name] for name in self.stratify_by))
        split = records["split"].to_numpy(dtype=object, copy=True)
        split[own] = fold_split(assign_folds(rows["lesion_id"], strata, seed=self.config.seed))
        records = records.assign(split=split)
        check_disjoint(records["lesion_id"], records["split"], self.name)
        records = records.iloc[np.argsort([_split_rank(name) for name in split], kind="stable")]
        self.records, self.manifest = records, records[["image_id", "lesion_id", "split"]]
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"records": rows.to_dict("records")})
            for name, rows in records.groupby("split", sort=False)
        ]

    def _check_share(self, kept: Sequence[str]) -> None:
        lost = self.skipped[~self.skipped["image_id"].isin(kept)]
        total = len(kept) + len(lost)
        if not total:
            raise UserError(f"{self.config.data_dir}: no image found")
        if len(lost):
            first = lost.iloc[0]
            example = f"{first['file'] or first['image_id']}: {first['reason']}"
            if not len(kept) or len(lost) > self.config.max_skipped_share * total:
                raise UserError(
                    f"{len(lost)} of {total} images cannot be used, more than --max_skipped_share "
                    f"{self.config.max_skipped_share:g} allows; the first: {example}"
                )
            print(f"skipped {len(lost)} of {total} images, listed in {SKIPPED_NAME}; the first: {example}")
        if len(self.skipped) > len(lost):
            print(f"{len(self.skipped) - len(lost)} masks left out, listed in {SKIPPED_NAME}")

    def _generate_examples(self, records: list[dict]):
        for row in records:
            example = {name: row[name] for name in self.info.features}
            for column in ("image", "mask"):
                reference = row[column]
                if isinstance(reference, str):
                    # Bytes, not a path: the prepared data must not depend on where the raw files lay.
                    example[column] = {"path": re.split(r"::|/", reference)[-1], "bytes": read_bytes(reference)}
            yield row["image_id"], example

    def _download_and_prepare(self, *args, **kwargs):
        super()._download_and_prepare(*args, **kwargs)
        write_manifest(self.manifest, os.path.join(self._output_dir, MANIFEST_NAME))
        self.skipped.to_csv(os.path.join(self._output_dir, SKIPPED_NAME), index=False)


def _split_rank(name: str) -> int:
    return SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER)


# --- the commands' common half ---------------------------------------------------------------------------------------


def command_parser(description: str, output_dir: str) -> argparse.ArgumentParser:
    """The flags that every command which prepares a data set has; `output_dir` is the default of --output_dir."""
    defaults = LesionConfig()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output_dir", default=output_dir, help=f"folder to write (default: {output_dir})")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier prepared data set")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the splits (default: %(default)s)")
    parser.add_argument(
        "--max_skipped_share",
        type=float,
        default=defaults.max_skipped_share,
        help="stop if a larger share of the images cannot be used (default: %(default)s)",
    )
    parser.add_argument("--num_proc", type=int, help="processes that write Parquet (default: one)")
    return parser


def check_output_dir(output_dir: str, overwrite: bool) -> None:
    """Raise UserError if a data set must not be written there; for asking before a long download, too."""
    if os.path.lexists(output_dir) and not os.path.isdir(output_dir):
        raise UserError(f"{output_dir}: is a file; choose another --output_dir")
    if os.path.isdir(output_dir) and os.listdir(output_dir):
        if not overwrite:
            raise UserError(f"{output_dir}: not empty; choose another --output_dir or give --overwrite_output_dir")
        if not os.path.isfile(os.path.join(output_dir, MANIFEST_NAME)):
            raise UserError(f"{output_dir}: not a prepared data set, so it will not be overwritten")


def prepare_parquet(
    builder: LesionBuilder,
    output_dir: str,
    card_text: str | Callable[[LesionBuilder], str],
    overwrite: bool = False,
    num_proc: int | None = None,
) -> None:
    """Write a data set as Parquet with the image bytes inside, its card (`README.md`), manifest and list of skipped.

    `card_text` is the card's title and what it says about this data set, or a function that says it of the prepared
    builder; splits, columns, licence and citation are added from the builder. The folder appears whole or not at all;
    an earlier one stays until the new one is whole. Afterwards `load_dataset(output_dir)` reads it with any later
    version of datasets, and never from a stale cache.
    Raises UserError if the folder holds anything and `overwrite` is not given, or holds no prepared data set.
    """
    if num_proc is not None and num_proc < 1:
        raise UserError(f"--num_proc {num_proc}: give 1 or more")
    output_dir = os.path.abspath(output_dir)
    check_output_dir(output_dir, overwrite)
    partial, previous = output_dir + ".partial", output_dir + ".previous"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        _fill(builder, partial, card_text, num_proc)
        shutil.rmtree(previous, ignore_errors=True)
        if os.path.isdir(output_dir):
            os.replace(output_dir, previous)
        os.replace(partial, output_dir)
    except BaseException:
        if os.path.isdir(previous) and not os.path.isdir(output_dir):
            os.rename(previous, output_dir)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def next_step(output_dir: str, name: str) -> str:
    """What a command says at its end: where the data set is, and how to train on it."""
    launch = f"accelerate launch train_classifier.py --dataset_name {output_dir} --output_dir runs/{name}"
    return f"written to {output_dir}; train on it:\n  {launch}"


def _fill(
    builder: LesionBuilder, folder: str, card_text: str | Callable[[LesionBuilder], str], num_proc: int | None
) -> None:
    built = os.path.join(folder, "built")
    builder.download_and_prepare(built, file_format="parquet", num_proc=num_proc)
    shards = {name: _shards(built, f"{builder.dataset_name}-{name}") for name in builder.info.splits}
    digest = hashlib.sha256()
    for path in sum(shards.values(), []):
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    # load_dataset caches a folder by its card alone: with its content in the names there, nothing stale is served.
    data = f"data/{digest.hexdigest()[:12]}"
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
    text = card_text(builder) if callable(card_text) else card_text
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(_card(builder, {name: f"{data}/{name}-*.parquet" for name in shards}, text))


def _shards(folder: str, prefix: str) -> list[str]:
    """The Parquet files of one split as `datasets` names them: prefix.parquet, or prefix-00000-of-00002.parquet ..."""
    pattern = re.compile(re.escape(prefix) + r"(-\d+-of-\d+)?\.parquet")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if pattern.fullmatch(name)]


# --- the card --------------------------------------------------------------------------------------------------------


def _card(builder: LesionBuilder, data_files: Mapping[str, str], text: str) -> str:
    """The data set card, model_cards/dataset.md: YAML for the Hub, the data set's own text, what the builder knows."""
    info = copy.deepcopy(builder.info)
    info.config_name = "default"
    total = sum(split.num_examples for split in info.splits.values())
    metadata = DatasetCardData(
        license=info.license or None,
        pretty_name=builder.pretty_name or builder.name,
        tags=list(builder.tags),
        task_categories=["image-classification"],
        size_categories=[_size_category(total)],
    )
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
    # Named split by split: a split such as isic2018_test would otherwise be taken for a part of test.
    metadata.configs = [
        {
            "config_name": "default",
            "data_files": [{"split": name, "path": path} for name, path in data_files.items()],
        }
    ]
    lesions = builder.manifest.groupby("split")["lesion_id"].nunique()
    name = type(builder).__name__.lower()  # as a command, the builder's module, and so its own name, is __main__
    template = resources.files("model_cards").joinpath("dataset.md").read_text(encoding="utf-8")
    return template.format(
        metadata=metadata.to_yaml().strip(),
        text=text.strip(),
        about=builder.about,
        composition=_markdown_table(["group", "images", "lesions", "melanomas"], _composition(builder.records)),
        age=_age_text(builder.records["age"]),
        folder=name,
        module=f"dataset_scripts.{name}",
        datasets_version=datasets.__version__,
        splits=_markdown_table(
            ["split", "images", "lesions"],
            [(part, f"{split.num_examples:,}", f"{lesions[part]:,}") for part, split in info.splits.items()],
        ),
        manifest_name=MANIFEST_NAME,
        manifest=manifest_hash(builder.manifest),
        seed=builder.config.seed,
        strata=" and ".join(builder.stratify_by),
        skipped=len(builder.skipped),
        skipped_name=SKIPPED_NAME,
        columns=_markdown_table(
            ["column", "type"], [(f"`{column}`", _type_text(kind)) for column, kind in info.features.items()]
        ),
        licence=" ".join(filter(None, [f"Licence: {info.license}." if info.license else "", info.homepage])),
        citation=f"```bibtex\n{info.citation.strip()}\n```" if info.citation else "",
    )


def _composition(records: pd.DataFrame) -> list[tuple[str, ...]]:
    """Rows of group, images, lesions and melanomas: of all, and by skin type, sex, body site and source."""

    def row(name: str, part: pd.DataFrame) -> tuple[str, ...]:
        counts = (len(part), part["lesion_id"].nunique(), (part["melanoma"] == MELANOMA_NAMES[1]).sum())
        return (name, *(f"{count:,}" for count in counts))

    rows = [row("all", records)]
    for column in ("fitzpatrick", "sex", "localization", "source"):
        rows += [row(f"{column} {name}", part) for name, part in records.groupby(column)]
    return rows


def _age_text(ages: pd.Series) -> str:
    known = ages.dropna().astype(float)
    if known.empty:
        return "Age is not known of any image."
    span = f"from {known.min():g} to {known.max():g} years, median {known.median():g}"
    return f"Age is known of {len(known):,} of {len(ages):,} images, {span}."


def _size_category(count: int) -> str:
    """The Hub's size category, such as 10K<n<100K."""
    bounds = ["1K", "10K", "100K", "1M"]
    rank = sum(count >= 10**power for power in (3, 4, 5))
    return f"{bounds[rank - 1]}<n<{bounds[rank]}" if rank else "n<1K"


def _type_text(kind) -> str:
    if isinstance(kind, datasets.ClassLabel):
        return ", ".join(kind.names) if len(kind.names) <= 10 else f"one of {len(kind.names)} names"
    return getattr(kind, "dtype", None) if isinstance(kind, datasets.Value) else type(kind).__name__


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def summarise(records: Mapping[str, Sequence]) -> str:
    """Counts to check a loader against: images, lesions, and images and lesions per diagnosis."""
    frame = pd.DataFrame({name: np.asarray(records[name]) for name in ("image_id", "lesion_id", "diagnosis")})
    lines = [f"{len(frame):,} images, {frame['lesion_id'].nunique():,} lesions"]
    for name, rows in sorted(frame.groupby("diagnosis"), key=lambda item: -len(item[1])):
        lines.append(f"  {name}: {len(rows):,} images, {rows['lesion_id'].nunique():,} lesions")
    return "\n".join(lines)
