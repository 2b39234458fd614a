"""Runs of the toy training in processes of their own, to be killed, stopped, resumed and compared.

A fork server that has the imports done starts a run in a fraction of a second instead of ten.
"""

import contextlib
import importlib
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import torch

from melanoma_fair_xai.base.errors import run_command

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    # The last is what the first optimiser that is made imports, for seconds.
    ["melanoma_fair_xai.engine.arguments", "melanoma_fair_xai.engine.checkpoints", "torch._dynamo"]
)


def _process(module: str, argv: list[str], environment: dict[str, str], output: str) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as loading workers are started in a run of one's own
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    sys.argv = [f"{module}.py", *argv]
    torch.set_num_threads(1)
    run_command(importlib.import_module(module).main)


class Run:
    """A started run: as many processes as asked for, and what they print, in one file."""

    def __init__(
        self, folder: pathlib.Path, *flags: str, processes: int = 1, module: str = "toy_training", **environment: str
    ):
        self.folder = folder
        self.output = folder.parent / f"{folder.name}-{time.monotonic_ns()}.txt"
        argv = ["--output_dir", str(folder), *flags]
        self.processes = []
        port = free_port()
        for rank in range(processes):
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                environment |= {name: str(value) for name, value in ranks.items()}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            process = CONTEXT.Process(target=_process, args=(module, argv, dict(environment), str(self.output)))
            process.start()
            self.processes.append(process)

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait(self, timeout: float = 120) -> list[int]:
        """The exit codes of all processes; those that are still there after the timeout are killed, and it fails."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        hanging = [process for process in self.processes if process.exitcode is None]
        if hanging:
            self.kill()
            raise AssertionError(f"{len(hanging)} processes did not end; they printed:\n{self.text}")
        return [process.exitcode for process in self.processes]

    @property
    def ended(self) -> bool:
        return all(process.exitcode is not None for process in self.processes)

    def kill(self) -> None:
        """SIGKILL to all processes; their loading workers find out by themselves."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait_for(self, pattern: str, timeout: float = 120) -> None:
        """Return once the output matches the pattern, whole lines only."""
        self.wait_until(lambda: re.search(f"^(?:{pattern})\n", self.text, re.MULTILINE), timeout)

    def stop_while_writing(self, delay: float = 0, timeout: float = 120) -> bool:
        """Freeze the run while a checkpoint is being written, up to `delay` seconds after the writing began.

        False if it ended without having been seen at that.
        """
        while not self.ended:
            self.wait_until(lambda: partial_checkpoints(self.folder) or self.ended, timeout)
            time.sleep(delay)
            self.signal(signal.SIGSTOP)
            if partial_checkpoints(self.folder):
                return True
            self.signal(signal.SIGCONT)
            delay /= 2
        return False

    def wait_until(self, condition: Callable[[], object], timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end or self.ended:
                self.kill()
                raise AssertionError(f"it never came; the run printed:\n{self.text}")
            time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder: pathlib.Path, *flags: str, **options) -> Iterator[Run]:
    """A run that is killed at the end of the block if it still lives."""
    run = Run(folder, *flags, **options)
    try:
        yield run
    finally:
        run.kill()


def run_to_end(folder: pathlib.Path, *flags: str, processes: int = 1, **options) -> str:
    """What a run printed that ended well in all its processes."""
    with running(folder, *flags, processes=processes, **options) as run:
        codes = run.wait()
        assert codes == [0] * processes, run.text
        for rank in range(processes):
            assert f"process {rank} of {processes}\n" in run.text
        return run.text


def kill_after_first_checkpoint(folder: pathlib.Path, *flags: str, seconds: float, **options) -> bool:
    """Kill a run some seconds after its first checkpoint; whether it was writing another one.

    One that got to its end meanwhile, as it may on a busy machine, is made again and killed sooner.
    """
    for attempt in range(5):
        with running(folder, *flags, **options) as run:
            run.wait_until(lambda: any(folder.glob("checkpoint-*")))
            time.sleep(seconds / 2**attempt)
            run.kill()
        if not (folder / "metrics.json").exists():
            return bool(partial_checkpoints(folder))
        shutil.rmtree(folder)
    raise AssertionError("it was always killed too late")


def partial_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.glob(".partial-checkpoint-*"))


def final_state(folder: pathlib.Path) -> list[dict]:
    """What each process of a finished run ended with: all weights, states, counts, history and random numbers."""
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("final-*.pt"))]


def differences(first, second, name: str = "") -> tuple[int, list[str]]:
    """The number of tensors in two nested states, and the names of the values that are not the same bit for bit."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
        return 1, [] if same else [name]
    if isinstance(first, dict | list | tuple):
        if type(first) is not type(second) or len(first) != len(second):
            return 0, [name]
        if isinstance(first, dict) and first.keys() != second.keys():
            return 0, [name]
        keys = first.keys() if isinstance(first, dict) else range(len(first))
        parts = [differences(first[key], second[key], f"{name}/{key}") for key in keys]
        return sum(count for count, _ in parts), [name for _, names in parts for name in names]
    return 0, [] if first == second else [name]
