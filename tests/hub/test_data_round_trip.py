"""Data sets and the metric, from a Hub on this machine and by people's own tools."""

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from strangers import client_environment, run_stranger

from dataset_scripts.publishing import dataset_publication
from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.base.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")

LOAD = """
import datasets

repo_id, commit = sys.argv[1:]
results = {}
for name, revision in (("head", None), ("tag", "v1"), ("commit", commit)):
    data = datasets.load_dataset(repo_id, revision=revision)
    assert data["train"].features["melanoma"].names == ["benign", "melanoma"]
    results[name] = np.asarray(data["test"][0]["image"])
    results[f"{name} ids"] = [*data["train"]["image_id"], *data["validation"]["image_id"], *data["test"]["image_id"]]
# To the end: a stream that is left in the middle has threads, which now and then abort the process when it exits.
first, *_ = datasets.load_dataset(repo_id, split="test", streaming=True)
results["streamed"], results["streamed mask"] = np.asarray(first["image"]), np.asarray(first["mask"])
"""

METRIC = """
import sys, evaluate, huggingface_hub

repo_id, folder = sys.argv[1:]
huggingface_hub.create_repo(repo_id, repo_type="space", space_sdk="gradio")
huggingface_hub.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="space")
labels = [0, 1] * 30
scores = [0.2 + 0.6 * label for label in labels]
groups, lesions = ["a", "b", "b"] * 20, [f"lesion{i}" for i in range(60)]
metric = evaluate.load(repo_id)
found = metric.compute(predictions=scores, references=labels, groups=groups, lesion_ids=lesions, n_resamples=100)
print("auc", found["roc_auc"], {row["group"] for row in found["by_group"]} == {"a", "b"})
"""


def test_data_sets_load_and_stream_by_version(tmp_path, local_hub):
    environment = client_environment(local_hub, tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
    folder, versions = tmp_path / "own data", []
    for seed in (0, 1):
        command = [sys.executable, "-m", "dataset_scripts.phantom", "--num_images", "40", "--image_size", "16"]
        command += ["--seed", str(seed), "--output_dir", folder, "--overwrite_output_dir"]
        command += ["--push_to_hub", "--hub_dataset_id", "tester/phantoms"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"pushed to {local_hub.endpoint}/datasets/tester/phantoms, private, version v{seed + 1}" in done.stdout
        data = datasets.load_dataset(str(folder))
        first = data["test"][0]
        ids = [name for split in SPLITS for name in data[split]["image_id"]]
        versions.append((np.asarray(first["image"]), np.asarray(first["mask"]), ids))
    repository = local_hub.repositories["dataset", "tester/phantoms"]
    assert repository.private and len(repository.log) == 3
    shards = [name for name in repository.files if name.startswith("data/")]
    assert len(shards) == 3, "the first version's are gone from the second"
    assert set(repository.files) - set(shards) == {".gitattributes", "README.md", "skipped.csv", "split_manifest.csv"}
    arguments = ("tester/phantoms", repository.tags["v1"])
    results = run_stranger(LOAD, local_hub, tmp_path / "stranger", *arguments)
    for name, (image, _, ids) in (("head", versions[1]), ("tag", versions[0]), ("commit", versions[0])):
        np.testing.assert_array_equal(results[name], image)
        assert results[f"{name} ids"].tolist() == ids
    np.testing.assert_array_equal(results["streamed"], versions[1][0])
    np.testing.assert_array_equal(results["streamed mask"], versions[1][1])


def test_a_failing_push_of_a_data_set_says_how_to_repeat_it(tmp_path, local_hub, run_hub):
    local_hub.faults["tester/own-data"] = "no commits"
    environment = client_environment(local_hub, tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "dataset_scripts.phantom", "--num_images", "40", "--image_size", "16"]
    command += ["--output_dir", "own-data", "--push_to_hub"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    first, second = done.stderr[done.stderr.index("error: ") :].strip().splitlines()
    assert "the Hub answers 500" in first
    repeat = "python -m melanoma_fair_xai.hub push own-data --hub_dataset_id tester/own-data"
    assert second == f"own-data is safe; push it with: {repeat}"
    del local_hub.faults["tester/own-data"]
    assert run_hub("push", tmp_path / "own-data", "--hub_dataset_id", "own-data").code == 0
    assert "split_manifest.csv" in local_hub.repositories["dataset", "tester/own-data"].files
    command[-1:] = ["--push_to_hub", "--hub_dataset_id", "nobody/own", "--output_dir", "other"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no right" in done.stderr and not (tmp_path / "other").exists()


def test_images_that_may_not_be_passed_on_are_not(tmp_path):
    tags = "\n".join(f"- {tag}" for tag in SOURCES["fitzpatrick17k"].card_tags)
    (tmp_path / "README.md").write_text(f"---\nlicense: cc-by-nc-sa-3.0\ntags:\n{tags}\n---\n# Local copy\n")
    with pytest.raises(UserError, match="may not be passed on"):
        dataset_publication(tmp_path)


def test_the_metric_loads_from_a_space(tmp_path, local_hub):
    """evaluate looks for metrics among the spaces. This one needs the package installed, as its card says."""
    environment = client_environment(local_hub, tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", METRIC, "tester/stratified_fairness", REPOSITORY / "metrics/stratified_fairness"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "auc 1.0 True" in done.stdout, done.stderr
