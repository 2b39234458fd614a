import json
import os
import resource
import shutil

import pytest
import torch
from accelerate.utils import save
from torch import nn

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import file_digest
from melanoma_fair_xai.engine.checkpoints import (
    CHECKSUMS_NAME,
    damage,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.progress import TrainingProgress


def prepared(accelerator, width: int = 4):
    model = accelerator.prepare(nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width)))
    progress = TrainingProgress()
    accelerator.register_for_checkpointing(progress)
    return model, progress


@pytest.fixture
def run(accelerator, tmp_path):
    """Three checkpoints, each with other weights."""
    model, progress = prepared(accelerator)
    for step in (8, 9, 10):
        nn.init.constant_(model[0].weight, step)
        progress.global_step = step
        save_checkpoint(accelerator, tmp_path, step, facts={"seed": 0})
    return tmp_path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit flipped": lambda path: flip_a_bit(path / "model.safetensors"),
    "truncated": lambda path: os.truncate(path / "optimizer.bin", 100),
    "emptied": lambda path: os.truncate(path / "custom_checkpoint_0.pkl", 0),
    "file missing": lambda path: (path / "random_states_0.pkl").unlink(),
    "checksums missing": lambda path: (path / CHECKSUMS_NAME).unlink(),
    "checksums truncated": lambda path: os.truncate(path / CHECKSUMS_NAME, 30),
    "all missing": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoint_is_passed_over_with_a_line(accelerator, tmp_path, kind, capsys):
    model, _ = prepared(accelerator)
    accelerator.prepare(torch.optim.Adam(model.parameters()))
    for step in (8, 9, 10):
        save_checkpoint(accelerator, tmp_path, step)
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-10"
    assert capsys.readouterr().out == ""
    DAMAGES[kind](tmp_path / "checkpoint-10")
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-9"
    line = capsys.readouterr().out
    assert line.startswith("checkpoint-10 is damaged (") and line.endswith("): using checkpoint-9\n")
    with pytest.raises(UserError, match="--resume_from_checkpoint .*checkpoint-10: .*; give an intact checkpoint"):
        find_checkpoint(accelerator, tmp_path, str(tmp_path / "checkpoint-10"))
    save_checkpoint(accelerator, tmp_path, 10)
    assert damage(tmp_path / "checkpoint-10") is None


def test_nothing_to_resume(accelerator, tmp_path, capsys):
    assert find_checkpoint(accelerator, tmp_path, None) is None
    assert find_checkpoint(accelerator, tmp_path, "latest") is None
    assert find_checkpoint(accelerator, tmp_path / "absent", "latest") is None
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(accelerator, tmp_path, "latest") is None
    assert "using no checkpoint" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(accelerator, tmp_path, "absent/checkpoint-3")


def test_checkpoints_are_ordered_by_number(run):
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-8", "checkpoint-9", "checkpoint-10"]


@pytest.mark.parametrize(("limit", "kept"), [(None, [8, 9, 10, 11]), (2, [10, 11]), (1, [11])])
def test_older_checkpoints_go_after_the_new_one_is_there(accelerator, run, limit, kept):
    save_checkpoint(accelerator, run, 11, total_limit=limit)
    assert [path.name for path in list_checkpoints(run)] == [f"checkpoint-{step}" for step in kept]


def test_the_one_just_written_is_never_deleted(accelerator, run):
    """As when a run is taken back to an earlier checkpoint by its path."""
    save_checkpoint(accelerator, run, 5, total_limit=1)
    assert damage(run / "checkpoint-5") is None


def test_same_step_again(accelerator, run):
    before = (run / "checkpoint-10").stat().st_ino
    save_checkpoint(accelerator, run, 10, facts={"seed": 0})
    assert (run / "checkpoint-10").stat().st_ino == before
    save_checkpoint(accelerator, run, 10, facts={"seed": 1})  # another run's
    assert (run / "checkpoint-10").stat().st_ino != before
    assert names(run) == ["checkpoint-10", "checkpoint-8", "checkpoint-9"]


def test_everything_is_restored(accelerator, run):
    model, progress = accelerator._models[0], accelerator._custom_objects[0]
    torch.manual_seed(5)
    save_checkpoint(accelerator, run, 11)
    expected = torch.rand(3)
    load_checkpoint(accelerator, run / "checkpoint-9", facts={"seed": 0})
    assert model[0].weight.eq(9).all() and progress.global_step == 9
    load_checkpoint(accelerator, run / "checkpoint-11")
    assert torch.equal(torch.rand(3), expected)


def test_another_set_up_is_refused_with_both_values(accelerator, run):
    with pytest.raises(UserError, match="written with seed 0, but this run has 1"):
        load_checkpoint(accelerator, run / "checkpoint-9", facts={"seed": 1})
    accelerator.gradient_accumulation_steps = 3
    with pytest.raises(UserError, match="written with gradient_accumulation_steps 1, but this run has 3"):
        load_checkpoint(accelerator, run / "checkpoint-9", facts={"seed": 0})


def test_other_threads_are_noted(accelerator, run, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    load_checkpoint(accelerator, run / "checkpoint-9", facts={"seed": 0})
    line = f"checkpoint-9 was written with threads {threads}, now {threads + 1}: last bits may differ\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), r"0.bias is \[4\] there and \[5\] here"),
        (nn.Sequential(nn.Linear(3, 4)), r"1.bias is \[4\] there and absent here"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), r"2.bias is absent there and \[1\] here"),
    ],
)
def test_another_architecture_is_refused(run, model, message):
    other = create_accelerator(cpu=True)
    other.prepare(model)
    other.register_for_checkpointing(TrainingProgress())
    with pytest.raises(UserError, match=f"written by another model: {message}") as refused:
        load_checkpoint(other, run / "checkpoint-9", facts={"seed": 0})
    assert str(refused.value).count("\n") == 1


def test_tied_tensors_are_no_mismatch(accelerator, tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    accelerator.prepare(model)
    save_checkpoint(accelerator, tmp_path, 1)
    load_checkpoint(accelerator, tmp_path / "checkpoint-1")


def test_other_registered_objects_are_refused(run):
    other = create_accelerator(cpu=True)
    prepared(other)
    other.register_for_checkpointing(TrainingProgress())
    with pytest.raises(UserError, match="written by another model or set-up"):
        load_checkpoint(other, run / "checkpoint-9", facts={"seed": 0})


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_foreign_code_is_not_executed(accelerator, run, monkeypatch):
    monkeypatch.chdir(run)
    path = run / "checkpoint-9"
    torch.save({"global_step": Malicious()}, path / "custom_checkpoint_0.pkl")
    checksums = json.loads((path / CHECKSUMS_NAME).read_text())
    checksums["custom_checkpoint_0.pkl"] = file_digest(path / "custom_checkpoint_0.pkl")
    (path / CHECKSUMS_NAME).write_text(json.dumps(checksums))
    assert damage(path) is None
    with pytest.raises(UserError, match="custom_checkpoint_0.pkl: cannot be loaded safely"):
        load_checkpoint(accelerator, path, facts={"seed": 0})
    assert not (run / "executed").exists()


def test_random_states_that_cannot_be_restored(accelerator, run):
    path = run / "checkpoint-9" / "random_states_0.pkl"
    states = torch.load(path, weights_only=False)
    save(states | {"random_state": "what a later version of Python writes"}, path)
    with pytest.raises(UserError, match="its random states could not be restored"):
        load_checkpoint(accelerator, path.parent, facts={"seed": 0})


@pytest.mark.parametrize("limit", [100, 700, 2000, 5000, 14000])
def test_full_disk_leaves_earlier_checkpoints_intact(accelerator, run, limit):
    """The limit on the size of files fails in the same call as a full disk does, here in one file or another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="checkpoint-11: could not be written .*; earlier checkpoints are intact"):
            save_checkpoint(accelerator, run, 11, total_limit=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(run) == ["checkpoint-10", "checkpoint-8", "checkpoint-9"]
    assert all(damage(path) is None for path in list_checkpoints(run))


def test_progress_survives_with_plain_types_only(accelerator, tmp_path):
    _, progress = prepared(accelerator)
    progress.global_step = 7
    progress.record(auc=torch.tensor(0.75), ids=torch.tensor([1, 2]), loss=float("nan"))
    assert progress.update_best(0.75, {"net": {"w": torch.ones(2)}})
    save_checkpoint(accelerator, tmp_path, 7)
    resumed = TrainingProgress()
    accelerator._custom_objects[0] = resumed
    load_checkpoint(accelerator, tmp_path / "checkpoint-7")
    assert resumed.history == [{"step": 7, "epoch": 0, "auc": 0.75, "ids": [1, 2], "loss": None}]
    assert (resumed.best_value, resumed.best_step) == (0.75, 7)
    assert torch.equal(resumed.best_weights["net"]["w"], torch.ones(2))


def test_a_checkpoint_that_notes_nothing_is_read_and_one_without_facts_refused(accelerator, tmp_path, capsys):
    prepared(accelerator)
    path = save_checkpoint(accelerator, tmp_path, 7)
    facts = json.loads((path / "facts.json").read_text())
    (path / "facts.json").write_text(json.dumps({"fixed": facts["fixed"]}))
    load_checkpoint(accelerator, path)
    assert f"was written with torch None, now {torch.__version__}" in capsys.readouterr().out
    (path / "facts.json").write_text("{}")
    with pytest.raises(UserError, match="checkpoint-7: written by another version"):
        load_checkpoint(accelerator, path)


@pytest.mark.parametrize("change", [{"layout": 1}, {}])
def test_a_checkpoint_of_another_layout_is_refused_by_name(accelerator, tmp_path, change):
    prepared(accelerator)
    path = save_checkpoint(accelerator, tmp_path, 7)
    facts = json.loads((path / "facts.json").read_text())
    del facts["fixed"]["layout"]
    facts["fixed"].update(change)
    (path / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="checkpoint-7: written by another version of melanoma-fair-xai"):
        load_checkpoint(accelerator, path)


def test_best_so_far():
    progress = TrainingProgress()
    values = [float("nan"), 0.5, 0.5, 0.4, float("nan"), 0.6]
    weights = {"net": {"w": torch.zeros(1)}}
    assert [progress.update_best(value, weights) for value in values] == [False, True, False, False, False, True]
    weights["net"]["w"] += 1
    assert progress.best_weights["net"]["w"] == 0  # a copy
