"""Fitzpatrick17k: clinical photographs from two dermatology atlases, with skin types, for one's own use.

As a command, `python -m dataset_scripts.fitzpatrick17k --data_dir RAW --output_dir data/fitzpatrick17k` writes Parquet
that `load_dataset("data/fitzpatrick17k")` reads; `Fitzpatrick17k("original", data_dir=RAW)` is the builder; under
datasets 3.6 this file is also a loading script. The annotations may be published (`annotations_table`), the images
not: they belong to the atlases.
"""

import os
from collections.abc import Callable, Sequence

import datasets
import pandas as pd

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.files import file_digest

from .builder import LesionBuilder, LesionConfig, check_output_dir, command_parser, next_step, prepare_parquet
from .common import LOCAL_USE_ONLY, UNKNOWN, index_files, record_features
from .duplicates import clusters_report, duplicate_clusters, near_duplicates, read_duplicates
from .fitzpatrick17k_annotations import ANNOTATIONS_NAME, DIAGNOSES, HOMEPAGE, read_annotations
from .fitzpatrick17k_images import download_images, inspect_images
from .splits import join_lesions, manifest_hash

COVERAGE_NAME = "coverage.csv"
CLUSTERS_NAME = "duplicate_clusters.csv"

LICENSE = "cc-by-nc-sa-3.0"
CITATION = """\
@inproceedings{groh2021fitzpatrick17k,
  title = {Evaluating deep neural networks trained on clinical images in dermatology with the {Fitzpatrick} 17k dataset},
  author = {Groh, Matthew and Harris, Caleb and Soenksen, Luis and Lau, Felix and Han, Rachel and Kim, Aerin and
    Koochek, Arash and Badri, Omar},
  booktitle = {CVPR Workshops}, pages = {1820--1828}, year = {2021}
}
@article{abhishek2025duplicates,
  title = {Investigating the quality of {DermaMNIST} and {Fitzpatrick17k} dermatological image datasets},
  author = {Abhishek, Kumar and Jain, Aditi and Hamarneh, Ghassan},
  journal = {Scientific Data}, volume = {12}, pages = {196}, year = {2025}, doi = {10.1038/s41597-025-04382-5}
}"""  # noqa: E501

CONFIGURATIONS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "original": (
        "labels that contain melanoma or nevus (975 annotated rows): the subset of the first study",
        lambda rows: rows["diagnosis"].str.contains("melanoma|nevus"),
    ),
    "neoplastic": (
        "benign and malignant growths (4,497 annotated rows), without inflammatory and inherited conditions",
        lambda rows: rows["three_partition_label"] != "non-neoplastic",
    ),
    "all": ("all 16,577 annotated rows", lambda rows: pd.Series(True, index=rows.index)),
}


class Fitzpatrick17kConfig(LesionConfig):
    """`allow_modified_images` takes images whose MD5 is not their name; `duplicates` names a list of known ones."""

    def __init__(self, allow_modified_images: bool = False, duplicates: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.allow_modified_images = allow_modified_images
        self.duplicates = duplicates


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
    DEFAULT_CONFIG_NAME = "original"
    stratify_by = ("melanoma", "fitzpatrick")
    pretty_name = "Fitzpatrick17k"
    about = (
        "Clinical photographs from two online atlases, DermaAmin and Atlas Dermatologico, taken by unknown cameras "
        "under unknown conditions, of unknown patients. Labels are the atlases' own, no histopathology is on record, "
        "and two dermatologists who looked at about 3 % of the images found some wrong. Skin types were annotated "
        "from the photographs by a crowd, not by dermatologists, and say how skin looks there. Age, sex and body site "
        "are not recorded."
    )
    tags = (*LesionBuilder.tags, "fairness", "skin-tone", LOCAL_USE_ONLY)

    def __init__(
        self, config_name: str | None = None, *, duplicates: str | None = None, hash: str | None = None, **kwargs
    ):
        if duplicates is not None:
            duplicates = os.path.abspath(os.path.expanduser(duplicates))
            if not os.path.isfile(duplicates):
                raise UserError(f"{duplicates}: no such file; give --duplicates a CSV table, or leave it out")
            hash = f"{hash}{file_digest(duplicates, 'md5')}"
            kwargs["duplicates"] = duplicates
        super().__init__(config_name=config_name, hash=hash, **kwargs)
        self.excluded: pd.DataFrame | None = None
        self.coverage: pd.DataFrame | None = None
        self.clusters: pd.DataFrame | None = None
        self.modified = 0

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"Fitzpatrick17k, {CONFIGURATIONS[self.config.name][0]}.",
            features=record_features(DIAGNOSES),
            homepage=HOMEPAGE,
            license=LICENSE,
            citation=CITATION,
        )

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

        files = inspect_images(rows["image_id"], index_files(config.data_dir), config.allow_modified_images)
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
        return records.reset_index(drop=True), damaged[["image_id", "file", "reason"]].reset_index(drop=True)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        generators = super()._split_generators(dl_manager)
        # Only now: what is left out on purpose is no sign of a damaged folder and must not count towards its share.
        known_wrong = self.excluded.assign(file="").rename(columns={"excluded": "reason"})
        self.skipped = pd.concat([self.skipped, known_wrong[["image_id", "file", "reason"]]], ignore_index=True)
        return generators

    def _download_and_prepare(self, *args, **kwargs):
        super()._download_and_prepare(*args, **kwargs)
        table = coverage_by(self.coverage, ["fitzpatrick", "diagnosis"])
        table.to_csv(os.path.join(self._output_dir, COVERAGE_NAME), index=False)
        self.clusters.to_csv(os.path.join(self._output_dir, CLUSTERS_NAME), index=False)


# --- what is told and published --------------------------------------------------------------------------------------


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
    lines = ["| | | rows | images | share |", "|---|---|---|---|---|"]
    for column, title in COVERAGE_TITLES.items():
        for row in coverage_by(rows, [column]).itertuples(index=False):
            lines.append(f"| {title} | {row[0]} | {row.rows:,} | {row.images:,} | {row.share:.1%} |")
    return "\n".join(lines)


def annotations_table(annotations: pd.DataFrame, manifest: pd.DataFrame | None = None) -> pd.DataFrame:
    """What may be published: the annotations (see `read_annotations`) and never an image.

    With a split manifest (image_id, lesion_id, split), its two columns follow, empty for images that were not had.
    """
    if manifest is None:
        return annotations
    return annotations.merge(manifest[["image_id", "lesion_id", "split"]], on="image_id", how="left").fillna("")


# --- the command -----------------------------------------------------------------------------------------------------

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


def card_text(builder: Fitzpatrick17k) -> str:
    """What the card of a prepared builder says about this data set."""
    config = builder.config
    return CARD.format(
        name=config.name,
        description=CONFIGURATIONS[config.name][0],
        excluded=len(builder.excluded),
        modified=MODIFIED.format(count=builder.modified) if config.allow_modified_images else "",
        origin="from a given list" if config.duplicates else "by a perceptual hash",
        clusters=len(builder.clusters),
        clustered=int(builder.clusters["images"].sum()),
        clusters_name=CLUSTERS_NAME,
        coverage_name=COVERAGE_NAME,
        coverage=coverage_markdown(builder.coverage),
    )


def main() -> None:
    parser = command_parser(
        "Prepare Fitzpatrick17k as Parquet with splits by lesion, for local use.", "data/fitzpatrick17k"
    )
    parser.add_argument("--data_dir", required=True, help=f"folder of {ANNOTATIONS_NAME} and the images")
    parser.add_argument(
        "--config_name",
        choices=list(CONFIGURATIONS),
        default=Fitzpatrick17k.DEFAULT_CONFIG_NAME,
        help="which of the annotated rows (default: %(default)s)",
    )
    parser.add_argument("--download", action="store_true", help="first fetch what is not there from the atlases")
    parser.add_argument("--requests_per_second", type=float, default=2.0, help="of --download (default: %(default)s)")
    parser.add_argument("--allow_modified_images", action="store_true", help="take images whose MD5 is not their name")
    parser.add_argument(
        "--duplicates",
        help="CSV of known duplicates: two columns of ids, or one and `cluster` (default: found by a perceptual hash)",
    )
    args = parser.parse_args()
    if args.requests_per_second <= 0:
        raise UserError(f"--requests_per_second {args.requests_per_second:g}: give more than 0")
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    if args.download:
        annotations = read_annotations(os.path.join(args.data_dir, ANNOTATIONS_NAME))
        _, chosen = CONFIGURATIONS[args.config_name]
        wanted = annotations[chosen(annotations) & (annotations["excluded"] == "")]
        download_images(wanted, args.data_dir, args.allow_modified_images, args.requests_per_second)
    builder = Fitzpatrick17k(
        args.config_name,
        data_dir=args.data_dir,
        duplicates=args.duplicates,
        allow_modified_images=args.allow_modified_images,
        seed=args.seed,
        max_skipped_share=args.max_skipped_share,
    )
    prepare_parquet(builder, args.output_dir, card_text, args.overwrite_output_dir, args.num_proc)
    print(f"split manifest {manifest_hash(builder.manifest)[:16]}; for local use only")
    print(next_step(args.output_dir, "fitzpatrick17k"))


if __name__ == "__main__":
    run_command(main)
