import hashlib
import io
import multiprocessing
import os
import pickle
import signal
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data import cache as cache_module
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


def bitmap(seed: int) -> bytes:
    """An image whose size in bytes says nothing about its content."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "BMP")
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
    [(PREPROCESSING, "bd435046bc82e9a468b00e0d74090d30"), (centre_square(64), "625c663a75c2ec8863fca0561cc8dd3f")],
    ids=["classifier", "generator"],
)
def test_caches_that_exist_keep_their_names(preprocessing, key, monkeypatch):
    """What an earlier version decoded is not decoded again."""
    monkeypatch.setattr(timm, "__version__", "1.0.31")
    decode_once(as_dataset([b"one", b"two"]), preprocessing, show_progress=False)
    assert (cache_folder() / f"pixels-{key}.npy").is_file()


@pytest.mark.parametrize(
    "damage", ["truncated", "overwritten", "one bit", "without its list of problems", "a list without a digest"]
)
def test_a_torn_cache_is_made_again(damage):
    data = as_dataset([jpeg(seed) for seed in range(20, 24)])
    whole = np.array(decode_once(data, PREPROCESSING, show_progress=False).pixels)
    path = max(cache_folder().glob("*.npy"), key=os.path.getmtime)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "overwritten":
        path.write_bytes(b"something else")
    elif damage == "one bit":
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
    elif damage == "without its list of problems":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("{}")
    assert np.array_equal(decode_once(data, PREPROCESSING, show_progress=False).pixels, whole)


def test_a_disk_that_keeps_something_else_is_named(monkeypatch):
    data = as_dataset([jpeg(seed) for seed in range(24, 28)])
    monkeypatch.setattr(cache_module, "_write", lambda path, *_: path.write_bytes(b"something else"))
    with pytest.raises(UserError, match=r"pixels-\w+.npy: not what was written there; .* MELANOMA_FAIR_XAI_CACHE"):
        decode_once(data, PREPROCESSING, show_progress=False)


def test_what_a_killed_process_left_is_removed_and_that_of_others_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(tmp_path))
    data = as_dataset([jpeg(seed) for seed in range(44, 46)])
    path = decode_once(data, PREPROCESSING, show_progress=False).path
    path.unlink()
    torn, others = (path.with_name(f".partial-0a1b2c3d-{name}.npy") for name in (path.stem, "pixels-of-another"))
    torn.touch(), others.touch()
    decode_once(data, PREPROCESSING, show_progress=False)
    assert path.is_file() and not torn.exists() and others.exists()


def decode_beside_another(contents: list[bytes], start, results) -> None:
    """In a process of its own: what it reads, once both are there."""
    torch.set_num_threads(1)
    data = as_dataset(contents)
    start.wait()
    results.put(hashlib.sha256(decode_once(data, PREPROCESSING, show_progress=False).pixels.tobytes()).hexdigest())


@pytest.mark.parametrize("pairs", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_processes_that_make_one_cache_at_the_same_time_read_the_same(pairs, tmp_path, monkeypatch, record_property):
    contents = [jpeg(seed) for seed in range(60, 90)]
    expected = hashlib.sha256()
    for content in contents:
        expected.update(pixel_transform(PREPROCESSING)(open_rgb(content)).permute(1, 2, 0).numpy().tobytes())
    context = multiprocessing.get_context("fork")
    found = []
    for pair in range(pairs):
        monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(tmp_path / str(pair)))
        start, results = context.Barrier(2), context.Queue()
        arguments = (contents, start, results)
        processes = [context.Process(target=decode_beside_another, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        found += [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        left = decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)
        found.append(hashlib.sha256(left.pixels.tobytes()).hexdigest())
        assert {path.suffix for path in (tmp_path / str(pair)).iterdir()} == {".npy", ".json", ".lock"}
    assert found == [expected.hexdigest()] * (3 * pairs)
    record_property("measured", f"{pairs} pairs of processes: {pairs} right caches, {2 * pairs} right readings")


def test_a_replaced_image_of_equal_path_size_and_time_gives_its_own_pixels(tmp_path):
    contents = [bitmap(seed) for seed in (0, 1)]
    path = tmp_path / "a.bmp"
    rows = [{"image": {"bytes": None, "path": str(path)}}]
    data = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(decode=False)}))
    read = []
    for content in contents:
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        read.append(decode_once(data, PREPROCESSING, show_progress=False))
        assert np.array_equal(read[-1].pixels[0], pixel_transform(PREPROCESSING)(open_rgb(content)).permute(1, 2, 0))
    assert len(contents[0]) == len(contents[1]) and read[0].content != read[1].content


def test_an_image_that_changes_while_it_is_read_leaves_no_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmap(10))
    rows = [{"image": {"bytes": None, "path": str(path)}}]
    data = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(decode=False)}))
    digest = cache_module.content_digest
    monkeypatch.setattr(
        cache_module, "content_digest", lambda images: (digest(images), path.write_bytes(bitmap(11)))[0]
    )
    monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="images changed while they were being read"):
        decode_once(data, PREPROCESSING, show_progress=False)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def die_while_writing(contents: list[bytes]) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    cache_module.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)


def test_a_process_that_is_killed_while_it_makes_a_cache_stands_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(tmp_path))
    contents = [jpeg(seed) for seed in range(90, 94)]
    killed = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(contents,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and len(list(tmp_path.glob(".partial-*.npy"))) == 1
    cache = decode_once(as_dataset(contents), PREPROCESSING, show_progress=False)
    expected = [pixel_transform(PREPROCESSING)(open_rgb(content)).permute(1, 2, 0).numpy() for content in contents]
    assert np.array_equal(cache.pixels, expected) and not list(tmp_path.glob(".partial-*"))


def test_a_cache_is_handed_to_another_process_as_its_path():
    cache = decode_once(as_dataset([jpeg(1)]), PREPROCESSING, show_progress=False)
    assert cache.pixels.shape == (1, 32, 32, 3)
    handed = pickle.dumps(cache)
    assert len(handed) < 1000 and np.array_equal(pickle.loads(handed).pixels, cache.pixels)


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
    buffer = io.BytesIO()
    upright.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(np.asarray(open_rgb(buffer.getvalue()), dtype=int) - np.asarray(upright, dtype=int)).mean() < 8


def test_pixel_transform_keeps_the_whole_image():
    image = PIL.Image.new("RGB", (80, 60), "white")
    image.paste("black", (0, 0, 10, 60))
    pixels = pixel_transform(PREPROCESSING)(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32)
    assert pixels[:, :, 0].max() < 30 and pixels[:, :, -1].min() > 230


def test_the_cache_needs_no_home_where_its_folder_is_named(monkeypatch, tmp_path):
    def home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache_module.Path, "home", home)
    monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MELANOMA_FAIR_XAI_CACHE")
    with pytest.raises(UserError, match="name a folder for pixels in MELANOMA_FAIR_XAI_CACHE"):
        cache_folder()
