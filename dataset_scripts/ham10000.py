"""HAM10000: 10,015 dermoscopic images of 7,470 pigmented lesions, from any of the forms in which people have it.

As a command, `python -m dataset_scripts.ham10000 --data_dir RAW --output_dir data/ham10000` writes Parquet that
`load_dataset("data/ham10000")` reads; `HAM10000(data_dir=RAW)` is the builder; under datasets 3.6 this file is also a
loading script.
"""

import hashlib
import io
import os

import datasets
import numpy as np
import pandas as pd
import PIL.Image

from melanoma_fair_xai.base.errors import READ_ERRORS, UserError, run_command

from .builder import (
    SKIPPED_NAME,
    LesionBuilder,
    check_output_dir,
    command_parser,
    next_step,
    prepare_parquet,
    summarise,
)
from .common import UNKNOWN, find_problems, image_problem, index_files, read_bytes, record_features
from .downloads import download
from .ham10000_metadata import DIAGNOSES, DIAGNOSIS_NAMES, TEST_SPLIT, read_metadata
from .publishing import add_push_flags, check_dataset_push, push_dataset
from .skin_colour import measure_ita
from .splits import join_lesions, manifest_hash

HOMEPAGE = "https://doi.org/10.7910/DVN/DBW86T"
LICENSE = "cc-by-nc-4.0"
CITATION = """\
@article{tschandl2018ham10000,
  title = {The {HAM10000} dataset, a large collection of multi-source dermatoscopic images of common pigmented skin lesions},
  author = {Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  journal = {Scientific Data}, volume = {5}, pages = {180161}, year = {2018}, doi = {10.1038/sdata.2018.161}
}
@article{tschandl2020masks,
  title = {Human-computer collaboration for skin cancer recognition},
  author = {Tschandl, Philipp and others},
  journal = {Nature Medicine}, volume = {26}, pages = {1229--1234}, year = {2020}, doi = {10.1038/s41591-020-0942-0}
}
@article{abhishek2025duplicates,
  title = {Investigating the quality of {DermaMNIST} and {Fitzpatrick17k} dermatological image datasets},
  author = {Abhishek, Kumar and Jain, Aditi and Hamarneh, Ghassan},
  journal = {Scientific Data}, volume = {12}, pages = {196}, year = {2025}, doi = {10.1038/s41597-025-04382-5}
}"""  # noqa: E501

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

MASK_SUFFIX = "_segmentation"
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

    stratify_by = ("diagnosis", "fitzpatrick")
    pretty_name = "HAM10000"
    about = (
        "Dermoscopic images of pigmented lesions from the Medical University of Vienna and a skin cancer practice in "
        "Queensland, Australia, gathered over twenty years with several dermatoscopes and from digitised slides; the "
        "publishers cropped them and corrected the colours of some. Diagnoses were confirmed by histopathology (all "
        "melanomas and about half of the images), by follow-up, by experts' consensus or by confocal microscopy. No "
        "skin types are recorded, and there is almost no dark skin."
    )
    tags = (*LesionBuilder.tags, "dermoscopy")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Dermoscopic images of common pigmented skin lesions (HAM10000).",
            features=record_features(
                DIAGNOSES, extra={"dx_type": datasets.Value("string"), "ita": datasets.Value("float32")}
            ),
            homepage=HOMEPAGE,
            license=LICENSE,
            citation=CITATION,
        )

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
        return _drop_unusable(records)

    def _generate_examples(self, records: list[dict]):
        for name, example in super()._generate_examples([{**row, "ita": None} for row in records]):
            mask = example["mask"]
            yield name, {**example, "ita": measure_ita(example["image"]["bytes"], mask and mask["bytes"])}


# --- what lies in the folder -----------------------------------------------------------------------------------------


def _index_images(folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """References to images and to masks, each by image id."""
    images, masks = {}, {}
    for stem, references in index_files(folder).items():
        if stem.endswith(MASK_SUFFIX):
            masks[stem.removesuffix(MASK_SUFFIX)] = references
        else:
            images[stem] = references
    return images, masks


def _one_file(references: list[str]) -> str | None:
    """The file to use where a folder holds several of one name, as Kaggle's does: copies are one file.

    Raises UserError where whole images of one name differ: no rule could tell which is meant.
    """
    if len(references) < 2:
        return references[0] if references else None
    if len({_digest(reference) for reference in references}) == 1:
        return references[0]
    whole = {_digest(reference): reference for reference in references if not image_problem(reference)}
    if len(whole) > 1:
        first, second = list(whole.values())[:2]
        raise UserError(f"{first} and {second} are different images of one name; keep the one that you mean")
    return next(iter(whole.values()), references[0])


def _digest(reference: str) -> bytes | None:
    """A hash of a file's content, None if it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(reference)).digest()
    except READ_ERRORS:
        return None


def _lesion_pairs(records: pd.DataFrame) -> list[tuple[str, str]]:
    """The lesion ids of the known duplicate pairs."""
    lesion = dict(zip(records["image_id"], records["lesion_id"], strict=True))
    return [(lesion[a], lesion[b]) for a, b in DUPLICATE_PAIRS if a in lesion and b in lesion]


def _drop_unusable(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(records without missing and damaged images, what was dropped); a mask that does not fit becomes None."""
    damaged = find_problems([file for file in records["image"] if file], "checking images")
    usable = np.array([bool(file) and file not in damaged for file in records["image"]], dtype=bool)
    dropped, kept = records[~usable], records[usable]
    image_of = {mask: image for mask, image in zip(kept["mask"], kept["image"], strict=True) if mask}
    misfits = find_problems(list(image_of), "checking masks", lambda mask: _mask_problem(mask, image_of[mask]))
    skipped = [
        *(
            (name, file or "", damaged.get(file, "no image file"))
            for name, file in dropped[["image_id", "image"]].values
        ),
        *((name, f, f"mask: {misfits[f]}") for name, f in kept[["image_id", "mask"]].values if f in misfits),
    ]
    masks = pd.Series([None if mask in misfits else mask for mask in kept["mask"]], index=kept.index, dtype=object)
    return kept.assign(mask=masks), pd.DataFrame(skipped, columns=["image_id", "file", "reason"])


def _mask_problem(mask: str, image: str) -> str | None:
    """Why a mask cannot be used, or None."""
    problem = image_problem(mask)
    if problem:
        return problem
    mask_size, image_size = (PIL.Image.open(io.BytesIO(read_bytes(reference))).size for reference in (mask, image))
    return None if mask_size == image_size else f"its size {mask_size} is not the image's {image_size}"


# --- the command -----------------------------------------------------------------------------------------------------


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


def main() -> None:
    parser = command_parser("Prepare HAM10000 as Parquet with splits by lesion.", "data/ham10000")
    parser.add_argument("--data_dir", required=True, help="folder of the raw files, zipped or not")
    parser.add_argument("--download", action="store_true", help="first fetch what is not there from Harvard Dataverse")
    add_push_flags(parser)
    args = parser.parse_args()
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    check_dataset_push(args)
    if args.download:
        download_raw(args.data_dir)
    builder = HAM10000(data_dir=args.data_dir, seed=args.seed, max_skipped_share=args.max_skipped_share)
    prepare_parquet(builder, args.output_dir, CARD, args.overwrite_output_dir, args.num_proc)
    print(report(builder))
    print(next_step(args.output_dir, "ham10000"))
    push_dataset(args)


if __name__ == "__main__":
    run_command(main)
