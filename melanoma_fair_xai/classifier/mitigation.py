"""Training that looks after groups: sampling, reweighting, group DRO, and augmentation along the skin-tone axis.

Cells are the pairs of group and class, as in Sagawa et al. (2020). What any of this does for whom is to be measured on
held-out lesions (`python -m melanoma_fair_xai.fairness compare`), never assumed.
"""

import dataclasses

import numpy as np
import torch
from accelerate import Accelerator

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.augmentation import Augmentation
from melanoma_fair_xai.fairness.groups import group_column

WITH_GROUPS = ("group_sampling", "reweighting", "group_dro")
DRO_STEP_SIZE = 0.01  # Sagawa et al., section 5
ITA_SHIFT = 45.0  # degrees: from intermediate skin to very light and to brown
ILLUMINATION = 0.3


def training_cells(task: Task, rows: np.ndarray, column: str) -> np.ndarray:
    """The cell (group and class) of each training row, int64 from 0, numbering the cells that occur.

    Raises UserError for a column that is not there or tells no groups apart.
    """
    try:
        groups = group_column(task.records.table, column).cat.codes.to_numpy()[rows]
    except UserError:
        raise UserError(
            f"--mitigation_group {column}: no such column in {task.records.name}; a column of your own must be named "
            "in --group_by, too"
        ) from None
    if len(set(groups.tolist())) < 2:
        raise UserError(f"--mitigation_group {column}: one group only in the training split; choose another column")
    pairs = np.stack([groups.astype(np.int64), task.labels[rows]], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def tone_augmentation(augmentation: Augmentation) -> Augmentation:
    """The augmentation with skin tones and illumination spread out."""
    return dataclasses.replace(augmentation, ita_shift=ITA_SHIFT, illumination=ILLUMINATION)


class GroupLoss:
    """The loss of a batch from the losses of its images.

    - reweighting: the mean, every image weighted by the inverse frequency of its cell (mean weight 1), so that each
      cell counts the same over an epoch.
    - group_dro: cell means weighted by q, which grows where the loss is large: q_c <- q_c exp(step * loss_c), to sum
      1 (Sagawa, Koh, Hashimoto and Liang, "Distributionally robust neural networks", ICLR 2020, algorithm 1; cells
      are drawn equally often, and there is no group adjustment). q is state: register it for checkpointing.
    - anything else: the mean.
    """

    def __init__(self, mitigation: str, cells: np.ndarray, accelerator: Accelerator):
        self.mitigation, self.accelerator = mitigation, accelerator
        self.cells = torch.from_numpy(cells).to(accelerator.device)
        counts = np.bincount(cells)
        self.image_weights = (
            torch.from_numpy(len(cells) / (len(counts) * counts)[cells]).float().to(accelerator.device)
        )
        self.q = torch.full((len(counts),), 1 / len(counts), device=accelerator.device)

    def __call__(self, losses: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """`losses` float (n,) of the training images number `index` (n,), on this process: a scalar, whose gradient,
        averaged over processes, is that of the whole batch."""
        if self.mitigation == "reweighting":
            return (losses * self.image_weights[index]).mean()
        if self.mitigation == "group_dro":
            return self._group_dro(losses, self.cells[index])
        return losses.mean()

    def _group_dro(self, losses: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros_like(self.q).index_add(0, cells, losses)
        counts = torch.bincount(cells, minlength=len(self.q)).to(sums.dtype)
        total, count = self.accelerator.reduce(torch.stack([sums.detach(), counts]), "sum")
        count = count.clamp(min=1)  # a cell that the batch lacks has loss 0
        q = self.q * torch.exp(DRO_STEP_SIZE * total / count)
        self.q = q / q.sum()
        return self.accelerator.num_processes * (self.q * sums / count).sum()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"q": self.q}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.q = state["q"].to(self.accelerator.device)
