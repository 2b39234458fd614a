import pytest

from melanoma_fair_xai.base.errors import UserError
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
