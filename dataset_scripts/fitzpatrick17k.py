"""Fitzpatrick17k: clinical photographs from two dermatology atlases, with skin types, for one's own use.

As a command, `python -m dataset_scripts.fitzpatrick17k --data_dir RAW --output_dir data/fitzpatrick17k` writes Parquet
that `load_dataset("data/fitzpatrick17k")` reads; `Fitzpatrick17k("original", data_dir=RAW)` is the builder; under
datasets 3.6 this file is also a loading script. The annotations may be published (`annotations_table`), the images
not: they belong to the atlases.
"""

import concurrent.futures
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import tqdm.auto

from .builder import LesionBuilder, LesionConfig, check_output_dir, command_parser, prepare_parquet
from .common import (
    READ_ERRORS,
    SKIN_TYPES,
    UNKNOWN,
    UserError,
    check_unique,
    image_content_problem,
    index_files,
    read_bytes,
    read_problem,
    read_table,
    record_features,
    run_command,
)
from .downloads import fetch_all, file_md5, host_of
from .duplicates import clusters_report, duplicate_clusters, near_duplicates, perceptual_hash, read_duplicates
from .splits import join_lesions

ANNOTATIONS_NAME = "fitzpatrick17k.csv"
COVERAGE_NAME = "coverage.csv"
CLUSTERS_NAME = "duplicate_clusters.csv"
FAILURES_NAME = "download_failures.csv"

HOMEPAGE = "https://github.com/mattgroh/fitzpatrick17k"
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

DIAGNOSES = re.split(
    r";\s",
    """\
acanthosis nigricans; acne; acne vulgaris; acquired autoimmune bullous diseaseherpes gestationis;
acrodermatitis enteropathica; actinic keratosis; allergic contact dermatitis; aplasia cutis; basal cell carcinoma;
basal cell carcinoma morpheiform; becker nevus; behcets disease; calcinosis cutis; cheilitis; congenital nevus;
dariers disease; dermatofibroma; dermatomyositis; disseminated actinic porokeratosis; drug eruption;
drug induced pigmentary changes; dyshidrotic eczema; eczema; ehlers danlos syndrome; epidermal nevus;
epidermolysis bullosa; erythema annulare centrifigum; erythema elevatum diutinum; erythema multiforme;
erythema nodosum; factitial dermatitis; fixed eruptions; folliculitis; fordyce spots; granuloma annulare;
granuloma pyogenic; hailey hailey disease; halo nevus; hidradenitis; ichthyosis vulgaris; incontinentia pigmenti;
juvenile xanthogranuloma; kaposi sarcoma; keloid; keratosis pilaris; langerhans cell histiocytosis; lentigo maligna;
lichen amyloidosis; lichen planus; lichen simplex; livedo reticularis; lupus erythematosus; lupus subacute;
lyme disease; lymphangioma; malignant melanoma; melanoma; milia; mucinosis; mucous cyst; mycosis fungoides; myiasis;
naevus comedonicus; necrobiosis lipoidica; nematode infection; neurodermatitis; neurofibromatosis;
neurotic excoriations; neutrophilic dermatoses; nevocytic nevus; nevus sebaceous of jadassohn;
papilomatosis confluentes and reticulate; paronychia; pediculosis lids; perioral dermatitis; photodermatoses;
pilar cyst; pilomatricoma; pityriasis lichenoides chronica; pityriasis rosea; pityriasis rubra pilaris;
porokeratosis actinic; porokeratosis of mibelli; porphyria; port wine stain; prurigo nodularis; psoriasis;
pustular psoriasis; pyogenic granuloma; rhinophyma; rosacea; sarcoidosis; scabies; scleroderma; scleromyxedema;
seborrheic dermatitis; seborrheic keratosis; solid cystic basal cell carcinoma; squamous cell carcinoma; stasis edema;
stevens johnson syndrome; striae; sun damaged skin; superficial spreading melanoma ssm; syringoma; telangiectases;
tick bite; tuberous sclerosis; tungiasis; urticaria; urticaria pigmentosa; vitiligo; xanthomas;
xeroderma pigmentosum""",
)
SKIN_TYPE_OF_SCALE = dict(zip(["1", "2", "3", "4", "5", "6", "-1"], SKIN_TYPES, strict=True))
MELANOMA_LABEL = "malignant melanoma"  # of the nine-part labels; one of the 114 labels has the same name
NINE_LABELS = [
    "benign dermal",
    "benign epidermal",
    "benign melanocyte",
    "genodermatoses",
    "inflammatory",
    "malignant cutaneous lymphoma",
    "malignant dermal",
    "malignant epidermal",
    MELANOMA_LABEL,
]
THREE_LABELS = ["benign", "malignant", "non-neoplastic"]
WRONGLY_LABELLED = "3 Wrongly labelled"  # the verdict (column qc) of the dermatologists who looked at 504 images
MD5 = re.compile("[0-9a-f]{32}")

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
    tags = (*LesionBuilder.tags, "fairness", "skin-tone")

    def __init__(
        self, config_name: str | None = None, *, duplicates: str | None = None, hash: str | None = None, **kwargs
    ):
        if duplicates is not None:
            duplicates = os.path.abspath(os.path.expanduser(duplicates))
            if not os.path.isfile(duplicates):
                raise UserError(f"{duplicates}: no such file; give --duplicates a CSV table, or leave it out")
            hash = f"{hash}{file_md5(duplicates)}"
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


# --- annotations -----------------------------------------------------------------------------------------------------


def read_annotations(path: str) -> pd.DataFrame:
    """The published annotations, in the schema's terms.

    Columns: image_id, diagnosis, melanoma ("" where excluded), fitzpatrick, source, nine_partition_label,
    three_partition_label, qc, url, and `excluded`: why the label is known to be wrong, "" where it is not.
    Raises UserError naming the line of an id that is no MD5 or stands twice, and of a label or type that is not known.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file\nget {ANNOTATIONS_NAME} from {HOMEPAGE} and put it there")
    allowed = {
        "fitzpatrick_scale": list(SKIN_TYPE_OF_SCALE),
        "label": DIAGNOSES,
        "nine_partition_label": NINE_LABELS,
        "three_partition_label": THREE_LABELS,
    }
    table = read_table(path, required=["md5hash", *allowed, "qc", "url"])
    _refuse(table, ~table["md5hash"].str.fullmatch(MD5), "md5hash", "32 hexadecimal digits", path)
    check_unique(table["md5hash"], "md5hash", path)
    for column, values in allowed.items():
        text = f"one of {', '.join(values)}" if len(values) < 10 else f"one of the {len(values)} labels"
        _refuse(table, ~table[column].isin(values), column, text, path)

    is_melanoma = table["nine_partition_label"] == MELANOMA_LABEL
    excluded = pd.Series("", index=table.index)
    excluded[is_melanoma & table["url"].str.contains("/malignant-lymphoma/", regex=False)] = (
        "labelled melanoma, but the atlas shows it under malignant lymphoma"
    )
    excluded[table["qc"] == WRONGLY_LABELLED] = f"qc: {WRONGLY_LABELLED}"
    return pd.DataFrame(
        {
            "image_id": table["md5hash"],
            "diagnosis": table["label"],
            "melanoma": np.where(excluded != "", "", np.where(is_melanoma, "melanoma", "benign")),
            "fitzpatrick": table["fitzpatrick_scale"].map(SKIN_TYPE_OF_SCALE),
            "source": table["url"].map(source_of),
            **{name: table[name] for name in ("nine_partition_label", "three_partition_label", "qc", "url")},
            "excluded": excluded,
        }
    )


def _refuse(table: pd.DataFrame, wrong: pd.Series, column: str, expected: str, path: str) -> None:
    if wrong.any():
        row = table[wrong].iloc[0]
        raise UserError(f"{path}, line {row['line']}: {column} {row[column]!r} is not {expected} ({wrong.sum()} such)")


def source_of(url: str) -> str:
    """The atlas that a URL points to, such as `dermaamin`; `unknown` where there is no URL."""
    return host_of(url).removeprefix("www.").partition(".")[0] or UNKNOWN


def annotations_table(annotations: pd.DataFrame, manifest: pd.DataFrame | None = None) -> pd.DataFrame:
    """What may be published: the annotations (see `read_annotations`) and never an image.

    With a split manifest (image_id, lesion_id, split), its two columns follow, empty for images that were not had.
    """
    if manifest is None:
        return annotations
    return annotations.merge(manifest[["image_id", "lesion_id", "split"]], on="image_id", how="left").fillna("")


# --- images ----------------------------------------------------------------------------------------------------------


def content_problem(image_id: str, content: bytes, allow_modified: bool) -> str:
    """Why bytes are not the image of that id, "" if they are: whole, and with the id as MD5 unless that is waived."""
    problem = image_content_problem(content)
    if problem:
        return problem
    if allow_modified or hashlib.md5(content).hexdigest() == image_id:
        return ""
    return f"modified: its md5 is {hashlib.md5(content).hexdigest()}, not its name; --allow_modified_images takes it"


class ImageFile(NamedTuple):
    """What was found of an image: `file` is "" where there is none, `problem` is "" where it is usable."""

    image_id: str
    file: str = ""
    problem: str = "missing"
    modified: bool = False
    hash: np.ndarray | None = None


def inspect_image(image_id: str, references: Sequence[str], allow_modified: bool, hashed: bool = True) -> ImageFile:
    """The first usable of an image's files, else the first; with its perceptual hash if `hashed`."""
    first = ImageFile(image_id)
    for reference in references:
        try:
            content = read_bytes(reference)
        except READ_ERRORS as error:
            problem = f"cannot be read ({read_problem(error)})"
        else:
            problem = content_problem(image_id, content, allow_modified)
        if not problem:
            modified = hashlib.md5(content).hexdigest() != image_id
            hash = perceptual_hash(PIL.Image.open(io.BytesIO(content))) if hashed else None
            return ImageFile(image_id, reference, "", modified, hash)
        first = first if first.file else ImageFile(image_id, reference, problem)
    return first


def inspect_images(
    image_ids: Sequence[str], index: Mapping[str, Sequence[str]], allow_modified: bool, hashed: bool = True
) -> pd.DataFrame:
    """`inspect_image` for many, on all cores; `index` is that of `index_files`. One row per id, in order."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: inspect_image(name, index.get(name, ()), allow_modified, hashed), image_ids)
        progress = tqdm.auto.tqdm(found, total=len(image_ids), desc="checking images", unit="image")
        return pd.DataFrame(list(progress), columns=ImageFile._fields)


def download_images(
    annotations: pd.DataFrame, folder: str, allow_modified: bool = False, requests_per_second: float = 2.0, **options
) -> pd.DataFrame:
    """Fetch what `folder` lacks into its `images/`, and write what could not be had to `download_failures.csv` there.

    Files that are there and whole are kept, so an interrupted download goes on where it stopped. `options` go to
    `fetch_all`. Returns the failures: image_id, url, reason.
    """
    files = inspect_images(annotations["image_id"], index_files(folder), allow_modified, hashed=False)
    lacking = annotations[(files["problem"] != "").to_numpy()]
    url_of = dict(zip(lacking["image_id"], lacking["url"], strict=True))
    failures = [(image_id, "", "the annotations give no URL") for image_id, url in url_of.items() if not url]
    wanted = {image_id: url for image_id, url in url_of.items() if url}
    print(f"{len(annotations) - len(lacking):,} images are there, {len(wanted):,} to fetch", flush=True)
    images = os.path.join(folder, "images")
    os.makedirs(images, exist_ok=True)
    try:
        for image_id, content, reason in fetch_all(wanted, requests_per_second=requests_per_second, **options):
            reason = reason or content_problem(image_id, content, allow_modified)
            if reason:
                failures.append((image_id, wanted[image_id], reason))
            else:
                _write_whole(os.path.join(images, f"{image_id}.jpg"), content)
    finally:
        table = pd.DataFrame(failures, columns=["image_id", "url", "reason"])
        _write_whole(os.path.join(folder, FAILURES_NAME), table.to_csv(index=False).encode())
    print(f"{len(url_of) - len(table):,} fetched; {len(table):,} could not be had, listed in {FAILURES_NAME}")
    return table


def _write_whole(path: str, content: bytes) -> None:
    with open(path + ".partial", "wb") as file:
        file.write(content)
    os.replace(path + ".partial", path)


# --- coverage --------------------------------------------------------------------------------------------------------


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
    parser = command_parser("Prepare Fitzpatrick17k as Parquet, for local use.", "data/fitzpatrick17k")
    parser.add_argument("--data_dir", required=True, help=f"folder of {ANNOTATIONS_NAME} and the images")
    parser.add_argument("--config_name", choices=list(CONFIGURATIONS), default=Fitzpatrick17k.DEFAULT_CONFIG_NAME)
    parser.add_argument("--download", action="store_true", help="fetch the images that are not there from the atlases")
    parser.add_argument("--requests_per_second", type=float, default=2.0, help="of --download (default: %(default)s)")
    parser.add_argument("--allow_modified_images", action="store_true", help="take images whose md5 is not their name")
    parser.add_argument("--duplicates", help="CSV of known duplicates: two columns of ids, or one and `cluster`")
    args = parser.parse_args()
    if args.requests_per_second <= 0:
        raise UserError(f"--requests_per_second {args.requests_per_second:g}: give more than 0")
    if args.download:
        check_output_dir(args.output_dir, args.overwrite_output_dir)
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
    print(f'\nwritten to {args.output_dir}, for local use only; read it with load_dataset("{args.output_dir}")')


if __name__ == "__main__":
    run_command(main)
