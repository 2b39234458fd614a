"""Our own scripts with models of the Hub, pinned to the first of two versions."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from local_hub import UNAVAILABLE
from local_repository import Repository
from safetensors.torch import load_file
from strangers import client_environment
from tiny_runs import classifier_run, generator_run

from melanoma_fair_xai.classifier.export import load_classifier
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.diffusion.generation import load_pipeline
from melanoma_fair_xai.engine.weights import weights_hash

pytestmark = pytest.mark.slow  # whole runs of the scripts

REPOSITORY = Path(__file__).resolve().parents[2]
PINNED = ["--model_name_or_path", "tester/classifier", "--revision", "v1"]
QUIET = ["--report_to", "none", "--mixed_precision", "no", "--group_by", "sex"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_hub, local_hub) -> Path:
    """A folder with two versions of a classifier and a generator, which are on the Hub, too."""
    folder = tmp_path_factory.mktemp("runs")
    data = {"id": "clinic", "name": "Clinic", "licence": "cc-by-nc-4.0", "citation": "", "phantoms": False}
    for name, make in (("classifier", classifier_run), ("generator", generator_run)):
        for seed in (0, 1):
            run = make(folder / name / str(seed), seed)
            (run / "card_data.json").write_text(json.dumps({"commit": None, "data": data}))
            outcome = run_hub("push", run, "--hub_model_id", f"tester/{name}")
            assert outcome.code == 0, outcome.error
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory, local_hub):
    """`python SCRIPT ARGUMENTS` against the local Hub, each in a fork of one warm process; what it printed."""
    folder = tmp_path_factory.mktemp("home")
    environment = client_environment(local_hub, folder) | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    warm = [sys.executable, str(REPOSITORY / "tests" / "warm_python.py")]
    with subprocess.Popen(warm, env=environment, cwd=folder, **pipes) as process:

        def run(script: str, *arguments: object, code: int = 0) -> str:
            log = folder / "log.txt"
            log.write_text("")
            words = [str(REPOSITORY / script), *map(str, arguments)]
            process.stdin.write(json.dumps({"words": words, "log": str(log)}) + "\n")
            process.stdin.flush()
            ended = int(process.stdout.readline())
            assert ended == code, log.read_text()
            return log.read_text()

        yield run
        process.stdin.close()


def test_eval_only_scores_the_version_it_is_given(runs, python, phantoms, tmp_path):
    flags = ["--dataset_name", phantoms, "--output_dir", tmp_path / "out", "--eval_only", *QUIET]
    python("train_classifier.py", *PINNED, *flags)
    table = pd.read_parquet(tmp_path / "out" / "predictions" / "test.parquet")
    assert (table["threshold"] == 0.4).all()
    model, info = load_classifier(runs / "classifier" / "0")
    records = load_records(str(phantoms))
    row = int((records.table["image_id"] == table["image_id"][0]).to_numpy().argmax())
    image = records.images.cast_column("image", type(records.images.features["image"])(decode=True))[row]["image"]
    with torch.no_grad():
        pixels = timm.data.create_transform(**info.preprocessing.to_timm())(image.convert("RGB"))[None]
        assert table["score"][0] == pytest.approx(model(pixels).softmax(-1)[0, 1].item(), abs=1e-5)


def test_fine_tuning_starts_from_the_version_it_is_given(runs, python, phantoms, tmp_path):
    flags = ["--dataset_name", phantoms, "--output_dir", tmp_path / "out", *QUIET, "--max_train_steps", 1]
    python("train_classifier.py", *PINNED, *flags, "--learning_rate", 1e-9, "--lr_warmup_steps", 0)
    tuned = load_file(tmp_path / "out" / "model.safetensors")
    first, second = (load_file(runs / "classifier" / name / "model.safetensors") for name in "01")
    name = "layer1.0.conv1.weight"
    assert torch.allclose(tuned[name], first[name], atol=1e-6) and not torch.allclose(
        first[name], second[name], atol=0.01
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: tester/classifier" in card
    assert "The weights had learned from Clinic before (cc-by-nc-4.0), which binds it too." in card


def test_explain_and_generate_take_the_version_they_are_given(runs, python, phantoms, tmp_path):
    explained = tmp_path / "explained"
    python("explain.py", *PINNED, "--dataset_name", phantoms, "--max_samples", 4, "--output_dir", explained)
    assert (pd.read_parquet(explained / "attributions.parquet")["threshold"] == 0.4).all()
    fast = ["--num_images", 2, "--num_inference_steps", 1, "--batch_size", 2]
    for revision, seed in (("v1", "0"), ("main", "1")):
        folder = tmp_path / revision
        model = ["--model_name_or_path", "tester/generator", "--revision", revision]
        python("generate.py", *model, *fast, "--output_dir", folder)
        table = pd.read_csv(folder / "metadata.csv")
        pipeline = load_pipeline(str(runs / "generator" / seed))
        assert set(table["weights"]) == {weights_hash(pipeline.unet, pipeline.conditioner)}


def test_what_cannot_be_had_is_said_in_two_lines(runs, python, local_hub, phantoms, tmp_path):
    for name in ("gated", "unwell"):
        local_hub.repositories["model", f"tester/{name}"] = Repository("model", f"tester/{name}", private=True)
    gated = local_hub.repositories["model", "tester/gated"]
    gated.gated = True
    gated.commit(local_hub.repositories["model", "tester/classifier"].files, "as the other")
    local_hub.faults["tester/unwell"] = UNAVAILABLE
    cases = [
        (["tester/gated"], "gated: ask for access"),
        (["tester/missing"], "no such repository on the Hub, or a private one"),
        (["tester/unwell"], "the Hub answers 500"),
        (["tester/classifier", "--revision", "v9"], "at revision v9 (no such revision"),
        ([runs / "classifier" / "0", "--revision", "v1"], "is a folder here, which has none"),
    ]
    flags = ["--dataset_name", phantoms, "--output_dir", tmp_path / "out"]
    for model, reason in cases:
        for script in ("explain.py", "generate.py"):
            rest = flags if script == "explain.py" else flags[2:]
            said = python(script, "--model_name_or_path", *model, *rest, code=2)
            said = said[said.index("error: ") :].strip()
            assert reason in said and "Traceback" not in said and said.count("\n") <= 1, said
    said = python("train_classifier.py", "--dataset_name", "tester/nothing", "--output_dir", tmp_path / "o", code=2)
    assert "--dataset_name tester/nothing: cannot be loaded" in said


def test_without_the_hub_what_was_fetched_before_still_loads(runs, python, local_hub, phantoms, tmp_path):
    list_layers = ["--list_layers", "--revision", "v1"]
    python("explain.py", "--model_name_or_path", "tester/classifier", *list_layers)
    fast = ["--num_inference_steps", 1, "--batch_size", 1]
    python("generate.py", "--model_name_or_path", "tester/generator", *fast, "--output_dir", tmp_path / "before")
    local_hub.close()  # the last test of this module
    python("explain.py", "--model_name_or_path", "tester/classifier", *list_layers)
    python("generate.py", "--model_name_or_path", "tester/generator", *fast, "--output_dir", tmp_path / "after")
    for script, flags in (("explain.py", ["--dataset_name", phantoms]), ("generate.py", [])):
        model = ["--model_name_or_path", "tester/other", *flags]
        said = python(script, *model, "--output_dir", tmp_path / "out", code=2)
        assert "not to be had from the Hub (no connection" in said and "Traceback" not in said
