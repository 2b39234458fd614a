import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from melanoma_fair_xai.engine.sampler import EpochSampler, training_loader


def test_each_epoch_is_another_shuffle_of_everything():
    sampler = EpochSampler(50, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        epochs.append([index for _, index in keys])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] == epochs[2] != epochs[1]
    assert list(EpochSampler(50, seed=4)) != list(EpochSampler(50, seed=3))


def test_weights_draw_in_proportion():
    weights = [1.0, 0.0, 3.0]
    sampler = EpochSampler(3, seed=0, weights=weights, num_samples=40_000)
    counts = np.bincount([index for _, index in sampler], minlength=3)
    assert len(sampler) == counts.sum() == 40_000
    assert counts[1] == 0
    assert abs(counts[2] / counts.sum() - 0.75) < 0.01  # 4.6 standard deviations


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="2 weights for 3 samples"):
        EpochSampler(3, seed=0, weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="num_samples needs weights"):
        EpochSampler(3, seed=0, num_samples=5)


class Keys(torch.utils.data.Dataset):
    def __len__(self):
        return 45

    def __getitem__(self, key):
        return torch.tensor(key)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_every_sample(processes, drop_last):
    """None is lost; those that come twice fill the last step from the epoch's start, as documented."""
    shards = []
    for rank in range(processes):
        sampler = EpochSampler(45, seed=0)
        loader = training_loader(Keys(), sampler, batch_size=4, drop_last=drop_last)
        shard = prepare_data_loader(loader, num_processes=processes, process_index=rank, put_on_device=False)
        shard.set_epoch(2)
        shards.append([batch.tolist() for batch in shard])
    steps = [sum((list(map(tuple, batch)) for batch in step), []) for step in zip(*shards, strict=True)]
    seen = sum(steps, [])
    sampler.set_epoch(2)
    order = list(sampler)
    if drop_last:
        assert seen == order[: len(seen)] and 45 - len(seen) < 4 * processes
    else:
        assert seen[:45] == order
        assert seen[45:] == order[: len(seen) - 45] and len(seen) - 45 < 4 * processes


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_leaves_global_random_numbers_alone(workers):
    loader = training_loader(Keys(), EpochSampler(45, seed=0), batch_size=4, num_workers=workers)
    state = torch.get_rng_state()
    for _ in range(2):
        assert len(list(loader)) == 12
    assert torch.equal(torch.get_rng_state(), state)
