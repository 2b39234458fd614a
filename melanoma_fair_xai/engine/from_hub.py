"""Where `from_pretrained` begins: a folder, or the local copy of what a repository on the Hub holds."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from dataset_scripts.common import UserError, read_problem
from dataset_scripts.publishing import hub_problem


def local_folder(folder_or_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder of that name, or else the copy of a Hub repository's `files` (glob patterns) at a revision.

    What was fetched before serves where the Hub cannot be reached. Raises UserError where there is neither, and for a
    revision of a folder, which has none.
    """
    folder = Path(folder_or_id)
    if folder.is_dir():
        if revision:
            raise UserError(f"--revision {revision}: {folder} is a folder here, which has none; leave the flag out")
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(folder_or_id, revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise UserError(f"{folder_or_id}: no such folder") from None
    except OSError as error:
        at = f" at revision {revision}" if revision else ""
        reason = hub_problem(error) or read_problem(error)
        raise UserError(f"{folder_or_id}: no such folder, and not to be had from the Hub{at} ({reason})") from None
