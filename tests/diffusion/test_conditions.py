"""One row of the table is all that a new condition takes, from a training table to the images that are asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from melanoma_fair_xai.diffusion import conditions as table_of_conditions
from melanoma_fair_xai.diffusion.conditions import CONDITIONS, Condition
from melanoma_fair_xai.diffusion.data import find_conditions
from melanoma_fair_xai.diffusion.export import export_pipeline, make_pipeline
from melanoma_fair_xai.diffusion.lesion_conditioner import LesionConditioner, make_encoders
from melanoma_fair_xai.diffusion.networks import create_networks
from melanoma_fair_xai.diffusion.process import make_noise_scheduler

REPOSITORY = Path(table_of_conditions.__file__).parents[2]
# A category and a measure that no data set here has.
PLANTED = 'Condition("monk", ["2", "1"]), Condition("diameter", unit="millimetres", low=0.0, high=60.0, width=5.0)'
PLANT = f"""
import sys
from melanoma_fair_xai.diffusion.conditions import CONDITIONS, Condition
CONDITIONS |= {{row.name: row for row in ({PLANTED})}}
import generate
generate.main()
"""
ELSEWHERE = """
import sys, warnings, numpy, torch, diffusers
folder, output = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
options = dict(generator=generators, num_inference_steps=2, output_type="np")
numpy.save(output, pipeline(monk=["2", 1], diameter=[12, None], **options).images)
for wrong in ({"monk": "11"}, {"diameter": 70}, {"diameter": 42}):
    try:
        pipeline(**wrong)
    except ValueError as error:
        print(error)
assert not [name for name in sys.modules if name.startswith(("melanoma_fair_xai", "dataset_scripts"))]
"""


@pytest.fixture
def planted(monkeypatch, tmp_path) -> tuple[diffusers.DiffusionPipeline, Path]:
    """A pipeline that knows a planted category and a planted measure beside the diagnosis, and its export."""
    for condition in eval(PLANTED, {"Condition": Condition}):
        monkeypatch.setitem(CONDITIONS, condition.name, condition)
    known = {"monk": ["1", "2"], "diameter": [4.0, 13.0], "diagnosis": ["mel", "nv"]}
    found = find_conditions(pd.DataFrame(known).loc[[0, 1] * 60].astype({"diameter": str}), [], "here")
    torch.manual_seed(0)
    networks = create_networks(
        found, resolution=8, block_out_channels=[16, 32], layers_per_block=1, attention_resolutions=[]
    )
    pipeline = make_pipeline(*(network.eval() for network in networks), make_noise_scheduler("sample", "linear"))
    pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path / "exported"
    folder.mkdir()
    export_pipeline(pipeline, folder)
    return pipeline, folder


def run(code: str, folder: Path, *arguments: object, isolated: bool = False) -> str:
    """What a fresh process prints; with `isolated` it cannot import this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    path = [str(Path(diffusers.__file__).parents[1]), *([] if isolated else [str(REPOSITORY)])]
    command = [sys.executable, "-S", "-c", f"import sys; sys.path += {path}\n{code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_planted_condition_is_learned_exported_and_asked_for_elsewhere(planted, tmp_path):
    pipeline, folder = planted
    assert pipeline.conditioner.names == ("diagnosis", "monk", "diameter")
    assert pipeline.conditioner.seen("diameter") == "0 to 5 (60), 10 to 15 (60)"
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = dict(generator=generators, num_inference_steps=2, output_type="np")
    images = pipeline(monk=["2", "1"], diameter=[12, "unknown"], **options).images
    other = pipeline(monk=["1", "1"], diameter=[3, 3], **options).images
    assert np.abs(images - other).max() > 1e-3
    said = run(ELSEWHERE, tmp_path, folder, tmp_path / "images.npy", isolated=True).splitlines()
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), images, atol=1e-4)
    assert said == [
        "monk '11': unknown to this model; it knows 2 (60), 1 (60)",
        "diameter 70: not a number of millimetres from 0 to 60",
        "diameter 42: training never saw it; it saw 0 to 5 (60), 10 to 15 (60)",
    ]


def test_a_planted_condition_has_a_flag_and_a_column(planted, tmp_path):
    _, folder = planted
    flags = ["--model_name_or_path", folder, "--num_inference_steps", 1, "--batch_size", 2, "--output_dir"]
    run(PLANT, tmp_path, *flags, tmp_path / "asked", "--monk", 2, "--diameter", 12, 3, "--grid")
    asked = pd.read_csv(tmp_path / "asked" / "metadata.csv")
    assert asked["monk"].tolist() == [2, 2] and asked["diameter"].tolist() == [12, 3]
    assert asked["diagnosis"].isna().all() and asked["age"].isna().all()
    data = tmp_path / "data"
    data.mkdir()
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        PIL.Image.new("RGB", (8, 8), (200, 150, 130)).save(data / name)
    known = {"monk": [1, 2] * 4, "diameter": [None, 13] * 4, "melanoma": [0, 1] * 4, "diagnosis": ["nv", "mel"] * 4}
    pd.DataFrame({"file_name": names, "lesion_id": names, **known}).to_csv(data / "metadata.csv", index=False)
    run(PLANT, tmp_path, *flags, tmp_path / "like", "--like", data, "--num_images", 6)
    like = pd.read_csv(tmp_path / "like" / "metadata.csv")
    assert set(zip(like["monk"], like["diameter"].fillna(-1), strict=True)) == {(1, -1), (2, 13)}
    (tmp_path / "table.csv").write_text("monk,diameter\n1,\n,12.5\n")
    run(PLANT, tmp_path, *flags, tmp_path / "listed", "--conditions", tmp_path / "table.csv")
    listed = pd.read_csv(tmp_path / "listed" / "metadata.csv")
    assert np.array_equal(listed[["monk", "diameter"]], [[1, np.nan], [np.nan, 12.5]], equal_nan=True)


def test_a_config_that_does_not_say_its_conditions_means_the_first_six():
    """As the released generator's: the same function of the same weights, worked out by hand."""
    path = REPOSITORY / "model_cards" / "ham10000-generator" / "conditioner" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert "conditions" not in config
    torch.manual_seed(0)
    conditioner = LesionConditioner.from_config(config)
    assert conditioner.names == ("diagnosis", "sex", "localization", "age", "ita")
    weights = {name: tensor.double().numpy() for name, tensor in conditioner.state_dict().items()}
    layers = ["project.0.bias", "project.0.weight", "project.2.bias", "project.2.weight"]
    categories = [f"embeddings.{name}.weight" for name in ("diagnosis", "sex", "localization")]
    measures = [f"measures.{name}.{part}" for name in ("age", "ita") for part in ("bias", "weight")]
    assert sorted(weights) == sorted([*categories, *measures, *layers, "unknown.age", "unknown.ita"])

    def line(layer: str, values: np.ndarray) -> np.ndarray:
        return weights[f"{layer}.weight"] @ values + weights[f"{layer}.bias"]

    def waves(share: float) -> np.ndarray:
        angles = np.pi * share * 2.0 ** np.arange(6)
        return np.concatenate([np.sin(angles), np.cos(angles)])

    total = line("measures.age", waves(55 / 120)) + line("measures.ita", waves((45 + 180) / 360))
    places = [
        config["vocabularies"]["diagnosis"].index("mel"),
        2,
        config["vocabularies"]["localization"].index("back"),
    ]
    total += sum(weights[name][place] for name, place in zip(categories, places, strict=True))
    hidden = line("project.0", total)
    expected = line("project.2", hidden / (1 + np.exp(-hidden)))
    asked = conditioner.encode({"diagnosis": ["mel"], "age": [55], "localization": ["back"], "ita": [45]}, 1)
    np.testing.assert_allclose(conditioner(asked)[0].detach().numpy(), expected, atol=1e-5)


def test_conditions_keep_the_order_of_the_table_however_a_config_is_sorted(planted):
    _, folder = planted
    config = json.loads((folder / "conditioner" / "config.json").read_text())
    assert list(config["counts"]) == sorted(config["counts"]) != list(LesionConditioner.from_config(config).names)
    assert list(make_encoders(config["conditions"], config["vocabularies"], config["counts"])) == [
        "diagnosis",
        "monk",
        "diameter",
    ]
