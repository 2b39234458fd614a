"""What the cards of all kinds share: a text made of a folder's files alone, whole or not at all."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from huggingface_hub import ModelCardData

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.publication import CARD_NAME
from melanoma_fair_xai.base.tables import (
    Markdown,
    markdown_block,
    markdown_code,
    markdown_table,
    markdown_text,
    plain_cells,
)
from melanoma_fair_xai.hub.publish import CARD_DATA_NAME

TAGS = ["medical", "dermatology", "melanoma"]


def need(folder: Path, name: str) -> Path:
    """The path of a part of the card. UserError that names it if the folder lacks it."""
    if not (folder / name).is_file():
        raise UserError(f"{folder}: no {name}, so no card can be written; finish the run that writes it")
    return folder / name


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A part of the card that is JSON. UserError if it is missing or damaged."""
    path = need(folder, name)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); finish the run again") from None


def config_name(folder: Path) -> str:
    """Where a classifier's run has its config.json; of a cross-validation, the one of fold 0."""
    return "fold-0/config.json" if (folder / "fold-0").is_dir() else "config.json"


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A part of the card that is CSV, with the very numbers that were written."""
    # The python engine reads numbers to the last bit, pandas' own does not.
    options = {"engine": "python", "keep_default_na": False, "na_values": [""]}
    return plain_cells(pd.read_csv(need(folder, name), dtype={"group": str, "group_column": str}, **options))


def render(folder: Path, template: str, metadata: ModelCardData, **context: Any) -> str:
    """The card as text. UserError that names the part if something is missing: a figure, or a fact that was not
    recorded. Texts that are not `Markdown` are taken as by `markdown_text`."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: markdown_text(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": Markdown,
        "code": lambda text: markdown_code(str(text)),  # str() says which fact is missing, where one is
        "block": lambda text, language: markdown_block(str(text), language),
    }
    source = resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    try:
        text = environment.from_string(source).render(card_data=Markdown(metadata.to_yaml().strip()), **context)
    except jinja2.UndefinedError as error:
        raise UserError(
            f"{folder / CARD_DATA_NAME}: the card needs more than it holds ({error}); finish the run again"
        ) from None
    for name in figures_in(text):
        need(folder, name)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def figures_in(text: str) -> list[str]:
    """The files that a card shows, each on a line of its own."""
    return re.findall(r"^!\[[^\]]*\]\(([^)]+)\)$", text, re.MULTILINE)


def write_card(folder: Path, text: str, parts: Iterable[str], output: Path | None) -> Path:
    """Write README.md to the folder, or to `output` with what it shows (figures) and was made of (`parts`).

    So `output` is itself a folder that the card can be made of again. Returns the card's path. UserError where that
    would replace a README.md of something else.
    """
    target = output or folder
    if target.resolve() != folder.resolve():
        if (target / CARD_NAME).exists() and not (target / CARD_DATA_NAME).is_file():
            raise UserError(
                f"{target / CARD_NAME}: not the card of a model, and would be lost; choose another --output"
            )
        for name in [*figures_in(text), *parts]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target / name) as path:
                shutil.copyfile(need(folder, name), path)
    with atomic_path(target / CARD_NAME) as path:
        path.write_text(text, encoding="utf-8")
    return target / CARD_NAME


def licence_metadata(data: list[dict[str, Any]]) -> dict[str, str]:
    """The licence that the data ask of a model, as the Hub's metadata have it; several are named together."""
    names = list(dict.fromkeys(facts["licence"] or "unknown" for facts in data))
    if len(names) == 1 and names[0] != "unknown":
        return {"license": names[0]}
    return {"license": "other", "license_name": "-and-".join(names)}


def hub_datasets(data: dict[str, Any]) -> list[str] | None:
    """The data set as the Hub's metadata name it, which link to it there; earlier versions did not say where it is."""
    return [data["id"]] if data.get("on_hub", True) else None


def population_table(population: list[dict[str, Any]]) -> str:
    """Images and melanomas of each split, overall and by group, as Markdown."""
    splits = list(population[0]["splits"])

    def cell(counts: dict[str, int]) -> str:
        return f"{counts['images']:,} ({counts['melanomas']:,})" if counts["images"] else "0"

    rows = []
    for row in population:
        name = "all images" if row["column"] == "all" else f"{row['column']} {row['group']}"
        rows.append([name, *(cell(row["splits"][split]) for split in splits)])
    lesions = [f"{population[0]['splits'][split]['lesions']:,}" for split in splits]
    return markdown_table(["images (melanomas)", *splits], [rows[0], ["lesions", *lesions], *rows[1:]])


def settings_text(settings: dict[str, Any], *arguments: type) -> Markdown:
    """Settings that say something, as a line of Markdown, in the order of the dataclasses that declare them shown."""
    fields = [field for owner in arguments for field in dataclasses.fields(owner)]
    names = [field.name for field in fields if field.metadata["shown"] and not field.metadata["free"]]

    def text(value: Any) -> str:
        return markdown_text(" ".join(map(str, value)) if isinstance(value, list) else str(value))

    shown = [name for name in names if settings.get(name) not in (None, "", [])]
    return Markdown(", ".join(f"`{name}` {text(settings[name])}" for name in shown))
