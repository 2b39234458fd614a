import io
import os
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch

from melanoma_fair_xai.data.cache import cache_folder, decode_once
from melanoma_fair_xai.data.images import Preprocessing, normalise, open_rgb, pixel_transform
from melanoma_fair_xai.diffusion.data import centre_square

PREPROCESSING = Preprocessing(
    (3, 32, 32), "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=1.0, crop_mode="squash"
)


def jpeg(seed: int, size: tuple[int, int] = (80, 60), **save_options) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize(size, PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", **save_options)
    return buffer.getvalue()


def as_dataset(contents: list[bytes]) -> datasets.Dataset:
    rows = [{"image": {"bytes": content, "path": f"{i}.jpg"}} for i, content in enumerate(contents)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_list(rows, features=features)


def test_cached_pixels_are_those_of_the_published_transform():
    contents = [jpeg(seed) for seed in range(5)]
    cache = decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)
    transform = timm.data.create_transform(**PREPROCESSING.to_timm(), is_training=False)
    expected = torch.stack([transform(PIL.Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])
    got = normalise(torch.from_numpy(cache.pixels.copy()).permute(0, 3, 1, 2), PREPROCESSING)
    assert torch.equal(got, expected)


def test_the_cache_is_read_again_and_made_anew_when_content_or_transform_change():
    contents = [jpeg(seed) for seed in range(10, 13)]
    decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)
    files = set(cache_folder().glob("*.npy"))
    first = max(files, key=os.path.getmtime)
    stamp = first.stat().st_mtime_ns
    decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)
    assert first.stat().st_mtime_ns == stamp and set(cache_folder().glob("*.npy")) == files
    changed = decode_once(as_dataset([contents[0], contents[1], jpeg(99)]), PREPROCESSING, show_progress=False)
    small = decode_once(as_dataset(contents), replace(PREPROCESSING, input_size=(3, 16, 16)), show_progress=False)
    assert len(set(cache_folder().glob("*.npy"))) == len(files) + 2
    assert not np.array_equal(changed.pixels[2], np.load(first)[2]) and small.pixels.shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("preprocessing", "key"),
    [(PREPROCESSING, "d2f3fea635ec6ba7e3db06b48951960d"), (centre_square(64), "26150f34e4f67b9901ad86d2968f4efd")],
    ids=["classifier", "generator"],
)
def test_caches_that_exist_keep_their_names(preprocessing, key, monkeypatch):
    """The names are those of earlier versions; what was decoded then is not decoded again."""
    monkeypatch.setattr(timm, "__version__", "1.0.31")
    decode_once(as_dataset([b"one", b"two"]), preprocessing, show_progress=False)
    assert (cache_folder() / f"pixels-{key}.npy").is_file()


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "without its list of problems"])
def test_a_torn_cache_is_made_again(damage):
    data = as_dataset([jpeg(seed) for seed in range(20, 24)])
    whole = np.array(decode_once(data, PREPROCESSING, show_progress=False).pixels)
    path = max(cache_folder().glob("*.npy"), key=os.path.getmtime)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "overwritten":
        path.write_bytes(b"something else")
    else:
        path.with_suffix(".json").unlink()
    assert np.array_equal(decode_once(data, PREPROCESSING, show_progress=False).pixels, whole)


def test_broken_images_are_told_apart_by_row_and_lose_nothing_else():
    good = [jpeg(seed) for seed in range(30, 34)]
    broken = [b"", b"<html><body>404</body></html>", good[0][: len(good[0]) // 2]]
    cache = decode_once(as_dataset([good[0], *broken, *good[1:]]), PREPROCESSING, show_progress=False)
    assert sorted(cache.problems) == [1, 2, 3]
    assert "zero bytes" in cache.problems[1] and "web page" in cache.problems[2]
    expected = np.array(decode_once(as_dataset(good), PREPROCESSING, show_progress=False).pixels)
    assert np.array_equal(cache.pixels[[0, 4, 5, 6]], expected)


def test_images_that_lie_in_a_folder_are_read_by_path(tmp_path):
    content = jpeg(40)
    (tmp_path / "a.jpg").write_bytes(content)
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"image": {"bytes": None, "path": str(tmp_path / "a.jpg")}}]
    by_path = decode_once(datasets.Dataset.from_list(rows, features=features), PREPROCESSING, show_progress=False)
    by_bytes = decode_once(as_dataset([content]), PREPROCESSING, show_progress=False)
    assert np.array_equal(by_path.pixels, by_bytes.pixels)


def test_odd_images_become_upright_rgb():
    upright = open_rgb(jpeg(50))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    assert open_rgb(jpeg(50, exif=exif)).size == upright.size[::-1]
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(ramp).save(buffer, "PNG")
    grey = np.asarray(open_rgb(buffer.getvalue()))
    assert grey.shape == (8, 8, 3) and np.abs(grey[..., 0].astype(int) - ramp // 256).max() <= 1
    buffer = io.BytesIO()
    upright.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(np.asarray(open_rgb(buffer.getvalue()), dtype=int) - np.asarray(upright, dtype=int)).mean() < 8


def test_pixel_transform_keeps_the_whole_image():
    image = PIL.Image.new("RGB", (80, 60), "white")
    image.paste("black", (0, 0, 10, 60))
    pixels = pixel_transform(PREPROCESSING)(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32)
    assert pixels[:, :, 0].max() < 30 and pixels[:, :, -1].min() > 230
