"""What of a folder is published, and what is refused."""

import json

import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.hub_client import next_tag
from melanoma_fair_xai.base.publication import collect, without_local_paths

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
