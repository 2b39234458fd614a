"""What can be asked of every data set, and the flags of the commands that prepare or publish one."""

from dataclasses import dataclass

from melanoma_fair_xai.base.flags import flag
from melanoma_fair_xai.base.push_arguments import PushArguments


@dataclass
class SkippingSettings:
    max_skipped_share: float = flag(
        0.05, "The share of unusable images above which the run stops.", low=0, high=1, shown=False
    )


@dataclass
class SplitSettings(SkippingSettings):
    seed: int = flag(0, "Of the splits.", low=0)


@dataclass(kw_only=True)
class PrepareArguments(SplitSettings):
    """Of every command that prepares a data set."""

    output_dir: str = flag(help="Folder to write.")
    overwrite_output_dir: bool = flag(False, "Replace an earlier prepared data set.")
    num_proc: int | None = flag(None, "Processes; default: one a core. The files are the same for any number.", low=1)


@dataclass
class DatasetPushArguments(PushArguments):
    hub_dataset_id: str | None = flag(None, "USER/NAME there; default: your user and the folder's name.")
