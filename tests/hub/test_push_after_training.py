"""Both trainings with --push_to_hub, for real and small, on a Hub on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import NO_COMMITS
from strangers import client_environment

import train_classifier
from dataset_scripts.splits import read_manifest

pytestmark = pytest.mark.slow  # whole runs of the scripts

REPOSITORY = Path(train_classifier.__file__).parent
CLASSIFIER = ["--model_name_or_path", "test_resnet", "--no_pretrained", "--image_size", 32, "--group_by", "sex"]
CLASSIFIER += ["--train_batch_size", 16, "--report_to", "none", "--max_train_steps", 3, "--mixed_precision", "no"]
GENERATOR = ["--resolution", 16, "--block_out_channels", 16, 32, "--attention_resolutions", 8, "--report_to", "none"]
GENERATOR += ["--train_batch_size", 8, "--num_inference_steps", 2, "--max_train_steps", 4, "--validation_images", 10]


def train(script: str, hub, home: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments), "--push_to_hub"]
    environment = client_environment(hub, home) | {"PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def texts(repository) -> str:
    """All that was published, but for weights and figures."""
    binary = (".safetensors", ".png")
    return "\n".join(blob.content.decode() for path, blob in repository.files.items() if not path.endswith(binary))


def check_published(repository, run: Path, required: set[str], folders: tuple[str, ...]) -> None:
    """A whole version, and nothing that tells of a patient or of this machine."""
    names = set(repository.files) - {".gitattributes"}
    assert required <= names and all(name in required or name.startswith(folders) for name in names), names
    ids = read_manifest(str(run / "split_manifest.csv"))["image_id"]
    text = texts(repository)
    assert not [name for name in ids if name in text] and str(run.parent) not in text and "/tmp" not in text
    assert repository.private and repository.tags == {"v1": repository.head} and len(repository.log) == 2


def test_a_training_whose_push_fails_is_whole_and_says_how_to_repeat_it(phantoms, tmp_path, local_hub, run_hub):
    local_hub.faults["tester/own"] = NO_COMMITS
    run = tmp_path / "own"
    flags = ["--dataset_name", phantoms, "--output_dir", run, *CLASSIFIER]
    done = train("train_classifier.py", local_hub, tmp_path, *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    first, second = done.stderr[done.stderr.index("error: ") :].strip().splitlines()
    assert first == "error: tester/own: the Hub answers 500 (the Hub is not well); try again later"
    command = f"python -m melanoma_fair_xai.hub push {run} --hub_model_id tester/own"
    assert second == f"{run} is safe; push it with: {command}"
    assert (run / "README.md").is_file() and f"card:    {run / 'README.md'}" in done.stdout
    del local_hub.faults["tester/own"]
    outcome = run_hub(*command.split()[3:])
    assert outcome.code == 0, outcome.error
    required = {
        "README.md",
        "card_data.json",
        "config.json",
        "model.safetensors",
        "fairness.csv",
        "metrics.json",
        "training_args.json",
    }
    check_published(local_hub.repositories["model", "tester/own"], run, required, ("figures/",))


def test_a_training_ends_with_its_push(phantoms, tmp_path, local_hub):
    run = tmp_path / "run"
    flags = ["--dataset_name", phantoms, "--output_dir", run, *GENERATOR, "--hub_model_id", "tester/generator"]
    done = train("train_diffusion.py", local_hub, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {local_hub.endpoint}/tester/generator, private, version v1" in done.stdout
    repository = local_hub.repositories["model", "tester/generator"]
    required = {
        "README.md",
        "card_data.json",
        "model_index.json",
        "pipeline_lesion.py",
        "metrics.json",
        "training_args.json",
    }
    required |= {"samples/step-000004.png"}
    check_published(repository, run, required, ("unet/", "conditioner/", "scheduler/"))
    assert repository.files["conditioner/lesion_conditioner.py"].content


def test_no_right_to_push_is_said_before_the_training(phantoms, tmp_path, local_hub):
    flags = ["--dataset_name", phantoms, "--output_dir", tmp_path / "run", *GENERATOR]
    done = train("train_diffusion.py", local_hub, tmp_path, *flags, HF_TOKEN="hf_wrong")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr[done.stderr.index("error: ") :].count("\n") == 1 and "rejects the token" in done.stderr
    assert "hf_wrong" not in done.stderr + done.stdout
