"""What was pushed, loaded by people's own tools over HTTP, in processes that have never seen this repository."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from strangers import run_stranger
from tiny_runs import classifier_run, generator_run, lesion

from melanoma_fair_xai.classifier.export import load_classifier

TIMM = """
import timm, torch
from PIL import Image

def logits(name):
    model = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        return model(transform(Image.open("lesion.png"))[None])

repo_id, commit = sys.argv[1:]
results = {"head": logits(repo_id), "tag": logits(f"{repo_id}@v1"), "commit": logits(f"{repo_id}@{commit}")}
"""

TRANSFORMERS = """
import json, torch
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo_id, commit = sys.argv[1:]
image, results = Image.open("lesion.png"), {}
for name, revision in (("head", None), ("tag", "v1"), ("commit", commit)):
    model = AutoModelForImageClassification.from_pretrained(repo_id, revision=revision).eval()
    processor = AutoImageProcessor.from_pretrained(repo_id, revision=revision)
    with torch.no_grad():
        results[name] = model(**processor(image, return_tensors="pt")).logits
answers = pipeline("image-classification", repo_id)(image, function_to_apply="none")
scores = {answer["label"]: answer["score"] for answer in answers}
results["pipeline"] = [[scores[name] for name in ("benign", "melanoma")]]
config = json.load(open(hf_hub_download(repo_id, "config.json")))
results["threshold"] = config["operating_point"]["threshold"]
"""

DIFFUSERS = """
import torch
from diffusers import DiffusionPipeline

repo_id, commit = sys.argv[1:]
results = {}
for name, revision in (("head", None), ("tag", "v1"), ("commit", commit)):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    assert type(pipeline).__name__ == "LesionPipeline"
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
    """Folders of the two versions, their logits, and the first one's commit."""
    folder = tmp_path_factory.mktemp("classifiers")
    commits = push_twice(classifier_run, folder, "classifier", run_hub, local_hub)
    return [own_logits(folder / str(seed)) for seed in (0, 1)], commits[0]


def own_logits(folder: Path) -> np.ndarray:
    model, info = load_classifier(folder)
    transform = timm.data.create_transform(**info.data_config)
    with torch.no_grad():
        return model(transform(lesion())[None]).numpy()


@pytest.mark.parametrize("loader", [TIMM, TRANSFORMERS], ids=["timm", "transformers"])
def test_every_loader_gives_the_logits_of_the_version_it_asks_for(classifiers, local_hub, tmp_path, loader):
    (first, second), commit = classifiers
    assert np.abs(first - second).max() > 0.01
    lesion().save(tmp_path / "lesion.png")
    results = run_stranger(loader, local_hub, tmp_path, "tester/classifier", commit)
    for name, expected in (("head", second), ("tag", first), ("commit", first)):
        np.testing.assert_array_equal(results[name], expected)
    if loader == TRANSFORMERS:
        np.testing.assert_allclose(results["pipeline"], second, rtol=1e-6)
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
        expected.append(pipeline(["mel", "nv"], age=[40, None], **options).images)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    results = run_stranger(DIFFUSERS, local_hub, tmp_path / "stranger", "tester/generator", commits[0])
    for name, images in (("head", expected[1]), ("tag", expected[0]), ("commit", expected[0])):
        np.testing.assert_array_equal(results[name], images)
