"""What the builders share: splitting, skipping and generating, whatever lies in the raw folder."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.flags import check_flags
from melanoma_fair_xai.base.processes import map_in_order
from melanoma_fair_xai.base.tables import write_csv

from .raw_files import content_hash, read_bytes
from .schema import SKIPPED_NAME, record_features
from .settings import SplitSettings
from .sources import Source
from .splits import MANIFEST_NAME, assign_folds, check_disjoint, fold_split, lesion_strata, write_manifest

SPLIT_ORDER = ["train", "validation", "test"]


@dataclasses.dataclass
class LesionConfig(SplitSettings, datasets.BuilderConfig):
    """What every data set can be asked."""


class LesionBuilder(datasets.GeneratorBasedBuilder):
    """A builder whose subclass says what lies in the raw folder; splits, skipping and the manifest are done here.

    A subclass defines `source`, `diagnoses` (the names of its labels), `scan` and `card_text`, and what it has beside
    the common record: `own_columns`, and `make_example` where an example is more than the files of its record. After
    preparation the folder also holds `split_manifest.csv` and `skipped.csv` (SKIPPED_COLUMNS).
    """

    BUILDER_CONFIG_CLASS = LesionConfig
    VERSION = datasets.Version("1.0.0")
    source: Source
    diagnoses: Sequence[str]
    own_columns: Mapping[str, Any] = {}
    stratify_by: tuple[str, ...] = ("melanoma", "fitzpatrick")
    num_proc = 1  # processes that look at files and make examples; the result is the same for any number

    def __init__(self, *args, data_dir: str | None = None, hash: str | None = None, **kwargs):
        if data_dir is not None:
            # The cache is keyed by the path alone; without the content, files changed in place would be served stale.
            data_dir = os.path.abspath(os.path.expanduser(data_dir))
            hash = hashlib.sha256(f"{hash}{content_hash(data_dir)}".encode()).hexdigest()[:16]
        super().__init__(*args, dataset_name=self.source.name, data_dir=data_dir, hash=hash, **kwargs)
        check_flags(self.config)
        self.records: pd.DataFrame | None = None
        self.manifest: pd.DataFrame | None = None
        self.skipped: pd.DataFrame | None = None

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=", ".join(filter(None, [self.source.title, self.config.description])),
            features=record_features(self.diagnoses, self.own_columns),
            homepage=self.source.homepage,
            license=self.source.licence,
            citation=self.source.citation,
        )

    def card_text(self) -> str:
        """The card's title, and what it says of this data set alone, once it is prepared."""
        raise NotImplementedError

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
        check_disjoint(records["lesion_id"], records["split"], self.source.name)
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

    @staticmethod
    def make_example(config: LesionConfig, row: dict[str, Any]) -> dict[str, Any]:
        """The example of a record: its columns, and files as their content. In a process of its own, if need be."""
        example = dict(row)
        for column in ("image", "mask"):
            reference = row[column]
            if isinstance(reference, str):
                # Bytes, not a path: the prepared data must not depend on where the raw files lay.
                example[column] = {"path": re.split(r"::|/", reference)[-1], "bytes": read_bytes(reference)}
        return example

    def _generate_examples(self, records: list[dict]):
        make = functools.partial(self.make_example, self.config)
        for example in map_in_order(make, records, self.num_proc):
            yield example["image_id"], {name: example[name] for name in self.info.features}

    def _download_and_prepare(self, *args, **kwargs):
        super()._download_and_prepare(*args, **kwargs)
        write_manifest(self.manifest, os.path.join(self._output_dir, MANIFEST_NAME))
        self._write_table(self.skipped, SKIPPED_NAME)

    def _write_table(self, table: pd.DataFrame, name: str) -> None:
        write_csv(table, os.path.join(self._output_dir, name))


def _split_rank(name: str) -> int:
    return SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER)
