import os
import signal
from types import SimpleNamespace

import pytest
import torch

from melanoma_fair_xai.engine.signals import StopSignal


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
