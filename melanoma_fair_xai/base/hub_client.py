"""What is asked of the Hub: a copy of a repository, or one commit and a tag with what is published."""

import contextlib
import functools
import queue
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo, constants
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
from huggingface_hub.utils import get_session, validate_repo_id

from .errors import UserError, read_problem
from .publication import Publication
from .push_arguments import check_tag

CONTACT = 5  # seconds that the Hub has for its first answer


@functools.cache
def look_for_hub() -> str | None:
    """Why the Hub cannot be reached, or None if it can or is not to be asked; asked once, before its clients are.

    Each of them would try again and again, for more than a minute in all. Where the Hub does not answer they are told
    that they are offline: what was fetched before serves.
    """
    if constants.is_offline_mode():
        return None
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=CONTACT)
        except HTTPError as error:
            answers.put(read_problem(error))
        else:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()  # the look-up of a host's name has no deadline of its own
    try:
        problem = answers.get(timeout=CONTACT)
    except queue.Empty:
        problem = f"no answer within {CONTACT} seconds"
    if problem:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return problem


def local_folder(folder_or_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder of that name, or else the copy of a Hub repository's `files` (glob patterns) at a revision.

    What was fetched before serves where the Hub cannot be reached. Raises UserError where there is neither, for a
    revision of a folder, which has none, and for a pipe or device in one.
    """
    folder = Path(folder_or_id)
    if folder.is_dir():
        if revision:
            raise UserError(f"--revision {revision}: {folder} is a folder here, which has none; leave the flag out")
        for path in (path for pattern in files for path in folder.rglob(pattern)):
            if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
                raise UserError(f"{path}: not a regular file")
        return folder
    look_for_hub()
    try:
        return Path(huggingface_hub.snapshot_download(folder_or_id, revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise UserError(f"{folder_or_id}: no such folder") from None
    except OSError as error:
        at = f" at revision {revision}" if revision else ""
        reason = hub_problem(error) or read_problem(error)
        raise UserError(f"{folder_or_id}: no such folder, and not to be had from the Hub{at} ({reason})") from None


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
    look_for_hub()
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
    if tag:
        check_tag(tag)
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
        if isinstance(error, OfflineModeIsEnabled) or "(OfflineModeIsEnabled)" in str(error):  # as `datasets` says it
            silence = look_for_hub()
            return f"no connection to the Hub ({silence})" if silence else "not asked for, as HF_HUB_OFFLINE is set"
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
