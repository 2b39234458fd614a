"""What can be asked of every data set, and the flags of the commands that prepare one."""

from dataclasses import dataclass

from melanoma_fair_xai.base.flags import flag


@dataclass
class SplitSettings:
    seed: int = flag(0, "Of the splits.", low=0)
    max_skipped_share: float = flag(0.05, "Stop if a larger share of the images cannot be used.", low=0, high=1)


@dataclass(kw_only=True)
class PrepareArguments(SplitSettings):
    """Of every command that prepares a data set."""

    output_dir: str = flag(help="Folder to write.")
    overwrite_output_dir: bool = flag(False, "Replace an earlier prepared data set.")
    num_proc: int | None = flag(None, "Processes; default: one a core. The files are the same for any number.", low=1)


@dataclass
class RepositoryArguments:
    """What a repository on the Hub is, and what its version is called."""

    hub_private_repo: bool = flag(True, "Keep it private; --no_hub_private_repo makes it public.")
    hub_tag: str | None = flag(None, "Name of the version; default: the next of v1, v2, ...")


@dataclass
class PushArguments(RepositoryArguments):
    """Of commands that can publish what they have prepared."""

    push_to_hub: bool = flag(False, "Publish the data set once it is prepared.")
    hub_dataset_id: str | None = flag(None, "USER/NAME there; default: your user and the folder's name.")
