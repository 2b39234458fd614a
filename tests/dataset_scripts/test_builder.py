import dataclasses
import errno
import io
import multiprocessing
import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from dataset_scripts import prepare as prepare_module
from dataset_scripts.builder import LesionBuilder
from dataset_scripts.prepare import prepare_parquet, summarise
from dataset_scripts.publishing import dataset_publication
from dataset_scripts.schema import SKIPPED_COLUMNS
from dataset_scripts.sources import LOCAL_USE_ONLY, Source
from dataset_scripts.splits import manifest_hash, read_manifest
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import load_records


def bitmap(shade: int) -> bytes:
    """An image whose size in bytes says nothing about its content."""
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(stream, "BMP")
    return stream.getvalue()


class Toy(LesionBuilder):
    """Thirty images of `shade` in fifteen lesions; a split of its own as a publisher may fix one."""

    source = Source(
        name="toy",
        title="Toy lesions",
        builder="test_builder:Toy",
        licence="cc-by-4.0",
        about="Squares of one shade.",
        homepage="https://example.org/toy",
        citation="@misc{toy}",
    )
    diagnoses = ("nevus", "melanoma")
    stratify_by = ("diagnosis",)
    shade = 10
    skipped_rows: tuple = ()

    def card_text(self):
        return "# Toys\n\nOf no patient."

    def scan(self):
        rows = [
            {
                "image": {"path": None, "bytes": bitmap(self.shade)},
                "image_id": f"i{number:02d}",
                "lesion_id": f"l{number // 2}",
                "diagnosis": "melanoma" if number % 6 < 2 else "nevus",
                "melanoma": "melanoma" if number % 6 < 2 else "benign",
                "age": None,
                "sex": "unknown",
                "localization": "back",
                "fitzpatrick": "unknown",
                "mask": None,
                "source": "toy",
                "split": "test_elsewhere" if number >= 26 else "",
            }
            for number in range(30)
        ]
        return pd.DataFrame(rows, dtype=object), pd.DataFrame(list(self.skipped_rows), columns=SKIPPED_COLUMNS)


class DiskFull(Toy):
    @staticmethod
    def make_example(config, row):
        if row["image_id"] == "i03":
            raise OSError(errno.ENOSPC, "No space left on device", "/out")
        return Toy.make_example(config, row)


@pytest.fixture
def make(tmp_path):
    """A toy builder with a cache of its own each time, as every command run has."""
    count = iter(range(100))
    return lambda kind=Toy, **kwargs: kind(cache_dir=str(tmp_path / f"cache{next(count)}"), **kwargs)


def test_a_prepared_folder_holds_data_card_manifest_and_skipped(make, tmp_path):
    builder, out = make(), tmp_path / "deep" / "toy"
    builder.skipped_rows = (("x1", "x1.jpg", "zero bytes"),)
    prepare_parquet(builder, str(out))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data", "skipped.csv", "split_manifest.csv"]
    assert os.listdir(out.parent) == ["toy"]
    loaded = datasets.load_dataset(str(out))
    assert list(loaded) == ["train", "validation", "test", "test_elsewhere"]
    assert loaded["train"].features == builder.info.features
    assert loaded["test_elsewhere"]["image_id"][:] == ["i26", "i27", "i28", "i29"]
    manifest = read_manifest(str(out / "split_manifest.csv"))
    assert len(manifest) == 30 and len(pd.read_csv(out / "skipped.csv")) == 1

    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.pretty_name == "Toy lesions"
    assert card.data.size_categories == ["n<1K"] and card.data.task_categories == ["image-classification"]
    sizes = {split["name"]: split["num_examples"] for split in card.data.dataset_info["splits"]}
    assert sizes == {name: len(rows) for name, rows in loaded.items()}
    for words in ("# Toys", "Research only", manifest_hash(manifest), "@misc{toy}", "| test_elsewhere | 4 | 2 |"):
        assert words in card.text
    assert "1 rows stand in `skipped.csv`" in card.text


def test_a_folder_prepared_again_in_place_is_not_served_stale(make, tmp_path):
    out, cache = str(tmp_path / "toy"), str(tmp_path / "load_cache")
    for shade in (10, 200):
        builder = make()
        builder.shade = shade
        prepare_parquet(builder, out, overwrite=True)
        loaded = datasets.load_dataset(out, cache_dir=cache)
        assert np.asarray(loaded["train"][0]["image"]).max() == shade


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_data_give_the_same_bytes_by_any_number_of_processes(make, tmp_path):
    for num_proc in (1, 2, 3):
        prepare_parquet(make(), str(tmp_path / str(num_proc)), num_proc=num_proc)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")
    assert sum(name.endswith(".parquet") for name in files(tmp_path / "1")) == 4


def test_the_folder_does_not_depend_on_where_the_raw_files_lay(tmp_path):
    (tmp_path / "x.png").write_bytes(b"content")
    example = Toy.make_example(None, {"image": f"{tmp_path}/x.png", "mask": None, "image_id": "x"})
    assert example["image"] == {"path": "x.png", "bytes": b"content"}


def test_an_output_folder_that_holds_anything_is_refused(make, tmp_path):
    out = tmp_path / "toy"
    prepare_parquet(make(), str(out))
    with pytest.raises(UserError, match="not empty.*--overwrite_output_dir"):
        prepare_parquet(make(), str(out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a prepared data set"):
        prepare_parquet(make(), str(tmp_path / "mine"), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(UserError, match="is a file"):
        prepare_parquet(make(), str(tmp_path / "mine" / "thesis.txt"), overwrite=True)


@pytest.mark.parametrize("fault", ["generating", "renaming"])
def test_a_failure_leaves_the_earlier_folder_whole_and_nothing_half_written(make, tmp_path, monkeypatch, fault):
    out = tmp_path / "toy"
    prepare_parquet(make(), str(out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if fault == "renaming":
        rename = os.replace

        def failing(source, target):
            if str(source).endswith("made") and str(target) == str(out):
                raise OSError(errno.EIO, "Input/output error")
            rename(source, target)

        monkeypatch.setattr(prepare_module.os, "replace", failing)
    with pytest.raises((OSError, datasets.exceptions.DatasetGenerationError)):
        prepare_parquet(make(DiskFull if fault == "generating" else Toy), str(out), overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("use", [lambda folder: load_records(str(folder)), dataset_publication])
def test_one_flipped_bit_in_the_data_is_found_before_use(make, tmp_path, use):
    out = tmp_path / "toy"
    prepare_parquet(make(), str(out))
    use(out)
    path = next(out.glob("data/*/validation-*.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(UserError, match=r"data/\w{12}: not the files that were prepared.*\n.*README.md"):
        use(out)
    path.unlink()
    with pytest.raises(UserError, match="not the files that were prepared|holds no data/.*validation"):
        use(out)


def test_pages_have_checksums_and_are_otherwise_as_datasets_writes_them(make, tmp_path, monkeypatch):
    prepare_parquet(make(), str(tmp_path / "toy"))
    monkeypatch.setattr(prepare_module, "_add_page_checksums", lambda path: None)
    prepare_parquet(make(), str(tmp_path / "plain"))
    ours, plain = (sorted((tmp_path / name).glob("data/*/*.parquet")) for name in ("toy", "plain"))
    for path, other in zip(ours, plain, strict=True):
        with pq.ParquetFile(path) as file, pq.ParquetFile(other) as expected:
            assert file.read().equals(expected.read()) and file.metadata.metadata == expected.metadata.metadata
            columns = [
                [(c.path_in_schema, c.compression, c.encodings) for c in map(group.column, range(group.num_columns))]
                for group in (file.metadata.row_group(0), expected.metadata.row_group(0))
            ]
            assert columns[0] == columns[1]
    content = ours[0].read_bytes()
    place = content.index(b"BM") + 100  # in an image
    (tmp_path / "x").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(OSError, match="checksum|CRC"):
        pq.read_table(tmp_path / "x", page_checksum_verification=True)


def prepare_beside_another(cache: str, out: str, start, results) -> None:
    """In a process of its own, once both are there."""
    start.wait()
    try:
        prepare_parquet(Toy(cache_dir=cache), out, num_proc=1)
    except UserError as error:
        results.put(str(error))
    else:
        results.put("prepared")


def test_two_that_prepare_one_folder_leave_one_whole(make, tmp_path):
    prepare_parquet(make(), str(tmp_path / "alone"))
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    arguments = [(str(tmp_path / f"c{i}"), str(tmp_path / "out" / "toy"), start, results) for i in range(2)]
    processes = [context.Process(target=prepare_beside_another, args=given) for given in arguments]
    for process in processes:
        process.start()
    said = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said[1] == "prepared" and ("another process prepares a data set there" in said[0] or "not empty" in said[0])
    assert files(tmp_path / "out" / "toy") == files(tmp_path / "alone") and os.listdir(tmp_path / "out") == ["toy"]


def test_a_folder_that_a_killed_command_had_moved_away_comes_back(make, tmp_path):
    out, left = tmp_path / "toy", tmp_path / ".partial-toy"
    prepare_parquet(make(), str(out))
    before = files(out)
    (left / "made").mkdir(parents=True)
    out.rename(left / "previous")
    with pytest.raises(UserError, match="not empty"):
        prepare_parquet(make(), str(out))
    assert files(out) == before and not left.exists()


def test_a_linked_folder_stays_a_link(make, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "toy").symlink_to(tmp_path / "disk")
    prepare_parquet(make(), str(tmp_path / "toy"))
    assert (tmp_path / "toy").is_symlink() and (tmp_path / "disk" / "README.md").is_file()
    assert sorted(os.listdir(tmp_path)) == ["cache0", "disk", "toy"]


def test_files_and_links_of_the_user_are_kept(make, tmp_path):
    for name in ("toy.partial", "toy.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    (tmp_path / "disk").mkdir()
    (tmp_path / "toy").symlink_to(tmp_path / "disk")
    prepare_parquet(make(), str(tmp_path / "toy"))
    prepare_parquet(make(), str(tmp_path / "toy"), overwrite=True)
    assert (tmp_path / "toy").is_symlink() and (tmp_path / "disk" / "README.md").is_file()
    assert (tmp_path / "toy.partial" / "thesis.txt").exists() and (tmp_path / "toy.previous" / "thesis.txt").exists()
    shard = next((tmp_path / "disk" / "data").glob("*/train-*"))
    for foreign in (
        tmp_path / "disk" / "notes.csv",
        shard.with_name("train-mine.parquet"),
        shard.parents[1] / "x.txt",
    ):
        foreign.write_text("theirs")
        with pytest.raises(UserError, match=f"{foreign.name}: not of a prepared data set, and would be lost"):
            prepare_parquet(make(), str(tmp_path / "toy"), overwrite=True)
        foreign.unlink()
    assert sorted(os.listdir(tmp_path / "disk")) == ["README.md", "data", "skipped.csv", "split_manifest.csv"]


def test_a_failure_leaves_no_new_folders(make, tmp_path):
    with pytest.raises((OSError, datasets.exceptions.DatasetGenerationError)):
        prepare_parquet(make(DiskFull), str(tmp_path / "new" / "er" / "toy"))
    assert not (tmp_path / "new").exists()


FULL_DISK = """
import sys
sys.path.insert(0, {tests!r})
from test_builder import DiskFull
from dataset_scripts.prepare import prepare_parquet
from melanoma_fair_xai.base.errors import run_command
run_command(lambda: prepare_parquet(DiskFull(), {out!r}, num_proc={num_proc}))
"""


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_full_disk_ends_in_one_line_and_code_2(tmp_path, num_proc):
    out = str(tmp_path / "toy")
    code = FULL_DISK.format(tests=os.path.dirname(__file__), out=out, num_proc=num_proc)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: " in done.stderr and "No space left on device; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_share_of_skipped_images_passes_and_a_larger_one_stops(make, capsys):
    rows = (("x1", "x1.jpg", "zero bytes"), ("x2", "", "no image file"), ("i03", "m.png", "mask: zero bytes"))
    for share, stops in ((0.07, False), (0.06, True)):
        builder = make(max_skipped_share=share)
        builder.skipped_rows = rows
        if stops:
            with pytest.raises(UserError, match=r"2 of 32 images.*max_skipped_share 0.06.*x1.jpg: zero bytes"):
                builder._split_generators(None)
        else:
            builder._split_generators(None)
            printed = capsys.readouterr().out
            assert "skipped 2 of 32 images" in printed and "1 masks left out" in printed


@pytest.mark.parametrize(
    "setting, flag", [({"seed": -1}, "--seed"), ({"max_skipped_share": 2.0}, "--max_skipped_share")]
)
def test_settings_are_checked(make, setting, flag):
    with pytest.raises(UserError, match=flag):
        make(**setting)


def test_summarise_counts_images_and_lesions():
    records = {"image_id": ["a", "b", "c"], "lesion_id": ["l", "l", "k"], "diagnosis": ["nv", "nv", "mel"]}
    lines = ["3 images, 2 lesions", "  nv: 2 images, 1 lesions", "  mel: 1 images, 1 lesions"]
    assert summarise(records).splitlines() == lines


@pytest.mark.parametrize("crossing", [False, True])
def test_a_lesion_on_both_sides_of_a_split_that_the_publisher_fixed_is_refused(make, tmp_path, crossing):
    class Published(Toy):
        def scan(self):
            records, skipped = super().scan()
            if crossing:
                records.loc[29, "lesion_id"] = "l0"  # of a lesion whose images are ours to split
            return records, skipped

    if crossing:
        with pytest.raises(UserError, match="toy: lesion l0 stands in more than one split"):
            make(Published)._split_generators(None)
    else:
        make(Published)._split_generators(None)


@pytest.mark.parametrize("may_be_published", [True, False])
def test_images_that_may_not_be_passed_on_are_marked_and_not_published(make, tmp_path, may_be_published):
    builder = make()
    builder.source = dataclasses.replace(Toy.source, may_be_published=may_be_published)
    prepare_parquet(builder, str(tmp_path / "toy"))
    tags = DatasetCard.load(tmp_path / "toy" / "README.md").data.tags
    assert (LOCAL_USE_ONLY in tags) is not may_be_published
    if may_be_published:
        assert "README.md" in dataset_publication(tmp_path / "toy").files
    else:
        with pytest.raises(UserError, match="may not be passed on"):
            dataset_publication(tmp_path / "toy")


def test_what_a_card_says_hangs_on_what_is_known(make, tmp_path):
    """Ages, a homepage and a citation, each there and not."""
    texts = {}
    for name in ("without", "with"):
        builder = make()
        if name == "with":
            scanned = builder.scan()
            scanned[0].loc[:2, "age"] = pd.Series([30.0, 50.0, 80.0], dtype=object)
            builder.scan = lambda scanned=scanned: scanned
        else:
            builder.source = dataclasses.replace(Toy.source, homepage="", citation="")
        prepare_parquet(builder, str(tmp_path / name))
        texts[name] = (tmp_path / name / "README.md").read_text()
    for words, absent in (
        ("Age is known of 3 of 30 images, from 30 to 80 years, median 50.", "Age is not known of any image."),
        ("Licence: cc-by-4.0. https://example.org/toy\n\n```bibtex\n@misc{toy}\n```\n", "Licence: cc-by-4.0.\n\n\n"),
    ):
        assert words in texts["with"] and words not in texts["without"]
        assert absent in texts["without"] and absent not in texts["with"]
