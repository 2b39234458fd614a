"""The folder that a run writes: opened once, and locked while the run lives."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import accelerate

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import PARTIAL_FILES, PARTIAL_PREFIX, made_folder

from .arguments import ARGUMENTS_NAME
from .launch import on_main_process

LOCK_NAME = ".melanoma-fair-xai.lock"  # whoever else writes there gives no file this name
CHECKSUMS_NAME = "checksums.json"  # of a checkpoint


# What --overwrite_output_dir may remove; whatever else lies in the folder is the user's and stays.
WRITTEN_BY_A_RUN = (
    "checkpoint-[0-9]*",
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
    "fold-[0-9]",
    "forgetting",
    "figures",
    "logs",
    "predictions",
    "samples",
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "model_index.json",
    "pipeline_lesion.py",
    "conditioner",
    "scheduler",
    "unet",
    "attributions.npz",
    "attributions.parquet",
    "controls.csv",
    "groups.csv",
    "overlays",
    "unfinished",
    "report.html",
)


def is_run_folder(folder: pathlib.Path) -> bool:
    """Whether a run has written here."""
    return (folder / ARGUMENTS_NAME).is_file() or any(folder.glob(f"checkpoint-*/{CHECKSUMS_NAME}"))


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
    a killed run left half-written are removed. A run that is refused, or ends before it wrote a file, leaves nothing.
    """
    folder = pathlib.Path(output_dir)
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            if not os.path.lexists(folder / LOCK_NAME):  # nothing is written to what may be the user's own
                _check_owner(folder, resume, overwrite)
            try:
                stack.enter_context(made_folder(folder))
                stack.enter_context(lock_folder(folder))
            except OSError as error:
                reason = f"cannot be written to ({error.strerror})"
                raise UserError(f"--output_dir {folder}: {reason}; choose another") from None
            _check_owner(folder, resume, overwrite)
            half_written = [f"{PARTIAL_PREFIX}*", f"**/{PARTIAL_FILES}"]
            for pattern in WRITTEN_BY_A_RUN if overwrite and not resume else half_written:
                for path in list(folder.glob(pattern)):
                    remove(path)

        on_main_process(accelerator, prepare)
        yield folder


def _check_owner(folder: pathlib.Path, resume: bool, overwrite: bool) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if LOCK_NAME in names:  # what is half-written there is of a run that had only begun when it was killed
        names = {name for name in names if name != LOCK_NAME and not name.startswith(PARTIAL_PREFIX)}
    if names and not (resume or overwrite):
        raise UserError(
            f"--output_dir {folder}: not empty; choose another folder, continue with "
            "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir"
        )
    if names and not is_run_folder(folder):
        raise UserError(f"--output_dir {folder}: not empty, and not written by a run; choose another folder")


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a folder that can be written to. It goes at the end if nothing else is there.

    UserError, with who holds it, if another process does.
    """
    path = folder / LOCK_NAME
    tempfile.TemporaryFile(dir=folder).close()  # a lock that is there says nothing of whether others can be written
    # Not through a link, which would be somebody else's file.
    with open(path, "a+", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)) as file:
        try:
            # The kernel lets go of it however the process dies. (A flock would live on in its loading workers.)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f"--output_dir {folder}: in use by another run ({file.read().strip() or 'unknown process'}); "
                "wait for it to end, or choose another folder"
            ) from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise UserError(f"--output_dir {folder}: another run ended there this moment; try again")
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may have been moved
                if os.listdir(folder) == [LOCK_NAME]:
                    path.unlink()


def remove(path: pathlib.Path) -> None:
    """Remove a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
