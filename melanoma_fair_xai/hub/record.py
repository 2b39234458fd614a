"""What a card says that no other file of a run folder holds, recorded once, at the end of the training."""

import dataclasses
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import timm
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from dataset_scripts.sources import SOURCES, Source
from melanoma_fair_xai.base.files import write_json
from melanoma_fair_xai.base.hub_client import local_folder
from melanoma_fair_xai.base.publication import code_commit, without_local_paths
from melanoma_fair_xai.base.tables import markdown_code
from melanoma_fair_xai.classifier.models import is_timm_name
from melanoma_fair_xai.data.loading import UNUSABLE, Records, is_synthetic
from melanoma_fair_xai.engine.arguments import command_line, settings
from melanoma_fair_xai.fairness.groups import MAX_GROUPS, group_column
from melanoma_fair_xai.hub.publish import CARD_DATA_NAME

PACKAGES = ("melanoma-fair-xai", "torch", "timm", "transformers", "diffusers", "accelerate", "datasets")
DESCRIBED = ("fitzpatrick", "sex", "age_band", "localization", "source", "diagnosis")  # who is in the data
FEW_IMAGES = 200  # a training on fewer is a smoke run
ONE_EPOCH = 0.9  # of the images, as the last batch of an epoch may be left out


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """A data set as cards name it; `licence` is None where it is not known, the other texts are empty."""

    id: str
    name: str
    licence: str | None = None
    citation: str = ""
    about: str = ""
    on_hub: bool = True  # a folder's name there would be somebody else's data set


def _source_facts(source: Source, id: str) -> DataFacts:
    return DataFacts(id, source.title, source.licence, source.citation, source.about)


def data_facts(name: str) -> DataFacts:
    """The facts of one of SOURCES, raw or prepared, else what the card of a folder or Hub id says of itself."""
    if name in SOURCES:
        return _source_facts(SOURCES[name], name)
    folder = Path(name)
    short = folder.resolve().name if folder.is_dir() else without_local_paths(name)
    on_hub = not folder.is_dir() and short == name
    try:
        card = DatasetCard.load(folder / "README.md" if folder.is_dir() else name, ignore_metadata_errors=True)
    except (OSError, ValueError, HfHubHTTPError):  # none there, or none that can be read
        return DataFacts(short, short, on_hub=on_hub)
    title = card.data.get("pretty_name") or short
    for source in SOURCES.values():
        if title == source.title:
            return dataclasses.replace(_source_facts(source, short), on_hub=on_hub)
    citation = re.search(r"```bibtex\n(.*?)\n```", card.text, re.DOTALL)
    licence = card.data.get("license")
    return DataFacts(short, title, licence, citation[1] if citation else "", on_hub=on_hub)


def population(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Who is in each split, generated images left out: rows of column, group, and images and melanomas by split.

    The first row, column `all`, counts lesions too. Columns with more groups than can be told apart are left out.
    """
    table = table[~is_synthetic(table) & (table["split"] != UNUSABLE).to_numpy()].reset_index(drop=True)
    splits = list(dict.fromkeys(table["split"]))

    def counts(part: pd.DataFrame) -> dict[str, dict[str, int]]:
        found = {name: part[part["split"] == name] for name in splits}
        return {name: {"images": len(p), "melanomas": int(p["melanoma"].sum())} for name, p in found.items()}

    whole = counts(table)
    for name in splits:
        whole[name]["lesions"] = int(table["lesion_id"][table["split"] == name].nunique())
    rows = [{"column": "all", "group": "all", "splits": whole}]
    for column in DESCRIBED:
        if table.get(column, pd.Series(dtype=str)).nunique() > MAX_GROUPS:
            continue
        groups = group_column(table, column)
        rows += [
            {"column": column, "group": group, "splits": counts(table[groups == group])}
            for group in groups.cat.categories
        ]
    return rows


def training_facts(images: int, images_in_split: int, images_seen: int, *networks: nn.Module) -> dict[str, Any]:
    """How much a training learned from; `smoke` says that it was too little to mean anything.

    That is: less than one epoch of the train split seen in all, or fewer than FEW_IMAGES to learn from.
    """
    return {
        "images": images,
        "images_in_split": images_in_split,
        "images_seen": images_seen,
        "smoke": images_seen < ONE_EPOCH * images_in_split or images < FEW_IMAGES,
        "parameters": sum(parameter.numel() for network in networks for parameter in network.parameters()),
    }


def starting_point(name: str, pretrained: bool, weights: str | None, revision: str | None = None) -> dict[str, Any]:
    """Where the weights of a classifier came from, in Markdown and on the Hub (`base_model`), and the data in them.

    `name` is --model_name_or_path, `revision` its --revision, `weights` --pretrained_weights.
    """
    if is_timm_name(name):
        if weights:
            return {
                "text": f"the weights in {markdown_code(Path(without_local_paths(weights)).name)}",
                "base_model": None,
                "data": [],
            }
        if not pretrained:
            return {"text": "random weights", "base_model": None, "data": []}
        config = timm.get_pretrained_cfg(name)
        full = f"{config.architecture}.{config.tag}"
        source = f"timm/{full}" if config.hf_hub_id == "timm/" else config.hf_hub_id
        return {"text": f"timm's weights {markdown_code(full)}", "base_model": source, "data": []}
    name = name.removeprefix("local-dir:").removeprefix("hf-hub:")
    here = Path(name).is_dir()
    saved = local_folder(name, [CARD_DATA_NAME], revision) / CARD_DATA_NAME
    earlier = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    start = earlier.get("start", {})
    return {
        "text": f"the model {markdown_code(Path(name).resolve().name if here else name)}",
        "base_model": start.get("base_model") if here else name,
        "data": [*start.get("data", []), *([earlier["data"]] if "data" in earlier else [])],
    }


def record(folder: Path, kind: str, title: str, records: Records, script: str, arguments: tuple, **facts: Any) -> None:
    """Write card_data.json: what is common to all kinds of models, and `facts`.

    `kind` is `classifier` or `generator`; `arguments` are the dataclasses of `script`, which give the command.
    """
    arguments = tuple(dataclasses.replace(a, **without_local_paths(vars(a))) for a in arguments)
    write_json(
        folder / CARD_DATA_NAME,
        {
            "kind": kind,
            "name": folder.resolve().name,
            "title": title,
            "data": {**dataclasses.asdict(data_facts(records.name)), "phantoms": records.are_phantoms},
            "population": population(records.table),
            "skipped": len(records.skipped),
            "generated_images": int(is_synthetic(records.table).sum()),
            "settings": settings(*arguments),
            "command": command_line(script, *arguments),
            "versions": versions(),
            "commit": code_commit(),
            **facts,
        },
    )


def versions() -> Mapping[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a clone can be used without being installed
            continue
    return found
