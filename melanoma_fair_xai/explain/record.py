"""What is explained so far, batch by batch on the disk: all maps would fill the memory, and be lost with it."""

import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash
from accelerate import Accelerator
from tqdm.auto import tqdm

from melanoma_fair_xai.base.files import PARTIAL_PREFIX, atomic_path, file_stem
from melanoma_fair_xai.engine.launch import on_main_process

from . import rendering
from .batches import COPIES, Explanations, Images

CHUNK = 16  # images that are looked at together
UNFINISHED = "unfinished"  # folder of the batches, until the report is whole


@dataclass(frozen=True)
class Source:
    """The images to explain, of which `read` gives those of some rows (int (n,)) as the model sees them."""

    ids: list[str]
    read: Callable[[np.ndarray], Images]


def content_digest(batches: Iterable[Images]) -> str:
    """A digest of all names, pixels and masks."""
    digest = xxhash.xxh3_128()
    for images in batches:
        digest.update("\0".join(images.ids).encode("utf-8", "surrogatepass"))
        for values in (images.pixels, images.masks, images.artefacts):
            digest.update(b"" if values is None else np.ascontiguousarray(values))
    return digest.hexdigest()


class Record:
    """The explanations in a report's folder, a file for each batch of the source, with overlays beside them.

    A batch is explained as a whole, so that it does not matter when, and by which process.
    """

    def __init__(self, folder: Path, source: Source, batch_size: int):
        self.folder, self.overlays, self.source = folder / UNFINISHED, folder / "overlays", source
        self.size = max(1, batch_size // COPIES)
        rows = np.arange(len(source.ids))
        self.batches = np.split(rows, range(self.size, len(rows), self.size))

    def complete(self, accelerator: Accelerator, explain: Callable[[Images], Explanations]) -> None:
        """Explain what is missing. Whole batches are dealt to the processes, which share the folder, in turn."""
        missing = on_main_process(accelerator, self._prepare)
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        done = len(self.source.ids) - sum(len(self.batches[number]) for number in missing)
        with tqdm(
            total=len(self.source.ids),
            initial=done,
            desc="explaining",
            unit="image",
            disable=not accelerator.is_main_process,
        ) as bar:
            for number in mine:
                batch = self.source.read(self.batches[number])
                self._write(number, batch, explain(batch))
                bar.update(min(len(batch.ids) * accelerator.num_processes, bar.total - bar.n))
        accelerator.wait_for_everyone()

    def table(self) -> pd.DataFrame:
        """A row per image with every measure."""
        parts = [pd.DataFrame(columns) for columns in self._read("column")]
        return pd.concat(parts, ignore_index=True)

    def curves(self) -> dict[tuple[str, str], np.ndarray]:
        """As those of `Explanations`."""
        parts = list(self._read("curve"))
        return {tuple(name.split(" ")): np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def maps(self) -> Iterator[np.ndarray]:
        """The maps of each batch, float32 (n, H, W)."""
        for number in range(len(self.batches)):
            with np.load(self._path(number)) as file:
                yield file["maps"]

    def image_and_map(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (H, W, 3) and float32 (H, W)."""
        with np.load(self._path(row // self.size)) as file:
            return self.source.read(np.array([row])).pixels[0], file["maps"][row % self.size]

    def remove(self) -> None:
        """Remove the batches, when all that is made of them is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self) -> list[int]:
        """Make the folders; returns which batches are not there, or not as they were written."""
        for folder in (self.folder, self.overlays):
            folder.mkdir(exist_ok=True)
        for left in self.folder.parent.glob(f"*/{PARTIAL_PREFIX}*"):  # by a process that was killed
            left.unlink()
        return [number for number in range(len(self.batches)) if not _is_whole(self._path(number))]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _write(self, number: int, batch: Images, part: Explanations) -> None:
        write_overlays(self.overlays, batch.ids, batch.pixels, part.maps)
        arrays = {f"column {name}": values.to_numpy() for name, values in part.table.items()}
        arrays = {
            name: values if values.dtype.kind in "bif" else values.astype(str) for name, values in arrays.items()
        }
        arrays |= {f"curve {name} {kind}": values for (name, kind), values in part.curves.items()}
        with atomic_path(self._path(number)) as path:
            np.savez(path, maps=part.maps, **arrays)

    def _read(self, kind: str) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of a kind, of each batch, by name; texts as lists."""
        for number in range(len(self.batches)):
            with np.load(self._path(number)) as file:
                names = [name for name in file.files if name.startswith(f"{kind} ")]
                arrays = {name.removeprefix(f"{kind} "): file[name] for name in names}
                yield {name: a.tolist() if a.dtype.kind == "U" else a for name, a in arrays.items()}


def write_overlays(folder: Path, ids: list[str], pixels: np.ndarray, maps: np.ndarray) -> None:
    """One JPEG per image: itself, its heat map, its contours."""
    for name, image, values in zip(ids, pixels, maps, strict=True):
        with atomic_path(folder / f"{file_stem(name)}.jpg") as path:
            rendering.overlay(image, values).save(path, quality=88)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
