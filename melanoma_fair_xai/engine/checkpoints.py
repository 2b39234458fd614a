"""Checkpoints that are whole or absent, checked before use, and refused where a resumed run would differ."""

import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import accelerate
import safetensors
import torch
from accelerate.utils import gather_object, load

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX, file_digest, plain, sync_to_disk, write_json

from .arguments import LATEST
from .launch import common_error, on_main_process
from .run_folder import CHECKSUMS_NAME, remove

Processes = list[list[int]]  # [step, number from it on]

LAYOUT = 2  # of what a checkpoint holds: networks, then schedule, averages, progress
FACTS_NAME = "facts.json"


def save_checkpoint(
    accelerator: accelerate.Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    *,
    total_limit: int | None = None,
    facts: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> pathlib.Path:
    """Write `checkpoint-STEP` with all that the accelerator prepared or registered, and return its path.

    Every process calls this, after a step that changed the weights (gradients half accumulated are not saved). The
    folder gets its name once all of it is on the disk; older ones beyond `total_limit` go only after that. An intact
    one of the same step and facts is kept as it is, since the same run would write the same again. `facts` are what
    must not change when the run is resumed (see `load_checkpoint`), `processes` those that the run has had so far, if
    their number has changed. UserError if it cannot be written: the older ones
    are then intact.
    """
    target = pathlib.Path(output_dir) / f"checkpoint-{step}"
    facts = {**_run_facts(accelerator, facts), "processes": processes or [[0, accelerator.num_processes]]}
    if on_main_process(accelerator, lambda: damage(target) is None and _read_facts(target) == facts):
        return target
    partial = target.with_name(PARTIAL_PREFIX + target.name)

    def finish() -> None:
        write_json(partial / FACTS_NAME, facts)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        write_json(partial / CHECKSUMS_NAME, {str(path.relative_to(partial)): file_digest(path) for path in files})
        for path in [*partial.rglob("*"), partial]:
            sync_to_disk(path)
        _remove_if_there(target)
        os.replace(partial, target)
        sync_to_disk(target.parent)

    try:
        _all_succeed(accelerator, lambda: accelerator.is_main_process and _remove_if_there(partial))
        _all_succeed(accelerator, lambda: accelerator.save_state(str(partial)))
        _all_succeed(accelerator, lambda: accelerator.is_main_process and finish())
    except _WriteError as error:
        if accelerator.is_main_process:
            _remove_if_there(partial)
        raise common_error(f"{target}: could not be written ({error}); earlier checkpoints are intact") from None
    if accelerator.is_main_process and total_limit is not None:
        # Later ones are of a run that was taken back to an earlier step; they are no measure of what is old.
        older = [path for path in list_checkpoints(output_dir) if checkpoint_step(path) < step]
        for path in older[: max(len(older) - (total_limit - 1), 0)]:
            remove(path)
    return target


class _WriteError(Exception):
    pass


def _all_succeed(accelerator: accelerate.Accelerator, function) -> None:
    """Call `function` in every process; if it fails to write in any, raise the first one's error in all."""
    problem = None
    try:
        function()
    # torch and safetensors report a full disk by errors of their own.
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        problem = getattr(error, "strerror", None) or str(error).splitlines()[0]
    problems = [problem] if accelerator.num_processes == 1 else gather_object([problem])
    first = next(filter(None, problems), None)
    if first:
        raise _WriteError(first)


def _remove_if_there(path: pathlib.Path) -> None:
    if path.exists():
        remove(path)


def checkpoint_step(path: pathlib.Path) -> int:
    return int(path.name.rpartition("-")[2])


def list_checkpoints(output_dir: str | os.PathLike) -> list[pathlib.Path]:
    """The folders `checkpoint-N`, by N; damaged ones too."""
    paths = [path for path in pathlib.Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    return sorted(paths, key=checkpoint_step)


def damage(path: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is there with the content that was written."""
    try:
        checksums = json.loads((path / CHECKSUMS_NAME).read_text(encoding="utf-8"))
        for name, checksum in checksums.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if file_digest(path / name) != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{CHECKSUMS_NAME} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read: {error}"
    return None


def find_checkpoint(
    accelerator: accelerate.Accelerator, output_dir: str | os.PathLike, resume_from_checkpoint: str | None
) -> pathlib.Path | None:
    """The checkpoint to resume from, or None if there is none (or none was asked for).

    `latest` is the newest intact one in `output_dir`; a line tells of each damaged one that is passed over. Anything
    else is the path of a checkpoint: UserError if it is not there or damaged.
    """
    if resume_from_checkpoint is None:
        return None

    def find() -> pathlib.Path | None:
        if resume_from_checkpoint == LATEST:
            return _latest(list_checkpoints(output_dir))
        path = pathlib.Path(resume_from_checkpoint)
        problem = damage(path) if path.is_dir() else "no such folder"
        if problem:
            raise UserError(f"--resume_from_checkpoint {path}: {problem}; give an intact checkpoint, or `{LATEST}`")
        return path

    path = on_main_process(accelerator, find)
    if path is not None and not path.is_dir():
        raise UserError(f"{path}: not to be seen from process {accelerator.process_index}; use a shared --output_dir")
    return path


def _latest(paths: Iterable[pathlib.Path]) -> pathlib.Path | None:
    damaged = []
    for path in reversed(list(paths)):
        problem = damage(path)
        if problem is None:
            break
        damaged.append((path, problem))
    else:
        path = None
    for bad, problem in damaged:
        print(f"{bad.name} is damaged ({problem}): using {path.name if path else 'no checkpoint'}", flush=True)
    return path


def load_checkpoint(
    accelerator: accelerate.Accelerator,
    path: str | os.PathLike,
    *,
    facts: Mapping[str, Any] | None = None,
    elastic: bool = False,
) -> None:
    """Restore all that the accelerator prepared or registered, random states included, in every process.

    With `elastic`, another number of processes than wrote the checkpoint may load it, and the caller has to seed them.

    UserError if the run now differs from the one that wrote the checkpoint in one of the `facts`, in the number of
    processes, gradient accumulation or mixed precision, or if the model has other tensors. A line tells of another
    torch version or number of threads, which change the last bits.
    """
    path = pathlib.Path(path)

    def check() -> None:
        if not elastic:
            _check_processes(path, accelerator.num_processes)
        _check_facts(path, _read_facts(path), _run_facts(accelerator, facts))
        for index, model in enumerate(accelerator._models):
            name = f"model_{index}.safetensors" if index else "model.safetensors"
            if (path / name).is_file():  # otherwise a load hook has it elsewhere, and its owner checks it
                check_tensors(path, name, model.state_dict())
        # Accelerate unpickles these without limits; plain containers and tensors are all that we ever write.
        for state in path.glob("custom_checkpoint_*.pkl"):
            _load_plain(state)

    on_main_process(accelerator, check)
    same_number = processes_so_far(path)[-1][1] == accelerator.num_processes
    if same_number:
        states = _load_plain(path / f"random_states_{accelerator.process_index}.pkl")
        torch.seed()  # Accelerate keeps quiet when restoring random states fails: let it show
    try:
        accelerator.load_state(str(path))
    except (RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path}: written by another model or set-up ({str(error).splitlines()[0]})") from None
    if same_number and not all(map(torch.equal, _torch_random_states(), _torch_random_states(states))):
        raise UserError(f"{path}: its random states could not be restored; resume with the versions that wrote it")


def _torch_random_states(saved: Mapping[str, Any] | None = None) -> list[torch.Tensor]:
    """Of the CPU and all CUDA devices: as they are now, or as Accelerate saved them."""
    if saved is not None:
        return [saved["torch_manual_seed"], *saved.get("torch_cuda_manual_seed", [])]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _load_plain(path: pathlib.Path) -> Any:
    try:
        return load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be loaded safely ({str(error).splitlines()[0]})") from None


def forget_training(accelerator: accelerate.Accelerator) -> None:
    """Let go of all that was prepared, registered or tracked, before another training with the same accelerator."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    accelerator.free_memory()
    accelerator._custom_objects.clear()


def _run_facts(accelerator: accelerate.Accelerator, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "fixed": plain(
            {
                "layout": LAYOUT,
                "number of processes": accelerator.num_processes,
                "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
                "mixed_precision": accelerator.mixed_precision,
                **(facts or {}),
            }
        ),
        "noted": {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": accelerator.device.type},
    }


def _read_facts(path: pathlib.Path) -> dict[str, Any]:
    facts = json.loads((path / FACTS_NAME).read_text(encoding="utf-8"))
    if facts.get("fixed", {}).get("layout") != LAYOUT:
        raise UserError(
            f"{path}: written by another version of melanoma-fair-xai;\n"
            "finish the run with that one, or start anew in another --output_dir"
        )
    return facts


def processes_so_far(path: pathlib.Path) -> Processes:
    """The numbers of processes of the run that wrote a checkpoint, each with the step from which on it had so many."""
    facts = _read_facts(path)
    return facts.get("processes", [[0, facts["fixed"]["number of processes"]]])


def _check_processes(path: pathlib.Path, number: int) -> None:
    for _, earlier in processes_so_far(path):
        if earlier != number:
            raise UserError(
                f"{path}: written with number of processes {earlier}, but this run has {number};\n"
                "give --allow_elastic to go on with the same batches, though not the same bits"
            )


def _check_facts(path: pathlib.Path, written: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in written["fixed"].items():
        if name in now["fixed"] and now["fixed"][name] != value:
            raise UserError(
                f"{path}: written with {name} {value}, but this run has {now['fixed'][name]};\n"
                "a resumed run must go on with the same, or start anew in another --output_dir"
            )
    for name, value in now["noted"].items():
        there = written.get("noted", {}).get(name)
        if there != value:
            print(f"{path.name} was written with {name} {there}, now {value}: last bits may differ")


def check_tensors(path: pathlib.Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """UserError unless file `name` of a checkpoint has tensors of the names and shapes of `tensors`."""
    with safetensors.safe_open(path / name, "pt") as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
    stored = {tensors[key].data_ptr() for key in shapes if key in tensors}  # tied tensors are stored once
    for key in sorted(tensors.keys() | shapes.keys()):
        here = list(tensors[key].shape) if key in tensors else None
        there = shapes.get(key)
        if here != there and not (there is None and tensors[key].data_ptr() in stored):
            raise UserError(
                f"{path}: written by another model: {key} is {there or 'absent'} there and {here or 'absent'} here;\n"
                "resume with the model that wrote it, or start anew in another --output_dir"
            )
