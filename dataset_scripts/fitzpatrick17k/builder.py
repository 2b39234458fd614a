"""The builder of Fitzpatrick17k, from a folder with its annotations and images."""

import dataclasses
import os
from collections.abc import Sequence

import datasets
import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import file_digest
from melanoma_fair_xai.base.tables import markdown_table

from ..builder import LesionBuilder, LesionConfig
from ..duplicates import clusters_report, duplicate_clusters, near_duplicates, read_duplicates
from ..raw_files import index_files
from ..schema import SKIPPED_COLUMNS, UNKNOWN
from ..sources import SOURCES
from ..splits import join_lesions
from .annotations import DIAGNOSES, read_annotations
from .configurations import ANNOTATIONS_NAME, CONFIGURATIONS, DEFAULT_CONFIGURATION
from .images import inspect_images

COVERAGE_NAME, CLUSTERS_NAME = SOURCES["fitzpatrick17k"].tables


CARD = """
# Fitzpatrick17k, local copy

**For local use only: do not upload this folder.** The images belong to the atlases dermaamin.com and
atlasdermatologico.com.br; only the annotations carry a licence, and only they may be published.

Configuration `{name}`: {description}. `melanoma` is the nine-part label "malignant melanoma". {excluded} rows are left
out because their label is known to be wrong: images that the atlas shows under malignant lymphoma, and those that
dermatologists found wrongly labelled (column qc). Age, sex and localization are not recorded. `source` is the atlas,
which goes along with skin type: a known confounder.
{modified}
`lesion_id` is a cluster of near-identical images ({origin}): {clusters:,} clusters hold {clustered:,} images, see
`{clusters_name}`.

## Coverage

What could be had is not the published population: images are missing host by host, and so label by label and type by
type. `{coverage_name}` has skin type by label.

{coverage}
"""
MODIFIED = """
**{count:,} images are modified**: their MD5 is not that of the image that was annotated (`--allow_modified_images`),
so whether they show what the annotation says was not verified.
"""


@dataclasses.dataclass
class Fitzpatrick17kConfig(LesionConfig):
    """`allow_modified_images` takes images whose MD5 is not their name; `duplicates` names a list of known ones."""

    allow_modified_images: bool = False
    duplicates: str | None = None


class Fitzpatrick17k(LesionBuilder):
    """Fitzpatrick17k from a folder with `fitzpatrick17k.csv` and images named <md5hash>.jpg, in folders or zips.

    Rows whose label is known to be wrong are left out and listed in `skipped.csv`. After preparation the folder also
    holds `coverage.csv` (what share of the rows has an image, by skin type and label) and `duplicate_clusters.csv`.
    """

    BUILDER_CONFIG_CLASS = Fitzpatrick17kConfig
    BUILDER_CONFIGS = [
        Fitzpatrick17kConfig(name=name, description=text, version=LesionBuilder.VERSION)
        for name, (text, _) in CONFIGURATIONS.items()
    ]
    DEFAULT_CONFIG_NAME = DEFAULT_CONFIGURATION
    source = SOURCES["fitzpatrick17k"]
    diagnoses = DIAGNOSES

    def __init__(
        self, config_name: str | None = None, *, duplicates: str | None = None, hash: str | None = None, **kwargs
    ):
        if duplicates is not None:
            duplicates = os.path.abspath(os.path.expanduser(duplicates))
            if not os.path.isfile(duplicates):
                raise UserError(f"{duplicates}: no such file; give --duplicates a CSV table, or leave it out")
            hash = f"{hash}{file_digest(duplicates)}"
            kwargs["duplicates"] = duplicates
        super().__init__(config_name=config_name, hash=hash, **kwargs)
        self.excluded: pd.DataFrame | None = None
        self.coverage: pd.DataFrame | None = None
        self.clusters: pd.DataFrame | None = None
        self.modified = 0

    def scan(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        config = self.config
        if config.data_dir is None:
            raise UserError(f"Fitzpatrick17k: name the folder of {ANNOTATIONS_NAME} and the images with --data_dir")
        annotations = read_annotations(os.path.join(config.data_dir, ANNOTATIONS_NAME))
        pairs = read_duplicates(config.duplicates, set(annotations["image_id"])) if config.duplicates else None
        _, chosen = CONFIGURATIONS[config.name]
        rows = annotations[chosen(annotations)]
        self.excluded = rows[rows["excluded"] != ""]
        rows = rows[rows["excluded"] == ""].reset_index(drop=True)

        found = index_files(config.data_dir)
        files = inspect_images(rows["image_id"], found, config.allow_modified_images, num_proc=self.num_proc)
        usable, there = files["problem"] == "", files["file"] != ""
        self.coverage = rows.assign(had=usable)
        self.modified = int(files["modified"].sum())
        print(coverage_report(self.coverage), flush=True)
        if not there.any():
            raise UserError(
                f"{config.data_dir}: not one of the {len(rows):,} images is there; put them there as <md5hash>.jpg, "
                "in folders or a zip, or fetch what the hosts still have with --download"
            )
        ids = files["image_id"][usable].to_numpy()
        if pairs is None:
            pairs = [(ids[i], ids[j]) for i, j in near_duplicates(list(files["hash"][usable]))]
        records = rows[usable].assign(
            lesion_id=join_lesions(ids, pairs),
            image=files["file"],
            mask=None,
            age=None,
            sex=UNKNOWN,
            localization=UNKNOWN,
            split="",
        )
        self.clusters = duplicate_clusters(records)
        print(clusters_report(self.clusters), flush=True)
        damaged = files[there & ~usable].rename(columns={"problem": "reason"})
        return records.reset_index(drop=True), damaged[SKIPPED_COLUMNS].reset_index(drop=True)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        generators = super()._split_generators(dl_manager)
        # Only now: what is left out on purpose is no sign of a damaged folder and must not count towards its share.
        known_wrong = self.excluded.assign(file="").rename(columns={"excluded": "reason"})
        self.skipped = pd.concat([self.skipped, known_wrong[SKIPPED_COLUMNS]], ignore_index=True)
        return generators

    def _download_and_prepare(self, *args, **kwargs):
        super()._download_and_prepare(*args, **kwargs)
        self._write_table(coverage_by(self.coverage, ["fitzpatrick", "diagnosis"]), COVERAGE_NAME)
        self._write_table(self.clusters, CLUSTERS_NAME)

    def card_text(self) -> str:
        config = self.config
        return CARD.format(
            name=config.name,
            description=CONFIGURATIONS[config.name][0],
            excluded=len(self.excluded),
            modified=MODIFIED.format(count=self.modified) if config.allow_modified_images else "",
            origin="from a given list" if config.duplicates else "by a perceptual hash",
            clusters=len(self.clusters),
            clustered=int(self.clusters["images"].sum()),
            clusters_name=CLUSTERS_NAME,
            coverage_name=COVERAGE_NAME,
            coverage=coverage_markdown(self.coverage),
        )


# --- what is told ----------------------------------------------------------------------------------------------------


def coverage_by(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """How many of the annotated rows have an image: `columns`, rows, images, share. `rows` has a bool column `had`."""
    table = rows.groupby(list(columns), as_index=False).agg(rows=("had", "size"), images=("had", "sum"))
    return table.assign(share=(table["images"] / table["rows"]).round(4))


COVERAGE_TITLES = {"fitzpatrick": "skin type", "melanoma": "target", "source": "host", "diagnosis": "label"}


def coverage_report(rows: pd.DataFrame) -> str:
    """Coverage as lines of text, by skin type, target, host and label."""
    lines = [f"coverage: {rows['had'].sum():,} of {len(rows):,} images"]
    for column, title in COVERAGE_TITLES.items():
        for row in coverage_by(rows, [column]).itertuples(index=False):
            lines.append(f"  {title} {row[0]}: {row.images:,} of {row.rows:,} ({row.share:.0%})")
    return "\n".join(lines)


def coverage_markdown(rows: pd.DataFrame) -> str:
    """Coverage as one Markdown table, by skin type, target, host and label."""
    lines = []
    for column, title in COVERAGE_TITLES.items():
        for row in coverage_by(rows, [column]).itertuples(index=False):
            lines.append([title, row[0], f"{row.rows:,}", f"{row.images:,}", f"{row.share:.1%}"])
    return markdown_table(["", "", "rows", "images", "share"], lines)
