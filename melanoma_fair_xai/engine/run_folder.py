"""The folder that a run writes: opened once, and locked while the run lives."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

import accelerate

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_PREFIX, atomic_path

from .arguments import ARGUMENTS_NAME
from .launch import on_main_process

LOCK_NAME = ".lock"


# What --overwrite_output_dir may remove; whatever else lies in the folder is the user's and stays.
WRITTEN_BY_A_RUN = (
    "checkpoint-*",
    f"{PARTIAL_PREFIX}*",
    ARGUMENTS_NAME,
    "README.md",
    "card_data.json",
    "explanation",
    "quality",
    "metrics.json",
    "skipped.csv",
    "split_manifest.csv",
    "fairness.csv",
    "fairness.md",
    "fold-*",
    "forgetting",
    "figures",
    "logs",
    "predictions",
    "samples",
    "*.safetensors",
    "config.json",
    "preprocessor_config.json",
    "model_index.json",
    "pipeline_lesion.py",
    "conditioner",
    "scheduler",
    "unet",
    "attributions.*",
    "controls.csv",
    "groups.csv",
    "overlays",
    "report.html",
)


def is_run_folder(folder: pathlib.Path) -> bool:
    """Whether a run has written here."""
    return (folder / ARGUMENTS_NAME).is_file() or any(folder.glob("checkpoint-*"))


@contextlib.contextmanager
def open_run_folder(
    accelerator: accelerate.Accelerator,
    output_dir: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[pathlib.Path]:
    """The folder, made if need be and locked by the main process until the block or the process ends.

    UserError if it is in use by another run, cannot be written, or is not empty without `resume` or `overwrite`. With
    `overwrite`, what an earlier run wrote is removed; with either, a folder that no run wrote is refused. Files that
    a killed run left half-written are removed.
    """
    folder = pathlib.Path(output_dir)
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            _make_writable(folder)
            stack.enter_context(_lock(folder))
            _admit(folder, resume, overwrite)

        on_main_process(accelerator, prepare)
        yield folder


def _make_writable(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "write-test") as path:
            path.touch()
        (folder / "write-test").unlink()
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written to ({error.strerror}); choose another") from None


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / LOCK_NAME, "a+") as file:
        try:
            # The kernel lets go of it however the process dies. (A flock would live on in its loading workers.)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f"--output_dir {folder}: in use by another run ({file.read().strip() or 'unknown process'}); "
                "wait for it to end, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def _admit(folder: pathlib.Path, resume: bool, overwrite: bool) -> None:
    if any(path.name != LOCK_NAME and not path.name.startswith(PARTIAL_PREFIX) for path in folder.iterdir()):
        if not (resume or overwrite):
            raise UserError(
                f"--output_dir {folder}: not empty; choose another folder, continue with "
                "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir"
            )
        if not is_run_folder(folder):
            raise UserError(f"--output_dir {folder}: not empty, and not written by a run; choose another folder")
    for pattern in WRITTEN_BY_A_RUN if overwrite and not resume else [f"{PARTIAL_PREFIX}*"]:
        for path in folder.glob(pattern):
            remove(path)


def remove(path: pathlib.Path) -> None:
    """Remove a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
