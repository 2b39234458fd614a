"""Ending a run when it is asked to: at the next step, with a checkpoint, in all processes together."""

import mmap
import os
import signal
import sys
from types import FrameType

import accelerate
import torch


class StopSignal:
    """While the block runs, notes SIGTERM, SIGUSR1 and the first Ctrl-C instead of dying of them.

        with StopSignal() as stop:
            for batch in ...:
                ...
                if stop.requested(accelerator):
                    save_checkpoint(...)
                    stop.exit(accelerator, "checkpoint-40 is written; continue with --resume_from_checkpoint latest")

    A second Ctrl-C interrupts at once. Loading workers that are started inside the block leave it to this process to
    act on signals, which terminals and clusters send to them as well.
    """

    def __init__(self):
        self.received: int | None = None
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self._group = None
        self._process = os.getpid()
        self._ended = mmap.mmap(-1, 1)  # shared with workers that are forked

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        self._ended[0] = 1
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a worker: Python ends it by SIGTERM after the block, or waits for ever
            if self._ended[0] and number == signal.SIGTERM:
                os._exit(0)
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def requested(self, accelerator: accelerate.Accelerator) -> bool:
        """Whether any process was asked to stop. Every process calls this at the same steps, and all agree."""
        # A signal to `accelerate launch` kills the launcher alone: its child then has another parent.
        if self._launcher is not None and os.getppid() != self._launcher:
            self.received = self.received or signal.SIGTERM
        if accelerator.num_processes > 1:
            if self._group is None:
                self._group = torch.distributed.new_group(backend="gloo")  # does not wait for the device
            received = torch.tensor(self.received or 0)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX, group=self._group)
            self.received = int(received) or None
        return self.received is not None

    def exit(self, accelerator: accelerate.Accelerator, message: str) -> None:
        """Say why the run ends, once, and end with the exit code that shells give to the signal (130 for Ctrl-C)."""
        if accelerator.is_main_process:
            print(f"stopped by {signal.Signals(self.received).name}: {message}", file=sys.stderr, flush=True)
        sys.exit(128 + self.received)
