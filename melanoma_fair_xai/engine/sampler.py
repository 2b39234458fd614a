"""The order of samples as a function of seed and epoch alone, so that a resumed epoch goes on with the same ones."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from melanoma_fair_xai.base.seeding import sample_generator

from .signals import init_worker


class EpochSampler(torch.utils.data.Sampler):
    """Yields (epoch, index), so that the data set can seed each sample's augmentation by its epoch.

    Without `weights`, each epoch is a shuffle of range(size). With `weights` (one per sample, any positive scale),
    each epoch draws `num_samples` (default: size) with replacement in proportion to them. An epoch ends with the last
    multiple of `whole` samples, for example of a batch of all processes; fewer than one are all taken.

    Over several processes, Accelerate deals out whole batches in turn; where they do not divide evenly, it fills the
    last step of an epoch with samples from the epoch's start, unless the loader drops the last batch.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        num_samples: int | None = None,
        whole: int = 1,
    ):
        if weights is None and num_samples not in (None, size):
            raise ValueError("num_samples needs weights: without them every sample comes once")
        if weights is not None and len(weights) != size:
            raise ValueError(f"{len(weights)} weights for {size} samples")
        self.size = size
        self.seed = seed
        self.shares = None
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float64)
            self.shares = weights / weights.sum()
        self.num_samples = size if num_samples is None else num_samples
        self.length = self.num_samples // whole * whole or self.num_samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through; the prepared loader's `set_epoch` calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = sample_generator(self.seed, "order", self.epoch)
        if self.shares is None:
            order = generator.permutation(self.size)
        else:
            order = generator.choice(self.size, size=self.num_samples, p=self.shares)
        return ((self.epoch, index) for index in order[: self.length].tolist())


def training_loader(
    dataset: torch.utils.data.Dataset, sampler: EpochSampler, batch_size: int, num_workers: int = 0, **options
) -> torch.utils.data.DataLoader:
    """A loader that resumes exactly: `dataset[epoch, index]` is asked for, and no global random number is drawn.

    `options` go to `DataLoader` (drop_last, pin_memory, collate_fn, ...).
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        # Without a generator of its own, each iteration draws from the global one and shifts dropout and noise.
        generator=torch.Generator().manual_seed(sampler.seed),
        worker_init_fn=init_worker,
        persistent_workers=num_workers > 0,
        **options,
    )


def balanced_weights(groups: np.ndarray) -> np.ndarray:
    """Sampling weights (n,) with which every value of `groups` (n,) is drawn equally often."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1 / counts[inverse]
