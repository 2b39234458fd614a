"""Train a melanoma classifier, choose its threshold on validation, open the test split once, and export it.

    accelerate launch train_classifier.py --dataset_name ham10000 --data_dir RAW --model_name_or_path resnet18 \
        --output_dir runs/r18

Everything that the run leaves in --output_dir is described in the README.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.classifier.arguments import ModelArguments, TaskArguments, TrainingArguments
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME, LATEST, parse_arguments, save_arguments
from melanoma_fair_xai.hub.arguments import HubArguments

# All else is imported where it is used, so that --help and wrong flags answer at once.
if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from melanoma_fair_xai.classifier.task import Task
    from melanoma_fair_xai.data.loading import Records
    from melanoma_fair_xai.fairness import FairnessReport


class Arguments(NamedTuple):
    data: TaskArguments
    model: ModelArguments
    training: TrainingArguments
    hub: HubArguments


def main() -> None:
    args = Arguments(*parse_arguments(TaskArguments, ModelArguments, TrainingArguments, HubArguments))
    check_arguments(args)
    from melanoma_fair_xai.classifier.protocols import original_protocol
    from melanoma_fair_xai.hub.run import published_run

    if args.data.protocol == "original":
        args = args._replace(data=original_protocol(args.data))
    with published_run(args.training, args.hub, "--train_batch_size, --eval_batch_size or --image_size") as run:
        if args.training.eval_only:
            evaluate_only(*run, args)
        elif args.data.cross_validation:
            cross_validate(*run, args)
        else:
            train_and_evaluate(*run, args)


def check_arguments(args: Arguments) -> None:
    """UserError for flags that do not go together, before anything is loaded."""
    data, training = args.data, args.training
    if data.cross_validation and training.eval_only:
        raise UserError("--cross_validation trains; give --eval_only without it")
    if args.hub.push_to_hub and (data.cross_validation or training.eval_only):
        raise UserError(
            "--push_to_hub publishes one trained model; give it without --cross_validation and --eval_only"
        )
    if data.synthetic_dir and training.eval_only:
        raise UserError("--synthetic_dir: generated images are for training; give --eval_only without it")
    if data.cross_validation and training.allow_elastic:
        raise UserError("--cross_validation: all folds have the same number of processes; leave --allow_elastic out")
    if data.cross_validation and training.resume_from_checkpoint not in (None, LATEST):
        raise UserError("--cross_validation goes on with --resume_from_checkpoint latest alone")


def train_and_evaluate(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    from melanoma_fair_xai.classifier.evaluation import operating_point, predict, score
    from melanoma_fair_xai.classifier.export import export_classifier, load_classifier
    from melanoma_fair_xai.classifier.figures import plot_training
    from melanoma_fair_xai.classifier.learner import ClassifierLearner
    from melanoma_fair_xai.classifier.models import create_classifier
    from melanoma_fair_xai.classifier.task import check_classes, load_target, make_task
    from melanoma_fair_xai.data.images import Preprocessing
    from melanoma_fair_xai.data.loading import training_rows
    from melanoma_fair_xai.engine.training import Training
    from melanoma_fair_xai.hub.record import training_facts

    data, model_args, training, _ = args
    records, target, labels = load_target(accelerator, data, seed=training.seed)
    network = create_classifier(
        model_args.model_name_or_path,
        target.label_names,
        pretrained=model_args.pretrained,
        pretrained_weights=model_args.pretrained_weights,
        mean=model_args.image_mean,
        std=model_args.image_std,
        image_size=model_args.image_size,
        drop_rate=model_args.drop_rate,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        revision=model_args.revision,
    )
    task = make_task(accelerator, data, records, target, labels, Preprocessing.from_model(network))
    earlier = load_earlier(accelerator, args, task) if model_args.measure_forgetting else None
    train_rows = training_rows(task.records.table, data.max_train_samples, training.seed)
    check_classes(task, train_rows)
    learner = ClassifierLearner(accelerator, network, task, train_rows, training)
    run = Training(accelerator, folder, learner, training, data, model_args)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, args)
    run.run()
    logits = predict(accelerator, network, task, "validation", training.eval_batch_size)
    if accelerator.is_main_process:
        info = operating_point(task, logits, training.threshold_rule, describe(args))
        export_classifier(network, folder, info)
        plot_training(run.progress.history, folder / "figures" / "training.png", title(task.records, args))
    accelerator.wait_for_everyone()
    # What is scored is what was exported, so that scores and threshold hold for whoever loads it.
    exported, info = load_classifier(folder)
    predictions = {
        split: score(accelerator, exported, info, task, split, training.eval_batch_size)
        for split in ("validation", "test")
    }
    after = earlier and score(accelerator, exported, info, earlier, "test", training.eval_batch_size)
    if accelerator.is_main_process:
        if earlier:
            report_forgetting(folder, after, args)
        facts = training_facts(len(train_rows), len(task.rows("train")), run.images_seen, network)
        report(folder, predictions, task.records, args, facts)


def load_earlier(accelerator: Accelerator, args: Arguments, task: Task) -> Task:
    """The data of the run whose model is fine-tuned, as the new model will see them."""
    from melanoma_fair_xai.classifier.protocols import earlier_data
    from melanoma_fair_xai.classifier.task import load_target, make_task

    data = earlier_data(args.model.model_name_or_path, args.data)
    records, target, labels = load_target(accelerator, data)
    if target.label_names != task.target.label_names:
        raise UserError(
            f"--measure_forgetting: {args.model.model_name_or_path} was trained for --target {data.target}"
        )
    return make_task(accelerator, data, records, target, labels, task.preprocessing)


def evaluate_only(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    from melanoma_fair_xai.classifier.evaluation import score
    from melanoma_fair_xai.classifier.export import load_classifier
    from melanoma_fair_xai.classifier.task import load_target, make_task

    network, info = load_classifier(args.model.model_name_or_path, args.model.revision)
    records, target, labels = load_target(accelerator, args.data, info)
    task = make_task(accelerator, args.data, records, target, labels, info.preprocessing)
    if accelerator.is_main_process:
        record_inputs(folder, task.records, args)
    split = args.training.eval_split
    predictions = {split: score(accelerator, network, info, task, split, args.training.eval_batch_size)}
    if accelerator.is_main_process:
        report(folder, predictions, task.records, args)


def cross_validate(accelerator: Accelerator, folder: Path, args: Arguments) -> None:
    """Train in `fold-k/` on every fold, then report on all images, each scored by the model that had not seen it."""
    from accelerate.utils import set_seed

    from dataset_scripts.splits import N_FOLDS
    from melanoma_fair_xai.classifier.task import load_target
    from melanoma_fair_xai.engine.checkpoints import forget_training
    from melanoma_fair_xai.engine.launch import on_main_process
    from melanoma_fair_xai.fairness import read_predictions

    records, _, _ = load_target(accelerator, args.data)
    if accelerator.is_main_process:
        save_arguments(folder / ARGUMENTS_NAME, *args)
    for fold in range(N_FOLDS):
        part = folder / f"fold-{fold}"
        if on_main_process(accelerator, (part / "README.md").is_file):
            continue
        accelerator.print(f"fold {fold} of {N_FOLDS}")
        on_main_process(accelerator, lambda part=part: part.mkdir(exist_ok=True))
        # Whether the earlier folds were trained just now or before an interruption must not matter.
        set_seed(args.training.seed)
        data = replace(args.data, fold=f"{fold}/{N_FOLDS}", cross_validation=None)
        train_and_evaluate(accelerator, part, args._replace(data=data))
        forget_training(accelerator)
    if accelerator.is_main_process:
        predictions = {
            split: read_predictions(
                *(folder / f"fold-{fold}" / "predictions" / f"{split}.parquet" for fold in range(N_FOLDS))
            )
            for split in ("validation", "test")
        }
        records = replace(records, table=records.table.assign(split="test"))  # all of them, fold by fold
        report(folder, predictions, records, args, facts_of_all(folder, N_FOLDS))


def facts_of_all(folder: Path, folds: int) -> dict[str, Any]:
    """What a cross-validation's card says of its trainings: those of one fold, and whether any was a smoke run."""
    from melanoma_fair_xai.hub.card import read_json
    from melanoma_fair_xai.hub.publish import CARD_DATA_NAME

    parts = [read_json(folder / f"fold-{fold}", CARD_DATA_NAME)["training"] for fold in range(folds)]
    return {**parts[0], "smoke": any(part["smoke"] for part in parts)}


def record_inputs(folder: Path, records: Records, args: Arguments) -> None:
    """Write every setting, which image is in which split, and what could not be used."""
    # The settings first: they mark the folder as a run's, so that one killed here can be resumed or overwritten.
    save_arguments(folder / ARGUMENTS_NAME, *args)
    records.write(folder)


def report(
    folder: Path,
    predictions: dict[str, pd.DataFrame],
    records: Records,
    args: Arguments,
    training: dict[str, Any] | None = None,
) -> None:
    """Write predictions, metrics, figures and the report by group of the last split, and say where they are.

    With `training`, as `training_facts` gives it, the card, too.
    """
    from melanoma_fair_xai.classifier.evaluation import write_predictions
    from melanoma_fair_xai.classifier.figures import plot_roc
    from melanoma_fair_xai.fairness import evaluate_predictions
    from melanoma_fair_xai.hub.classifier_card import record_classifier, write_classifier_card
    from melanoma_fair_xai.hub.record import starting_point

    write_predictions(folder, predictions)
    split, table = list(predictions.items())[-1]
    if not args.data.cross_validation:
        plot_roc(predictions, folder / "figures" / "roc.png", title(records, args))
    fairness = evaluate_predictions(table, args.data.group_by or None, show_progress=True)
    name = title(records, args).replace("\n", " ")
    fairness.write(folder, name, show_progress=True)
    if training:
        model = args.model
        start = starting_point(model.model_name_or_path, model.pretrained, model.pretrained_weights, model.revision)
        folds = args.data.cross_validation or 0
        record_classifier(folder, name, predictions, records, training, start, folds, args)
        write_classifier_card(folder)  # last: a folder with a card is whole
    print(summary(folder, split, table, fairness, records, args))


def describe(args: Arguments) -> dict[str, Any]:
    """What the published config says of the training."""
    from melanoma_fair_xai.hub.record import without_local_paths

    data, model = map(without_local_paths, args[:2])
    return {
        "dataset": data.dataset_name,
        "target": args.data.target,
        "fold": args.data.fold,
        "confirmed_by_histology": args.data.confirmed_by_histology,
        "started_from": model.model_name_or_path,
        "pretrained": bool(args.model.pretrained or args.model.pretrained_weights),
    }


def title(records: Records, args: Arguments) -> str:
    """Of figures and reports: model, target and data."""
    from melanoma_fair_xai.hub.record import without_local_paths

    name = "phantom data, no patients" if records.are_phantoms else without_local_paths(args.data).dataset_name
    return f"{Path(args.model.model_name_or_path).name}, {args.data.target.replace('_', ' ')}\n({name})"


def report_forgetting(folder: Path, after: pd.DataFrame, args: Arguments) -> None:
    """Compare the earlier model with the new one on the earlier test split, each at its own threshold."""
    from melanoma_fair_xai.base.tables import number
    from melanoma_fair_xai.fairness import compare, read_predictions
    from melanoma_fair_xai.fairness.comparison import COMPARED
    from melanoma_fair_xai.fairness.groups import OVERALL
    from melanoma_fair_xai.fairness.predictions import save_predictions
    from melanoma_fair_xai.fairness.rows import with_interval

    save_predictions(after, folder / "predictions" / "earlier_test.parquet")
    comparison = compare({"before": read_predictions(args.model.model_name_or_path), "after fine-tuning": after})
    comparison.write(folder / "forgetting")
    print(f"on the earlier data: {folder / 'forgetting' / 'comparison.md'}")
    for row in comparison.differences:
        if row.group_column == OVERALL and COMPARED[row.metric].tested:
            print(f"  {COMPARED[row.metric].title} {number(row.baseline_value)} before; change {with_interval(row)}")


def summary(
    folder: Path, split: str, table: pd.DataFrame, fairness: FairnessReport, records: Records, args: Arguments
) -> str:
    """What the run prints last."""
    from melanoma_fair_xai.classifier.evaluation import results_table
    from melanoma_fair_xai.classifier.protocols import ORIGINAL_FIGURES, ORIGINAL_METRICS

    original = args.data.protocol == "original"
    thresholds = ", ".join(f"{threshold:.4f}" for threshold in table["threshold"].drop_duplicates())
    lines = [
        f"{split}{' over all folds' if args.data.cross_validation else ''}, with 95 % intervals:",
        results_table(fairness, *(("fitzpatrick", ORIGINAL_METRICS) if original else (fairness.primary,))),
        *([ORIGINAL_FIGURES] if original else []),
        f"at threshold {thresholds} (chosen on validation)",
        f"report:  {folder / 'fairness.md'}, {folder / 'metrics.json'}",
        f"figures: {folder / 'figures'}",
    ]
    if not args.training.eval_only:
        lines.append(f"card:    {folder / 'README.md'}")
    if (folder / "config.json").is_file():
        lines.append(f'model:   {folder}  (timm.create_model("local-dir:{folder}", pretrained=True))')
    if records.are_phantoms:
        lines += [
            "These are phantoms, drawn lesions: the figures say nothing about patients. Next, on real data:",
            "  accelerate launch train_classifier.py --dataset_name ham10000 --data_dir HAM10000_FOLDER \\",
            "      --model_name_or_path resnet18 --output_dir runs/ham10000",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
