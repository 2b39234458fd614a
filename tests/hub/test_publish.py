"""The push command against a Hub on this machine: what it sends, when it sends nothing, and what it says."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from local_hub import DROPPED, MOVED, NO_COMMITS, STALLED, UNAVAILABLE
from strangers import client_environment
from tiny_runs import HOME, classifier_run, generator_run

from dataset_scripts.publishing import dataset_publication
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.hub.publish import model_publication

CLASSIFIER = ["README.md", "config.json", "fairness.csv", "figures/roc.png", "metrics.json", "model.safetensors"]
CLASSIFIER += ["training_args.json"]


@pytest.fixture
def run(tmp_path):
    return classifier_run(tmp_path / "own run")


def failure(outcome) -> str:
    """What it said in at most two lines as it ended with exit code 2."""
    assert outcome.code == 2 and "Traceback" not in outcome.error
    message = outcome.error[outcome.error.index("error: ") :].strip()
    assert len(message.splitlines()) <= 2, message
    return message


def published(hub, repo_id: str, kind: str = "model") -> list[str]:
    return sorted(name for name in hub.repositories[kind, repo_id].files if name != ".gitattributes")


def test_one_commit_and_a_tag_with_exactly_what_is_published(run, run_hub, local_hub):
    outcome = run_hub("push", run, "--hub_model_id", "tester/exact")
    assert outcome.code == 0, outcome.error
    repository = local_hub.repositories["model", "tester/exact"]
    assert repository.private
    assert published(local_hub, "tester/exact") == CLASSIFIER
    assert len(repository.log) == 2 and repository.tags == {"v1": repository.head}
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert repository.log[-1][1].startswith(f"Publish own run\n\nCode: melanoma-fair-xai at commit {head}")
    (run / "card_data.json").write_text('{"commit": "of the training"}')
    assert model_publication(run).code == "of the training"
    assert repository.files["model.safetensors"].content == (run / "model.safetensors").read_bytes()
    texts = [repository.files[name].content.decode() for name in CLASSIFIER if name.endswith((".md", ".json", ".csv"))]
    for secret in (HOME, "somebody", "~/", "ISIC_1", "hf_tester"):
        assert not [text for text in texts if secret in text], secret
    assert '`--data_dir HAM10000 --output_dir "own run"`, see https://example.org/a/b.' in texts[0]
    assert json.loads(repository.files["config.json"].content)["training"]["started_from"] == "r18"
    assert f"pushed to {local_hub.endpoint}/tester/exact, private, version v1 (commit" in outcome.output


def test_the_next_version_is_one_commit_that_removes_what_is_no_more(run, run_hub, local_hub):
    push = ("push", run, "--hub_model_id", "versions", "--no_hub_private_repo")
    assert run_hub(*push).code == 0
    repository = local_hub.repositories["model", "tester/versions"]
    assert not repository.private
    assert "nothing new" in run_hub(*push).output and repository.tags == {"v1": repository.head}
    own_files = {name: repository.files["README.md"] for name in ("NOTES.txt", "more/README.md")}
    repository.commit({**repository.files, **own_files}, "somebody's own files")
    first, own = repository.tags["v1"], repository.head
    classifier_run(run, seed=1)
    (run / "fairness.csv").unlink()
    assert run_hub(*push, "--hub_tag", "2.0").code == 0
    assert published(local_hub, "tester/versions") == sorted({*CLASSIFIER, *own_files} - {"fairness.csv"})
    assert [sha for sha, _ in repository.log[-2:]] == [own, repository.head]
    assert repository.tags == {"v1": first, "2.0": repository.head}
    assert "--hub_tag 2.0: tester/versions has it already" in failure(run_hub(*push, "--hub_tag", "2.0"))


def test_a_dry_run_lists_files_sizes_and_licence_and_asks_nobody(run, run_hub, local_hub):
    before = len(local_hub.requests)
    outcome = run_hub("push", run, "--hub_model_id", "tester/dry", "--dry_run", token="")
    assert outcome.code == 0 and len(local_hub.requests) == before
    assert [line.split()[1] for line in outcome.output.splitlines()[:7]] == CLASSIFIER
    assert f"{(run / 'model.safetensors').stat().st_size:,}  model.safetensors" in outcome.output
    assert "licence: cc-by-nc-4.0" in outcome.output and "tester/dry, private" in outcome.output


@pytest.mark.parametrize("fault", [UNAVAILABLE, NO_COMMITS, DROPPED])
def test_a_failed_upload_changes_nothing_and_is_repeated(run, run_hub, local_hub, fault):
    repo_id = f"tester/{fault.replace(' ', '-')}"
    push = ("push", run, "--hub_model_id", repo_id)
    assert run_hub(*push).code == 0
    repository = local_hub.repositories["model", repo_id]
    before, files = repository.head, repository.files
    classifier_run(run, seed=1)
    local_hub.faults[repo_id] = fault
    message = failure(run_hub(*push))
    assert message.startswith(f"error: {repo_id}: ") and f"\n{run} is safe; push it with" in message
    assert message.endswith(f"python -m melanoma_fair_xai.hub push '{run}' --hub_model_id {repo_id}")
    assert (repository.head, repository.files, repository.tags) == (before, files, {"v1": before})
    del local_hub.faults[repo_id]
    assert run_hub(*push).code == 0
    assert repository.tags == {"v1": before, "v2": repository.head}
    assert repository.files["model.safetensors"].content == (run / "model.safetensors").read_bytes()


def test_a_branch_that_somebody_else_has_moved_is_not_overwritten(run, run_hub, local_hub):
    push = ("push", run, "--hub_model_id", "tester/moved")
    assert run_hub(*push).code == 0
    repository = local_hub.repositories["model", "tester/moved"]
    ours = repository.head
    classifier_run(run, seed=1)
    local_hub.faults["tester/moved"] = MOVED
    message = failure(run_hub(*push))
    assert "tester/moved: changed by somebody else at the same time; try again" in message and "is safe" in message
    assert repository.log[-1][1] == "somebody else's" and repository.tags == {"v1": ours}
    assert repository.files["model.safetensors"] == repository.commits[ours]["model.safetensors"]
    assert run_hub(*push).code == 0, "now it knows of that commit"
    assert repository.files["theirs.txt"].content == b"theirs"
    assert repository.files["model.safetensors"].content == (run / "model.safetensors").read_bytes()
    assert repository.tags == {"v1": ours, "v2": repository.head}


def test_who_may_see_a_repository_never_changes_by_a_push(run, run_hub, local_hub):
    public = "--no_hub_private_repo"
    for name, flags, private in (("made-private", (), True), ("made-public", (public,), False)):
        push = ("push", run, "--hub_model_id", f"tester/{name}")
        assert run_hub(*push, *flags).code == 0
        assert local_hub.repositories["model", f"tester/{name}"].private is private
        again = run_hub(*push, public)
        assert again.code == 0 and (", private, " if private else ", public, ") in again.output
        assert local_hub.repositories["model", f"tester/{name}"].private is private
        assert run_hub(*push).code == (0 if private else 2)


def test_a_killed_upload_changes_nothing_and_is_repeated(run, run_hub, local_hub, tmp_path):
    local_hub.faults["tester/killed"] = STALLED
    command = [sys.executable, "-m", "melanoma_fair_xai.hub", "push", run, "--hub_model_id", "tester/killed"]
    with subprocess.Popen(command, env=client_environment(local_hub, tmp_path), stderr=subprocess.DEVNULL) as process:
        while not any("/_lfs/tester/killed" in path for _, path, _ in local_hub.requests):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert published(local_hub, "tester/killed") == []
    del local_hub.faults["tester/killed"]
    assert run_hub(*command[3:]).code == 0
    assert published(local_hub, "tester/killed") == CLASSIFIER


def test_who_may_not_is_told(run, run_hub, local_hub):
    assert "rejects the token" in failure(run_hub("push", run, "--hub_model_id", "tester/no", token="hf_wrong"))
    assert "no token" in failure(run_hub("push", run, "--hub_model_id", "tester/no", token=""))
    said = failure(run_hub("push", run, "--hub_model_id", "nobody/own"))
    assert "no right" in said and "is safe" in said
    assert ("model", "tester/no") not in local_hub.repositories
    card = run / "README.md"
    card.write_text(card.read_text().replace("cc-by-nc-4.0", "my own"))
    said = failure(run_hub("push", run, "--hub_model_id", "tester/card"))
    assert '"license" must be one of' in said and not published(local_hub, "tester/card")
    card.write_text(card.read_text().replace("my own", "mit"))
    assert "as in v1.2" in failure(run_hub("push", run, "--hub_model_id", "tester/card", "--hub_tag", "a b"))
    assert run_hub("push", run, "--hub_model_id", "tester/open", "--no_hub_private_repo").code == 0
    assert "is public" in failure(run_hub("push", run, "--hub_model_id", "tester/open"))
    public = ("push", run, "--hub_model_id", "tester/open", "--no_hub_private_repo")
    assert "no right" in failure(run_hub(*public, token="hf_stranger"))


def test_without_a_network_two_lines_say_so(run, tmp_path, local_hub):
    for changes, reason in (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection to the Hub"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        environment = client_environment(local_hub, tmp_path) | changes
        command = [sys.executable, "-m", "melanoma_fair_xai.hub", "push", run, "--hub_model_id", "tester/offline"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: tester/offline: ")
        assert reason in done.stderr and "is safe; push it with: python -m" in done.stderr
        assert done.stderr.count("\n") == 2


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_generator_whose_weights_changed_is_not_published(tmp_path):
    folder = generator_run(tmp_path / "run")
    model_publication(folder)
    flip_a_bit(next((folder / "unet").glob("*.safetensors")))
    with pytest.raises(UserError, match="unet/.*safetensors: not the weights that were exported"):
        model_publication(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "README.md").unlink(), "has no card (README.md), which is written last"),
        (lambda run: (run / "config.json").unlink(), "holds no config.json"),
        (lambda run: (run / "config.json").write_text('{"archi'), "config.json: not readable as JSON"),
        (lambda run: os.truncate(run / "model.safetensors", 5000), "not a whole safetensors file"),
        (lambda run: flip_a_bit(run / "model.safetensors"), "model.safetensors: not the weights that were exported"),
        (lambda run: os.truncate(run / "metrics.json", 0), "metrics.json: zero bytes"),
        (lambda run: os.truncate(run / "figures/roc.png", 900), "roc.png: damaged image"),
        (lambda run: (run / "figures/roc.png").unlink(), "shows figures/roc.png, which is not there"),
        (lambda run: (run / "README.md").write_text("# Without metadata"), "states no license"),
        (lambda run: (run / "README.md").write_text("---\nlicense: [mit\n---\n"), "metadata cannot be read"),
        (lambda run: (run / "card_data.json").write_text("{"), "card_data.json: not readable as JSON"),
        (lambda run: (run / "data").mkdir(), "--hub_dataset_id"),
        (lambda run: (run / "fold-0").mkdir(), "push one of them, such as"),
    ],
)
def test_what_is_not_finished_or_not_whole_is_refused(run, damage, reason):
    damage(run)
    with pytest.raises(UserError, match=reason.replace("(", r"\(").replace(")", r"\)")) as error:
        model_publication(run)
    assert str(run) in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_names_and_folders_that_are_none_are_refused(run, run_hub, tmp_path, local_hub):
    for name in ("a/b/c", "with space/x", "-x/y", "tester/" + "x" * 100):
        assert "give USER/NAME" in failure(run_hub("push", run, f"--hub_model_id={name}"))
        assert "give USER/NAME" in failure(run_hub("push", run, f"--hub_model_id={name}", "--dry_run"))
    assert "no such folder" in failure(run_hub("push", tmp_path / "nowhere", "--hub_model_id", "tester/x"))
    assert "no card" in failure(run_hub("push", tmp_path, "--hub_model_id", "tester/x"))
    assert "not a prepared data set" in failure(run_hub("push", run, "--hub_dataset_id", "tester/x"))
    assert not {("model", "tester/x"), ("dataset", "tester/x")} & set(local_hub.repositories)


def test_of_a_data_set_only_what_was_prepared_is_published(phantoms, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(phantoms, folder)
    before = list(dataset_publication(folder).files)
    for name in ("patients.csv", "data/mine/x.parquet", "notes.md", "images/a.jpg", "data/train-of-mine.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(next(phantoms.glob("data/*/test-*.parquet")), folder / name)
    assert list(dataset_publication(folder).files) == before
    assert len(before) == 6 and {"README.md", "skipped.csv", "split_manifest.csv"} < set(before)
    shard = next(folder.glob("data/*/test-*.parquet"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="test-.*: a link, or behind one"):
        dataset_publication(folder)


def test_a_torn_data_set_is_refused(phantoms, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(phantoms, folder)
    assert "skipped.csv" in dataset_publication(folder).files
    shard = next(folder.glob("data/*/train-*.parquet"))
    os.truncate(shard, shard.stat().st_size - 10)
    with pytest.raises(UserError, match="not a whole Parquet file"):
        dataset_publication(folder)
