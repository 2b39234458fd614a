"""What is explained is kept batch by batch: it outlives its process, and no more of it is in memory than is needed."""

import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.explain import rendering
from melanoma_fair_xai.explain.batches import COPIES, Explanations, Images
from melanoma_fair_xai.explain.page import save_maps
from melanoma_fair_xai.explain.record import Record, Source, content_digest

SIDE = 64
BATCH = 6


def images_of(ids: list[str]) -> Images:
    pixels = [sample_generator(0, name).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for name in ids]
    return Images(ids, np.stack(pixels), np.ones((len(ids), SIDE, SIDE), dtype=bool))


def source_of(count: int) -> Source:
    ids = [f"image {row}" for row in range(count)]
    return Source(ids, lambda rows: images_of([ids[row] for row in rows]))


def explain(batch: Images) -> Explanations:
    """Values that hang on the pixels; the second batch has a column that no other has."""
    means = batch.pixels.mean((1, 2, 3))
    table = pd.DataFrame({"image_id": batch.ids, "decided": means > 127, "score": means / 255, "map_problem": ""})
    if "image 6" in batch.ids:
        table["energy_in_ruler"] = means
    maps = batch.pixels[..., 0].astype(np.float32) / 3
    names = [(name, kind) for name in ("", "random") for kind in ("blacken", "randomise")]
    curves = {name: means[:, None] + place + np.arange(19) for place, name in enumerate(names)}
    return Explanations(table, maps, curves)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    yield create_accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def small_overlays(monkeypatch):
    monkeypatch.setattr(rendering, "overlay", lambda pixels, values: PIL.Image.fromarray(pixels))


def made(folder, accelerator, count: int = 20, explain=explain) -> Record:
    folder.mkdir(exist_ok=True)
    record = Record(folder, source_of(count), BATCH * COPIES)
    record.complete(accelerator, explain)
    return record


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_read_is_what_was_explained(tmp_path, accelerator):
    record = made(tmp_path, accelerator)
    whole = explain(images_of(record.source.ids)).table.drop(columns="energy_in_ruler")
    table = record.table()
    pd.testing.assert_frame_equal(table.drop(columns="energy_in_ruler"), whole, check_exact=True)
    assert table["energy_in_ruler"].notna().tolist() == [6 <= row < 12 for row in range(20)]
    together = explain(images_of(record.source.ids))
    curves = record.curves()
    assert curves.keys() == together.curves.keys()
    assert all(np.array_equal(curves[key], together.curves[key]) for key in curves)
    save_maps(tmp_path / "maps.npz", table["image_id"], record, curves)
    with np.load(tmp_path / "maps.npz") as file:
        assert file["ids"].tolist() == record.source.ids and np.array_equal(file["maps"], together.maps)
        assert file["maps"].dtype == np.float32 and np.array_equal(file["blacken_method"], curves["", "blacken"])
        assert set(file.files) == {
            *("ids", "maps", "percentiles", "blacken_method", "randomise_method", "blacken_random", "randomise_random")
        }
    pixels, values = record.image_and_map(13)
    assert np.array_equal(pixels, images_of(["image 13"]).pixels[0]) and np.array_equal(values, together.maps[13])
    assert (tmp_path / "overlays").is_dir() and len(list((tmp_path / "overlays").glob("*.jpg"))) == 20
    record.remove()
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_leaves_the_same_files(tmp_path, accelerator, before):
    made(tmp_path / "whole", accelerator)
    calls = []

    def interrupted(batch: Images) -> Explanations:
        if len(calls) == before:
            raise KeyboardInterrupt
        calls.append(batch.ids)
        return explain(batch)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut", accelerator, explain=interrupted)
    left = tmp_path / "cut" / "overlays" / ".partial-12345678-image.jpg"
    left.write_bytes(b"half")
    anew = []
    made(tmp_path / "cut", accelerator, explain=lambda batch: anew.append(batch.ids) or explain(batch))
    assert sum(calls + anew, []) == source_of(20).ids and len(anew) == 4 - before
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_damaged_batch_is_explained_again(tmp_path, accelerator):
    record = made(tmp_path, accelerator)
    whole = contents(tmp_path)
    path = tmp_path / "unfinished" / "000002.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        list(record.maps())
    anew = []
    made(tmp_path, accelerator, explain=lambda batch: anew.append(batch.ids) or explain(batch))
    assert anew == [[f"image {row}" for row in range(12, 18)]] and contents(tmp_path) == whole


def held_bytes() -> int:
    """What NumPy's arrays take at this moment."""
    snapshot = tracemalloc.take_snapshot()
    return sum(trace.size for trace in snapshot.traces if trace.domain == np.lib.tracemalloc_domain)


def most_held(folder, accelerator, count: int) -> int:
    """The most that arrays take, whenever a batch is looked at, while images are explained and reported on."""
    held = []

    def watched(function):
        return lambda batch: held.append(held_bytes()) or function(batch)

    folder.mkdir()
    source = source_of(count)
    record = Record(folder, Source(source.ids, watched(source.read)), BATCH * COPIES)
    tracemalloc.start()
    content_digest(map(record.source.read, record.batches))
    record.complete(accelerator, watched(explain))
    table, curves = record.table(), record.curves()
    record.maps = lambda: map(watched(lambda maps: maps), Record.maps(record))
    save_maps(folder / "maps.npz", table["image_id"], record, curves)
    record.image_and_map(count - 1)
    tracemalloc.stop()
    assert len(held) > 3 * len(record.batches)
    return max(held)


def test_memory_does_not_grow_with_pixels_and_maps(tmp_path, accelerator):
    """An image has 32 KiB of pixels, mask and map, and less than 1 KiB of curves and columns."""
    few, many = (most_held(tmp_path / str(count), accelerator, count) for count in (24, 96))
    assert few > 6 * 32 * 1024 and many - few < 72 * 1024


@pytest.mark.parametrize("change", ["ids", "pixels", "masks", "artefacts"])
def test_a_digest_knows_every_pixel_and_name(change):
    source = source_of(70)

    def changed(rows: np.ndarray) -> Images:
        batch = source.read(rows)
        if 69 in rows:
            if change == "ids":
                batch.ids[-1] = "image 70"
            elif change == "artefacts":
                batch.artefacts = np.zeros(batch.masks.shape, dtype=np.uint8)
            else:
                values = getattr(batch, change)
                values[-1, -1, -1] = 0 if change == "masks" else values[-1, -1, -1] ^ 1
        return batch

    def digest(read) -> str:
        return content_digest(map(read, np.array_split(np.arange(70), 5)))

    assert digest(source.read) == digest(source_of(70).read) != digest(changed)
