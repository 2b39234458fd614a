"""The pipeline against networks whose answer is known exactly, and against itself."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput

from melanoma_fair_xai.diffusion.pipeline_lesion import LesionPipeline
from melanoma_fair_xai.diffusion.process import make_noise_scheduler

SCHEDULERS = ["DDPM", "DDIM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"]


class Oracle(ModelMixin, ConfigMixin):
    """Predicts v exactly for data that are one flat colour for each condition: the first entries of its vector."""

    @register_to_config
    def __init__(self, in_channels: int = 3, sample_size: int = 4):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.alphas_cumprod = make_noise_scheduler("v_prediction", "linear").alphas_cumprod

    def forward(self, sample, timestep, class_labels):
        alpha = self.alphas_cumprod[int(timestep)].sqrt()
        colour = colours(class_labels)[:, :, None, None]
        return UNet2DOutput(sample=(alpha * sample - colour) / (1 - alpha**2).sqrt())


def colours(vectors: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.tanh(vectors[:, :3])


@pytest.fixture
def oracle(networks) -> LesionPipeline:
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        make_noise_scheduler("v_prediction", "linear").config
    )
    pipeline = LesionPipeline(Oracle(), networks[1], scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expected(pipeline, guidance_scale: float = 1.0, **values) -> torch.Tensor:
    """The guided colours: with these data the guided prediction is exact, too."""
    conditioner, number = pipeline.conditioner, len(next(iter(values.values())))
    with torch.no_grad():
        with_, without = (colours(conditioner(conditioner.encode(v, number))) for v in (values, {}))
    return without + guidance_scale * (with_ - without)


def flat_colours(output) -> torch.Tensor:
    images = output.images * 2 - 1
    assert images.std(dim=(2, 3)).max() < 2e-3
    return images.mean(dim=(2, 3))


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_swap_in_and_find_the_known_answer(oracle, name, guidance_scale):
    oracle.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(oracle.scheduler.config)
    steps = 1000 if name == "DDPM" else 25
    output = oracle(
        diagnosis=["mel", "nv"],
        age=45,
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    target = expected(oracle, guidance_scale, diagnosis=["mel", "nv"], age=[45, 45])
    torch.testing.assert_close(flat_colours(output), target, atol=3e-3, rtol=0)


@pytest.mark.parametrize("name", ["HeunDiscrete", "DEISMultistep", "DPMSolverSinglestep", "PNDM"])
def test_a_scheduler_without_zero_terminal_snr_is_refused(oracle, name):
    oracle.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(oracle.scheduler.config)
    with pytest.raises(ValueError, match=f"{name}Scheduler cannot do zero terminal SNR"):
        oracle(diagnosis="mel")
    # Going back through its config to one that can loses nothing.
    oracle.scheduler = diffusers.DDIMScheduler.from_config(oracle.scheduler.config)
    assert oracle.scheduler.alphas_cumprod[-1] == 0
    oracle(diagnosis="mel")


def test_any_scheduler_will_do_for_a_model_trained_without_it(networks):
    config = make_noise_scheduler("epsilon", "linear").config
    pipeline = LesionPipeline(*networks, diffusers.HeunDiscreteScheduler.from_config(config))
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(num_inference_steps=2).images) == 1


def test_guidance_is_on_inside_its_interval_only(oracle):
    """The last step decides what comes out of these data: the guidance at it is all that matters."""
    options = dict(diagnosis="mel", guidance_scale=3.0, output_type="pt", generator=torch.Generator().manual_seed(0))
    early = oracle(**options, guidance_interval=(0.5, 1.0))
    late = oracle(**options, guidance_interval=(0.0, 0.5))
    torch.testing.assert_close(flat_colours(early), expected(oracle, 1.0, diagnosis=["mel"]), atol=3e-3, rtol=0)
    torch.testing.assert_close(flat_colours(late), expected(oracle, 3.0, diagnosis=["mel"]), atol=3e-3, rtol=0)


def test_guidance_rescale_gives_the_guided_output_the_contrast_of_the_conditional_one(pipeline):
    seen = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda output, *args, **options: seen.append(output) or step(output, *args, **options)

    def first_output(**options):
        seen.clear()
        pipeline(diagnosis="mel", generator=torch.Generator().manual_seed(0), num_inference_steps=2, **options)
        return seen[0]

    conditional, plain = first_output(), first_output(guidance_scale=9.0)
    rescaled, half = (first_output(guidance_scale=9.0, guidance_rescale=share) for share in (1.0, 0.5))
    assert abs(plain.std() - conditional.std()) > 1e-4
    torch.testing.assert_close(rescaled, plain * conditional.std() / plain.std(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half, (plain + rescaled) / 2, rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_those_beside_it(pipeline):
    def generate(seeds, diagnoses):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipeline(diagnoses, generator=generators, num_inference_steps=3, output_type="np", guidance_scale=2.0)
        return output.images

    batch = generate([1, 2, 3], ["mel", "nv", "mel"])
    np.testing.assert_allclose(generate([2], ["nv"])[0], batch[1], atol=1e-4)
    np.testing.assert_allclose(generate([3, 1], ["mel", "mel"])[::-1], batch[[0, 2]], atol=1e-4)
    assert np.abs(batch[0] - batch[2]).max() > 0.05


def test_values_names_ids_vectors_and_outputs_agree(pipeline):
    def generate(**options):
        return pipeline(**options, generator=torch.Generator().manual_seed(0), num_inference_steps=2)

    images = generate(diagnosis=["mel", "nv"], sex="female", age=[40, None], output_type="pt").images
    same = generate(diagnosis=[0, 1], sex=["female", "female"], age=(40.0, "unknown"), output_type="np").images
    np.testing.assert_array_equal(same.transpose(0, 3, 1, 2), images.numpy())
    encoded = pipeline.conditioner.encode({"diagnosis": [0, 1], "sex": [0, 0], "age": [40, None]}, 2)
    vectors = pipeline.conditioner(encoded).detach()
    assert torch.equal(generate(class_labels=vectors, output_type="pt").images, images)
    pictures = generate(diagnosis=["mel", "nv"], sex="female", age=[40, None]).images
    assert all(isinstance(picture, PIL.Image.Image) for picture in pictures)
    np.testing.assert_allclose(np.asarray(pictures[1]) / 255, same[1], atol=0.51 / 255)
    (as_tuple,) = generate(diagnosis=["mel", "nv"], return_dict=False)
    assert len(as_tuple) == 2 and len(generate(batch_size=3).images) == 3 and len(generate().images) == 1


def test_callback_sees_every_step_and_may_change_the_latents(pipeline):
    steps = []

    def callback(pipe, step, timestep, values):
        steps.append((step, timestep))
        return {"latents": torch.zeros_like(values["latents"])} if step == 3 else None

    output = pipeline(num_inference_steps=4, callback_on_step_end=callback, output_type="np")
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert [timestep for _, timestep in steps] == [999, 749, 499, 249]
    assert np.all(output.images == 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diagnosis": ["mel", "nv"], "sex": ["male"] * 3}, "of different lengths: diagnosis 2, sex 3"),
        ({"diagnosis": ["mel", "nv"], "batch_size": 3}, "of different lengths: diagnosis 2, batch_size 3"),
        ({"age": [40, 50], "generator": [torch.Generator()]}, "of different lengths: age 2, generator 1"),
        ({"diagnosis": []}, "nothing to generate"),
        ({"diagnosis": "melanoma"}, "it knows mel"),
        ({"localization": "back"}, "no such condition"),
        ({"fitzpatrick": "VI"}, "training never saw it"),
        ({"age": 150}, "not a number of years"),
        ({"diagnosis": "mel", "class_labels": torch.zeros(1, 64)}, "give either"),
        ({"output_type": "jpeg"}, "output_type"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)
