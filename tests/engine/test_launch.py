import signal

import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.engine.launch import _check_processes, check_finite, explained_errors


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
