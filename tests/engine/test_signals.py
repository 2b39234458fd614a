import multiprocessing
import os
import resource
import signal
import tempfile
from types import SimpleNamespace

import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.engine.launch import explained_errors
from melanoma_fair_xai.engine.signals import StopSignal, init_worker


def test_handlers_are_put_back_and_a_second_ctrl_c_interrupts(accelerator):
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert not stop.requested(accelerator)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(accelerator)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signal_that_comes_while_the_processes_agree_is_not_lost(monkeypatch):
    def all_reduce(value, *args, **options):
        if not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    interrupted = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    two = SimpleNamespace(num_processes=2)
    with StopSignal() as stop:
        assert not stop.requested(two)  # the other process does not know yet
        assert stop.requested(two)


def test_the_end_of_accelerate_launch_counts_as_a_signal(accelerator, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with StopSignal() as stop:
        assert not stop.requested(accelerator)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.requested(accelerator)
        with pytest.raises(SystemExit) as stopped:
            stop.exit(accelerator, "checkpoint-4 is written")
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "stopped by SIGTERM: checkpoint-4 is written\n"


class WithoutMeans(torch.utils.data.Dataset):
    """What a worker loads well, but cannot hand over."""

    def __init__(self, lacking: str):
        self.lacking = lacking

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.lacking == "files":
            open_now = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_now, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        else:
            tempfile.tempdir, tempfile._candidate_tempdir_list = None, lambda: ["/nowhere"]
            multiprocessing.current_process()._config.pop(
                "tempdir", None
            )  # the one that an earlier test had asked for
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("lacking", "words"), [("files", "Too many open files; raise the limit"), ("folder", "TMPDIR")]
)
def test_a_worker_that_cannot_hand_over_ends_the_run(lacking, words, capfd, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)  # once in a process
    loader = torch.utils.data.DataLoader(WithoutMeans(lacking), num_workers=1, worker_init_fn=init_worker, timeout=30)
    with pytest.raises(UserError, match="a data loading worker died"), explained_errors():
        next(iter(loader))
    said = capfd.readouterr().err
    assert said.startswith("a data loading worker cannot hand over") and words in said and said.count("\n") == 1
