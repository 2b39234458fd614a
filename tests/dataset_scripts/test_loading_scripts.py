"""Each builder's file as a loading script under datasets 3.6, the last to run them, in an environment of its own."""

import csv
import hashlib
import inspect
import io
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from dataset_scripts.fitzpatrick17k import Fitzpatrick17k
from dataset_scripts.ham10000 import HAM10000
from dataset_scripts.phantom import Phantom

REPOSITORY = Path(__file__).resolve().parents[2]


def photograph(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((48, 36)).save(stream, "JPEG")
    return stream.getvalue()


def write_table(path: Path, header: str, rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_zip(path: Path, images: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in images.items():
            archive.writestr(f"images/{name}.jpg", content)


def ham10000_raw(raw: Path) -> None:
    """A zip of 30 images, and three of the challenge's test set in the folder."""
    rows = [
        [
            f"HAM_{lesion:07d}",
            f"ISIC_{24400 + 2 * lesion + view:07d}",
            ["nv", "mel"][lesion % 2],
            "histo",
            45,
            "male",
            "",
        ]
        for lesion in range(15)
        for view in range(2)
    ]
    write_table(raw / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", rows)
    write_zip(raw / "HAM10000_images_part_1.zip", {row[1]: photograph(seed) for seed, row in enumerate(rows)})
    truth = [[f"ISIC_003460{number}", *(int(number == label) for label in range(7))] for number in range(3)]
    write_table(raw / "ISIC2018_Task3_Test_GroundTruth.csv", "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC", truth)
    for seed, row in enumerate(truth):
        (raw / f"{row[0]}.jpg").write_bytes(photograph(100 + seed))


def fitzpatrick17k_raw(raw: Path) -> None:
    """A zip of 30 images, two of which show the same."""
    contents = [photograph(seed) for seed in range(29)]
    stream = io.BytesIO()
    PIL.Image.open(io.BytesIO(contents[0])).save(stream, "JPEG", quality=95)
    images = {hashlib.md5(content).hexdigest(): content for content in [*contents, stream.getvalue()]}
    labels = [["melanoma", "malignant melanoma", "malignant"], ["halo nevus", "benign melanocyte", "benign"]]
    rows = [
        [name, 1 + number % 6, *labels[number % 2], "", f"https://www.dermaamin.com/{number}.jpg"]
        for number, name in enumerate(images)
    ]
    header = "md5hash,fitzpatrick_scale,label,nine_partition_label,three_partition_label,qc,url"
    write_table(raw / "fitzpatrick17k.csv", header, rows)
    write_zip(raw / "images.zip", images)


def phantom_raw(raw: Path) -> None:
    """Nothing: phantoms are drawn."""


BUILDERS = {  # name: (builder, what it is asked, what writes its raw folder)
    "ham10000": (HAM10000, {"data_dir": "raw"}, ham10000_raw),
    "fitzpatrick17k": (Fitzpatrick17k, {"data_dir": "raw"}, fitzpatrick17k_raw),
    "phantom": (Phantom, {"num_images": 30, "image_size": 24}, phantom_raw),
}


def content(splits) -> dict:
    """{split: rows of all columns}, images as the MD5 of their bytes."""
    rows = {}
    for name, split in splits.items():
        for column, kind in split.features.items():
            if isinstance(kind, datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
        rows[name] = [
            {k: hashlib.md5(v["bytes"]).hexdigest() if isinstance(v, dict) else v for k, v in row.items()}
            for row in split
        ]
    return rows


SCRIPT = f"""
import hashlib, json, sys
import datasets

{inspect.getsource(content)}
script, prepared, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
assert datasets.__version__ == "3.6.0"
loaded = datasets.load_dataset(script, trust_remote_code=True, **options)
streamed = datasets.load_dataset(script, trust_remote_code=True, streaming=True, **options)
for name, split in loaded.items():
    assert [(row["image_id"], row["image"].size) for row in streamed[name]] == [
        (row["image_id"], row["image"].size) for row in split
    ], name
with open("found.json", "w") as file:
    json.dump([content(loaded), content(datasets.load_dataset(prepared))], file)
"""


@pytest.fixture(scope="module")
def datasets_3_6(tmp_path_factory) -> Path:
    """The Python of an environment with datasets 3.6.0."""
    folder = tmp_path_factory.mktemp("datasets_3_6")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "datasets==3.6.0", "pillow"]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"datasets 3.6.0 cannot be had: {installed.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_as_a_loading_script_under_datasets_3_6(tmp_path, datasets_3_6, name):
    builder_class, options, write_raw = BUILDERS[name]
    (tmp_path / "raw").mkdir()
    write_raw(tmp_path / "raw")
    if "data_dir" in options:
        options = {**options, "data_dir": str(tmp_path / options["data_dir"])}
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", f"dataset_scripts.{name}", *flags, "--output_dir", tmp_path / "prepared"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    (tmp_path / "script.py").write_text(SCRIPT)
    file = REPOSITORY / "dataset_scripts" / f"{name}.py"
    words = [datasets_3_6, "script.py", file, tmp_path / "prepared", json.dumps(options)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HOME=str(tmp_path / "home"), HF_DATASETS_CACHE=str(tmp_path / "home" / "datasets"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    loaded, prepared = json.loads((tmp_path / "found.json").read_text())
    builder = builder_class(cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare()
    expected = json.loads(json.dumps(content(builder.as_dataset())))
    assert loaded == prepared == expected
    splits = ["train", "validation", "test"] + (["isic2018_test"] if name == "ham10000" else [])
    assert list(expected) == splits and all(expected.values())
