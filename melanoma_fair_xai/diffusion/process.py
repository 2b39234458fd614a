"""The diffusion process: noise schedule, what a network predicts, and how much each timestep weighs."""

import diffusers
import torch

from melanoma_fair_xai.diffusion.pipeline_lesion import band_names, haar_levels, to_bands

ROUNDING = 2 / 255 / 12**0.5  # the deviation of what is lost by whole numbers from 0 to 255, of images in [-1, 1]
DETAIL_DEVIATION = 0.5  # of what the network sees of a band of details; that of the images themselves is about .4


def make_noise_scheduler(prediction_type: str, beta_schedule: str) -> diffusers.DDPMScheduler:
    """1000 steps; at zero terminal SNR with trailing timesteps (Lin et al. 2024, arXiv:2305.08891) where the
    prediction is defined there, which epsilon is not."""
    return diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type != "epsilon",
        timestep_spacing="trailing",
    )


def training_target(
    images: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy images, what is to be predicted from them), both (N, 3, H, W), at signal shares alphas_cumprod (N,).

    v = alpha * noise - sigma * image (Salimans and Ho 2022, arXiv:2202.00512, section 4).
    """
    alpha, sigma = (root.sqrt()[:, None, None, None] for root in (alphas_cumprod, 1 - alphas_cumprod))
    noisy = alpha * images + sigma * noise
    targets = {"v_prediction": alpha * noise - sigma * images, "sample": images, "epsilon": noise}
    return noisy, targets[prediction_type]


def measure_band_scales(images: torch.Tensor, levels: int) -> dict[str, float]:
    """What each band of `levels` Haar levels is divided by, from images (N, 3, H, W) in [-1, 1].

    The average, by 2^levels: the network sees it as images of that many fewer pixels, under the noise schedule that
    Hoogeboom et al. (2023, arXiv:2301.11093) shift there. Details, so that their deviation is DETAIL_DEVIATION: left
    as they are, they would be noise at nearly all timesteps, and appear in the last step of a sampler.
    """
    average, *details = names = band_names(levels)
    bands = to_bands(images, dict.fromkeys(names, 1.0)).unflatten(1, (len(names), -1))
    deviations = bands.square().mean(dim=(0, 2, 3, 4)).sqrt().tolist()[1:]
    # Rounded: a sum's last bits depend on the number of threads.
    scales = [float(f"{max(value, ROUNDING) / DETAIL_DEVIATION:.3g}") for value in deviations]
    return {average: 2.0**levels, **dict(zip(details, scales, strict=True))}


def band_errors(output: torch.Tensor, target: torch.Tensor, scales: dict[str, float]) -> torch.Tensor:
    """Mean squared errors (N,) of bands (N, C, H, W): the average and each level's details count the same."""
    names = band_names(haar_levels(scales))
    octaves = [len(name) - len(name.lstrip("a")) for name in names]
    weights = [1 / (octaves.count(octave) * len(set(octaves))) for octave in octaves]
    return (output - target).square().unflatten(1, (len(names), -1)).mean(dim=(2, 3, 4)) @ output.new_tensor(weights)


def loss_weights(alphas_cumprod: torch.Tensor, prediction_type: str, gamma: float | None) -> torch.Tensor:
    """Weights (N,) of the squared errors at signal shares alphas_cumprod (N,); `gamma` None weighs all alike.

    As a weight on the error of the image that the prediction implies, min(SNR + 1, gamma): min-SNR (Hang et al. 2023,
    arXiv:2303.09556) with the SNR + 1 that v-prediction implies, so that the terminal step, where the SNR is 0, is not
    silenced. An error of v is that of the image times sqrt(SNR + 1). Epsilon has no terminal step at SNR 0 and keeps
    min(SNR, gamma) / SNR.
    """
    if gamma is None:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "epsilon":
        return snr.clamp(max=gamma) / snr
    weights = (snr + 1).clamp(max=gamma)
    return weights / (snr + 1) if prediction_type == "v_prediction" else weights
