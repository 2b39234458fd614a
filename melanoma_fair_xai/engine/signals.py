"""Ending a run when it is asked to: at the next step, with a checkpoint, in all processes together."""

import multiprocessing.queues
import os
import signal
import sys
import threading
from types import FrameType

import accelerate
import torch

from melanoma_fair_xai.base.errors import explain, read_problem


def init_worker(worker_id: int = 0) -> None:
    """A `worker_init_fn` for loaders. Ctrl-C and SIGTERM, which terminals and clusters send to all processes of a job,
    would end the workers before the training process has written its checkpoint: they are left to the parent. A
    worker that cannot hand over what it has loaded (no more open files, no folder for temporary ones) ends with a
    line, where multiprocessing would drop the batch and the parent wait for it for ever."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_of)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end_by_parent, daemon=True).start()


def _end_of(error: Exception, item: object) -> None:
    reason = explain(error) or read_problem(error)
    print(f"a data loading worker cannot hand over what it loaded: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def _wait_for_end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopSignal:
    """While the block runs, notes SIGTERM, SIGUSR1 and the first Ctrl-C instead of dying of them.

        with StopSignal() as stop:
            for batch in ...:
                ...
                if stop.requested(accelerator):
                    save_checkpoint(...)
                    stop.exit(accelerator, "checkpoint-40 is written; continue with --resume_from_checkpoint latest")

    A second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.received: int | None = None
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self._group = None

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def requested(self, accelerator: accelerate.Accelerator) -> bool:
        """Whether any process was asked to stop. Every process calls this at the same steps, and all agree."""
        # A signal to `accelerate launch` kills the launcher alone: its child then has another parent.
        if self._launcher is not None and os.getppid() != self._launcher:
            self.received = self.received or signal.SIGTERM
        if accelerator.num_processes == 1:
            return self.received is not None
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")  # does not wait for the device
        agreed = torch.tensor(self.received or 0)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, group=self._group)
        self.received = int(agreed) or self.received  # a signal that came meanwhile counts at the next step
        return bool(agreed)

    def exit(self, accelerator: accelerate.Accelerator, message: str) -> None:
        """Say why the run ends, once, and end with the exit code that shells give to the signal (130 for Ctrl-C)."""
        if accelerator.is_main_process:
            print(f"stopped by {signal.Signals(self.received).name}: {message}", file=sys.stderr, flush=True)
        sys.exit(128 + self.received)
