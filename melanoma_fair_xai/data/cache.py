"""The decode-once cache: every image is decoded and resized once, then read as uint8 through a memory map."""

import dataclasses
import functools
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

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX, atomic_path, file_digest, locked, read_file, write_json
from melanoma_fair_xai.base.images import image_bytes, image_content_problem
from melanoma_fair_xai.data.augmentation import Augmentation
from melanoma_fair_xai.data.images import Preprocessing, open_rgb, pixel_transform

CACHE_VERSION = 2
CHUNK = 256
HASH = "xxh3_128"
VARIABLE = "MELANOMA_FAIR_XAI_CACHE"


@dataclasses.dataclass(frozen=True)
class PixelCache:
    """A file of pixels and what is known of it; pickled, it is its path.

    Attributes:
        path: of the file.
        problems: a reason for each row that could not be decoded.
        content: a digest of the images that it was made of, whatever their names.
    """

    path: Path
    problems: dict[int, str]
    content: str

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (N, H, W, 3), read-only."""
        return np.load(self.path, mmap_mode="r")

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.problems, self.content)


def cache_folder() -> Path:
    """$MELANOMA_FAIR_XAI_CACHE, or ~/.cache/melanoma_fair_xai."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    try:
        return Path.home() / ".cache" / "melanoma_fair_xai"
    except RuntimeError:
        raise UserError(f"nobody's home folder is known here; name a folder for pixels in {VARIABLE}") from None


def decode_once(images: datasets.Dataset, preprocessing: Preprocessing, show_progress: bool = True) -> PixelCache:
    """The pixels, before normalisation, of column `image` (not decoded) of a data set.

    The cache file is keyed by the images' content and the transform. It is compared with the digest that was written
    beside it, and made again if it is another; of several processes one makes it while the others wait. Raises OSError
    when the disk is full; nothing half written is left.
    """
    content = content_digest(images)
    path = cache_folder() / f"pixels-{_cache_key(content, preprocessing)}.npy"
    cache = _read(path, content)  # without the lock: the folder may be one that can only be read
    if cache is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), f"{path}: being made by another process"):
            cache = _read(path, content)
            if cache is None:
                for left in path.parent.glob(f"{PARTIAL_PREFIX}*-{path.stem}.*"):  # by a process that was killed
                    left.unlink()
                _write(path, images, preprocessing, content, show_progress)
                cache = _read(path, content)
    if cache is None:
        raise UserError(f"{path}: not what was written there; look at the disk, or name another folder in {VARIABLE}")
    return cache


def content_digest(images: datasets.Dataset) -> str:
    """A digest of the bytes of all images in column `image` (not decoded), wherever they lie, in their order."""
    digest = xxhash.xxh3_128()
    for batch in images.with_format("arrow").iter(CHUNK):
        column = batch["image"].combine_chunks()
        for content, path in zip(column.field("bytes"), column.field("path"), strict=True):
            digest.update(content.as_buffer() if content.is_valid else _read_bytes(path.as_py()))
            digest.update(b"\n")
    return digest.hexdigest()


def _read_bytes(path: str) -> bytes:
    try:
        return read_file(path)
    except OSError:
        return b""  # decoding says what is wrong with it


def _cache_key(content: str, preprocessing: Preprocessing) -> str:
    transform = {key: getattr(preprocessing, key) for key in ("input_size", "interpolation", "crop_pct", "crop_mode")}
    facts = [CACHE_VERSION, timm.__version__, content, transform]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _read(path: Path, content: str) -> PixelCache | None:
    """The cache in a file, or None if that is not there, or not what was written."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if file_digest(path, algorithm=HASH) != facts["digest"]:
            return None
        return PixelCache(path, {int(row): reason for row, reason in facts["problems"].items()}, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(
    path: Path, images: datasets.Dataset, preprocessing: Preprocessing, content: str, show_progress: bool
) -> None:
    _, height, width = preprocessing.input_size
    transform = pixel_transform(preprocessing)
    problems: dict[int, str] = {}
    decoded = xxhash.xxh3_128()

    def decode(item: dict) -> tuple[bytes, np.ndarray | str]:
        try:
            # A path alone stands where the data set keeps its images in a folder.
            read = image_bytes(item)
        except OSError as error:
            return b"", f"cannot be read ({error.strerror})"
        try:
            image = open_rgb(read)
        except Exception as error:  # whatever a decoder raises on a damaged file
            return read, image_content_problem(read) or f"cannot be converted to RGB ({error})"
        return read, transform(image).permute(1, 2, 0).numpy()

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
            for read, result in pool.map(decode, batch["image"]):
                decoded.update(read + b"\n")
                if isinstance(result, str):
                    problems[row] = result
                    result = np.zeros(shape[1:], dtype=np.uint8)
                file.write(np.ascontiguousarray(result))
                row += 1
            bar.update(len(batch["image"]))
        file.flush()
        if decoded.hexdigest() != content:
            raise UserError("images changed while they were being read; run the command again")
        write_json(path.with_suffix(".json"), {"digest": file_digest(partial, algorithm=HASH), "problems": problems})


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
