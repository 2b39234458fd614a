import signal
from types import SimpleNamespace

import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.engine import launch
from melanoma_fair_xai.engine.launch import (
    _check_processes,
    check_alike,
    check_finite,
    explained_errors,
    once_per_machine,
)


@pytest.fixture(autouse=True)
def handler_of_child_signals():
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_fewer_processes_than_asked_for(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    _check_processes(1)
    monkeypatch.setenv("MASTER_ADDR", "node1")  # as job scripts do; by itself it asks for nothing
    _check_processes(1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    _check_processes(4)
    with pytest.raises(UserError, match="4 processes were asked for, but each of them runs alone"):
        _check_processes(1)


def test_losses_that_are_not_finite():
    check_finite(0.5, step=3)
    for value, text in ((float("nan"), "nan"), (float("inf"), "inf")):
        with pytest.raises(UserError, match=f"the gradient norm is {text} at step 3"):
            check_finite(torch.tensor(value), step=3, name="gradient norm")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), r"out of memory \(CUDA out of memory\); lower --x"),
        (MemoryError(), r"out of memory \(MemoryError\); lower --x"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower --dataloader_num_workers"),
        (torch.distributed.DistBackendError("NCCL error in ..."), "another process of this run died or hangs"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"),
            "lower --x",
        ),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "another process"),
    ],
)
def test_ends_without_a_fault_in_the_run_are_explained(error, message):
    with pytest.raises(UserError, match=message), explained_errors("--x"):
        raise error


def test_faults_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), explained_errors():
        raise RuntimeError("shapes differ")


def call_once_per_machine(monkeypatch, process: int, outcomes: list) -> list:
    """What process `process` of two machines with two each gets, and whether it called the function itself."""
    gathered = []

    def gather(own: list) -> list:
        gathered.extend(own)
        return outcomes

    monkeypatch.setattr(launch, "gather_object", gather)
    accelerator = SimpleNamespace(
        num_processes=4, process_index=process, local_process_index=process % 2, is_local_main_process=process % 2 == 0
    )
    calls = []
    result = once_per_machine(accelerator, lambda: calls.append(process) or f"made by {process}")
    return [result, calls, gathered]


def test_what_is_done_once_per_machine_is_handed_to_the_others_there(monkeypatch):
    outcomes = [("made by 0",), (), ("made by 2",), ()]
    assert call_once_per_machine(monkeypatch, 0, outcomes) == ["made by 0", [0], [("made by 0",)]]
    assert call_once_per_machine(monkeypatch, 1, outcomes) == ["made by 0", [], [()]]
    assert call_once_per_machine(monkeypatch, 3, outcomes) == ["made by 2", [], [()]]


def test_machines_that_hold_other_data_are_told_apart(monkeypatch):
    facts, accelerator = {"split manifest": "a", "content of the images": "b"}, SimpleNamespace(num_processes=2)
    monkeypatch.setattr(launch, "gather_object", lambda own: [*own, dict(facts)])
    check_alike(accelerator, facts)
    with pytest.raises(UserError, match="content of the images c in process 0, but b in process 1;\ngive all"):
        check_alike(accelerator, {**facts, "content of the images": "c"})


def test_if_one_machine_fails_the_others_end_quietly(monkeypatch):
    for process in (0, 1, 3):
        with pytest.raises(SystemExit) as ended:
            call_once_per_machine(monkeypatch, process, [("made by 0",), (), None, ()])
        assert ended.value.code == 2
    monkeypatch.setattr(launch, "gather_object", lambda own: own)
    accelerator = SimpleNamespace(num_processes=4, process_index=2, local_process_index=0, is_local_main_process=True)
    with pytest.raises(ZeroDivisionError):
        once_per_machine(accelerator, lambda: 1 / 0)
