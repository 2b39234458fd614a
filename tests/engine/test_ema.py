import pytest
import torch
from torch import nn

from melanoma_fair_xai.engine.ema import EMA


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def train_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def test_average_follows_the_formula():
    """Against a plain loop over the definition, for weights, batch-norm statistics and the batch counter."""
    model = small_net()
    ema = EMA(model, decay=0.5)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for n in range(12):
        train_a_step(model)
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    assert expected["1.num_batches_tracked"] == 12
    assert expected["1.running_mean"].abs().max() > 0
    for name, tensor in ema.shadow.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_applied_swaps_and_restores_every_bit_even_after_an_error():
    model = small_net().to(memory_format=torch.channels_last)
    ema = EMA(model, decay=0.9)
    for _ in range(3):
        train_a_step(model)
        ema.update(model)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert all(torch.equal(tensor, ema.shadow[name]) for name, tensor in model.state_dict().items())
        assert not torch.equal(model[0].weight, own["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_have_the_same_names(wrap):
    model = small_net()
    ema = EMA(wrap(model))
    assert ema.shadow.keys() == model.state_dict().keys()
    train_a_step(model)
    ema.update(wrap(model))
    with ema.applied(wrap(model)):
        assert torch.equal(model[0].weight, ema.shadow["0.weight"])


def test_state_goes_on_exactly():
    model = small_net()
    ema = EMA(model, decay=0.9)
    train_a_step(model)
    ema.update(model)
    state = {**ema.state_dict(), "shadow": {name: tensor.clone() for name, tensor in ema.shadow.items()}}
    resumed = EMA(small_net(seed=1), decay=0.1)
    resumed.load_state_dict(state)
    train_a_step(model)
    ema.update(model)
    resumed.update(model)
    assert all(torch.equal(tensor, resumed.shadow[name]) for name, tensor in ema.shadow.items())


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="they differ in 3.bias"):
        EMA(small_net()).load_state_dict(EMA(small_net()[:3]).state_dict())
