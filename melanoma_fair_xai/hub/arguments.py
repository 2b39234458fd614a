"""The flags of publishing that both trainings have."""

from dataclasses import dataclass

from melanoma_fair_xai.base.flags import flag


@dataclass
class HubArguments:
    push_to_hub: bool = flag(False, "Publish the run on the Hub when it is finished.", free=True)
    hub_model_id: str | None = flag(None, "USER/NAME there; default: your user and the run folder's name.", free=True)
    hub_private_repo: bool = flag(True, "Make the repository private if it is new.", free=True)
