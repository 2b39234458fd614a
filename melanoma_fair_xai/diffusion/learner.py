"""What a generator's training learns: to predict a lesion in noise; validation is held-out error and a sheet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import Accelerator

from dataset_scripts.splits import manifest_hash
from melanoma_fair_xai.base.seeding import sample_generator
from melanoma_fair_xai.data.cache import on_device, take
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion.arguments import TrainingArguments
from melanoma_fair_xai.diffusion.data import Conditions, DiffusionDataset, scale, seeded_noise, turned
from melanoma_fair_xai.diffusion.export import make_pipeline
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner
from melanoma_fair_xai.diffusion.pipeline_lesion import to_bands
from melanoma_fair_xai.diffusion.process import band_errors, loss_weights, measure_band_scales, training_target
from melanoma_fair_xai.diffusion.validation import BANDS, draw_sheet, held_out_losses, sample_shared, sheet_cells
from melanoma_fair_xai.engine.sampler import balanced_weights
from melanoma_fair_xai.engine.training import Learner, Validation

MEASURED_IMAGES = 256  # whose bands are measured


@dataclass
class ConditionedImages:
    """Row i of `records` has pixels[i] (uint8 H, W, 3); `conditions` are those that its training rows give.

    `content` is a digest of the images that the pixels were made of.
    """

    records: Records
    pixels: np.ndarray
    conditions: Conditions
    content: str

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.records.table["split"] == split)

    def encode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.conditions.encode(self.records.table.iloc[rows])


class DiffusionLearner(Learner):
    """A UNet and its conditioner, which `pipeline` holds; both are averaged, and the last averages are kept."""

    exploded = 100.0  # predicting nothing at all costs about 1

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        unet: diffusers.UNet2DModel,
        conditioner: LesionConditioner,
        noise_scheduler: diffusers.DDPMScheduler,
        images: ConditionedImages,
        train_rows: np.ndarray,
        options: TrainingArguments,
        haar_levels: int = 0,
    ):
        self.accelerator, self.folder, self.images, self.options = accelerator, folder, images, options
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.networks = {
            "unet": unet.to(accelerator.device, memory_format=torch.channels_last),
            "conditioner": conditioner.to(accelerator.device),
        }
        self.prediction_type = noise_scheduler.config.prediction_type
        self.alphas_cumprod = noise_scheduler.alphas_cumprod.to(accelerator.device)
        measured = train_rows[np.linspace(0, len(train_rows) - 1, min(len(train_rows), MEASURED_IMAGES)).astype(int)]
        scales = measure_band_scales(scale(torch.from_numpy(images.pixels[measured])), haar_levels)
        self.pipeline = make_pipeline(unet, conditioner, noise_scheduler, scales)
        self.pixels = on_device(images.pixels, accelerator.device)
        if options.class_balanced_sampling:
            self.sampling_weights = balanced_weights(images.records.table["diagnosis"].to_numpy()[train_rows])
        self.dataset = DiffusionDataset(
            train_rows,
            images.encode(train_rows),
            images.conditions.unknown(),
            seed=options.seed,
            num_train_timesteps=len(self.alphas_cumprod),
            condition_dropout=options.condition_dropout,
            unconditional_share=options.unconditional_share,
        )
        self.facts = {
            "split manifest": manifest_hash(images.records.manifest),
            "content of the images": images.content,
            "band scales": scales,
        }

    def loss(self, networks: dict[str, torch.nn.Module], batch: dict[str, Any]) -> torch.Tensor:
        pixels = take(self.pixels, batch["rows"].cpu().numpy(), self.accelerator.device)
        scales = self.pipeline.config.band_scales
        bands = to_bands(turned(scale(pixels), batch["symmetries"]), scales)
        noise = seeded_noise(batch["noise_seeds"], bands.shape[1:])
        alphas = self.alphas_cumprod[batch["timesteps"]]
        noisy, target = training_target(bands, noise, alphas, self.prediction_type)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            output = networks["unet"](noisy, batch["timesteps"], networks["conditioner"](batch["conditions"])).sample
        errors = band_errors(output.float(), target, scales)
        return (loss_weights(alphas, self.prediction_type, self.options.snr_gamma) * errors).mean()

    def validate(self, step: int) -> Validation:
        """Held-out losses, and a sheet of samples in samples/."""
        options, images = self.options, self.images
        rows = images.rows("validation")
        order = sample_generator(options.seed, "validation images").permutation(len(rows))
        rows = rows[order[: options.validation_images]]
        losses = held_out_losses(
            self.accelerator,
            self.pipeline,
            self.alphas_cumprod,
            images.pixels[rows],
            images.encode(rows),
            seed=options.seed,
            batch_size=options.eval_batch_size,
        )
        sheet_rows, sheet_columns, cells = sheet_cells(images.conditions)
        samples = sample_shared(
            self.accelerator,
            self.pipeline,
            images.conditions.encode(cells),
            seed=options.seed,
            batch_size=options.eval_batch_size,
            num_inference_steps=options.num_inference_steps,
        )
        if self.accelerator.is_main_process:
            title = f"{Path(images.records.name).name}, step {step:,} of {options.max_train_steps:,}"
            draw_sheet(samples, sheet_rows, sheet_columns, self.folder / "samples" / f"step-{step:06d}.png", title)
        width = len(self.alphas_cumprod) // BANDS
        named = {f"error_t{band * width}-{(band + 1) * width - 1}": loss for band, loss in enumerate(losses)}
        text = " ".join(f"{loss:.4f}" for loss in losses)
        return Validation(
            named, f"step {step}: held-out error by timestep, from little noise to all of it: {text}", images=samples
        )
