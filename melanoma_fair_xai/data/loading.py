"""Records of any data set, ours or a user's own, as one table beside one `datasets.Dataset` of images."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.dataset

from dataset_scripts.builder import LesionBuilder
from dataset_scripts.prepare import data_problem
from dataset_scripts.raw_files import content_hash
from dataset_scripts.schema import (
    CELL_PARSERS,
    MELANOMA_NAMES,
    SKIN_TYPE_COLUMNS,
    SKIPPED_COLUMNS,
    SKIPPED_NAME,
    UNKNOWN,
    cell_name,
    check_unique,
    is_melanoma,
    is_missing,
    parse_cells,
    parse_melanoma,
    spelling,
)
from dataset_scripts.sources import SOURCES
from dataset_scripts.splits import (
    MANIFEST_NAME,
    assign_folds,
    check_disjoint,
    fold_split,
    lesion_strata,
    read_manifest,
    splits_of_fold,
    write_manifest,
)
from melanoma_fair_xai.base.errors import UserError, read_problem
from melanoma_fair_xai.base.hub_client import hub_problem, look_for_hub
from melanoma_fair_xai.base.images import IMAGE_SUFFIXES
from melanoma_fair_xai.base.processes import available_cores
from melanoma_fair_xai.base.tables import plain_cells, write_csv

UNUSABLE = "unusable"
MASK_COLUMNS = ("mask", "artefact_mask")
METADATA_COLUMNS = ("diagnosis", "age", "sex", "localization", "fitzpatrick", "source", "ita")


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """What a user's own data set calls its columns; None takes the record schema's name where it is there."""

    image: str = "image"
    label: str | None = None
    positive_labels: tuple[str, ...] = ()
    lesion: str | None = None
    groups: tuple[str, ...] = ()


@dataclasses.dataclass
class Records:
    """Row i of `table` describes image i of `images` (column `image`, not decoded).

    `table` has image_id, lesion_id, diagnosis (names), melanoma (0 or 1), split, and every group column, categories as
    names with `unknown` for missing values, age in years and ita in degrees with NaN. `skipped` has image_id, file and
    reason. `masks` has those of MASK_COLUMNS that the data set has, not decoded, None where an image has none.
    """

    name: str
    images: datasets.Dataset
    table: pd.DataFrame
    skipped: pd.DataFrame
    masks: datasets.Dataset | None = None

    @property
    def are_phantoms(self) -> bool:
        """Whether these are drawn lesions, on which results say nothing about patients."""
        return bool((self.table["source"] == "phantom").any())

    @property
    def manifest(self) -> pd.DataFrame:
        """Which lesion each image that can be used is of, and in which split it is."""
        return self.table.loc[self.table["split"] != UNUSABLE, ["image_id", "lesion_id", "split"]]

    def write(self, folder: Path) -> None:
        """Write to a run folder which image is in which split, and what could not be used."""
        write_manifest(self.manifest, str(folder / MANIFEST_NAME))
        self.write_skipped(folder)

    def write_skipped(self, folder: Path) -> None:
        """Write skipped.csv, what could not be used and why."""
        write_csv(self.skipped, folder / SKIPPED_NAME)

    def select(self, keep: np.ndarray) -> "Records":
        """The rows where `keep` (bool, one per row) holds."""
        rows = np.flatnonzero(keep)
        return dataclasses.replace(
            self,
            images=self.images.select(rows),
            table=self.table.iloc[rows].reset_index(drop=True),
            masks=None if self.masks is None else self.masks.select(rows),
        )

    def for_fold(self, test_fold: int) -> "Records":
        """The same rows with fold `test_fold` as the test split and the next one as validation; 0 changes nothing."""
        lesions = self.table["lesion_id"]
        strata = lesion_strata(lesions, self.table["melanoma"], self.table["fitzpatrick"])
        split = splits_of_fold(self.table["split"], lesions, strata, test_fold)
        return dataclasses.replace(self, table=self.table.assign(split=split))

    def without(self, problems: dict[int, str], max_share: float) -> "Records":
        """The same rows, with those that have a problem set aside in a split `UNUSABLE` and listed in `skipped`.

        UserError if they are a larger share than `max_share`.
        """
        if not problems:
            return self
        first, reason = next(iter(problems.items()))
        if len(problems) > max_share * len(self.table):
            raise UserError(
                f"{self.name}: {len(problems)} of {len(self.table)} images cannot be used, more than "
                f"--max_skipped_share {max_share:g} allows; the first: {self.table['image_id'][first]}: {reason}"
            )
        table = self.table.copy()
        table.loc[list(problems), "split"] = UNUSABLE
        return dataclasses.replace(self.listing(problems), table=table)

    def listing(self, problems: dict[int, str]) -> "Records":
        """The same rows, with the problems of some of them listed in `skipped`."""
        rows = list(problems)
        files = [Path((self.images[row]["image"] or {}).get("path") or "").name for row in rows]
        ids = self.table["image_id"].iloc[rows]
        lost = pd.DataFrame({"image_id": ids, "file": files, "reason": problems.values()})
        return dataclasses.replace(self, skipped=pd.concat([self.skipped, lost], ignore_index=True))


def load_records(
    dataset_name: str,
    config_name: str | None = None,
    data_dir: str | None = None,
    columns: ColumnNames = ColumnNames(),
    split_manifest: str | None = None,
    max_skipped_share: float = 0.05,
) -> Records:
    """Load one of SOURCES, of raw files in `data_dir` if it has any, or a folder or Hub id that `load_dataset` reads.

    Splits are those of `split_manifest`, else the data set's own, else made by lesion. Raises UserError for what is
    missing, and for a lesion that crosses splits.
    """
    skipped = pd.DataFrame(columns=SKIPPED_COLUMNS)
    if dataset_name in SOURCES:
        builder = _builder(dataset_name, config_name, data_dir, max_skipped_share)
        builder.download_and_prepare()
        splits = builder.as_dataset()
        skipped = _read_skipped(Path(builder.cache_dir))
    else:
        splits = _load_dataset(dataset_name, config_name, data_dir)
        if Path(dataset_name, SKIPPED_NAME).is_file():
            skipped = _read_skipped(Path(dataset_name))
    tables = [_read_table(part, columns, dataset_name, name) for name, part in splits.items()]
    table = pd.concat(tables, ignore_index=True)
    check_unique(table["image_id"], "image", dataset_name)
    if columns.label:
        table["melanoma"] = _positive(table["diagnosis"], columns, dataset_name)
    records = Records(
        name=dataset_name,
        images=datasets.concatenate_datasets([_only_image(part, columns.image) for part in splits.values()]),
        table=table,
        skipped=skipped,
        masks=_only_masks(list(splits.values()), dataset_name),
    )
    records = records.without(_unusable_rows(records), max_skipped_share)
    return _with_splits(records.select((records.table["split"] != UNUSABLE).to_numpy()), split_manifest)


def _unusable_rows(records: Records) -> dict[int, str]:
    """Why a row cannot be used, by row: nothing says whether it is a melanoma, or its image is not there."""
    problems = {row: "no label" for row in np.flatnonzero(records.table["melanoma"] < 0).tolist()}
    row = 0
    for batch in records.images.with_format("arrow").iter(1000):
        for chunk in batch["image"].chunks:
            for inside, path in zip(chunk.field("bytes").is_valid(), chunk.field("path").to_pylist(), strict=True):
                if not inside.as_py() and not (path and ("://" in path or os.path.isfile(path))):
                    problems[row] = f"no such file: {os.path.basename(path)}" if path else "no image"
                row += 1
    return dict(sorted(problems.items()))


def _read_skipped(folder: Path) -> pd.DataFrame:
    return plain_cells(pd.read_csv(folder / SKIPPED_NAME, dtype=str, keep_default_na=False))


def _builder(name: str, config_name: str | None, data_dir: str | None, max_skipped_share: float) -> LesionBuilder:
    source = SOURCES[name]
    if source.has_raw_files and data_dir is None:
        raise UserError(f"--dataset_name {name}: name the folder of its raw files with --data_dir")
    builder_class = source.load_builder()
    if config_name is not None and config_name not in builder_class.builder_configs:
        known = ", ".join(builder_class.builder_configs) or "none"
        raise UserError(f"--dataset_config_name {config_name}: {name} has {known}")
    location = {} if data_dir is None else {"data_dir": data_dir}
    builder = builder_class(config_name=config_name, max_skipped_share=max_skipped_share, **location)
    builder.num_proc = available_cores()
    return builder


def _load_dataset(name: str, config_name: str | None, data_dir: str | None) -> datasets.DatasetDict:
    if os.path.isdir(name) and not os.listdir(name):
        raise UserError(f"{name}: the folder is empty")
    cache = None
    if os.path.isdir(name):
        if problem := data_problem(name):
            raise UserError(problem)
        # `datasets` knows a folder by its card, or by sizes and times: it would serve what a file held before. The
        # pixels of single images are not kept there.
        content = content_hash(name, by_name=IMAGE_SUFFIXES)
        cache = Path(datasets.config.HF_DATASETS_CACHE, "by_content", content)
    else:
        look_for_hub()
    try:
        builder = datasets.load_dataset_builder(name, config_name, data_dir=data_dir, cache_dir=cache)
        if hasattr(builder.config, "fragment_scan_options"):  # of Parquet
            checked = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
            builder.config.fragment_scan_options = checked
        builder.download_and_prepare()
        return builder.as_dataset()
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        known = ", ".join(SOURCES)
        reason = hub_problem(error) or read_problem(error)
        if "codec can't decode" in reason:
            reason += ": a table that is not in UTF-8, but in UTF-16 perhaps; save it as CSV in UTF-8"
        raise UserError(
            f"--dataset_name {name}: cannot be loaded ({reason})\n"
            f"give one of {known}, a folder, or the id of a data set on the Hub"
        ) from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        found = str(error).rpartition(" ")[2]
        raise UserError(
            f"--dataset_name {name}: has a loading script, {found}, and none is run; move it elsewhere if the data "
            "are there without it"
        ) from None


def _only_image(part: datasets.Dataset, column: str) -> datasets.Dataset:
    part = part.select_columns([column])
    if column != "image":
        part = part.rename_column(column, "image")
    return part.cast_column("image", datasets.Image(decode=False))


def _only_masks(parts: list[datasets.Dataset], where: str) -> datasets.Dataset | None:
    given = [name for name in MASK_COLUMNS if name in parts[0].column_names]
    names = [name for name in given if isinstance(parts[0].features[name], datasets.Image)]
    for name in (name for name in given if name not in names):
        say(f"warning: {where}: column {name} holds no images, so no masks; files are named by {name}_file_name")
    if not names:
        return None
    masks = datasets.concatenate_datasets([part.select_columns(names) for part in parts])
    return masks.cast(datasets.Features({name: datasets.Image(decode=False) for name in names}))


def _read_table(part: datasets.Dataset, columns: ColumnNames, name: str, split: str) -> pd.DataFrame:
    def need(column: str, flag: str) -> str:
        if column not in part.column_names:
            raise UserError(f"{name}: no column {column}; give {flag}, one of {', '.join(part.column_names)}")
        return column

    if columns.image not in part.column_names and "file_name" in part.column_names:
        example = part["file_name"][0] if len(part) else "none there"
        raise UserError(
            f"{name}: load_dataset finds no images by the names in column file_name ({example}); "
            "give files and names a suffix such as .jpg, and call the table metadata.csv"
        )
    need(columns.image, "--image_column_name")
    meta = part.select_columns([c for c in part.column_names if not isinstance(part.features[c], datasets.Image)])
    table = pd.DataFrame(index=range(len(part)))
    if "image_id" in meta.column_names:
        table["image_id"] = _names(meta, "image_id")
    else:
        table["image_id"] = [f"{split}-{row:06d}" for row in range(len(part))]
    lesion = need(columns.lesion, "--lesion_column_name") if columns.lesion else "lesion_id"
    if lesion in meta.column_names:
        table["lesion_id"] = _lesions(_names(meta, lesion), table["image_id"], f"{name}, {split}: column {lesion}")
    else:
        say(
            f"warning: {name} has no column lesion_id; every image counts as a lesion of its own, so two images of "
            "one lesion may stand on both sides of a split (--lesion_column_name)"
        )
        table["lesion_id"] = table["image_id"]
    for group in METADATA_COLUMNS:
        names = SKIN_TYPE_COLUMNS if group == "fitzpatrick" else (group,)
        source = next((column for column in names if column in meta.column_names), None)
        if source not in (None, group):
            say(f"{name}, {split}: skin types are those of column {source}")
        if source is None:
            table[group] = np.nan if group in ("age", "ita") else UNKNOWN
        elif group in CELL_PARSERS:
            table[group] = parse_cells(group, _cells(meta, source), f"{name}, {split}")
        else:
            table[group] = _names(meta, group)
    table[["age", "ita"]] = table[["age", "ita"]].astype(float)
    for group in (*columns.groups, *(c for c in ("dx_type", "synthetic") if c in meta.column_names)):
        if group not in table:
            table[group] = _names(meta, need(group, "--group_by or --conditions"))
    if columns.label:
        table["diagnosis"] = _names(meta, need(columns.label, "--label_column_name"))
    else:
        need("melanoma", "--label_column_name and --positive_labels")
        table["melanoma"] = _melanomas(meta, f"{name}, {split}")
    table["split"] = split
    return table


def say(text: str) -> None:
    """Tell the user, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _cells(part: datasets.Dataset, column: str) -> list:
    """A column's values, the names of a category's; None where a value is missing."""
    feature = part.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in part[column]]
    return part[column][:]


def _names(part: datasets.Dataset, column: str) -> list[str]:
    """A column as names, `unknown` where a value is missing."""
    return [cell_name(cell) for cell in _cells(part, column)]


def _lesions(lesions: list[str], image_ids: Sequence[str], where: str) -> list[str]:
    """Lesion ids, where images without one are lesions of their own."""
    missing = [lesion in (UNKNOWN, "-1") for lesion in lesions]
    if any(missing):
        say(f"warning: {where} is empty for {sum(missing):,} of {len(lesions):,} images; each is a lesion of its own")
    return [
        f"image-{image_id}" if lost else lesion
        for lesion, image_id, lost in zip(lesions, image_ids, missing, strict=True)
    ]


def _melanomas(part: datasets.Dataset, where: str) -> list[int]:
    """Column `melanoma` as 0 and 1, -1 where nothing is known; by its names where it is a category."""
    feature, cells = part.features["melanoma"], _cells(part, "melanoma")
    if isinstance(feature, datasets.ClassLabel) and any(map(is_melanoma, feature.names)):
        cells = [None if cell is None else is_melanoma(cell) for cell in cells]
        if sorted(feature.names) != MELANOMA_NAMES:
            benign = [name for name in feature.names if not is_melanoma(name)]
            say(f"{where}: of column melanoma these count as benign: {', '.join(benign)}")
    labels = [parse_melanoma(cell, f"{where}, row {row}") for row, cell in enumerate(cells)]
    return [-1 if label is None else label for label in labels]


def _positive(labels: pd.Series, columns: ColumnNames, name: str) -> np.ndarray:
    """1 for melanoma, 0 for benign, -1 where there is no label; says which labels are benign."""
    known = sorted(set(labels) - {UNKNOWN})
    if not columns.positive_labels:
        raise UserError(f"--positive_labels: say which of {', '.join(known[:20])} in {name} mean melanoma")
    absent = sorted(set(columns.positive_labels) - set(known))
    if absent:
        raise UserError(f"--positive_labels {absent[0]}: {name} has {', '.join(known[:20])}")
    benign = [label for label in known if label not in columns.positive_labels]
    more = f" and {len(benign) - 20} more" if len(benign) > 20 else ""
    say(f"{name}: these labels count as benign: {', '.join(benign[:20])}{more}")
    alike = {spelling(label) for label in columns.positive_labels}
    doubtful = [repr(label) for label in benign if spelling(label) in alike or is_melanoma(label)]
    if doubtful:
        say(f"warning: {', '.join(doubtful)} look like melanoma and count as benign; if wrong, give --positive_labels")
    return np.where(labels == UNKNOWN, -1, labels.isin(columns.positive_labels))


def is_synthetic(table: pd.DataFrame) -> np.ndarray:
    """Which rows (bool) are generated images, as their column `synthetic` says."""
    if "synthetic" not in table:
        return np.zeros(len(table), dtype=bool)
    return table["synthetic"].str.lower().isin(["true", "1"]).to_numpy()


def load_synthetic(folder: str, real: Records) -> Records:
    """Images that generate.py wrote, all of them in the train split; their diagnoses mean what they mean in `real`.

    `melanoma` is -1 where no diagnosis was asked for. UserError for a folder that holds anything else, and for a
    diagnosis that `real` does not have.
    """
    parts = _load_dataset(folder, None, None)
    part = parts["train"] if set(parts) == {"train"} else None
    if part is None or not {"synthetic", "diagnosis", "lesion_id"} <= set(part.column_names):
        raise UserError(f"{folder}: not a folder that generate.py wrote; give its --output_dir")
    # A generator may have learned melanoma or not instead of the diagnoses.
    meaning = {"benign": 0, "melanoma": 1}
    meaning |= dict(zip(real.table["diagnosis"], real.table["melanoma"], strict=True)) | {UNKNOWN: None}
    diagnoses = plain_cells(pd.DataFrame({"diagnosis": _names(part, "diagnosis")}))["diagnosis"]
    strange = sorted(set(diagnoses) - set(meaning))
    if strange:
        raise UserError(f"{folder}: diagnosis {strange[0]} is none of {real.name}'s ({', '.join(sorted(meaning))})")
    part = part.add_column("melanoma", [meaning[name] for name in diagnoses])
    table = plain_cells(_read_table(part, ColumnNames(), folder, "train"))
    check_unique(table["image_id"], "image", folder)
    if not is_synthetic(table).all():
        raise UserError(f"{folder}: not only generated images; give what generate.py wrote")
    return Records(folder, _only_image(part, "image"), table, pd.DataFrame(columns=SKIPPED_COLUMNS))


def training_rows(table: pd.DataFrame, limit: int | None, seed: int) -> np.ndarray:
    """Rows (int64) of the train split; with `limit`, so many of its real images, drawn by `seed`, all generated."""
    rows = np.flatnonzero(table["split"] == "train")
    if limit is None:
        return rows
    generated = is_synthetic(table)[rows]
    chosen = np.random.default_rng(seed).permutation(rows[~generated])[:limit]
    return np.sort(np.concatenate([chosen, rows[generated]]))


def add_synthetic(records: Records, synthetic: Records, ratio: float, seed: int, limit: int | None = None) -> Records:
    """The records with `ratio` generated images, drawn without replacement, for each real training image.

    `limit` says how many real ones take part, as in `training_rows`. The generated ones stand in the train split, and
    column `synthetic` says which they are. UserError if there are too few, or if one has no diagnosis.
    """
    training = len(training_rows(records.table, limit, seed))
    count = round(ratio * training)
    if not 0 < count <= len(synthetic.table):
        raise UserError(
            f"--synthetic_ratio {ratio:g}: of {training:,} real training images it asks for {count:,} generated ones, "
            f"and {synthetic.name} has {len(synthetic.table):,}"
        )
    unlabelled = synthetic.table["melanoma"] < 0
    if unlabelled.any():
        first = synthetic.table["image_id"][unlabelled].iloc[0]
        raise UserError(f"{synthetic.name}: {first} was made without a diagnosis, so nothing can be learned from it")
    rows = np.sort(np.random.default_rng(seed).permutation(len(synthetic.table))[:count])
    added = synthetic.select(np.isin(np.arange(len(synthetic.table)), rows))
    table = pd.concat([records.table.assign(synthetic="false"), added.table], ignore_index=True)
    for name in records.table.columns.difference(["age", "ita"]):
        table[name] = table[name].fillna(UNKNOWN)
    check_unique(table["image_id"], "image", f"{records.name} with {synthetic.name}")
    images = datasets.concatenate_datasets([records.images, added.images])
    skipped = pd.concat([records.skipped, synthetic.skipped], ignore_index=True)
    return Records(records.name, images, table[[*records.table.columns, "synthetic"]], skipped)


def _with_splits(records: Records, split_manifest: str | None) -> Records:
    table = records.table
    if (is_synthetic(table) & (table["split"] != "train")).any():
        raise UserError(
            f"{records.name}: synthetic images stand outside the train split; scores on them are not honest"
        )
    if split_manifest:
        manifest = read_manifest(split_manifest).set_index("image_id")
        absent = ~table["image_id"].isin(manifest.index)
        if absent.any():
            raise UserError(
                f"{split_manifest}: image {table['image_id'][absent].iloc[0]} of {records.name} is not in it"
            )
        if (nameless := manifest["lesion_id"].map(is_missing)).any():
            raise UserError(
                f"{split_manifest}: image {manifest.index[nameless][0]} has no lesion there, so that all such images "
                "would be one; leave the flag out, or give the manifest of another run"
            )
        table["split"] = table["image_id"].map(manifest["split"])
        table["lesion_id"] = table["image_id"].map(manifest["lesion_id"])
    else:
        table["split"] = _complete_splits(table)
    check_disjoint(table["lesion_id"], table["split"], split_manifest or records.name)
    return records


def _complete_splits(table: pd.DataFrame) -> np.ndarray:
    """The data set's own splits; a missing test or validation split is taken from train, by lesion.

    Synthetic images stay in train.
    """
    split = table["split"].to_numpy(dtype=object)
    missing = [name for name in ("test", "validation") if name not in set(split)]
    rows = (split == "train") & ~is_synthetic(table)
    if not missing or not rows.any():
        return split
    lesions = table["lesion_id"].to_numpy()[rows]
    strata = lesion_strata(lesions, table["melanoma"].to_numpy()[rows], table["fitzpatrick"].to_numpy()[rows])
    made = fold_split(assign_folds(lesions, strata))
    if len(missing) == 2:
        split[rows] = made
    else:
        split[rows] = np.where(made == missing[0], missing[0], "train")
    return split
