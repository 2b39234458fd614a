"""Fitzpatrick17k from small raw folders of drawn images: records, coverage, duplicates, the command."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import PIL.Image
import PIL.ImageFilter
import pytest
from fitzpatrick17k_raw import (
    ATLAS,
    HEADER,
    MELANOMA,
    NEVUS,
    SKIN_TYPE,
    as_jpeg,
    column,
    md5_of,
    photograph,
    prepare,
    skipped,
)

from dataset_scripts.fitzpatrick17k import Fitzpatrick17k
from dataset_scripts.fitzpatrick17k.__main__ import main
from dataset_scripts.fitzpatrick17k.builder import coverage_by
from melanoma_fair_xai.base.errors import UserError, run_command

# --- the builder -----------------------------------------------------------------------------------------------------


def test_records(raw):
    prepared, builder = prepare(raw)
    rows = pd.DataFrame(raw.rows, columns=HEADER.split(",")).set_index("md5hash")
    assert set(prepared) == {"train", "validation", "test"}
    features = prepared["train"].features
    assert column(prepared, "diagnosis").keys() == set(rows.index)
    for split in prepared.values():
        for record in split:
            row = rows.loc[record["image_id"]]
            assert features["diagnosis"].int2str(record["diagnosis"]) == row["label"]
            assert record["melanoma"] == (row["nine_partition_label"] == "malignant melanoma")
            skin_type = features["fitzpatrick"].int2str(record["fitzpatrick"])
            assert skin_type == SKIN_TYPE[row["fitzpatrick_scale"]]
            assert record["source"] == ("dermaamin" if "dermaamin" in row["url"] else "atlasdermatologico")
            assert (record["age"], record["localization"], record["mask"]) == (None, "unknown", None)
            assert features["sex"].int2str(record["sex"]) == "unknown"
            assert record["lesion_id"] == record["image_id"]
            assert record["image"].size == (200, 150)
    raw_bytes = prepared["test"].cast_column("image", datasets.Image(decode=False))
    assert all(md5_of(record["image"]["bytes"]) == record["image_id"] for record in raw_bytes)


@pytest.mark.parametrize(("name", "count"), [("original", 30), ("neoplastic", 36), ("all", 42), (None, 30)])
def test_configurations(raw, name, count):
    prepared, builder = prepare(raw, name)
    assert len(column(prepared, "image_id")) == count
    assert builder.config.name == (name or "original")


def test_an_unknown_configuration_names_the_known_ones(raw):
    with pytest.raises(ValueError, match="original.*neoplastic.*all"):
        Fitzpatrick17k("nonsense", data_dir=str(raw.folder))


def test_rows_known_to_be_wrong_are_left_out_and_listed_but_not_held_against_the_folder(raw):
    lymphoma_url = f"{ATLAS}/m/malignant-lymphoma/malignant-lymphoma7.jpg"
    lymphoma = [raw.add(as_jpeg(photograph(100 + i)), MELANOMA, url=lymphoma_url) for i in range(8)]
    honest = raw.add(
        as_jpeg(photograph(120)), ("mycosis fungoides", "malignant cutaneous lymphoma", "malignant"), url=lymphoma_url
    )
    wrong = [raw.add(as_jpeg(photograph(130 + i)), NEVUS, qc="3 Wrongly labelled") for i in range(3)]
    good = raw.add(as_jpeg(photograph(140)), MELANOMA, qc="1 Diagnostic")
    raw.annotate()
    prepared, builder = prepare(raw, max_skipped_share=0.0)
    melanoma = column(prepared, "melanoma")
    assert not set(lymphoma + wrong) & set(melanoma)
    assert melanoma[honest] == 0 and melanoma[good] == 1
    reasons = skipped(builder)
    assert set(reasons) == set(lymphoma + wrong)
    assert "lymphoma" in reasons[lymphoma[0]] and "Wrongly labelled" in reasons[wrong[0]]


def test_images_in_a_zip_below_some_folder(raw):
    with zipfile.ZipFile(raw.folder / "images.zip", "w") as archive:
        for number, (name, content) in enumerate(raw.contents.items()):
            archive.writestr(f"data/finalfitz17k/{number % 3}/{name}.jpg", content)
            archive.writestr(f"__MACOSX/data/._{name}.jpg", b"fork")
            raw.path(name).unlink()
    prepared, builder = prepare(raw)
    assert column(prepared, "image_id").keys() == raw.contents.keys()
    assert skipped(builder) == {}


def test_missing_images_are_coverage_and_not_a_fault(raw, capsys):
    gone = [row[0] for row in raw.rows if "atlasdermatologico" in row[-1]]
    for name in gone:
        raw.path(name).unlink()
    prepared, builder = prepare(raw, max_skipped_share=0.0)
    assert column(prepared, "image_id").keys() == raw.contents.keys() - set(gone)
    assert skipped(builder) == {}
    printed = capsys.readouterr().out
    assert f"coverage: {42 - len(gone)} of 42 images" in printed
    assert f"host atlasdermatologico: 0 of {len(gone)} (0%)" in printed
    stored = pd.read_csv(os.path.join(builder.cache_dir, "coverage.csv"))
    assert list(stored.columns) == ["fitzpatrick", "diagnosis", "rows", "images", "share"]
    for row in stored.itertuples():
        expected = [
            name
            for name, scale, _, label, *_ in raw.rows
            if (SKIN_TYPE[scale], label) == (row.fitzpatrick, row.diagnosis)
        ]
        had = [name for name in expected if name not in gone]
        assert (row.rows, row.images) == (len(expected), len(had))
        assert row.share == pytest.approx(len(had) / len(expected), abs=1e-4)
        assert f"label {row.diagnosis}: " in printed and f"skin type {row.fitzpatrick}: " in printed
    assert stored["rows"].sum() == 42
    assert coverage_by(builder.coverage, ["source"])["images"].tolist() == [0, 42 - len(gone)]


def test_a_folder_without_images_says_how_to_get_them(raw):
    for name in raw.contents:
        raw.path(name).unlink()
    with pytest.raises(UserError, match="not one of the 42 images.*--download"):
        prepare(raw)


def test_damaged_images_are_skipped_and_listed(raw):
    """Twelve files that are no good in six ways; their rows alone are lost."""
    names = list(raw.contents)
    damages = [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"<!DOCTYPE html><html>not found</html>",
        lambda content: b"GIF89a nonsense",
        lambda content: as_jpeg(PIL.Image.open(io.BytesIO(content)), 50),
        lambda content: content + b"\0",
    ]
    for number, name in enumerate(names[:12]):
        raw.path(name).write_bytes(damages[number // 2](raw.contents[name]))
    with pytest.raises(UserError, match="12 of 42 images cannot be used.*zero bytes"):
        prepare(raw)
    prepared, builder = prepare(raw, max_skipped_share=0.3)
    assert column(prepared, "image_id").keys() == set(names[12:])
    reasons = skipped(builder)
    assert list(reasons) == [name for name in names[:12]]
    expected = ["zero bytes", "damaged image", "web page", "not an image", "modified: its md5 is", "modified"]
    assert all(expected[i // 2] in reasons[name] for i, name in enumerate(names[:12]))
    assert builder.coverage["had"].sum() == 30

    prepared, builder = prepare(raw, max_skipped_share=0.3, allow_modified_images=True)
    assert column(prepared, "image_id").keys() == set(names[8:])
    assert builder.modified == 4


def test_of_two_files_of_an_image_the_good_one_counts(raw):
    name = next(iter(raw.contents))
    (raw.folder / "a").mkdir()
    (raw.folder / "a" / f"{name}.jpg").write_bytes(b"broken")
    prepared, builder = prepare(raw)
    assert name in column(prepared, "image_id") and skipped(builder) == {}
    raw.path(name).write_bytes(b"")
    assert skipped(prepare(raw)[1])[name].startswith("not an image"), "of two bad ones, the first is listed"


def test_changed_data_are_not_served_from_a_stale_cache(raw):
    prepare(raw)
    new = raw.add(as_jpeg(photograph(500)))
    raw.annotate()
    assert new in column(prepare(raw)[0], "image_id")
    listed = raw.folder.parent / "duplicates.csv"
    first, second, third = list(raw.contents)[:3]
    for pair in ((first, second), (first, third)):
        listed.write_text("\n".join(["a,b", ",".join(pair)]))
        lesions = column(prepare(raw, duplicates=str(listed))[0], "lesion_id")
        assert lesions[pair[0]] == lesions[pair[1]] == min(pair)


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_planted_duplicates_share_a_lesion_and_a_split(raw, capsys):
    groups = []
    for seed in range(12):
        image = photograph(200 + seed)
        copies = [
            image,
            image.resize((100, 75)),
            image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
            image.crop((3, 2, 197, 148)),
        ][: 2 + seed % 3]
        scale = str(1 + seed % 6)
        groups.append([raw.add(as_jpeg(copy, 60 + 10 * i), NEVUS, scale) for i, copy in enumerate(copies)])
    raw.annotate()
    prepared, builder = prepare(raw)
    lesions = column(prepared, "lesion_id")
    for group in groups:
        assert {lesions[name] for name in group} == {min(group)}
    assert len(set(lesions.values())) == 42 + len(groups), "and nothing else is joined"
    split_of = {name: split for split in prepared for name in prepared[split]["image_id"]}
    assert all(len({split_of[name] for name in group}) == 1 for group in groups)
    clusters = pd.read_csv(os.path.join(builder.cache_dir, "duplicate_clusters.csv"))
    assert sorted(clusters["images"], reverse=True) == clusters["images"].tolist() == [4] * 4 + [3] * 4 + [2] * 4
    assert {frozenset(ids.split()) for ids in clusters["image_ids"]} == {frozenset(group) for group in groups}
    assert "12 duplicate clusters, 36 images in them\n  4 images: halo nevus" in capsys.readouterr().out


def test_a_given_list_replaces_the_hash(raw, tmp_path):
    names = sorted(raw.contents)
    twin = raw.add(as_jpeg(photograph(0), 50))
    raw.annotate()
    listed = tmp_path / "list.csv"
    listed.write_text("md5hash,cluster\n" + "".join(f"{name},{i // 3}\n" for i, name in enumerate(names[:6])))
    prepared, builder = prepare(raw, duplicates=str(listed))
    lesions = column(prepared, "lesion_id")
    assert [lesions[name] for name in names[:6]] == [names[0]] * 3 + [names[3]] * 3
    assert lesions[twin] == twin, "the list is taken at its word"
    assert "(from a given list): 2 clusters hold 6 images" in builder.card_text()
    assert "(by a perceptual hash): 1 clusters hold 2 images" in prepare(raw)[1].card_text()
    listed.write_text(f"a,b\n{names[0]},{names[1]}\n{names[0]},{'0' * 32}\n")
    with pytest.raises(UserError, match="line 3"):
        prepare(raw, duplicates=str(listed))
    with pytest.raises(UserError, match="none.csv: no such file"):
        prepare(raw, duplicates="none.csv")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fitzpatrick17k", *map(str, arguments)])
        try:
            run_command(main)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run


def test_the_command_prepares_a_folder_that_load_dataset_reads(raw, tmp_path, run):
    twin = raw.add(as_jpeg(photograph(20), 50), NEVUS, "-1")
    raw.add(as_jpeg(photograph(99)), MELANOMA, "6", write=False)
    raw.annotate()
    raw.path(twin).write_bytes(as_jpeg(photograph(20), 55))
    output = tmp_path / "prepared"
    flags = ["--data_dir", raw.folder, "--output_dir", output, "--config_name", "neoplastic"]
    code, printed, errors = run(*flags, "--allow_modified_images", "--num_proc", "2")
    assert code == 0, errors
    assert "coverage: 37 of 38 images" in printed and "1 duplicate clusters, 2 images" in printed
    assert f"accelerate launch train_classifier.py --dataset_name {output} --output_dir runs/" in printed
    prepared = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert len(column(prepared, "image_id")) == 37
    assert sorted(path.name for path in output.glob("*.csv")) == [
        "coverage.csv",
        "duplicate_clusters.csv",
        "skipped.csv",
        "split_manifest.csv",
    ]
    card = (output / "README.md").read_text()
    for text in (
        "do not upload",
        "cc-by-nc-sa-3.0",
        "Configuration `neoplastic`",
        "**1 images are modified**",
        "| skin type | VI |",
        "| label | halo nevus | 16 | 16 | 100.0% |",
        "| target | melanoma | 16 | 15 | 93.8% |",
        "groh2021",
        "abhishek2025",
    ):
        assert text in card, text

    code, _, errors = run(*flags, "--download")
    assert code == 2 and errors.count("\n") == 1 and "--overwrite_output_dir" in errors
    code, _, errors = run(*flags, "--overwrite_output_dir", "--config_name", "original", "--max_skipped_share", "0.5")
    assert code == 0, errors
    assert "are modified" not in (output / "README.md").read_text()
    assert len(pd.read_csv(output / "skipped.csv")) == 1


def test_the_command_ends_in_two_lines_when_something_is_wrong(raw, tmp_path):
    raw.rows[3][3] = "nonsense"
    raw.annotate()
    command = [sys.executable, "-m", "dataset_scripts.fitzpatrick17k", "--data_dir", str(raw.folder)]
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "prepared")], cwd=root, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    assert "line 5: label 'nonsense'" in finished.stderr
    assert not (tmp_path / "prepared").exists()


def test_a_rate_that_is_none(raw, tmp_path, run):
    flags = ["--data_dir", raw.folder, "--output_dir", tmp_path / "prepared", "--download"]
    code, _, errors = run(*flags, "--requests_per_second", "0")
    assert code == 2 and "--requests_per_second" in errors
