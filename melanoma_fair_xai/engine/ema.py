"""Exponential moving average of a model's weights, batch-norm statistics included."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import extract_model_from_parallel


class EMA:
    """Averages parameters and floating-point buffers, and copies integer buffers (batch counters).

    The decay at update n (from 0) is min(decay, (1 + n) / (10 + n)), the warm-up of TensorFlow's
    ExponentialMovingAverage that diffusers' EMAModel uses too, so that the first steps are soon forgotten. Models may
    be wrapped by Accelerate or torch.compile; names in the state are those of the bare model.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999):
        self.decay = decay
        self.updates = 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Call once after each optimiser step."""
        tensors = _tensors(model)
        floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([self.shadow[name] for name in floating], [tensors[name] for name in floating], 1 - decay)
        for name in tensors.keys() - set(floating):
            self.shadow[name].copy_(tensors[name])
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Overwrite the model's weights and buffers by the averages, the main process' ones in every process."""
        for name, tensor in _tensors(model).items():
            if torch.distributed.is_initialized():
                # Batch-norm statistics, unlike weights, differ between processes, and a checkpoint holds one's only.
                torch.distributed.broadcast(self.shadow[name], src=0)
            tensor.copy_(self.shadow[name])

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """The model carries the averages inside the block, and exactly its own weights and buffers again after it."""
        tensors = _tensors(model)
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict:
        return {"decay": self.decay, "updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        if state["shadow"].keys() != self.shadow.keys():
            name = sorted(state["shadow"].keys() ^ self.shadow.keys())[0]
            raise ValueError(f"the averaged weights are another model's: they differ in {name}")
        self.decay, self.updates = state["decay"], state["updates"]
        for name, tensor in self.shadow.items():
            tensor.copy_(state["shadow"][name])


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return extract_model_from_parallel(model, keep_torch_compile=False).state_dict()
