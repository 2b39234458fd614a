"""Phantoms in the layouts in which people have the real data, so that commands for these run as they stand."""

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import pandas as pd
import PIL.Image

from dataset_scripts.phantom import Phantom

SKIN_SCALE = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "unknown": -1}
ATLAS = "https://phantom.example/"  # the source then says phantom, and every report that these are drawings


def write_inputs(folder: Path, cache: Path) -> None:
    """All that the pages take for granted: raw/ham10000, raw/fitzpatrick17k, clinic and photographs."""
    rows = draw(1, cache)
    write_ham10000(folder / "raw" / "ham10000", rows)
    write_clinic(folder / "clinic", rows)
    write_fitzpatrick17k(folder / "raw" / "fitzpatrick17k", draw(2, cache))
    (folder / "photographs").mkdir()
    for number, row in enumerate(rows[:3]):
        (folder / "photographs" / f"{number}.jpg").write_bytes(as_jpeg(row["image"]))


def draw(seed: int, cache: Path, number: int = 160) -> list[dict]:
    """Records of phantoms, with names for labels."""
    builder = Phantom(num_images=number, image_size=48, seed=seed, cache_dir=str(cache))
    builder.download_and_prepare()
    features = builder.info.features
    names = {c: features[c].names for c in ("diagnosis", "sex", "fitzpatrick")}
    rows = [row for split in builder.as_dataset().values() for row in split]
    return [row | {c: names[c][row[c]] for c in names} for row in rows]


def as_jpeg(image: PIL.Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_ham10000(folder: Path, rows: list[dict]) -> None:
    """As Harvard Dataverse has it: images and masks in zips beside the metadata."""
    folder.mkdir(parents=True)
    ids = [f"ISIC_{24400 + number:07d}" for number in range(len(rows))]
    with zipfile.ZipFile(folder / "HAM10000_images_part_1.zip", "w") as archive:
        for name, row in zip(ids, rows, strict=True):
            archive.writestr(f"{name}.jpg", as_jpeg(row["image"]))
    with zipfile.ZipFile(folder / "HAM10000_segmentations_lesion_tschandl.zip", "w") as archive:
        for name, row in zip(ids, rows, strict=True):
            stream = io.BytesIO()
            row["mask"].save(stream, "PNG")
            archive.writestr(f"{name}_segmentation.png", stream.getvalue())
    table = pd.DataFrame(
        {
            "lesion_id": [row["lesion_id"] for row in rows],
            "image_id": ids,
            "dx": ["mel" if row["diagnosis"] == "melanoma" else "nv" for row in rows],
            "dx_type": "histo",
            **{name: [row[name] for row in rows] for name in ("age", "sex", "localization")},
            "dataset": "phantom",
        }
    )
    table.to_csv(folder / "HAM10000_metadata.csv", index=False)


def write_fitzpatrick17k(folder: Path, rows: list[dict]) -> None:
    """The annotations, and images that are named by their MD5."""
    (folder / "images").mkdir(parents=True)
    labels = {
        "melanoma": ("melanoma", "malignant melanoma", "malignant"),
        "nevus": ("halo nevus", "benign melanocyte", "benign"),
    }
    with open(folder / "fitzpatrick17k.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow("md5hash fitzpatrick_scale label nine_partition_label three_partition_label qc url".split())
        for row in rows:
            content = as_jpeg(row["image"])
            name = hashlib.md5(content).hexdigest()
            (folder / "images" / f"{name}.jpg").write_bytes(content)
            table.writerow([name, SKIN_SCALE[row["fitzpatrick"]], *labels[row["diagnosis"]], "", f"{ATLAS}{name}.jpg"])


def write_clinic(folder: Path, rows: list[dict]) -> None:
    """The ImageFolder of docs/own_data.md."""
    folder.mkdir()
    records = []
    for number, row in enumerate(rows):
        (folder / f"{number:04d}.jpg").write_bytes(as_jpeg(row["image"]))
        finding = "melanoma in situ" if row["diagnosis"] == "melanoma" and number % 5 == 0 else row["diagnosis"]
        known = {name: row[name] for name in ("age", "sex", "fitzpatrick")}
        camera = ["contact", "polarised"][number % 2]
        records.append({"file_name": f"{number:04d}.jpg", "finding": finding, "lesion": row["lesion_id"], **known})
        records[-1] |= {"camera": camera, "source": "phantom"}
    pd.DataFrame(records).to_csv(folder / "metadata.csv", index=False)
