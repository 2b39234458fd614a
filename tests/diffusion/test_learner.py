"""What a generator's training learns and shows, on a handful of images: its loss by hand, its bands, its guards."""

from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import train_diffusion
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion import learner
from melanoma_fair_xai.diffusion.arguments import TrainingArguments
from melanoma_fair_xai.diffusion.data import find_conditions, seeded_noise
from melanoma_fair_xai.diffusion.learner import ConditionedImages, DiffusionLearner
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.diffusion.process import make_noise_scheduler
from melanoma_fair_xai.engine.training import Training

DIAGNOSES = ["mel"] * 2 + ["nv"] * 6
SPLITS = ["train"] * 8 + ["validation"] * 4 + ["test"] * 2


@pytest.fixture
def images() -> ConditionedImages:
    """Eight images to learn from, two of them melanomas; four to validate on, two to test on."""
    table = pd.DataFrame(
        {"image_id": [f"i{row}" for row in range(14)], "lesion_id": [f"l{row}" for row in range(14)], "split": SPLITS}
    ).assign(diagnosis=[*DIAGNOSES, *["nv"] * 6], melanoma=0, source="clinic", fitzpatrick="unknown")
    records = Records("planted", datasets.Dataset.from_dict({}), table, pd.DataFrame())
    pixels = np.random.default_rng(0).integers(0, 256, (14, 8, 8, 3), dtype=np.uint8)
    return ConditionedImages(records, pixels, find_conditions(table[:8], [], "here"), content="drawn")


@pytest.fixture
def make(images, tmp_path):
    """A learner with options of its own, and the options."""
    options = TrainingArguments(
        train_batch_size=4, learning_rate=1e-3, max_train_steps=3, mixed_precision="no", report_to="none"
    )

    def make(**changes) -> tuple[DiffusionLearner, TrainingArguments]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.manual_seed(0)
        networks = create_networks(
            images.conditions, resolution=8, block_out_channels=[16], layers_per_block=1, attention_resolutions=[]
        )
        own = replace(options, **changes)
        scheduler = make_noise_scheduler("v_prediction", "linear")
        accelerator = Accelerator(cpu=True)
        return DiffusionLearner(accelerator, tmp_path, *networks, scheduler, images, np.arange(8), own), own

    return make


@pytest.mark.parametrize("gamma", [5.0, None])
def test_the_loss_is_that_of_the_paper(make, images, gamma):
    """By the formulas for v and its weights, from what the networks answer; and that it asks them the right thing."""
    learned, _ = make(snr_gamma=gamma)
    batch = torch.utils.data.default_collate([learned.dataset[0, index] for index in range(4)])
    batch["timesteps"] = torch.tensor([0, 400, 900, 999])
    networks = {name: network.eval() for name, network in learned.networks.items()}
    alphas = make_noise_scheduler("v_prediction", "linear").alphas_cumprod[batch["timesteps"]].double()
    clean = torch.from_numpy(np.stack([np.rot90(image, 2) for image in images.pixels[batch["rows"]]])).permute(
        0, 3, 1, 2
    )
    clean, batch["symmetries"] = clean.double() / 127.5 - 1, torch.full((4,), 3)
    noise = seeded_noise(batch["noise_seeds"], (3, 8, 8)).double()
    signal, sigma = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    with torch.no_grad():
        noisy = (signal * clean + sigma * noise).float()
        vector = networks["conditioner"](batch["conditions"])
        answer = networks["unet"](noisy, batch["timesteps"], vector).sample
        errors = (answer - (signal * noise - sigma * clean)).square().mean((1, 2, 3))
        snr = alphas / (1 - alphas)
        weights = 1 if gamma is None else (snr + 1).clamp(max=gamma) / (snr + 1)
        assert learned.loss(networks, batch).item() == pytest.approx((weights * errors).mean().item(), rel=1e-4)
    assert len(set(batch["conditions"]["diagnosis"].tolist())) > 1


def test_balanced_sampling_draws_every_diagnosis_equally_often(make):
    weights = make(class_balanced_sampling=True)[0].sampling_weights
    assert weights[:2].sum() == pytest.approx(weights[2:].sum()) and weights[0] == pytest.approx(3 * weights[2])
    assert make()[0].sampling_weights is None


def test_a_validation_names_the_bands_and_looks_at_validation_images_alone(make, images, monkeypatch):
    seen = {}

    def losses(accelerator, pipeline, alphas, pixels, encoded, **options) -> list[float]:
        seen["pixels"], seen["diagnoses"] = pixels, encoded["diagnosis"]
        return [0.1, 0.2, 0.3, 0.4, 0.5]

    monkeypatch.setattr(learner, "held_out_losses", losses)
    learned, _ = make(num_inference_steps=1, validation_images=3)
    found = learned.validate(2)
    expected = {"0-199": 0.1, "200-399": 0.2, "400-599": 0.3, "600-799": 0.4, "800-999": 0.5}
    assert found.values == {f"error_t{band}": loss for band, loss in expected.items()}
    assert found.text.endswith("from little noise to all of it: 0.1000 0.2000 0.3000 0.4000 0.5000")
    assert found.score is None, "there is no best generator: the last averages are kept"
    held_out = {images.pixels[row].tobytes() for row in range(8, 12)}
    assert len(seen["pixels"]) == 3 and {image.tobytes() for image in seen["pixels"]} <= held_out
    assert set(seen["diagnoses"]) == {1} and (learned.folder / "samples" / "step-000002.png").is_file()


@pytest.mark.parametrize(
    ("loss", "verdict"), [(100.0, None), (100.1, "explodes, it is 100 at step 2"), (1e4, "10000")]
)
def test_a_loss_above_a_hundred_times_that_of_predicting_nothing_explodes(make, tmp_path, loss, verdict):
    learned, options = make(validation_steps=100, checkpointing_steps=100, num_inference_steps=1)
    planted = iter([1.0, loss, 1.0])
    learned.loss = lambda networks, batch: (
        next(planted) + 0 * sum(p.sum() for n in networks.values() for p in n.parameters())
    )
    run = Training(learned.accelerator, tmp_path, learned, options)
    if verdict is None:
        run.run()
        assert run.progress.global_step == 3
    else:
        with pytest.raises(UserError, match=f"the loss .*{verdict}.*lower --learning_rate"):
            run.run()


def test_a_generator_needs_images_to_learn_from_and_to_validate_on(images):
    train_diffusion.check_rows(images, np.arange(1))
    with pytest.raises(UserError, match="planted: the train split has no images"):
        train_diffusion.check_rows(images, np.arange(0))
    images.records.table["split"] = images.records.table["split"].replace("validation", "test")
    with pytest.raises(UserError, match="planted: the validation split has no images"):
        train_diffusion.check_rows(images, np.arange(1))
