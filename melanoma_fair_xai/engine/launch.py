"""Starting the processes of a run, and what they say when something ends them."""

import contextlib
import datetime
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import accelerate
import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import TorchDynamoPlugin, broadcast_object_list, gather_object

from melanoma_fair_xai.base.errors import UserError

from .options import TrainingOptions

Result = TypeVar("Result")


def create_accelerator(*, cpu: bool = False, timeout_minutes: float = 60, **options: Any) -> accelerate.Accelerator:
    """An Accelerator on the devices there are, with as many processes as were asked for, or a UserError.

    `options` go to `Accelerator` (gradient_accumulation_steps, mixed_precision, log_with, project_dir, ...). Processes
    that wait for another one give up after `timeout_minutes`.
    """
    timeout = accelerate.InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=timeout_minutes))
    # Without cpu=True, Accelerate on a machine without accelerators gives each process of a launch a run of its own.
    accelerator = accelerate.Accelerator(
        cpu=cpu or not torch.accelerator.is_available(), kwargs_handlers=[timeout], **options
    )
    _check_processes(accelerator.num_processes)
    _hint_at_idle_cores(accelerator)
    return accelerator


def start_accelerator(options: TrainingOptions) -> accelerate.Accelerator:
    """The Accelerator of a training; UserError for a tracker that is not installed."""
    tracker = None if options.report_to == "none" else options.report_to
    if tracker not in (None, *map(str, get_available_trackers())):
        raise UserError(f"--report_to {tracker}: not installed; install it, or give --report_to tensorboard or none")
    return create_accelerator(
        mixed_precision=resolve_precision(options.mixed_precision),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=tracker,
        project_dir=options.output_dir,
        dynamo_plugin=TorchDynamoPlugin(backend="inductor") if options.torch_compile else None,
    )


def resolve_precision(requested: str) -> str:
    """`auto`: what `accelerate launch` or its configuration names, else bf16 unless the hardware emulates it."""
    if requested != "auto":
        return requested
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return os.environ["ACCELERATE_MIXED_PRECISION"]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def _hint_at_idle_cores(accelerator: accelerate.Accelerator) -> None:
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = torch.get_num_threads()
    by_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if accelerator.device.type == "cpu" and by_launcher and threads < cores:
        # The launchers say OMP_NUM_THREADS=1 to each process, which takes twice as long on two cores.
        accelerator.print(
            f"each process computes with {threads} of {cores} cores; to use them all, give accelerate launch "
            f"--num_cpu_threads_per_process {cores}, or set OMP_NUM_THREADS={cores}"
        )


def _check_processes(started: int) -> None:
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if started < asked:
        raise UserError(f"{asked} processes were asked for, but each of them runs alone; start them with torchrun")
    # `accelerate launch --num_processes N` sets this address for N > 1, and then starts one process on a CPU.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if started == 1 and by_accelerate and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes but started one, as it does on a CPU; start them with\n"
            "`accelerate launch --multi_gpu --num_processes N` (on CPUs too) or `torchrun --nproc_per_node N`"
        )


def on_main_process(accelerator: accelerate.Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in the main process alone and give its (picklable) result to all, who wait for it.

    If it raises, the main process goes on raising, and the others end quietly with exit code 2.
    """
    if accelerator.num_processes == 1:
        return function()
    outcome: list[Any] = [None, False]
    try:
        if accelerator.is_main_process:
            outcome = [function(), True]
    finally:
        broadcast_object_list(outcome)
    result, succeeded = outcome
    if not succeeded:
        sys.exit(2)
    return result


def once_per_machine(accelerator: accelerate.Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` in the first process of each machine and give its (picklable) result to all others there.

    If it raises in any, that one goes on raising, and the others end quietly with exit code 2.
    """
    if accelerator.num_processes == 1:
        return function()
    outcome: tuple | None = None if accelerator.is_local_main_process else ()
    try:
        if accelerator.is_local_main_process:
            outcome = (function(),)
    finally:
        outcomes = gather_object([outcome])
    if any(other is None for other in outcomes):
        sys.exit(2)
    return (outcome or outcomes[accelerator.process_index - accelerator.local_process_index])[0]


def check_alike(accelerator: accelerate.Accelerator, facts: Mapping[str, Any]) -> None:
    """UserError if a fact is another one in another process, as where machines have data of their own that differ."""
    first, *others = gather_object([dict(facts)]) if accelerator.num_processes > 1 else [facts]
    for process, theirs in enumerate(others, 1):
        for name, value in first.items():
            if theirs[name] != value:
                raise common_error(
                    f"{name} {value} in process 0, but {theirs[name]} in process {process};\n"
                    "give all machines the same data and flags"
                )


def common_error(message: str) -> BaseException:
    """What to raise for an error that every process finds alike: said by the main process, exit code 2 in all."""
    return UserError(message) if accelerate.PartialState().is_main_process else SystemExit(2)


def check_finite(value: float | torch.Tensor, step: int, name: str = "loss") -> None:
    """UserError if a loss or gradient norm is NaN or infinite. Give the mean over processes, so that all find it.

    A tensor makes it wait for the device; collect the values of some steps, and check them before each checkpoint.
    """
    value = float(value)
    if not math.isfinite(value):
        raise common_error(
            f"the {name} is {value} at step {step}: lower --learning_rate, clip with --max_grad_norm, or use "
            "--mixed_precision no;\ncheckpoints written before are intact, see --resume_from_checkpoint"
        )


@contextlib.contextmanager
def explained_errors(
    memory_flags: str = "--train_batch_size", go_on: str = "continue with --resume_from_checkpoint latest"
) -> Iterator[None]:
    """Turn what a run can die of, without a fault in it, into a UserError with the flags that help.

    These are memory that runs out on a device or the host (`memory_flags` name what to lower), a killed loading
    worker, and another process of the run that died, after which the user should `go_on`.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # for a dead worker, torch's handler would raise on the way out
        said = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            raise UserError(f"out of memory ({said}); lower {memory_flags}") from None
        if "DataLoader worker" in text or _came_from_worker(error):
            raise UserError(
                f"a data loading worker died ({said}); it may have run out of memory: lower --dataloader_num_workers "
                "(0 loads in the main process)"
            ) from None
        if isinstance(error, torch.distributed.DistError) or "gloo" in text or "Connection closed by peer" in text:
            raise UserError(
                f"another process of this run died or hangs ({said});\nsee its message, then {go_on}"
            ) from None
        raise


def _came_from_worker(error: BaseException) -> bool:
    """Whether the connection to a loading worker broke, as it does if it dies while it hands over a batch."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return isinstance(error, ConnectionError | EOFError) and any("multiprocessing" in file for file in files)
