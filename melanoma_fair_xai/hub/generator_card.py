"""The card of a generator, made of its run folder: what can be asked of it, how good it is, and what it is not for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from melanoma_fair_xai.base.tables import Markdown, markdown_code, markdown_table, number
from melanoma_fair_xai.data.loading import Records
from melanoma_fair_xai.diffusion.arguments import ConditionArguments, ModelArguments, TrainingArguments
from melanoma_fair_xai.diffusion.lesion_conditioner import FIRST_CONDITIONS, RARE, Category, Measure, make_encoders
from melanoma_fair_xai.hub import card, quality
from melanoma_fair_xai.hub.record import record

TEMPLATE = "diffusion.md"
CONFIGS = ("conditioner/config.json", "unet/config.json", "scheduler/scheduler_config.json")
PARTS = ("card_data.json", "metrics.json", *CONFIGS)


def record_generator(
    folder: Path, records: Records, training: Mapping[str, Any], held_out_images: int, arguments: tuple
) -> None:
    """Write card_data.json: `training` as `training_facts` gives it, `arguments` those of train_diffusion.py."""
    size = next(instance.resolution for instance in arguments if hasattr(instance, "resolution"))
    data = "phantoms" if records.are_phantoms else Path(records.name).name
    record(
        folder,
        "generator",
        f"Generator of lesions, {size} x {size} ({data})",
        records,
        "train_diffusion.py",
        arguments,
        training=training,
        held_out_images=held_out_images,
    )


def write_generator_card(folder: Path, output: Path | None = None) -> Path:
    """Write README.md of what the run left in `folder`; `output` as in `write_card`. UserError for a missing part."""
    facts = card.read_json(folder, "card_data.json")
    conditioner, _, scheduler = (card.read_json(folder, name) for name in CONFIGS)
    conditions = make_encoders(
        conditioner.get("conditions", FIRST_CONDITIONS), conditioner["vocabularies"], conditioner["counts"]
    )
    history = card.read_json(folder, "metrics.json")["history"]
    sheet = f"samples/step-{history[-1]['step']:06d}.png"
    measured = quality.read(folder)
    data = facts["data"]
    metadata = ModelCardData(
        model_name=facts["title"],
        **card.licence_metadata([data]),
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=[*card.TAGS, "diffusion", "synthetic", *(["phantom"] if data["phantoms"] else [])],
        datasets=card.hub_datasets(data),
        widget=[{"text": "generated lesions", "output": {"url": sheet}}],
    )
    text = card.render(
        folder,
        TEMPLATE,
        metadata,
        facts=facts,
        data=data,
        population=card.population_table(facts["population"]),
        settings=card.settings_text(facts["settings"], ConditionArguments, ModelArguments, TrainingArguments),
        conditions=conditions_table(conditions),
        has_skin_types="fitzpatrick" in conditions,
        example=example(conditions),
        prediction_type=scheduler["prediction_type"],
        losses=loss_table(history),
        last_step=history[-1]["step"],
        rare=RARE,
        sheet=sheet,
        quality=measured,
    )
    return card.write_card(folder, text, [*PARTS, *(quality.PARTS if measured else [])], output)


def conditions_table(conditions: Mapping[str, Category | Measure]) -> str:
    """Every condition with the values that training saw, and its images of each, as Markdown."""
    rows = []
    for name, condition in conditions.items():
        unit = f" ({condition.unit})" if isinstance(condition, Measure) else ""
        rows.append([Markdown(markdown_code(name) + unit), condition.seen()])
    return markdown_table(["condition", "values (training images)"], rows)


def example(conditions: Mapping[str, Category | Measure]) -> list[str]:
    """Arguments of a call that training prepared for: what it saw most often, of all conditions but the ITA."""
    lines = []
    for name, condition in conditions.items():
        if name == "ita":
            continue
        common = max(condition.counts, key=condition.counts.get)
        measured = isinstance(condition, Measure)
        lines.append(
            f"{name}={float(common) + condition.width / 2:g}"
            if measured
            else f"{name}={json.dumps(common, ensure_ascii=False)}"
        )
    return lines


def loss_table(history: list[dict[str, Any]]) -> str:
    """The last held-out error by band of timesteps, as Markdown."""
    losses = {name.removeprefix("error_t"): value for name, value in history[-1].items() if name.startswith("error_t")}
    header = ["timesteps", *(name.replace("-", " to ") for name in losses)]
    texts = (number(value, 4) for value in losses.values())
    return markdown_table(header, [["mean squared error", *texts]])
