"""What of a folder is published, and what is refused."""

import csv
import json
import subprocess
import sys

import pytest

from melanoma_fair_xai.base import publication
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.hub_client import next_tag
from melanoma_fair_xai.base.publication import code_commit, collect, without_local_paths

CARD = "---\nlicense: mit\n---\n# A card\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def test_absolute_paths_are_cut_and_nothing_else_is():
    kept = (
        "I-II / III-IV, 1/2, https://a.org/b/c?d=e, <b>x</b>, ../c, runs/r18, 10.1000/x, and/or, ![a](figures/a.png)"
    )
    assert without_local_paths(kept) == kept
    cut = without_local_paths('"/home/x/data", (/mnt/a.b/c_d), --dir=/data/ham ~/own/x, local-dir:/runs/r18')
    assert cut == '"data", (c_d), --dir=ham x, local-dir:r18'


def test_a_text_that_is_a_path_may_hold_spaces_and_lead_out():
    own = {"data_dir": "/home/Jane Doe/raw ham/", "runs": ["../../of others/r 1", "runs/r18"], "seed": 3, "x": None}
    assert without_local_paths(own) == {"data_dir": "raw ham", "runs": ["r 1", "runs/r18"], "seed": 3, "x": None}


LAST = "raw ham"
PATHS = [
    "/home/Jane Doe/raw ham",
    "/home/Jane Doe/raw ham/",
    "//server/Jane/raw ham",
    "/home/Jane [2]/raw ham",
    "/home/Jane (old)/{x}/raw ham",
    "/home/Jane#1/a&b/raw ham",
    '/home/O\'Jane/say "x"/raw ham',
    "/home/Jane, Doe; MD/raw ham",
    "/home/Jane/../raw ham",
    "/home/Jane=1/$x/%20/`y`/raw ham",
    "/home/Jane|a>b<c/raw ham",
    "/home/J\u00e4ne/\u75c5\u9662/Jane/raw ham",
    "~/Jane/raw ham",
    "~Jane/raw ham",
    "$HOME/Jane/raw ham",
    "../Jane/raw ham",
    "../../Jane/raw ham/",
    "data/../../Jane/raw ham",
    "./../Jane/raw ham",
    "C:\\Users\\Jane\\raw ham",
    "C:\\Users\\Jane Doe\\raw ham\\",
    "d:/Jane/raw ham",
    "\\\\server\\Jane\\raw ham",
    "..\\Jane\\raw ham",
    "file:///home/Jane/raw ham",
    "file://server/Jane/raw ham",
    "file:/C:/Jane/raw ham",
    " /home/Jane/raw ham",
    "/home/Jane/ward.zip::raw ham",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_is_published_whatever_it_holds(folder, path):
    assert without_local_paths(path).strip().endswith(LAST) and "Jane" not in without_local_paths(path)
    assert without_local_paths(f"local-dir:{path.strip()}").endswith(LAST)
    quote = "'" if '"' in path or "`" in path else '"'
    if quote not in path and not path.startswith((" ", "data", "./..", "//")):
        in_text = f"train.py --data_dir {quote}{path}{quote} --fold 1/5"
        last = without_local_paths(path)
        assert without_local_paths(in_text) == f"train.py --data_dir {quote}{last}{quote} --fold 1/5"
    (folder / "training_args.json").write_text(json.dumps({"data_dir": path, "also": [path]}))
    with open(folder / "skipped.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image_id", "file", "reason"], ["a", path, "zero bytes"]])
    files = collect(folder, "model", ("README.md",), ("*.json", "*.csv")).files
    assert not any(b"Jane" in content for content in files.values())
    assert list(csv.reader(files["skipped.csv"].decode().splitlines()))[1][2] == "zero bytes"


@pytest.mark.parametrize("path", ["/", "..", "../..", "~", "~Jane", "C:\\", "$HOME/", "file:///", "local-dir:.."])
def test_a_path_without_a_name_is_a_local_folder(path):
    assert without_local_paths(path).removeprefix("local-dir:") == "a local folder"


def test_links_are_not_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "a.json").write_text("{}")
    (folder / "a.json").symlink_to(elsewhere / "a.json")
    with pytest.raises(UserError, match="a.json: a link, or behind one"):
        collect(folder, "model", ("README.md",), ("*.json",))
    (folder / "unet").symlink_to(elsewhere)
    with pytest.raises(UserError, match="unet/a.json: a link, or behind one"):
        collect(folder, "model", ("README.md",), ("unet/*",))
    (elsewhere / "linked").symlink_to(folder)  # the folder that was named may be one
    assert list(collect(elsewhere / "linked", "model", ("README.md",)).files) == ["README.md"]


def test_the_code_is_that_of_a_clone_and_not_of_what_lies_around_it(tmp_path, monkeypatch):
    def git(*words):
        options = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], **options).stdout.strip()

    module = tmp_path / ".venv" / "melanoma_fair_xai" / "base" / "publication.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr(publication, "__file__", str(module))
    monkeypatch.setattr(sys, "path", [str(tmp_path / ".venv"), *sys.path])
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "the user's own project")
    info = tmp_path / ".venv" / "melanoma_fair_xai-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: melanoma-fair-xai\nVersion: 0.1.0\n")
    assert code_commit() is None
    (info / "direct_url.json").write_text('{"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    assert code_commit() == "abc"
    git("add", "--force", str(module))
    git("commit", "--quiet", "--message", "a clone")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert code_commit() == git("--git-dir", ".git", "rev-parse", "HEAD")
    module.write_text("changed")
    assert code_commit().endswith(" with changes that are not committed")


def test_json_is_cut_string_by_string_and_otherwise_left_as_it_is(folder):
    (folder / "own.json").write_text('{"a":   1}')
    (folder / "args.json").write_text(json.dumps({"data_dir": "/home/Jane Doe/raw", "é": [0.1]}))
    files = collect(folder, "model", ("README.md",), ("*.json",)).files
    assert files["own.json"] == b'{"a":   1}'
    assert json.loads(files["args.json"]) == {"data_dir": "raw", "é": [0.1]} and b"Jane" not in files["args.json"]


def test_only_shown_figures_are_taken_and_each_shown_one_must_be_there(folder):
    (folder / "figures").mkdir()
    (folder / "figures" / "a.csv").write_text("x")
    assert list(collect(folder, "model", ("README.md",), ("figures/*",)).files) == ["README.md"]
    (folder / "README.md").write_text(CARD + "![a](figures/a.csv) ![b](https://example.org/b.png)")
    assert list(collect(folder, "model", ("README.md",), ("figures/*",)).files) == ["README.md", "figures/a.csv"]
    (folder / "figures" / "a.csv").unlink()
    with pytest.raises(UserError, match="shows figures/a.csv, which is not there"):
        collect(folder, "model", ("README.md",), ("figures/*",))


def test_a_file_that_is_needed_must_be_there_and_one_that_is_not_needs_not(folder):
    assert list(collect(folder, "model", ("README.md",), ("weights.bin",)).files) == ["README.md"]
    with pytest.raises(UserError, match="holds no weights.bin, so it is not whole"):
        collect(folder, "model", ("README.md", "weights.bin"))


def test_versions_are_counted():
    assert [next_tag(tags) for tags in ([], ["v1"], ["v9", "v10", "v1.5", "best"])] == ["v1", "v2", "v11"]
