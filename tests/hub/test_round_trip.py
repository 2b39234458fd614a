"""What was pushed, loaded by people's own tools over HTTP, in processes that have never seen this repository."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from strangers import digest, run_stranger
from tiny_runs import classifier_run, generator_run, lesion

from melanoma_fair_xai.classifier.export import load_classifier

TIMM = """
import timm
from PIL import Image

repo_id, commit = sys.argv[1:]
results = {}
for name, revision in (("head", ""), ("tag", "@v1"), ("commit", f"@{commit}")):
    model = timm.create_model(f"hf-hub:{repo_id}{revision}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    results[f"{name} weights"] = digest(model)
    with torch.no_grad():
        results[name] = model(transform(Image.open("lesion.png"))[None])
"""

TRANSFORMERS = """
import json
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo_id, commit = sys.argv[1:]
image, results = Image.open("lesion.png"), {}
for name, revision in (("head", None), ("tag", "v1"), ("commit", commit)):
    model = AutoModelForImageClassification.from_pretrained(repo_id, revision=revision).eval()
    processor = AutoImageProcessor.from_pretrained(repo_id, revision=revision)
    results[f"{name} weights"] = digest(model)
    with torch.no_grad():
        results[name] = model(**processor(image, return_tensors="pt")).logits
answers = pipeline("image-classification", repo_id)(image, function_to_apply="none")
scores = {answer["label"]: answer["score"] for answer in answers}
results["pipeline"] = [[scores[name] for name in ("benign", "melanoma")]]
config = json.load(open(hf_hub_download(repo_id, "config.json")))
results["threshold"] = config["operating_point"]["threshold"]
"""

DIFFUSERS = """
from diffusers import DiffusionPipeline

repo_id, commit = sys.argv[1:]
results = {}
for name, revision in (("head", None), ("tag", "v1"), ("commit", commit)):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    assert type(pipeline).__name__ == "LesionPipeline"
    results[f"{name} weights"] = digest(pipeline.unet, pipeline.conditioner)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = pipeline(["mel", "nv"], age=[40, None], generator=generators, num_inference_steps=3, output_type="np")
    results[name] = images.images
"""


def push_twice(make, folder: Path, name: str, run_hub, local_hub) -> list[str]:
    """Two versions of a run in the repository tester/NAME, made by `make(folder, seed)`; their commits."""
    for seed in (0, 1):
        outcome = run_hub("push", make(folder / str(seed), seed), "--hub_model_id", f"tester/{name}")
        assert outcome.code == 0, outcome.error
    repository = local_hub.repositories["model", f"tester/{name}"]
    assert list(repository.tags) == ["v1", "v2"] and repository.private
    return list(repository.tags.values())


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, run_hub, local_hub):
    """The weights' digests and the logits of the two versions, and the first one's commit."""
    folder = tmp_path_factory.mktemp("classifiers")
    commits = push_twice(classifier_run, folder, "classifier", run_hub, local_hub)
    return [own(folder / str(seed)) for seed in (0, 1)], commits[0]


def own(folder: Path) -> tuple[str, np.ndarray]:
    model, info = load_classifier(folder)
    transform = timm.data.create_transform(**info.preprocessing.to_timm())
    with torch.no_grad():
        return digest(model), model(transform(lesion())[None]).numpy()


@pytest.mark.parametrize("loader", [TIMM, TRANSFORMERS], ids=["timm", "transformers"])
def test_every_loader_gives_the_logits_of_the_version_it_asks_for(classifiers, local_hub, tmp_path, loader):
    (first, second), commit = classifiers
    assert np.abs(first[1] - second[1]).max() > 0.01
    lesion().save(tmp_path / "lesion.png")
    results = run_stranger(loader, local_hub, tmp_path, "tester/classifier", commit)
    for name, (weights, logits) in (("head", second), ("tag", first), ("commit", first)):
        assert results[f"{name} weights"] == weights
        np.testing.assert_allclose(results[name], logits, atol=1e-5)
    if loader == TRANSFORMERS:
        np.testing.assert_allclose(results["pipeline"], second[1], atol=1e-5)
        assert results["threshold"] == 0.5


def test_the_generator_gives_the_images_of_the_version_it_asks_for(tmp_path, run_hub, local_hub):
    from melanoma_fair_xai.diffusion.generation import load_pipeline

    commits = push_twice(generator_run, tmp_path, "generator", run_hub, local_hub)
    expected = []
    for seed in (0, 1):
        pipeline = load_pipeline(str(tmp_path / str(seed)))
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        options = {"generator": generators, "num_inference_steps": 3, "output_type": "np"}
        images = pipeline(["mel", "nv"], age=[40, None], **options).images
        expected.append((digest(pipeline.unet, pipeline.conditioner), images))
    first, second = expected
    assert np.abs(first[1] - second[1]).max() > 0.01
    results = run_stranger(DIFFUSERS, local_hub, tmp_path / "stranger", "tester/generator", commits[0])
    for name, (weights, images) in (("head", second), ("tag", first), ("commit", first)):
        assert results[f"{name} weights"] == weights
        np.testing.assert_allclose(results[name], images, atol=1e-4)
