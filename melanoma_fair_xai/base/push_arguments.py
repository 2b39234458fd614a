"""The flags of publishing on the Hub, the same for data sets and models."""

import re
from dataclasses import dataclass

from .errors import UserError
from .flags import flag


def check_tag(tag: str) -> None:
    """Raise UserError for what cannot be the name of a version."""
    if not re.fullmatch(r"\w[\w.+-]*", tag):
        raise UserError(f"--hub_tag {tag}: give letters, digits, dots and dashes, as in v1.2")


@dataclass
class RepositoryArguments:
    """Of whatever is published: who may see its repository, and what its version is called."""

    hub_private_repo: bool = flag(True, "Make the repository private if it is new.", free=True)
    hub_tag: str | None = flag(
        None, "Name of the version; default: the next of v1, v2, ...", check=check_tag, free=True
    )


@dataclass
class PushArguments(RepositoryArguments):
    """Of what can be published once it is made."""

    push_to_hub: bool = flag(False, "Publish on the Hub what is finished.", free=True)
