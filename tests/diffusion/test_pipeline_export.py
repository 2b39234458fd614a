"""The exported folder, loaded by processes that have never seen this repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.diffusion.export import export_pipeline
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner

WEIGHTS = "diffusion_pytorch_model.safetensors"
LOAD = """
import sys, numpy, torch, diffusers
assert not any(name.startswith(("melanoma_fair_xai", "dataset_scripts")) for name in sys.modules)
folder, output, again = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
assert type(pipeline).__name__ == "LesionPipeline" and type(pipeline.conditioner).__name__ == "LesionConditioner"
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
images = pipeline(["mel", "nv"], age=[40, None], generator=generators, num_inference_steps=3, output_type="np").images
numpy.save(output, images)
pipeline.save_pretrained(again)
for name in ("melanoma_fair_xai", "dataset_scripts"):
    assert name not in sys.modules, name
"""


def load_elsewhere(folder: Path, tmp_path: Path, name: str) -> np.ndarray:
    """Images from a fresh process outside the repository, which also saves what it loaded as tmp_path/name."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / f"modules-{name}"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    output = tmp_path / f"{name}.npy"
    # -S with the site-packages alone: an editable install of this repository is not found.
    packages = str(Path(diffusers.__file__).parents[1])
    script = f"import sys; sys.path.append({packages!r})\n{LOAD}"
    command = [sys.executable, "-S", "-c", script, folder, output, tmp_path / name]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return np.load(output)


@pytest.fixture
def exported(pipeline, tmp_path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    export_pipeline(pipeline, folder)
    return folder


def test_loads_anywhere_with_equal_images_and_survives_saving_again(banded, tmp_path):
    exported = tmp_path / "exported"
    exported.mkdir()
    export_pipeline(banded, exported)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = dict(generator=generators, num_inference_steps=3, output_type="np")
    images = banded(["mel", "nv"], age=[40, None], **options).images
    # Equal weights give close images only: loaders differ in how weights are aligned in memory, and so the kernels.
    np.testing.assert_allclose(load_elsewhere(exported, tmp_path, "again"), images, atol=1e-4)
    np.testing.assert_allclose(load_elsewhere(tmp_path / "again", tmp_path, "third"), images, atol=1e-4)
    for name in ("unet", "conditioner"):
        weights, others = (load_file(f / name / WEIGHTS) for f in (exported, tmp_path / "third"))
        assert weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
    files = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for folder in (exported, tmp_path / "third")
    ]
    assert files[0] == files[1]


def test_the_folder_is_as_diffusers_wants_it(exported):
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_lesion", "LesionPipeline"]
    assert index["conditioner"] == ["lesion_conditioner", "LesionConditioner"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert (exported / "pipeline_lesion.py").is_file() and (
        exported / "conditioner" / "lesion_conditioner.py"
    ).is_file()
    assert not [path for path in exported.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert not list(exported.glob(".partial*"))
    modes = {path.stat().st_mode for path in (exported / "unet").iterdir()}
    assert len(modes) == 1, "whoever can read the config can read the weights"


def test_the_index_comes_last_so_that_a_folder_that_has_it_is_whole(pipeline, tmp_path, monkeypatch):
    replace, arrived = os.replace, []
    monkeypatch.setattr(os, "replace", lambda source, target: arrived.append(target.name) or replace(source, target))
    export_pipeline(pipeline, tmp_path)
    arrived = [name for name in arrived if (tmp_path / name).exists()]
    assert arrived[-1] == "model_index.json" and set(arrived) == {path.name for path in tmp_path.iterdir()}


def test_unet_and_conditioner_load_one_by_one(pipeline, exported):
    unet = diffusers.UNet2DModel.from_pretrained(exported, subfolder="unet")
    conditioner = LesionConditioner.from_pretrained(exported, subfolder="conditioner")
    for loaded, own in ((unet, pipeline.unet), (conditioner, pipeline.conditioner)):
        for name, tensor in own.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_channels_last_weights_are_saved_as_any_others(pipeline, exported, tmp_path):
    pipeline.unet.to(memory_format=torch.channels_last)
    export_pipeline(pipeline, tmp_path)
    assert (tmp_path / "unet" / WEIGHTS).read_bytes() == (exported / "unet" / WEIGHTS).read_bytes()


def test_exporting_again_replaces_what_was_there(pipeline, exported):
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(1)
    export_pipeline(pipeline, exported)
    unet = diffusers.UNet2DModel.from_pretrained(exported, subfolder="unet")
    assert torch.equal(unet.conv_out.bias, pipeline.unet.conv_out.bias)


def test_a_full_disk_is_said_and_leaves_the_earlier_export_whole(pipeline, exported, file_size_limit):
    before = (exported / "unet" / WEIGHTS).read_bytes()
    with file_size_limit(50_000), pytest.raises(UserError, match="the model could not be written"):
        export_pipeline(pipeline, exported)
    assert (exported / "unet" / WEIGHTS).read_bytes() == before
    assert not list(exported.glob(".partial*"))
