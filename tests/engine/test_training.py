"""What a run keeps, refuses and says, on the toy learner in this process."""

import dataclasses
import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from toy_training import Arguments, ToyLearner

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.training import Training, Validation


def start(folder, options: Arguments, learner_of=ToyLearner) -> Training:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accumulation = options.gradient_accumulation_steps
    accelerator = create_accelerator(cpu=True, gradient_accumulation_steps=accumulation, project_dir=folder)
    torch.manual_seed(options.seed)
    return Training(accelerator, folder, learner_of(accelerator, options), options)


class Scored(ToyLearner):
    """Gives the scores that it is told, and notes the weights that were validated."""

    scores: list[float | None]

    def validate(self, step: int) -> Validation:
        self.validated = [*getattr(self, "validated", []), self.networks["net"][0].weight.detach().clone()]
        return Validation({"validation_value": 0.0}, f"step {step}", score=self.scores[len(self.validated) - 1])


def options_of(folder, **changes) -> Arguments:
    return dataclasses.replace(Arguments(output_dir=str(folder), checkpointing_steps=100), **changes)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.1, 0.3, 0.2], 1),  # the highest, neither the first nor the last
        ([0.3, 0.2, 0.1], 0),
        ([0.1, float("nan"), 0.2], 2),
        ([0.2, 0.2, 0.2], 0),  # a tie is no improvement
        ([None, None, None], 2),  # without scores the last averages
        ([float("nan")] * 3, 2),
    ],
)
def test_the_weights_of_the_best_validation_are_left(tmp_path, scores, kept):
    run = start(tmp_path, options_of(tmp_path), type("Scored", (Scored,), {"scores": scores}))
    run.run()
    assert torch.equal(run.learner.networks["net"][0].weight, run.learner.validated[kept])
    assert all(not torch.equal(run.learner.validated[kept], other) for other in run.learner.validated if
               other is not run.learner.validated[kept])  # fmt: skip


def test_validations_and_checkpoints_come_as_often_as_is_asked(tmp_path):
    changes = {"validation_steps": 4, "checkpointing_steps": 5, "checkpoints_total_limit": 9}
    run = start(tmp_path, options_of(tmp_path, **changes))
    run.run()
    assert run.total_steps == 18
    assert [row["step"] for row in run.progress.history] == [4, 8, 12, 16, 18]
    steps = sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*"))
    assert steps == [5, 10, 15, 18]


def test_without_a_number_both_come_once_an_epoch(tmp_path):
    run = start(tmp_path, options_of(tmp_path, checkpointing_steps=None, checkpoints_total_limit=9))
    run.run()
    assert [(row["step"], row["epoch"]) for row in run.progress.history] == [(6, 0), (12, 1), (18, 2)]
    assert sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*")) == [6, 12, 18]


class Exploding(ToyLearner):
    exploded = 5.0

    def loss(self, networks, batch) -> torch.Tensor:
        return super().loss(networks, batch) * 0 + (self.size if len(self.seen.rows) == 8 else 1.0)


@pytest.mark.parametrize(("size", "refused"), [(4.9, False), (5.1, True), (float("inf"), True), (float("nan"), True)])
def test_a_loss_that_explodes_is_named_with_its_step(tmp_path, size, refused):
    """The eighth batch is the second of the fourth step."""
    run = start(tmp_path, options_of(tmp_path), type("Exploding", (Exploding,), {"size": size}))
    if not refused:
        run.run()
        return
    with pytest.raises(UserError, match=r"(explodes, it is 5|loss is (inf|nan)) at step 4: lower --learning_rate"):
        run.run()


def test_the_step_of_a_bad_loss_is_right_where_an_epoch_ends_with_half_a_step(tmp_path):
    """45 samples in batches of 4 are 11, the last of which is a step of its own: the sixth."""
    learner = type("Late", (Exploding,), {"size": 9.0, "loss": lambda self, networks, batch: ToyLearner.loss(
        self, networks, batch) * 0 + (9.0 if len(self.seen.rows) == 12 else 1.0)})  # fmt: skip
    with pytest.raises(UserError, match="at step 7"):
        start(tmp_path, options_of(tmp_path), learner).run()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.1}, "written with learning_rate 0.05, but this run has 0.1"),
        ({"adam_beta2": 0.9}, "written with adam_beta2 0.999, but this run has 0.9"),
        ({"seed": 1}, "written with seed 0, but this run has 1"),
        ({"num_train_epochs": 2}, "num_train_epochs 3, but this run has 2"),
    ],
)
def test_a_checkpoint_knows_every_setting_without_the_arguments_beside_it(tmp_path, change, words):
    start(tmp_path, options_of(tmp_path)).run()
    assert not (tmp_path / "training_args.json").exists()
    resumed = options_of(tmp_path, resume_from_checkpoint="latest", **change)
    with pytest.raises(UserError, match=words):
        start(tmp_path, resumed)
    start(tmp_path, options_of(tmp_path, resume_from_checkpoint="latest", eval_batch_size=3))


def test_other_splits_are_refused(tmp_path):
    split = {"facts": {"split manifest": "a" * 64}}
    start(tmp_path, options_of(tmp_path), type("Split", (ToyLearner,), split)).run()
    facts = json.loads((tmp_path / "checkpoint-18" / "facts.json").read_text())
    assert facts["fixed"]["split manifest"] == "a" * 64
    other = {"facts": {"split manifest": "b" * 64}}
    resumed = options_of(tmp_path, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="written with split manifest a{64}, but this run has b{64}"):
        start(tmp_path, resumed, type("Split", (ToyLearner,), other))
    start(tmp_path, resumed, type("Split", (ToyLearner,), split))
