"""The flags of publishing that both trainings have."""

from dataclasses import dataclass

from melanoma_fair_xai.base.flags import flag
from melanoma_fair_xai.base.push_arguments import PushArguments


@dataclass
class HubArguments(PushArguments):
    hub_model_id: str | None = flag(None, "USER/NAME there; default: your user and the run folder's name.", free=True)
