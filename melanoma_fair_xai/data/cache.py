"""The decode-once cache: every image is decoded and resized once, then read as uint8 through a memory map."""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import xxhash
from tqdm.auto import tqdm

from melanoma_fair_xai.base.files import atomic_path, read_file
from melanoma_fair_xai.base.images import image_content_problem
from melanoma_fair_xai.data.augmentation import Augmentation
from melanoma_fair_xai.data.images import Preprocessing, open_rgb, pixel_transform

CACHE_VERSION = 1
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class PixelCache:
    """`pixels` uint8 (N, H, W, 3), read-only; `problems` gives a reason for each row that could not be decoded."""

    pixels: np.ndarray
    problems: dict[int, str]


def cache_folder() -> Path:
    """$MELANOMA_FAIR_XAI_CACHE, or ~/.cache/melanoma_fair_xai."""
    return Path(os.environ.get("MELANOMA_FAIR_XAI_CACHE", Path.home() / ".cache" / "melanoma_fair_xai"))


def decode_once(images: datasets.Dataset, preprocessing: Preprocessing, show_progress: bool = True) -> PixelCache:
    """The pixels, before normalisation, of column `image` (not decoded) of a data set.

    The cache file is keyed by the images' content and the transform; a file that is torn is made again. Raises OSError
    when the disk is full; nothing half written is left.
    """
    path = cache_folder() / f"pixels-{_cache_key(images, preprocessing)}.npy"
    cache = _read(path, len(images))
    if cache is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, images, preprocessing, show_progress)
        cache = _read(path, len(images))
    return cache


def _cache_key(images: datasets.Dataset, preprocessing: Preprocessing) -> str:
    digest = xxhash.xxh3_128()
    for batch in images.with_format("arrow").iter(CHUNK):
        column = batch["image"].combine_chunks()
        for content, path in zip(column.field("bytes"), column.field("path"), strict=True):
            if content.is_valid:
                digest.update(content.as_buffer())
            else:
                status = os.stat(path.as_py())
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
            digest.update(b"\n")
    transform = {key: getattr(preprocessing, key) for key in ("input_size", "interpolation", "crop_pct", "crop_mode")}
    facts = [CACHE_VERSION, timm.__version__, digest.hexdigest(), transform]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _read(path: Path, count: int) -> PixelCache | None:
    try:
        pixels = np.load(path, mmap_mode="r")
        problems = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError, EOFError):
        return None
    if pixels.shape[0] != count:
        return None
    return PixelCache(pixels, {int(row): reason for row, reason in problems.items()})


def _write(path: Path, images: datasets.Dataset, preprocessing: Preprocessing, show_progress: bool) -> None:
    _, height, width = preprocessing.input_size
    transform = pixel_transform(preprocessing)
    problems: dict[int, str] = {}

    def decode(item: dict) -> np.ndarray | str:
        try:
            # A path alone stands where the data set keeps its images in a folder.
            content = item["bytes"] if item["bytes"] is not None else read_file(item["path"])
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        try:
            image = open_rgb(content)
        except Exception as error:  # whatever a decoder raises on a damaged file
            return image_content_problem(content) or f"cannot be converted to RGB ({error})"
        return transform(image).permute(1, 2, 0).numpy()

    # Written with write(), not through a memory map: a full disk then raises an error instead of killing the process.
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(images), desc="decoding", unit="image", disable=not show_progress) as bar,
    ):
        shape = (len(images), height, width, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        row = 0
        for batch in images.iter(CHUNK):
            for result in pool.map(decode, batch["image"]):
                if isinstance(result, str):
                    problems[row] = result
                    result = np.zeros(shape[1:], dtype=np.uint8)
                file.write(np.ascontiguousarray(result))
                row += 1
            bar.update(len(batch["image"]))
        with atomic_path(path.with_suffix(".json")) as facts:
            Path(facts).write_text(json.dumps(problems))


def on_device(pixels: np.ndarray, device: torch.device) -> np.ndarray | torch.Tensor:
    """The pixels in the memory of a GPU, as a tensor, where they take up to half of what is free there; else as given.

    A batch is then gathered at the speed of the GPU's memory, and nothing crosses the bus but row numbers.
    """
    if device.type != "cuda" or pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return pixels
    resident = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), CHUNK):
        resident[start : start + CHUNK] = torch.from_numpy(pixels[start : start + CHUNK].copy())
    return resident


def take(pixels: np.ndarray | torch.Tensor, rows: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows of `on_device` pixels as uint8 (len(rows), H, W, 3) on the device."""
    if isinstance(pixels, torch.Tensor):
        return pixels[torch.as_tensor(rows, device=pixels.device)]
    return torch.from_numpy(pixels[rows]).to(device, non_blocking=True)


class PixelDataset(torch.utils.data.Dataset):
    """By (epoch, index): the pixels, or their row where these lie on the device, label and augmentation parameters."""

    def __init__(
        self,
        pixels: np.ndarray | torch.Tensor,
        rows: np.ndarray,
        labels: np.ndarray,
        augmentation: Augmentation,
        seed: int,
    ):
        self.pixels, self.rows, self.labels, self.augmentation, self.seed = pixels, rows, labels, augmentation, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        row = self.rows[index]
        if isinstance(self.pixels, torch.Tensor):
            image = {"rows": torch.tensor(row)}
        else:
            image = {"pixels": torch.from_numpy(self.pixels[row].copy())}
        return {
            **image,
            "labels": torch.tensor(self.labels[index]),
            "index": torch.tensor(index),
            "parameters": torch.from_numpy(self.augmentation.draw(self.seed, epoch, index)),
        }
