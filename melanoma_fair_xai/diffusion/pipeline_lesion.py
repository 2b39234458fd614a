"""LesionPipeline: images of drawn-from-noise lesions for what is asked of them. Published beside the weights."""

import hashlib
import inspect
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils import numpy_to_pil
from diffusers.utils.torch_utils import randn_tensor


class LesionPipeline(DiffusionPipeline):
    """Generates skin lesions by diagnosis, sex, age, localization, skin type and ITA, as far as training knew them.

    `conditioner.names` are the conditions of this model, and `conditioner.seen(name)` says what training saw of one.

    Args:
        unet: `UNet2DModel` with class_embed_type="identity".
        conditioner: `LesionConditioner`, which makes the vector that the UNet takes as `class_labels`.
        scheduler: any that can do what training did; made from the stored one by `from_config`. One that lacks zero
            terminal SNR (Lin et al. 2024, arXiv:2305.08891) is refused if training used it.
        band_scales: what each of the Haar bands that the UNet sees is divided by, by its name (see `to_bands`); by
            default there is one, "", the pixels.
    """

    model_cpu_offload_seq = "conditioner->unet"

    def __init__(self, unet, conditioner, scheduler, band_scales: dict[str, float] | None = None):
        super().__init__()
        self.register_to_config(band_scales=band_scales or {"": 1.0})
        self.register_modules(unet=unet, conditioner=conditioner, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        diagnosis: str | int | Sequence | None = None,
        *,
        class_labels: torch.Tensor | None = None,
        batch_size: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        num_inference_steps: int = 25,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["LesionPipeline", int, int, dict], dict | None] | None = None,
        **conditions: Any,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            diagnosis: a name or an id of the conditioner's vocabulary, or one per image; None or "unknown" where it
                does not matter.
            conditions: sex, localization, fitzpatrick and any other category of the conditioner, likewise, but 1 to 6
                are the skin types I to VI and no ids; age (years), ita (degrees) and any other measure as a number, or
                one per image.
            class_labels: ready vectors (N, embedding_dim) in place of all these.
            batch_size: number of images, where neither lists nor generators say it.
            guidance_scale: 1 samples what was asked for, more exaggerates it (Ho and Salimans 2022, arXiv:2207.12598,
                with their w + 1), 0 ignores it.
            guidance_interval: guidance is on where timestep / training timesteps lies in it (Kynkäänniemi et al. 2024,
                arXiv:2404.07724); the condition alone is used elsewhere.
            guidance_rescale: 0 to 1; pulls the contrast of guided images back (Lin et al. 2024, equations 15 and 16).
            num_inference_steps: steps of the scheduler.
            eta: of DDIM; 0 draws no noise.
            generator: one for all, or one per image: an image then does not depend on those beside it.
            output_type: "pil", "np" (float32 (N, H, W, 3) in [0, 1]) or "pt" ((N, 3, H, W) in [0, 1]).
            return_dict: an `ImagePipelineOutput` with `images`, or a tuple.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": latents}) after each step; may
                return {"latents": changed}.

        Raises ValueError for conditions, lengths or a scheduler that do not fit, with what would.
        """
        self._check_scheduler()
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; choose "pil", "np" or "pt"')
        given = {"diagnosis": diagnosis, **conditions}
        number = _number_of_images(given, class_labels, batch_size, generator)
        if class_labels is None:
            columns = {name: _column(value, number) for name, value in given.items() if value is not None}
            class_labels = self.conditioner(self.conditioner.encode(columns, number))
        elif any(value is not None for value in given.values()):
            raise ValueError("class_labels stand in place of all conditions; give either")
        class_labels = class_labels.to(self.device, self.unet.dtype)
        nothing = self.conditioner(self.conditioner.encode({}, number)).to(self.unet.dtype)

        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (number, self.unet.config.in_channels, height, width)
        # In float32 whatever the model computes in: at zero terminal SNR some schedulers scale by thousands.
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        latents = latents * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"eta": eta, "generator": generator}
        options = {name: value for name, value in options.items() if name in accepted}

        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            share = float(timestep) / self.scheduler.config.num_train_timesteps
            guided = guidance_scale != 1.0 and guidance_interval[0] <= share <= guidance_interval[1]
            inputs = self.scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)
            if guided:
                both = self.unet(torch.cat([inputs, inputs]), timestep, torch.cat([nothing, class_labels])).sample
                without, with_ = both.float().chunk(2)
                output = without + guidance_scale * (with_ - without)
                if guidance_rescale:
                    output = torch.lerp(output, output * _deviation(with_) / _deviation(output), guidance_rescale)
            else:
                output = self.unet(inputs, timestep, class_labels).sample.float()
            latents = self.scheduler.step(output, timestep, latents, **options).prev_sample
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, int(timestep), {"latents": latents})
                latents = (changed or {}).get("latents", latents)

        images = (from_bands(latents, self.config.band_scales) / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_scheduler(self) -> None:
        config, kind = self.scheduler.config, type(self.scheduler)
        # `from_config` keeps what the new class does not know in its config, but the class does not heed it.
        if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in _init_parameters(kind):
            raise ValueError(
                f"{kind.__name__} cannot do zero terminal SNR, which this model was trained with; use "
                "DPMSolverMultistepScheduler, UniPCMultistepScheduler, DDIMScheduler, DDPMScheduler or "
                "EulerDiscreteScheduler.from_config(pipeline.scheduler.config)"
            )

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """As in diffusers, which calls this last in `save_pretrained`; with the code that loading needs."""
        super().save_config(save_directory, **kwargs)
        folder = pathlib.Path(save_directory)
        path = folder / self.config_name
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = _copy_source(type(self), folder)
        index["conditioner"] = _copy_source(type(self.conditioner), folder / "conditioner")
        # What melanoma_fair_xai, which loads and publishes this, looks for: a flipped bit changes images in silence.
        index["_sha256"] = {
            f"{part}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for part in ("conditioner", "unet")
            for path in sorted((folder / part).glob("*.safetensors"))
        }
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def band_names(levels: int) -> list[str]:
    """Of the bands of a Haar wavelet packet, in the order of channels: a letter for each level from the first, as in
    PyWavelets a for averages and h, v and d for the differences of rows, of columns, and of both."""
    names = [""]
    for _ in range(levels):
        names = [name + band for band in "ahvd" for name in names]
    return names


def haar_levels(scales: dict[str, float]) -> int:
    """How many levels have bands of these names."""
    return len(next(iter(scales)))


def to_bands(images: torch.Tensor, scales: dict[str, float]) -> torch.Tensor:
    """Images (N, C, H, W) in bands (N, bands x C, H / 2^levels, W / 2^levels), each divided by its scale.

    The orthonormal Haar transform in two dimensions, done to all bands again at each level: white noise stays white.
    """
    for _ in range(haar_levels(scales)):
        top, bottom = images[..., ::2, :], images[..., 1::2, :]
        images = torch.cat([top + bottom, top - bottom], dim=1)
        left, right = images[..., ::2], images[..., 1::2]
        images = torch.cat([left + right, left - right], dim=1) / 2
    return images / _by_channel(scales, images)


def from_bands(bands: torch.Tensor, scales: dict[str, float]) -> torch.Tensor:
    """The images whose bands these are: the inverse of `to_bands`."""
    images = bands * _by_channel(scales, bands)
    for _ in range(haar_levels(scales)):
        average, difference = images.chunk(2, dim=1)
        images = torch.stack([average + difference, average - difference], dim=-1).flatten(-2)
        average, difference = images.chunk(2, dim=1)
        images = torch.stack([average + difference, average - difference], dim=-2).flatten(-3, -2) / 2
    return images


def _by_channel(scales: dict[str, float], bands: torch.Tensor) -> torch.Tensor:
    values = torch.tensor([scales[name] for name in band_names(haar_levels(scales))], device=bands.device)
    return values.repeat_interleave(bands.shape[1] // len(values))[:, None, None]


def _copy_source(kind: type, folder: pathlib.Path) -> list[str]:
    """Copy the module that defines a class into a folder; returns [module, class] as model_index.json names it."""
    source = pathlib.Path(inspect.getsourcefile(kind))
    target = folder / source.name
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    return [source.stem, kind.__name__]


def _init_parameters(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _number_of_images(given: dict, class_labels, batch_size: int | None, generator) -> int:
    """The one length of all lists, vectors and generators, or `batch_size`, or 1. ValueError if they differ."""
    lengths = {name: len(value) for name, value in given.items() if _is_list(value)}
    if class_labels is not None:
        lengths["class_labels"] = len(class_labels)
    if batch_size is not None:
        lengths["batch_size"] = batch_size
    if _is_list(generator):
        lengths["generator"] = len(generator)
    if len(set(lengths.values())) > 1:
        raise ValueError("of different lengths: " + ", ".join(f"{name} {length}" for name, length in lengths.items()))
    number = next(iter(lengths.values()), 1)
    if number < 1:
        raise ValueError("nothing to generate: the lists are empty")
    return number


def _column(value, number: int) -> list:
    return list(value) if _is_list(value) else [value] * number


def _deviation(output: torch.Tensor) -> torch.Tensor:
    return output.std(dim=(1, 2, 3), keepdim=True)
