import os
import shutil

import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.engine.run_folder import LOCK_NAME, open_run_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME)


def test_new_and_empty_folders_are_opened(accelerator, tmp_path):
    (tmp_path / "new").mkdir()
    for folder in (tmp_path / "new", tmp_path / "deep" / "er"):
        with open_run_folder(accelerator, folder) as opened:
            assert opened == folder and names(folder) == [] and (folder / LOCK_NAME).is_file()
            (folder / "metrics.json").touch()
        assert os.path.getsize(folder / LOCK_NAME) > 0


def test_a_folder_that_is_not_empty_is_refused(accelerator, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="not empty; choose another folder, continue with --resume"):
        with open_run_folder(accelerator, tmp_path):
            pass
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="not written by a run"):
            with open_run_folder(accelerator, tmp_path, **options):
                pass
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_users_files_of_names_that_runs_once_gave_are_kept(accelerator, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "training_args.json").touch()
    for name in ("write-test", ".partial-write-test", "adapter.safetensors", "attributions.docx", "fold-maps"):
        (folder / name).write_text("theirs")
    (folder / ".lock").symlink_to(victim)
    (folder / "checkpoint-best").mkdir()
    before = set(os.listdir(folder)) - {"training_args.json", ".partial-write-test"}
    with open_run_folder(accelerator, folder, overwrite=True):
        pass
    assert set(names(folder)) == before and victim.read_text() == "theirs"


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_refused_folder_is_left_as_it_was(accelerator, tmp_path, options):
    """Of another trainer, too, which also calls its folders checkpoint-N."""
    for name in (".partial-notes", "checkpoint-8/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    with pytest.raises(UserError, match="not empty"):
        with open_run_folder(accelerator, tmp_path, **options):
            pass
    assert sorted(os.listdir(tmp_path)) == [".partial-notes", "checkpoint-8"]
    assert os.listdir(tmp_path / "checkpoint-8") == ["model.safetensors"]


def test_a_lock_is_no_link_to_somebody_elses_file(accelerator, tmp_path):
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot be written to"):
        with open_run_folder(accelerator, tmp_path / "run"):
            pass
    assert (tmp_path / "victim").read_text() == "theirs"


def test_a_run_that_fails_before_it_writes_leaves_nothing(accelerator, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for folder in (tmp_path / "new" / "er", tmp_path / "there", tmp_path / "link"):
        with pytest.raises(RuntimeError), open_run_folder(accelerator, folder):
            raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["link", "there"] and os.listdir(tmp_path / "there") == []
    assert (tmp_path / "link").is_symlink()


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(accelerator, tmp_path):
    for name in ("training_args.json", "notes.txt", "model.safetensors", "metrics.json"):
        (tmp_path / name).touch()
    for name in ("checkpoint-4", "predictions", ".partial-checkpoint-8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "predictions" / "test.parquet") as partial:
        partial.touch()
        shutil.copy(partial, tmp_path / "predictions" / partial.name.replace("test", "killed"))
        raise RuntimeError
    (tmp_path / "predictions" / ".partial-thesis").touch()
    with open_run_folder(accelerator, tmp_path, resume=True):
        assert "checkpoint-4" in names(tmp_path) and ".partial-checkpoint-8" not in names(tmp_path)
        assert names(tmp_path / "predictions") == [".partial-thesis", "file"]
    with open_run_folder(accelerator, tmp_path, overwrite=True):
        assert names(tmp_path) == ["notes.txt"]


def test_a_killed_run_that_had_only_begun_leaves_the_folder_usable(accelerator, tmp_path):
    (tmp_path / LOCK_NAME).touch()
    (tmp_path / ".partial-training_args.json").touch()
    with open_run_folder(accelerator, tmp_path):
        assert names(tmp_path) == []


@pytest.mark.parametrize("folder", ["a_file/run", "/proc/run", "/dev/null"])
def test_a_folder_that_cannot_be_written(accelerator, tmp_path, folder):
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="--output_dir .*: cannot be written to .*; choose another"):
        with open_run_folder(accelerator, tmp_path / folder):
            pass
