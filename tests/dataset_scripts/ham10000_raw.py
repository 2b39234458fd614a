"""Small raw folders of HAM10000 with drawn images, in every layout that it is published in."""

import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageFilter

from dataset_scripts.ham10000 import HAM10000
from dataset_scripts.ham10000.metadata import ISIC_CONFIRMATIONS, ISIC_DIAGNOSES

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
LABELS = ["nv", "mel", "bkl"]
CHALLENGE = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
SIZE = (40, 30)


def draw_image(seed: int, size: tuple = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=75)
    return stream.getvalue()


def draw_mask(size: tuple = SIZE) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.arange(size[0] * size[1]).reshape(size[::-1]) % 3 == 0).save(stream, "PNG")
    return stream.getvalue()


def metadata(n_lesions: int = 24) -> list[dict]:
    """Two images a lesion, ids as published."""
    return [
        {
            "lesion_id": f"HAM_{lesion:07d}",
            "image_id": f"ISIC_{24400 + 2 * lesion + view:07d}",
            "dx": LABELS[lesion % 3],
            "dx_type": "histo" if lesion % 3 == 1 else "follow_up",
            "age": "" if lesion == 5 else "45.0",
            "sex": ["male", "female", ""][lesion % 3],
            "localization": "back" if lesion % 2 else "",
        }
        for lesion in range(n_lesions)
        for view in range(2)
    ]


ROWS = metadata()
IMAGES = {row["image_id"]: draw_image(number) for number, row in enumerate(ROWS)}
MASKS = {name: draw_mask() for name in IMAGES}


def write_table(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_files(folder: Path, files: dict[str, bytes], suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(content)


def write_zip(path: Path, files: dict[str, bytes], suffix: str, inner: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{inner}{name}{suffix}", content)
            archive.writestr(f"__MACOSX/{inner}._{name}{suffix}", b"resource fork")


def halves() -> tuple[dict, dict]:
    names = list(IMAGES)
    return tuple({name: IMAGES[name] for name in part} for part in (names[:20], names[20:]))


def isic_rows() -> list[dict]:
    label = {value: key for key, value in ISIC_DIAGNOSES.items()}
    confirmation = {value: key for key, value in ISIC_CONFIRMATIONS.items()}
    rows = [
        {
            "isic_id": row["image_id"],
            "lesion_id": row["lesion_id"].replace("HAM", "IL"),
            "diagnosis_1": "Benign",
            "diagnosis_2": "a group",
            "diagnosis_3": label[row["dx"]],
            "diagnosis_confirm_type": confirmation[row["dx_type"]],
            "age_approx": row["age"],
            "sex": row["sex"],
            "anatom_site_general": row["localization"],
        }
        for row in ROWS
    ]
    # The archive exports the challenge's test images along.
    return [*rows, {**rows[0], "isic_id": "ISIC_0035000", "diagnosis_3": "Melanoma in situ"}]


# --- layouts ---------------------------------------------------------------------------------------------------------


def dataverse_zips(raw: Path) -> None:
    for number, part in enumerate(halves(), start=1):
        write_zip(raw / f"HAM10000_images_part_{number}.zip", part, ".jpg")
    write_zip(raw / "HAM10000_segmentations_lesion_tschandl.zip", MASKS, "_segmentation.png", "masks/")
    rows = [{**row, "dataset": "vidir_modern"} for row in ROWS]
    write_table(raw / "HAM10000_metadata", rows)


def part_folders(raw: Path) -> None:
    for number, part in enumerate(halves(), start=1):
        write_files(raw / f"HAM10000_images_part_{number}", part, ".jpg")
    write_files(raw / "HAM10000_segmentations_lesion_tschandl", MASKS, "_segmentation.png")
    write_table(raw / "HAM10000_metadata.tab", ROWS, delimiter="\t")


def flat(raw: Path) -> None:
    write_files(raw, IMAGES, ".jpg")
    write_files(raw, MASKS, "_segmentation.png")
    write_table(raw / "HAM10000_metadata.csv", ROWS)


def kaggle(raw: Path) -> None:
    for number, part in enumerate(halves(), start=1):
        write_files(raw / f"HAM10000_images_part_{number}", part, ".jpg")
        write_files(raw / f"ham10000_images_part_{number}", part, ".jpg")
    write_table(raw / "HAM10000_metadata.csv", ROWS)
    write_table(raw / "hmnist_8_8_L.csv", [{"pixel0000": 1, "label": 2}])


def kaggle_zip(raw: Path) -> None:
    kaggle(raw / "unpacked")
    files = [path for path in (raw / "unpacked").rglob("*") if path.is_file()]
    with zipfile.ZipFile(raw / "archive.zip", "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(raw / "unpacked"))
    for path in files:
        path.unlink()


def isic_archive(raw: Path) -> None:
    write_zip(raw / "ISIC-images.zip", IMAGES, ".jpg", "HAM10000/")
    write_table(raw / "ham10000_metadata_2026-01-01.csv", isic_rows())


def two_tables(raw: Path) -> None:
    flat(raw)
    write_table(raw / "isic_archive_metadata.csv", isic_rows()[3:])


def respelled(raw: Path) -> None:
    """Ids with a suffix, files in lower case, and a table as Excel saves its "Unicode text"."""
    write_files(raw, {name.lower(): content for name, content in IMAGES.items()}, ".JPG")
    write_files(raw, {name.lower(): content for name, content in MASKS.items()}, "_segmentation.png")
    rows = [{**row, "image_id": f"{row['image_id'].title()}.jpg"} for row in ROWS]
    write_table(raw / "HAM10000_metadata.csv", rows, delimiter="\t")
    text = (raw / "HAM10000_metadata.csv").read_text()
    (raw / "HAM10000_metadata.csv").write_bytes(text.encode("utf-16"))


LAYOUTS = [dataverse_zips, part_folders, flat, kaggle, kaggle_zip, isic_archive, two_tables, respelled]


def build(raw: Path, cache: Path, **kwargs) -> tuple[HAM10000, datasets.DatasetDict]:
    builder = HAM10000(data_dir=str(raw), cache_dir=str(cache), **kwargs)
    builder.download_and_prepare()
    return builder, builder.as_dataset()


def by_id(splits: datasets.DatasetDict) -> dict[str, dict]:
    return {row["image_id"]: {**row, "split": name} for name, rows in splits.items() for row in rows}


def command(*arguments, **kwargs) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "dataset_scripts.ham10000", *map(str, arguments)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, **kwargs)
