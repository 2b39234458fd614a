"""What of a folder is published: looked over, whole, licensed, and without local paths."""

import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard

from .errors import UserError
from .files import read_file
from .images import IMAGE_SUFFIXES, image_content_problem

CARD_NAME = "README.md"
TEXTS = (".csv", ".json", ".md")

# How a path of this machine begins if it is not one within the working folder, on Windows, too.
ROOT = r"(?:file:/*|[A-Za-z]:[\\/]|\\\\(?=\w)|~(?:[A-Za-z_][\w.-]*)?[\\/]|\$[A-Z_]+[\\/]|/(?!/))"
# Within a text such a path is no part of a word, URL or closing tag. It ends at a space unless it stands in quotes.
LOCAL_PATH = re.compile(
    rf"""(?P<quote>["'`])(?P<quoted>(?:{ROOT}|\.\.[\\/])(?:(?!(?P=quote))[^\n])+)(?P=quote)"""
    rf"""|(?<![\w./<~$\\-])(?P<bare>{ROOT}(?:[^\s"'`<>|()\[\]{{}},;]|\([^\s()]*\)|\[[^\s\[\]]*\])+)"""
)
OUT = r"""(?:(?:(?![ ]-)[^"'`,:;\n])*[\\/])?\.\.(?:[\\/].*)?"""  # leads out of the working folder, with .. somewhere
WHOLE_PATH = re.compile(rf"(?P<kind>local-dir:|hf-hub:)?(?P<path>(?:{ROOT}|//).*|~\w*|{OUT})")
SOMEWHERE = "a local folder"  # where not even a last part can be named


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
    shortened to their last part. Raises UserError for a file that is missing, has a `problem` or is a link, for a card
    without a licence, and for one that shows what is not there.
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
            if path.resolve() != folder.resolve() / name:
                raise UserError(f"{path}: a link, or behind one, which may lead anywhere; put the file itself there")
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
    may hold anything, as one in quotes may; others within a longer text end at a space. Paths within the working
    folder stay as they are.
    """
    if isinstance(value, dict):
        return {name: without_local_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_local_paths(item) for item in value)
    if not isinstance(value, str):
        return value
    if whole := WHOLE_PATH.fullmatch(value.strip()):
        return (whole["kind"] or "") + _last_part(whole["path"])
    return LOCAL_PATH.sub(
        lambda match: (
            f"{match['quote']}{_last_part(match['quoted'])}{match['quote']}"
            if match["quote"]
            else _last_part(match["bare"])
        ),
        value,
    )


def _last_part(path: str) -> str:
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return SOMEWHERE if name in ("", ".", "..") or re.match(r"[~$]|\w:$|file:$", name) else name


def _published_text(path: Path) -> str:
    """What of a text file is published: strings of JSON and cells of CSV are taken one by one, as they may be paths
    with spaces."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        value = json.loads(text)
        cut = without_local_paths(value)
        return text if cut == value else json.dumps(cut, indent=2, ensure_ascii=False) + "\n"
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text, newline="")))
        cut = without_local_paths(rows)
        if cut == rows:
            return text
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(cut)
        return stream.getvalue()
    return without_local_paths(text)


def code_commit() -> str | None:
    """The commit of this code, of the clone that it is part of, with a word if files differ, or that pip installed.

    None if neither is known: a repository around the environment that the package was installed into is none of ours.
    """
    here = Path(__file__).resolve()
    # A hook of git, in whose environment this may run, names another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        options = {"cwd": here.parent, "env": environment, "capture_output": True, "text": True, "check": True}
        return subprocess.run(["git", *words], **options).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails where it is not tracked
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with changes that are not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        installed = importlib.metadata.distribution("melanoma-fair-xai")
    except importlib.metadata.PackageNotFoundError:
        return None
    if here != Path(installed.locate_file("melanoma_fair_xai/base/publication.py")).resolve():
        return None
    source = json.loads(installed.read_text("direct_url.json") or "{}")  # PEP 610
    return source.get("vcs_info", {}).get("commit_id")
