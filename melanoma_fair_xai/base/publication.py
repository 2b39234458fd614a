"""What of a folder is published: looked over, whole, licensed, and without local paths."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import RepoCard

from .errors import UserError
from .files import read_file
from .images import IMAGE_SUFFIXES, image_content_problem

CARD_NAME = "README.md"
TEXTS = (".csv", ".json", ".md")

# An absolute path, or one from the home folder: a slash that begins a word, and is no part of a URL or closing tag.
LOCAL_PATH = re.compile(r"(?<![\w./<~-])~?/[\w.@+-]+(?:/[\w.@+-]+)*/?")


@dataclasses.dataclass(frozen=True)
class Publication:
    """What of a folder goes to the Hub.

    Attributes:
        folder: where it lies here.
        repo_type: `model` or `dataset`.
        licence: what its card says.
        code: the commit of the code that made it, None if it is not known.
        files: by path in the repository, the file here, or a text's content without local paths.
        patterns: what such publications hold; files of an earlier version that match are removed from the branch.
    """

    folder: Path
    repo_type: str
    licence: str
    code: str | None
    files: dict[str, Path | bytes]
    patterns: tuple[str, ...]

    def describe(self, repo_id: str, private: bool) -> str:
        """Every file with its size, the licence, and where it would go."""
        sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in self.files.items()}
        lines = [f"{size:>15,}  {name}" for name, size in sizes.items()]
        total = f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files"
        where = f"{self.repo_type} {repo_id}, {'private' if private else 'public'}"
        return "\n".join([*lines, total, f"licence: {self.licence}", f"would go to {where}; nothing was sent"])


def file_problem(path: Path) -> str | None:
    """Why a file is not whole, as far as its kind shows it, or None."""
    if not path.stat().st_size:
        return "zero bytes"
    if path.suffix in IMAGE_SUFFIXES:
        return image_content_problem(read_file(path))
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"not readable as JSON ({error})"
    if path.suffix == ".parquet":
        with open(path, "rb") as file:
            file.seek(-min(4, path.stat().st_size), 2)
            if file.read() != b"PAR1":  # the format's last four bytes, and its first
                return "not a whole Parquet file"
    return None


def collect(
    folder: Path,
    repo_type: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    problem: Callable[[Path], str | None] = file_problem,
) -> Publication:
    """The files that match glob patterns, each of `required` at least once, with the licence that the card states.

    Of those in `figures/` and `samples/` only the ones that the card shows are taken. Local paths in texts are
    shortened to their last part. Raises UserError for a file that is missing or has a `problem`, for a card without a
    licence, and for one that shows what is not there.
    """
    card = read_card(folder)
    files: dict[str, Path | bytes] = {}
    for pattern in (*required, *optional):
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not found and pattern in required:
            raise UserError(f"{folder}: holds no {pattern}, so it is not whole: nothing was sent")
        for path in found:
            name = path.relative_to(folder).as_posix()
            if name.startswith(("figures/", "samples/")) and name not in card.content:
                continue
            reason = problem(path)
            if reason:
                raise UserError(f"{path}: {reason}; write it again, nothing was sent")
            if path.suffix in TEXTS:
                files[name] = _published_text(path).encode()
            else:
                files[name] = path
    for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", card.text):
        if ":" not in link and link not in files:
            raise UserError(f"{folder / CARD_NAME}: shows {link}, which is not there; write the card again")
    return Publication(
        folder, repo_type, card.data.get("license"), code_commit(), dict(sorted(files.items())), (*required, *optional)
    )


def read_card(folder: Path) -> RepoCard:
    """A folder's card, which states a licence. UserError where there is none, as in what is not finished."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    path = folder / CARD_NAME
    if not path.is_file():
        raise UserError(f"{folder}: has no card ({CARD_NAME}), which is written last; finish it first")
    try:
        card = RepoCard.load(path, ignore_metadata_errors=False)
    except Exception as error:  # whatever the YAML reader raises
        raise UserError(f"{path}: its metadata cannot be read ({str(error).splitlines()[0]})") from None
    if not card.data.get("license"):
        raise UserError(f"{path}: states no license in its metadata; what may be done with it must be said")
    return card


def without_local_paths(value: Any) -> Any:
    """A text, or all texts in lists and dictionaries, with paths of this machine cut to their last part.

    Who reads them has no such folders, and need not know where a home folder lies. A text that is a path as a whole
    may hold spaces, and lead out of the working folder; within a longer one absolute paths are cut.
    """
    if isinstance(value, dict):
        return {name: without_local_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_local_paths(item) for item in value)
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/", "../")) and "\n" not in value:
        return os.path.basename(os.path.normpath(value))
    return LOCAL_PATH.sub(lambda match: PurePosixPath(match[0]).name, value)


def _published_text(path: Path) -> str:
    """What of a text file is published: strings of JSON are taken one by one, as they may be paths with spaces."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return without_local_paths(text)
    value = json.loads(text)
    cut = without_local_paths(value)
    return text if cut == value else json.dumps(cut, indent=2, ensure_ascii=False) + "\n"


def code_commit() -> str | None:
    """The commit of this code, with a word if files differ from it; None outside a clone."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes that are not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
