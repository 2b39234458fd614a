"""What is asked of a generator, row by row: mixes, grids and draws, and what is refused or warned of before."""

import json
import os

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.diffusion.export import export_pipeline
from melanoma_fair_xai.diffusion.generation import (
    check_conditions,
    drawn_conditions,
    generate_batch,
    grid_conditions,
    image_seed,
    load_pipeline,
    mixed_conditions,
    plain_value,
    read_conditions,
    read_settings,
)
from melanoma_fair_xai.diffusion.pipeline_lesion import LesionPipeline
from melanoma_fair_xai.engine.weights import weights_hash


def test_a_mix_draws_every_value_evenly_and_independently():
    mix = mixed_conditions({"diagnosis": ["mel", "nv"], "age": [30.0, 50.0, 70.0]}, 6000, seed=3)
    shares = pd.crosstab(mix["diagnosis"], mix["age"], normalize=True)
    assert shares.shape == (2, 3) and abs(shares - 1 / 6).max().max() < 0.02
    pd.testing.assert_frame_equal(
        mix, mixed_conditions({"diagnosis": ["mel", "nv"], "age": [30.0, 50.0, 70.0]}, 6000, 3)
    )
    assert not mix.equals(mixed_conditions({"diagnosis": ["mel", "nv"], "age": [30.0, 50.0, 70.0]}, 6000, 4))


def test_a_grid_changes_the_last_fastest_and_starts_over():
    values = {"diagnosis": ["mel", "nv"], "sex": ["female", "male"]}
    whole = [["mel", "female"], ["mel", "male"], ["nv", "female"], ["nv", "male"]]
    assert grid_conditions(values, None).values.tolist() == whole
    assert grid_conditions(values, 6).values.tolist() == whole + whole[:2]
    assert grid_conditions(values, 3).values.tolist() == whole[:3]


def test_what_cannot_be_evened_out_is_refused():
    table = pd.DataFrame({"diagnosis": ["nv", "mel"], "fitzpatrick": ["unknown", "unknown"]})
    with pytest.raises(UserError, match="--balance colour: no such column; choose from diagnosis, fitzpatrick"):
        drawn_conditions(table, ["diagnosis"], ["colour"], 3, 0)
    with pytest.raises(UserError, match="--balance diagnosis,fitzpatrick: no image has all of them known"):
        drawn_conditions(table, ["diagnosis"], ["diagnosis", "fitzpatrick"], 3, 0)
    assert len(drawn_conditions(table, ["diagnosis", "fitzpatrick"], ["diagnosis"], 3, 0)) == 3


def test_a_table_of_conditions_has_numbers_and_open_cells(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("diagnosis,age\nmel,61.5\nunknown,\n")
    table = read_conditions(str(path))
    assert [[plain_value(cell) for cell in row] for row in table.values.tolist()] == [["mel", 61.5], [None, None]]
    assert table.index.tolist() == [2, 3]
    path.write_text("diagnosis,age\n")
    with pytest.raises(UserError, match="no rows; give one per image"):
        read_conditions(str(path))


def test_a_table_of_conditions_is_read_as_any_other_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("fitzpatrick,sex,age\n3,F,80+\niv,Male,unknown\n-1,,30\n")
    table = read_conditions(str(path))
    cells = [[plain_value(cell) for cell in row] for row in table.values.tolist()]
    assert cells == [["III", "female", 80.0], ["IV", "male", None], [None, None, 30.0]]
    assert table.index.name == "line"
    path.write_text("fitzpatrick,age\n7,30\n3,old\n")
    with pytest.raises(UserError, match="2 problem.*\n  line 2: skin type '7' .*\n  line 3: age 'old'"):
        read_conditions(str(path))


def test_rows_are_refused_all_at_once_and_rare_ones_are_named_once(networks):
    conditioner = networks[1]
    rare = pd.DataFrame({"diagnosis": ["vasc", "mel", "vasc"], "age": [85.0, 35.0, np.nan]})
    assert check_conditions(conditioner, rare, "here") == [
        "diagnosis vasc: training saw 3 such images only",
        "age 85.0: training saw 7 such images only",
    ]
    assert check_conditions(conditioner, rare.iloc[[1]], "here") == []
    wrong = pd.DataFrame(
        {"diagnosis": ["wart", "mel"], "fitzpatrick": [None, "VI"], "localization": ["unknown", "back"]}
    )
    with pytest.raises(UserError) as error:
        check_conditions(conditioner, wrong, "here")
    lines = str(error.value).splitlines()
    assert lines[0] == "here: 3 problem(s), nothing was generated"
    assert [line.split(":")[0] for line in lines[1:]] == ["  image 0", "  image 1", "  image 1"]
    with pytest.raises(UserError, match=r"\n  line 7: diagnosis 'wart'"):
        check_conditions(conditioner, wrong.iloc[:1].rename_axis("line").rename({0: 7}), "here")


def test_seeds_tell_images_attempts_and_runs_apart():
    seeds = [image_seed(seed, index, attempt) for seed in (0, 1) for index in range(3) for attempt in range(3)]
    assert len(set(seeds)) == 18 and all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(1, 2, 1) == seeds[16]


def test_an_image_of_a_batch_that_is_filled_up_is_that_of_its_row_and_seed(pipeline):
    rows = pd.DataFrame({"diagnosis": ["mel", "nv", "mel"], "age": [35.0, np.nan, 45.0]})
    images = generate_batch(pipeline, rows, [1, 2, 3], 4, num_inference_steps=2)
    assert len(images) == 3
    for number, image in enumerate(images):
        (alone,) = generate_batch(pipeline, rows.iloc[[number]], [number + 1], 1, num_inference_steps=2)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 1
    (other,) = generate_batch(pipeline, rows.iloc[[0]].assign(diagnosis="nv"), [1], 1, num_inference_steps=2)
    assert np.abs(np.asarray(images[0]).astype(int) - np.asarray(other)).max() > 3


def test_only_a_lesion_pipeline_is_taken_for_a_generator(pipeline, tmp_path):
    other = diffusers.DDPMPipeline(pipeline.unet, diffusers.DDPMScheduler())
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other: its class_name is DDPMPipeline.*--trust_remote_code"):
        load_pipeline(str(tmp_path / "other"))
    with pytest.raises(UserError, match="other: a DDPMPipeline, not a LesionPipeline"):
        load_pipeline(str(tmp_path / "other"), trust_remote_code=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no generator that can be loaded"):
        load_pipeline(str(tmp_path / "empty"))
    (tmp_path / "own").mkdir()
    export_pipeline(pipeline, tmp_path / "own")
    loaded = load_pipeline(str(tmp_path / "own"))
    assert weights_hash(loaded.unet, loaded.conditioner) == weights_hash(pipeline.unet, pipeline.conditioner)
    for network in (loaded.unet, loaded.conditioner):
        parameter = next(network.parameters())
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        assert weights_hash(loaded.unet, loaded.conditioner) != weights_hash(pipeline.unet, pipeline.conditioner)
        with torch.no_grad():
            parameter.copy_(kept)
    assert weights_hash(loaded.unet, loaded.conditioner) == weights_hash(pipeline.unet, pipeline.conditioner)


@pytest.mark.parametrize("part", ["unet", "conditioner"])
def test_one_flipped_bit_in_the_weights_is_found(pipeline, tmp_path, part):
    (tmp_path / "first").mkdir()
    export_pipeline(pipeline, tmp_path / "first")
    load_pipeline(str(tmp_path / "first")).save_pretrained(tmp_path / "again")  # by whoever has only that folder
    for folder in (tmp_path / "first", tmp_path / "again"):
        load_pipeline(str(folder))
        (path,) = (folder / part).glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        for trusted in (False, True):
            with pytest.raises(UserError, match=f"{part}/.*: not the weights that were exported, by their SHA-256"):
                load_pipeline(str(folder), trust_remote_code=trusted)
        index = json.loads((folder / "model_index.json").read_text())
        index.pop("_sha256")  # as earlier versions wrote it
        (folder / "model_index.json").write_text(json.dumps(index))
        load_pipeline(str(folder))


@pytest.mark.parametrize("file", ["pipeline_lesion.py", "conditioner/lesion_conditioner.py"])
def test_code_that_came_with_a_model_runs_only_where_it_is_trusted(pipeline, tmp_path, monkeypatch, file):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    export_pipeline(pipeline, tmp_path)
    with open(tmp_path / file, "a") as source:
        source.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert type(load_pipeline(str(tmp_path))) is LesionPipeline
    assert not (tmp_path / "ran").exists()
    loaded = load_pipeline(str(tmp_path), trust_remote_code=True)
    assert type(loaded) is not LesionPipeline and (tmp_path / "ran").exists()


def test_a_changed_pipeline_is_not_taken_for_ours_and_a_pickle_is_not_read(pipeline, tmp_path):
    export_pipeline(pipeline, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for part in ("_class_name", "unet", "conditioner"):
        changed = {**index, part: ["their_own", "Network"]}
        (tmp_path / "model_index.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"its {part.strip('_')} is .*Network.*--trust_remote_code runs that"):
            load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_sha256": {}}))
    weights = tmp_path / "conditioner" / "diffusion_pytorch_model.safetensors"
    torch.save(pipeline.conditioner.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    for trusted in (False, True):
        with pytest.raises(UserError, match="no generator that can be loaded"):
            load_pipeline(str(tmp_path), trust_remote_code=trusted)


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json"])
def test_a_pipe_in_a_models_folder_is_not_waited_for(pipeline, tmp_path, part):
    export_pipeline(pipeline, tmp_path)
    (tmp_path / part).unlink()
    os.mkfifo(tmp_path / part)
    with pytest.raises(UserError, match=f"{part}: not a regular file"):
        load_pipeline(str(tmp_path))


def test_a_row_without_values_is_an_image_of_which_nothing_is_asked(tmp_path):
    (tmp_path / "conditions.csv").write_text("diagnosis,sex,age\nmel,female,50\n,,\n,male,\n")
    table = read_conditions(str(tmp_path / "conditions.csv"))
    assert len(table) == 3 and [plain_value(value) for value in table.iloc[1]] == [None] * 3
    assert [plain_value(value) for value in table.iloc[2]] == [None, "male", None]


@pytest.mark.parametrize("text", ['{"seed": 1', "", "[1]", "null", "\x00"])
def test_settings_that_are_torn_are_said(tmp_path, text):
    assert read_settings(tmp_path) == {}
    (tmp_path / "generate_args.json").write_text(text)
    with pytest.raises(UserError, match="generate_args.json: not readable as JSON"):
        read_settings(tmp_path)
