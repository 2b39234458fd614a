import errno
import json
import os
import resource

import numpy as np
import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path, write_json
from melanoma_fair_xai.engine.run_folder import open_run_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_new_and_empty_folders_are_opened(accelerator, tmp_path):
    (tmp_path / "new").mkdir()
    for folder in (tmp_path / "new", tmp_path / "deep" / "er"):
        with open_run_folder(accelerator, folder) as opened:
            assert opened == folder and names(folder) == []


def test_a_folder_that_is_not_empty_is_refused(accelerator, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="not empty; choose another folder, continue with --resume"):
        with open_run_folder(accelerator, tmp_path):
            pass
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="not written by a run"):
            with open_run_folder(accelerator, tmp_path, **options):
                pass
    assert names(tmp_path) == ["notes.txt"]


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(accelerator, tmp_path):
    for name in ("training_args.json", "notes.txt", "model.safetensors", "metrics.json"):
        (tmp_path / name).touch()
    for name in ("checkpoint-4", "predictions", ".partial-checkpoint-8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with open_run_folder(accelerator, tmp_path, resume=True):
        assert "checkpoint-4" in names(tmp_path) and ".partial-checkpoint-8" not in names(tmp_path)
    with open_run_folder(accelerator, tmp_path, overwrite=True):
        assert names(tmp_path) == ["notes.txt"]


def test_a_killed_run_that_had_only_begun_leaves_the_folder_usable(accelerator, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".partial-training_args.json").touch()
    with open_run_folder(accelerator, tmp_path):
        assert names(tmp_path) == []


@pytest.mark.parametrize("folder", ["a_file/run", "/proc/run", "/dev/null"])
def test_a_folder_that_cannot_be_written(accelerator, tmp_path, folder):
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="--output_dir .*: cannot be written to .*; choose another"):
        with open_run_folder(accelerator, tmp_path / folder):
            pass


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_path(path) as partial:
        assert partial.suffix == ".csv" and partial.parent == tmp_path
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("new, but")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["table.csv"]


def test_write_json_on_a_full_disk(tmp_path):
    """The limit on the size of files fails in the same call as a full disk does."""
    write_json(tmp_path / "metrics.json", {"auc": 0.9})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError) as failed:
            write_json(tmp_path / "metrics.json", {"auc": [0.9] * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"auc": 0.9}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_write_json_writes_only_what_json_has(tmp_path):
    value = {
        "nan": float("nan"),
        "list": [np.float32(0.5), float("inf"), np.int64(3), np.bool_(True)],
        "array": np.array([1.0, np.nan]),
        "tensor": torch.tensor([2.0, float("-inf")]),
        "path": tmp_path,
        5: {"é"},
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "list": [0.5, None, 3, True],
        "array": [1.0, None],
        "tensor": [2.0, None],
        "path": str(tmp_path),
        "5": ["é"],
    }
