"""The tests keep to caches of their own, whatever the user's are."""

import os
import subprocess
import sys
from pathlib import Path

import accelerate.commands.config.config_args
import datasets
import diffusers.utils
import evaluate
import huggingface_hub
import matplotlib
import pytest
import torch
import transformers.utils.hub

from melanoma_fair_xai.data.cache import cache_folder

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {
    "accelerate": accelerate.commands.config.config_args.cache_dir,
    "datasets": datasets.config.HF_DATASETS_CACHE,
    "datasets' modules": datasets.config.HF_MODULES_CACHE,
    "diffusers' modules": diffusers.utils.HF_MODULES_CACHE,
    "evaluate": evaluate.config.HF_EVALUATE_CACHE,
    "evaluate's metrics": evaluate.config.HF_METRICS_CACHE,
    "huggingface_hub": huggingface_hub.constants.HF_HUB_CACHE,
    "the token": huggingface_hub.constants.HF_TOKEN_PATH,
    "transformers' modules": transformers.utils.hub.HF_MODULES_CACHE,
    "torch": torch.hub.get_dir(),
    "matplotlib": matplotlib.get_cachedir(),
    "matplotlib's configuration": matplotlib.get_configdir(),
    "decoded pixels": cache_folder(),
}
TESTS = [
    "tests/fairness/test_stratified_metric.py",
    "tests/test_generate.py::test_a_grid_has_every_combination_and_a_jpeg_its_record",
    "tests/test_train_classifier.py::test_a_run_leaves_what_it_should",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_cache_is_in_the_folder_of_this_process(name):
    assert Path(FOLDERS[name]).is_relative_to(os.environ["XDG_CACHE_HOME"])


def test_nothing_is_written_where_the_users_caches_are(tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    names = "HF_DATASETS_CACHE HF_HOME HF_HUB_CACHE HF_MODULES_CACHE MELANOMA_FAIR_XAI_CACHE MPLCONFIGDIR TORCH_HOME"
    environment = os.environ | {name: str(user / name) for name in ("XDG_CACHE_HOME", *names.split())}
    environment |= {"HOME": str(user), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not list(user.rglob("*"))
