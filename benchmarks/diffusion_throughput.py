"""How near end-to-end training of a generator comes to the bare step, and how it compares with diffusers' example.

    python -m benchmarks.diffusion_throughput [--preset 64-small] [--data_dir HAM10000]

Three contenders train the same UNet at the same resolution, batch size and precision: the bare step on a fixed batch,
as train_diffusion.py takes it (channels_last, fused AdamW); train_diffusion.py's own loop, end to end; and a step as
diffusers' train_unconditional.py takes it (default memory format, AdamW by parameter, EMAModel). Rounds of all are
interleaved, and medians over rounds are printed with their ratios. Run it on an otherwise idle machine.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from benchmarks.throughput import machine, rate
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.data.cache import decode_once
from melanoma_fair_xai.data.loading import Records, load_records
from melanoma_fair_xai.diffusion.arguments import PRESETS, ModelArguments, TrainingArguments, apply_preset
from melanoma_fair_xai.diffusion.data import centre_square, find_conditions
from melanoma_fair_xai.diffusion.learner import ConditionedImages, DiffusionLearner
from melanoma_fair_xai.diffusion.networks import count_parameters
from melanoma_fair_xai.diffusion.process import loss_weights, make_noise_scheduler, training_target
from melanoma_fair_xai.engine.launch import resolve_precision
from melanoma_fair_xai.engine.training import Training
from train_diffusion import make_networks


def main() -> None:
    parser = argparse.ArgumentParser(description="End-to-end training rate of a generator beside the bare step.")
    parser.add_argument("--data_dir", help="raw HAM10000; without it, phantoms are drawn")
    parser.add_argument("--preset", default="64-small", choices=PRESETS)
    parser.add_argument("--block_out_channels", type=int, nargs="+", help="in place of the preset's")
    parser.add_argument("--layers_per_block", type=int, help="in place of the preset's")
    parser.add_argument("--train_batch_size", type=int, help="in place of the preset's")
    parser.add_argument("--num_images", type=int, default=600)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each contender in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="write the figures to this JSON file")
    arguments = parser.parse_args()
    records = load_records("ham10000", data_dir=arguments.data_dir) if arguments.data_dir else load_records("phantom")
    model_args = ModelArguments(
        preset=arguments.preset,
        block_out_channels=arguments.block_out_channels,
        layers_per_block=arguments.layers_per_block,
    )
    training = TrainingArguments(train_batch_size=arguments.train_batch_size)
    apply_preset(model_args, training)
    result = {"machine": machine(), "diffusers": diffusers.__version__, **vars(arguments)}
    result |= {"data_dir": bool(arguments.data_dir), "precision": resolve_precision("auto")}
    result |= compare(make_task(records, arguments.num_images, model_args), model_args, training, arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


def compare(images: ConditionedImages, model_args: ModelArguments, training: TrainingArguments, arguments) -> dict:
    """Rates in images/s, medians over the rounds, and their ratios to the bare step."""
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], Iterator[None]]] = {
            "bare step": lambda: bare_steps(images, model_args, training),
            "ours, end to end": lambda: our_steps(images, model_args, training, folder),
            "as diffusers' train_unconditional.py": lambda: diffusers_steps(images, model_args, training),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            for name, steps in contenders.items():
                rates[name].append(rate(steps(), arguments.steps, training.train_batch_size))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "parameters": count_parameters(*make_networks(images, model_args)),
        "images_per_second": medians,
        "rounds_images_per_second": rates,
        "ratio_to_bare_step": {name: value / medians["bare step"] for name, value in medians.items()},
    }


def make_task(records: Records, count: int, model_args: ModelArguments) -> ConditionedImages:
    """The first `count` images, nearly all of them for training."""
    records = records.select(np.arange(len(records.table)) < count)
    records.table["split"] = np.where(np.arange(len(records.table)) < 20, "validation", "train")
    cache = decode_once(records.images, centre_square(model_args.resolution))
    return ConditionedImages(records, cache.pixels, find_conditions(records.table, [], records.name), cache.content)


def fixed_batch(unet: diffusers.UNet2DModel, training: TrainingArguments) -> tuple[torch.Tensor, ...]:
    """(images or their bands, noise, timesteps) of one batch."""
    config = unet.config
    shape = (training.train_batch_size, config.in_channels, config.sample_size, config.sample_size)
    return torch.rand(shape) * 2 - 1, torch.randn(shape), torch.arange(shape[0]) * 1000 // shape[0]


def bare_steps(images: ConditionedImages, model_args: ModelArguments, training: TrainingArguments) -> Iterator[None]:
    """The same batch again and again, already on the device: no loader, conditions dropped, checks, EMA or logging."""
    torch.manual_seed(0)
    unet, conditioner = make_networks(images, model_args)
    unet.to(memory_format=torch.channels_last)
    parameters = [*unet.parameters(), *conditioner.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    alphas = make_noise_scheduler(model_args.prediction_type, model_args.beta_schedule).alphas_cumprod
    images, noise, timesteps = fixed_batch(unet, training)
    conditions = conditioner.encode({}, len(images))
    bf16 = resolve_precision("auto") == "bf16"
    while True:
        noisy, target = training_target(images, noise, alphas[timesteps], model_args.prediction_type)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = unet(noisy, timesteps, conditioner(conditions)).sample
        errors = (output.float() - target).square().mean(dim=(1, 2, 3))
        (loss_weights(alphas[timesteps], model_args.prediction_type, training.snr_gamma) * errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield


def our_steps(
    images: ConditionedImages, model_args: ModelArguments, training: TrainingArguments, folder: str
) -> Iterator[None]:
    """train_diffusion.py's own loop: loader, noise by sample, condition dropout, both EMAs, checks and logging."""
    accelerator = Accelerator(mixed_precision=resolve_precision("auto"))
    scheduler = make_noise_scheduler(model_args.prediction_type, model_args.beta_schedule)
    networks = make_networks(images, model_args)
    learner = DiffusionLearner(
        accelerator,
        Path(folder),
        *networks,
        scheduler,
        images,
        images.rows("train"),
        training,
        model_args.haar_levels,
    )
    run = Training(accelerator, Path(folder), learner, training)
    while True:
        for step in run.epoch_steps():
            if step % 10 == 0:
                run.log()
            yield
        run.progress.finish_epoch()


def diffusers_steps(
    images: ConditionedImages, model_args: ModelArguments, training: TrainingArguments
) -> Iterator[None]:
    """Forward, loss on noise, clipping, AdamW and EMA as in diffusers' examples/unconditional_image_generation."""
    torch.manual_seed(0)
    unet, _ = make_networks(images, model_args)
    ema = EMAModel(
        unet.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=type(unet), model_config=unet.config
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, foreach=False)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    images, _, timesteps = fixed_batch(unet, training)
    vector = torch.zeros(len(images), 4 * model_args.block_out_channels[0])
    bf16 = resolve_precision("auto") == "bf16"
    while True:
        noise = torch.randn(images.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = unet(scheduler.add_noise(images, noise, timesteps), timesteps, vector).sample
        F.mse_loss(output.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        yield


if __name__ == "__main__":
    run_command(main)
