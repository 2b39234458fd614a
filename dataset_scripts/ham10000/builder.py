"""The builder of HAM10000, from a folder of raw files."""

import collections
import os
from typing import Any

import datasets
import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import READ_ERRORS, UserError
from melanoma_fair_xai.base.images import open_image

from ..builder import LesionBuilder, LesionConfig
from ..downloads import download
from ..prepare import summarise
from ..raw_files import image_problem, index_files, inspect_files, read_bytes
from ..schema import SKIPPED_COLUMNS, SKIPPED_NAME, UNKNOWN
from ..skin_colour import measure_ita
from ..sources import SOURCES
from ..splits import join_lesions, manifest_hash
from .metadata import DIAGNOSES, DIAGNOSIS_NAMES, TEST_SPLIT, plain_id, read_metadata

# Images of one lesion under two lesion ids, found by Abhishek, Jain and Hamarneh (2025).
DUPLICATE_PAIRS = (
    ("ISIC_0033481", "ISIC_0033421"),
    ("ISIC_0033556", "ISIC_0032634"),
    ("ISIC_0029152", "ISIC_0033173"),
    ("ISIC_0029036", "ISIC_0027027"),
    ("ISIC_0027820", "ISIC_0028209"),
    ("ISIC_0027689", "ISIC_0032647"),
    ("ISIC_0030906", "ISIC_0024879"),
    ("ISIC_0033391", "ISIC_0034186"),
    ("ISIC_0025226", "ISIC_0030074"),
    ("ISIC_0026087", "ISIC_0025664"),
    ("ISIC_0024736", "ISIC_0029748"),
    ("ISIC_0024770", "ISIC_0027811"),
    ("ISIC_0027162", "ISIC_0029061"),
    ("ISIC_0024602", "ISIC_0032283"),
    ("ISIC_0029625", "ISIC_0024629"),
    ("ISIC_0030000", "ISIC_0031392"),
    ("ISIC_0024437", "ISIC_0031299"),
    ("ISIC_0033374", "ISIC_0033417"),
)

DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
DATAVERSE_FILES = {  # name: (file and query, md5)
    "HAM10000_images_part_1.zip": ("3172585", "4639bfa73ab251610530a97c898e6e46"),
    "HAM10000_images_part_2.zip": ("3172584", "da43d6cc50f6613013be07e8986b384b"),
    "HAM10000_metadata.csv": ("4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    "HAM10000_segmentations_lesion_tschandl.zip": ("3838943", "6e8d252e09cfdb0189199f15985a5b84"),
}

MASK_SUFFIX = "_SEGMENTATION"
MELANOMA = "mel"

CARD = """
# HAM10000

Dermoscopic images of pigmented skin lesions, with lesion masks where they were at hand. `melanoma` is the diagnosis
`mel` against all others. `fitzpatrick` is `unknown` throughout.

{diagnoses}

`lesion_id` joins the {pairs} pairs of images that Abhishek et al. (2025) found to show one lesion under two ids, so
there are fewer ids than the 7,470 that were published. Age, sex and localization are as published; some ages are 0,
where the ISIC archive states none. `dx_type` says how the diagnosis was confirmed: every melanoma here by
histopathology, other lesions often not, so it may select images and must never be a model's input.

`ita` is the individual typology angle in degrees, `arctan2(L* - 50, b*)`, of the skin outside the lesion mask; empty
without a mask or enough skin. It is a covariate of the photograph, light and white balance included, over 90 where
skin looks bluish, and not a Fitzpatrick type.
""".format(
    diagnoses="\n".join(f"- `{name}`: {text}" for name, text in DIAGNOSIS_NAMES.items()), pairs=len(DUPLICATE_PAIRS)
)


class HAM10000(LesionBuilder):
    """HAM10000 from a folder of raw files; the README says which layouts. Split `isic2018_test` where it is there."""

    source = SOURCES["ham10000"]
    diagnoses = DIAGNOSES
    own_columns = {"dx_type": datasets.Value("string"), "ita": datasets.Value("float32")}
    stratify_by = ("diagnosis", "fitzpatrick")

    def scan(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        folder = self.config.data_dir
        if folder is None:
            raise UserError("HAM10000 is not downloaded by itself: name the folder of its raw files with --data_dir")
        images, masks = _index_images(folder)
        records = read_metadata(folder, images)
        pairs = _lesion_pairs(records)
        # What the publisher counts as lesions, before duplicates are joined: for comparing with the paper's numbers.
        self.published = records[["image_id", "lesion_id", "diagnosis", "split"]]
        files = {
            column: [_one_file(found.get(name, [])) for name in records["image_id"]]
            for column, found in (("image", images), ("mask", masks))
        }
        records = records.assign(
            lesion_id=join_lesions(records["lesion_id"], pairs),
            melanoma=np.where(records["diagnosis"] == MELANOMA, "melanoma", "benign"),
            fitzpatrick=UNKNOWN,
            **{column: pd.Series(references, dtype=object) for column, references in files.items()},
        )
        return _drop_unusable(records, self.num_proc)

    def card_text(self) -> str:
        return CARD

    @staticmethod
    def make_example(config: LesionConfig, row: dict[str, Any]) -> dict[str, Any]:
        example = LesionBuilder.make_example(config, row)
        mask = example["mask"]
        return {**example, "ita": measure_ita(example["image"]["bytes"], mask and mask["bytes"])}


# --- what lies in the folder -----------------------------------------------------------------------------------------


def _index_images(folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """References to images and to masks, each by image id."""
    images, masks = collections.defaultdict(list), collections.defaultdict(list)
    for stem, references in index_files(folder).items():
        name = plain_id(stem)
        (masks if name.endswith(MASK_SUFFIX) else images)[name.removesuffix(MASK_SUFFIX)] += references
    return images, masks


def _one_file(references: list[str]) -> str | None:
    """The file to use where a folder holds several of one name, as Kaggle's does: copies are one file.

    Raises UserError where whole images of one name differ: no rule could tell which is meant.
    """
    if len(references) < 2:
        return references[0] if references else None
    if len({_content(reference) for reference in references}) == 1:
        return references[0]
    whole = {_content(reference): reference for reference in references if not image_problem(reference)}
    if len(whole) > 1:
        first, second = list(whole.values())[:2]
        raise UserError(f"{first} and {second} are different images of one name; keep the one that you mean")
    return next(iter(whole.values()), references[0])


def _content(reference: str) -> bytes | None:
    """A file's content, None if it cannot be read."""
    try:
        return read_bytes(reference)
    except READ_ERRORS:
        return None


def _lesion_pairs(records: pd.DataFrame) -> list[tuple[str, str]]:
    """The lesion ids of the known duplicate pairs."""
    lesion = dict(zip(records["image_id"], records["lesion_id"], strict=True))
    return [(lesion[a], lesion[b]) for a, b in DUPLICATE_PAIRS if a in lesion and b in lesion]


def _drop_unusable(records: pd.DataFrame, num_proc: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(records without missing and damaged images, what was dropped); a mask that does not fit becomes None."""
    files = list(zip(records["image"], records["mask"], strict=True))
    problems = pd.DataFrame(
        inspect_files(_file_problems, files, num_proc), columns=["image", "mask"], index=records.index
    )
    kept, misfit = problems["image"] == "", problems["mask"] != ""
    skipped = [
        records.assign(file=records[column].fillna(""), reason=prefix + problems[column]).loc[rows, SKIPPED_COLUMNS]
        for column, rows, prefix in (("image", ~kept, ""), ("mask", misfit, "mask: "))
    ]
    masks = records["mask"].mask(misfit, None)
    return records.assign(mask=masks)[kept], pd.concat(skipped, ignore_index=True)


def _file_problems(files: tuple[str | None, str | None]) -> tuple[str, str]:
    """Why an image cannot be used, and why its mask cannot, "" where it can or there is none."""
    image, mask = files
    problem = image_problem(image) if image else "no image file"
    if problem or not mask:
        return problem or "", ""
    problem = image_problem(mask)
    if problem:
        return "", problem
    mask_size, image_size = (open_image(read_bytes(reference)).size for reference in (mask, image))
    return "", "" if mask_size == image_size else f"its size {mask_size} is not the image's {image_size}"


# --- what its command does -------------------------------------------------------------------------------------------


def download_raw(folder: str) -> None:
    """Fetch the images, metadata and masks that the folder lacks, resumed where interrupted and verified by MD5."""
    os.makedirs(folder, exist_ok=True)
    for name, (query, md5) in DATAVERSE_FILES.items():
        download(f"{DATAVERSE}/{query}", os.path.join(folder, name), md5)


def report(builder: HAM10000) -> str:
    """What a builder has prepared: counts to check against the publication, splits, and how many rows were skipped."""
    manifest = builder.manifest
    published = builder.published[builder.published["image_id"].isin(manifest["image_id"])]
    published = published[published["split"] == ""]
    groups = manifest[manifest["split"] != TEST_SPLIT]["lesion_id"].nunique()
    joined = f"{groups:,} groups to split by, after joining {len(_lesion_pairs(published))} pairs of known duplicates"
    splits = [
        f"  {name}: {len(part):,} images, {part['lesion_id'].nunique():,} groups"
        for name, part in manifest.groupby("split", sort=False)
    ]
    skipped = f"{len(builder.skipped):,} rows in {SKIPPED_NAME}; split manifest {manifest_hash(manifest)[:16]}"
    return "\n".join([summarise(published), joined, *splits, skipped])
