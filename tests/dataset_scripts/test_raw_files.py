import io
import os
import zipfile

import numpy as np
import PIL.Image
import pytest

from dataset_scripts import raw_files
from melanoma_fair_xai.base import files
from melanoma_fair_xai.base.errors import UserError


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a,b\n1,x\n2,\n", "a\tb\n1\tx\n2\t\n", '\ufeff"a","b"\r\n"1","x"\r\n"2",""\r\n', "a,b\n1,x\n2,\n\n\n"]
)
def test_read_table_reads_each_dialect_as_strings_with_lines(tmp_path, text):
    path = tmp_path / "table"
    marked = "\ufeff" + text.removeprefix("\ufeff")
    for content in (text.encode(), marked.encode("utf-16-le"), marked.encode("utf-16-be")):
        path.write_bytes(content)
        table = raw_files.read_table(str(path), ["a"])
        assert table.to_dict("list") == {"a": ["1", "2"], "b": ["x", ""], "line": [2, 3]}


def test_read_table_keeps_words_that_pandas_takes_for_missing(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nNA,None\n")
    assert raw_files.read_table(str(tmp_path / "t.csv"))["a"].tolist() == ["NA"]


def test_read_table_from_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/t.csv", "a,b\n1,2\n")
    assert raw_files.read_table(f"{tmp_path}/z.zip::in/t.csv")["b"].tolist() == ["2"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "t.csv: the file is empty"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 columns instead of 2"),
        (b'a,b\n"1\n",2\n1\n', "line 4: 1 columns instead of 2"),
        (b"a,b\n\xff\xfe,2\n", "not a CSV table"),
        (b"a,c\n1,2\n", "no column b"),
    ],
)
def test_read_table_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        raw_files.read_table(str(path), ["b"])
    assert str(path) in str(error.value)


def test_read_table_without_a_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.csv: cannot be read"):
        raw_files.read_table(str(tmp_path / "nowhere.csv"))


# --- folders and zips ------------------------------------------------------------------------------------------------


def test_index_files_sees_folders_zips_and_links_but_no_resource_forks(tmp_path):
    folder, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    for path in ("b/x.jpg", "b/y.txt", "b/._x.jpg", "__MACOSX/b/z.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg())
    elsewhere.mkdir()
    (elsewhere / "w.PNG").write_bytes(jpeg())
    (folder / "linked").symlink_to(elsewhere)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for member in ("in/x.jpg", "__MACOSX/in/._x.jpg", "__MACOSX/in/u.jpg", "readme.md"):
            archive.writestr(member, jpeg())
    (folder / "._a.zip").write_bytes(b"a resource fork is no zip")
    assert raw_files.index_files(str(folder)) == {
        "x": [f"{folder}/a.zip::in/x.jpg", f"{folder}/b/x.jpg"],
        "w": [f"{folder}/linked/w.PNG"],
    }


def test_a_folder_below_one_called_macosx_is_a_folder(tmp_path):
    (tmp_path / "__MACOSX" / "raw").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "raw" / "x.jpg").write_bytes(jpeg())
    assert list(raw_files.index_files(str(tmp_path / "__MACOSX" / "raw"))) == ["x"]


def test_index_files_names_a_missing_folder_and_a_damaged_zip(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder.*--data_dir"):
        raw_files.index_files(str(tmp_path / "nowhere"))
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="a.zip: not a readable zip"):
        raw_files.index_files(str(tmp_path))


@pytest.mark.parametrize("member", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:/x.jpg"])
def test_a_zip_entry_that_climbs_out_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, jpeg())
    with pytest.raises(UserError, match="climbs out"):
        raw_files.index_files(str(tmp_path))


def test_links_that_lead_back_are_followed_once_and_pipes_are_not_waited_for(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("back", "again"):
        (tmp_path / "b" / name).symlink_to(tmp_path)
    (tmp_path / "b" / "x.jpg").write_bytes(jpeg())
    os.mkfifo(tmp_path / "b" / "pipe.zip")
    os.mkfifo(tmp_path / "b" / "y.jpg")
    assert raw_files.index_files(str(tmp_path)) == {name: [f"{tmp_path}/b/{name}.jpg"] for name in "xy"}
    assert raw_files.image_problem(f"{tmp_path}/b/y.jpg") == "cannot be read (not a regular file)"
    raw_files.content_hash(str(tmp_path))


def test_a_zip_entry_that_fills_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jpg", bytes(1000))
    assert raw_files.read_bytes(f"{path}::x.jpg") == bytes(1000)
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    declared = content[: directory + 24] + (3 << 30).to_bytes(4, "little") + content[directory + 28 :]
    (tmp_path / "declared.zip").write_bytes(declared)
    assert "larger than 256 MiB" in raw_files.image_problem(f"{tmp_path}/declared.zip::x.jpg")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 999)
    assert "cannot be read (larger than" in raw_files.image_problem(f"{path}::x.jpg")


def test_read_bytes_notices_a_zip_that_was_replaced(tmp_path):
    for age, content in enumerate((b"first", b"second")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x", content)
        os.utime(tmp_path / "a.zip", (age, age))
        assert raw_files.read_bytes(f"{tmp_path}/a.zip::x") == content


def test_files_and_zip_entries_are_looked_at_in_order(tmp_path):
    (tmp_path / "good.jpg").write_bytes(jpeg())
    (tmp_path / "zero.jpg").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.jpg", jpeg(1))
        archive.writestr("bad.jpg", jpeg(2))
        offset = archive.getinfo("bad.jpg").header_offset
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[offset + 60 : offset + 200] = bytes(140)
    (tmp_path / "a.zip").write_bytes(content)
    names = ["good.jpg", "zero.jpg", "gone.jpg", "a.zip::good.jpg", "a.zip::bad.jpg", "a.zip::gone.jpg"]
    references = [f"{tmp_path}/{name}" for name in names]
    problems = raw_files.inspect_files(raw_files.image_problem, references, num_proc=2)
    assert problems[0] is problems[3] is None and problems[1] == "zero bytes"
    assert all("cannot be read" in problems[number] for number in (2, 4, 5))
    assert raw_files.inspect_files(raw_files.image_problem, references) == problems


def test_content_hash_changes_with_a_files_content_and_name_alone(tmp_path):
    path, picture = tmp_path / "x", tmp_path / "y.JPG"
    path.write_bytes(b"one")
    picture.write_bytes(b"one")

    def hashes() -> tuple[str, str]:
        return raw_files.content_hash(str(tmp_path)), raw_files.content_hash(str(tmp_path), by_name=(".jpg",))

    before = hashes()
    os.utime(path, ns=(1, 1))
    assert hashes() == before
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    changed = hashes()
    assert changed[0] != before[0] and changed[1] != before[1]
    picture.write_bytes(b"two")
    assert hashes()[0] not in (before[0], changed[0]) and hashes()[1] == changed[1]
    picture.rename(tmp_path / "z.JPG")
    assert hashes()[1] != changed[1]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    raw_files.content_hash(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "t.csv: the file is empty"),
        ("\n", "t.csv: the file is empty"),
        ("a,b,a\n1,2,3\n", "t.csv: column a stands twice"),
        ("a,b\n1,2,3\n", "line 2: 3 columns instead of 2"),
    ],
)
def test_read_table_says_what_is_wrong_with_a_table(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        raw_files.read_table(str(tmp_path / "t.csv"))


def test_rows_without_a_value_count_where_they_are_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,,\n1,2,,\n,,,\n\n3,4,,\n")  # nameless columns, as spreadsheets leave them
    assert raw_files.read_table(str(tmp_path / "t.csv"))["line"].tolist() == [2, 5]
    assert raw_files.read_table(str(tmp_path / "t.csv"), blank_rows=True)["line"].tolist() == [2, 3, 5]
