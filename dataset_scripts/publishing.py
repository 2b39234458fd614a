"""Publishing a folder on the Hub: looked over before anything is sent, then one commit and a tag, or nothing.

What belongs to a prepared data set is said here, what belongs to a model in `melanoma_fair_xai.hub.publish`.
"""

import argparse
import contextlib
import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo, RepoCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .common import IMAGE_SUFFIXES, LOCAL_USE_ONLY, UserError, image_problem
from .splits import MANIFEST_NAME

CARD_NAME = "README.md"
DATASET_FILES = (CARD_NAME, MANIFEST_NAME, "data/*/*.parquet")
DATASET_EXTRAS = ("*.csv",)
TEXTS = (".csv", ".json", ".md")

# An absolute path, or one from the home folder: a slash that begins a word, and is no part of a URL or closing tag.
LOCAL_PATH = re.compile(r"(?<![\w./:<~-])~?/[\w.@+-]+(?:/[\w.@+-]+)*/?")


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


# --- what is published -----------------------------------------------------------------------------------------------


def dataset_publication(folder: Path) -> Publication:
    """What of a prepared data set is published. UserError for a folder that is none, is not whole, or may not be."""
    if LOCAL_USE_ONLY in (read_card(folder).data.get("tags") or []):
        raise UserError(
            f"{folder}: its images may not be passed on, see its card; publish models trained on it instead"
        )
    return collect(folder, "dataset", DATASET_FILES, DATASET_EXTRAS)


def file_problem(path: Path) -> str | None:
    """Why a file is not whole, as far as its kind shows it, or None."""
    if not path.stat().st_size:
        return "zero bytes"
    if path.suffix in IMAGE_SUFFIXES:
        return image_problem(str(path))
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
                files[name] = without_local_paths(path.read_text(encoding="utf-8")).encode()
            else:
                files[name] = path
    for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", card.content):
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


def without_local_paths(text: str) -> str:
    """The text with every absolute path shortened to its last part: who reads it on the Hub has no such folder."""
    return LOCAL_PATH.sub(lambda match: PurePosixPath(match[0]).name, text)


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


# --- the Hub ---------------------------------------------------------------------------------------------------------


def check_repo_id(repo_id: str) -> None:
    """UserError for what cannot be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: not a repository's name ({str(error).splitlines()[0]}); give USER/NAME") from None


def open_repository(
    repo_id: str, repo_type: str, private: bool, advice: str = ""
) -> tuple[ModelInfo | DatasetInfo, dict[str, str]]:
    """Make the repository if it is not there: what the Hub says of it, and the commits of its tags.

    A name without a user goes to the token's. Raises UserError without a token or right to write, without an answer,
    and where the repository is public but `private` is asked for; `advice` ends what it says.
    """
    check_repo_id(repo_id)
    api = HfApi()
    with hub_errors(repo_id, advice):
        user = api.whoami()["name"] if huggingface_hub.get_token() else None
        if user is None:
            raise LocalTokenNotFoundError
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
        tags = api.list_repo_refs(repo_id, repo_type=repo_type).tags
    if private and not info.private:
        raise UserError(
            f"{repo_id}: is public, and a private one was asked for\n"
            "choose another, make it private in its settings, or publish there with --no_hub_private_repo"
        )
    return info, {tag.name: tag.target_commit for tag in tags}


def publish(publication: Publication, repo_id: str, private: bool = True, tag: str | None = None) -> str:
    """Send a publication as one commit, and tag it; says what was done.

    The repository is made if it is not there. The tag is the one given, or the next of v1, v2, ...; a version that is
    there already is not sent again. If anything fails, the branch stays at its commit, and the same call repeats it.
    Raises UserError for what `open_repository` does, for a tag that is there, and for a failure, with that call.
    """
    if tag and not re.fullmatch(r"\w[\w.+-]*", tag):
        raise UserError(f"--hub_tag {tag}: give letters, digits, dots and dashes, as in v1.2")
    advice = how_to_repeat(publication, repo_id, private, tag)
    repository, tags = open_repository(repo_id, publication.repo_type, private, advice)
    if tag in tags:
        raise UserError(f"--hub_tag {tag}: {repository.id} has it already, at {tags[tag][:12]}; choose another")
    api, target = HfApi(), {"repo_id": repository.id, "repo_type": publication.repo_type}
    with hub_errors(repository.id, how_to_repeat(publication, repository.id, private, tag)):
        # Only what such a publication may hold: a file that somebody added to the repository stays.
        stale = [
            name
            for name in api.list_repo_files(**target, revision=repository.sha)
            if name not in publication.files
            and any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in publication.patterns)
        ]
        commit = api.create_commit(
            **target,
            operations=[
                *(CommitOperationAdd(name, content) for name, content in publication.files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Publish {publication.folder.resolve().name}",
            commit_description=f"Code: melanoma-fair-xai at commit {publication.code or 'unknown'}.",
            parent_commit=repository.sha,
        ).oid
        versions = [name for name, sha in tags.items() if sha == commit]
        if tag or not versions:  # without any, an earlier call may have been cut short before this
            versions.append(tag or next_tag(list(tags)))
            api.create_tag(**target, tag=versions[-1], revision=commit)
    done = "pushed to" if commit != repository.sha else "nothing new for"
    page = f"{api.endpoint}/{'datasets/' if publication.repo_type == 'dataset' else ''}{repository.id}"
    seen = "private" if repository.private else "public"
    return f"{done} {page}, {seen}, version {', '.join(versions)} (commit {commit[:12]})"


def how_to_repeat(publication: Publication, repo_id: str, private: bool, tag: str | None) -> str:
    """The line that follows a failure: nothing is lost, and the command that publishes it."""
    words = [str(publication.folder), f"--hub_{publication.repo_type}_id", repo_id]
    words += ([] if private else ["--no_hub_private_repo"]) + (["--hub_tag", tag] if tag else [])
    command = f"python -m melanoma_fair_xai.hub push {shlex.join(words)}"
    return f"\n{publication.folder} is safe; push it with: {command}"


def next_tag(tags: Sequence[str]) -> str:
    """The next of v1, v2, ... after those that are there."""
    numbers = [int(name[1:]) for name in tags if re.fullmatch(r"v\d+", name)]
    return f"v{max(numbers, default=0) + 1}"


@contextlib.contextmanager
def hub_errors(repo_id: str, advice: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into a UserError that ends in `advice`."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # Without a problem of its own: a card that the Hub refuses, or an error of its upload protocol.
        problem = hub_problem(error) or " ".join(str(error).split())
        raise UserError(f"{repo_id}: {problem}{advice}") from None


def hub_problem(error: BaseException | None) -> str | None:
    """What stands between here and the Hub, in one line; None if the error is none of its client's."""
    while error is not None:
        if isinstance(error, GatedRepoError):
            return "gated: ask for access on its page, and log in with `hf auth login`"
        if isinstance(error, RevisionNotFoundError):
            return "no such revision there"
        if isinstance(error, RepositoryNotFoundError):
            return "no such repository on the Hub, or a private one; check the name, and who you are: `hf auth whoami`"
        if isinstance(error, HfHubHTTPError):
            return _status_problem(error)
        if isinstance(error, OfflineModeIsEnabled):
            return "not asked for, because HF_HUB_OFFLINE is set"
        if isinstance(error, LocalTokenNotFoundError):
            return "no token of the Hub; log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(error, HTTPError):
            return f"no connection to the Hub ({str(error).splitlines()[0]})"
        error = error.__cause__ or error.__context__
    return None


def _status_problem(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = f" ({error.server_message.splitlines()[0]})" if error.server_message else ""
    known = {
        401: "the Hub rejects the token; log in again with `hf auth login`, or set HF_TOKEN",
        403: f"the token has no right to this{said}",
        412: "changed by somebody else at the same time; try again",
        429: "too many requests; try again later",
    }
    return known.get(status, f"the Hub answers {status}{said}; try again later")


# --- the commands' common half ---------------------------------------------------------------------------------------


def add_repository_flags(parser: argparse.ArgumentParser) -> None:
    """Who may see the repository, and what the version is called."""
    parser.add_argument("--no_hub_private_repo", dest="hub_private_repo", action="store_false", help="make it public")
    parser.add_argument("--hub_tag", help="name of the version (default: the next of v1, v2, ...)")


def add_push_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that prepares a data set, which `check_dataset_push` and `push_dataset` obey."""
    parser.add_argument("--push_to_hub", action="store_true", help="publish the data set once it is prepared")
    parser.add_argument("--hub_dataset_id", help="USER/NAME there (default: your user and the folder's name)")
    add_repository_flags(parser)


def check_dataset_push(args: argparse.Namespace) -> None:
    """Before a long preparation: UserError if its result could not be pushed. Makes the repository."""
    if args.push_to_hub:
        open_repository(_dataset_id(args), "dataset", args.hub_private_repo)


def push_dataset(args: argparse.Namespace) -> None:
    """Publish what a command has prepared, if it was asked to, and say where."""
    if args.push_to_hub:
        publication = dataset_publication(Path(args.output_dir))
        print(publish(publication, _dataset_id(args), args.hub_private_repo, args.hub_tag))


def _dataset_id(args: argparse.Namespace) -> str:
    return args.hub_dataset_id or Path(args.output_dir).resolve().name
