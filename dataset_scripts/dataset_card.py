"""The card of a prepared data set: YAML for the Hub, the data set's own text, and what the builder knows."""

import copy
from collections.abc import Mapping
from importlib import resources

import datasets
import pandas as pd
from huggingface_hub import DatasetCardData

from melanoma_fair_xai.base.tables import markdown_code, markdown_table

from .builder import LesionBuilder
from .schema import MELANOMA_NAMES, SKIPPED_NAME
from .splits import MANIFEST_NAME, manifest_hash

TEMPLATE = "dataset_card.md"


def dataset_card(builder: LesionBuilder, data_files: Mapping[str, str]) -> str:
    """The card of what a builder has prepared; `data_files` are glob patterns by split."""
    source, info = builder.source, copy.deepcopy(builder.info)
    info.config_name = "default"
    total = sum(split.num_examples for split in info.splits.values())
    metadata = DatasetCardData(
        license=source.licence,
        pretty_name=source.title,
        tags=source.card_tags,
        task_categories=["image-classification"],
        size_categories=[_size_category(total)],
    )
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
    # Named split by split: a split such as isic2018_test would otherwise be taken for a part of test.
    metadata.configs = [
        {
            "config_name": "default",
            "data_files": [{"split": name, "path": path} for name, path in data_files.items()],
        }
    ]
    lesions = builder.manifest.groupby("split")["lesion_id"].nunique()
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return template.format(
        metadata=metadata.to_yaml().strip(),
        text=builder.card_text().strip(),
        about=source.about,
        composition=markdown_table(["group", "images", "lesions", "melanomas"], _composition(builder.records)),
        age=_age_text(builder.records["age"]),
        folder=source.name,
        module=source.module,
        datasets_version=datasets.__version__,
        splits=markdown_table(
            ["split", "images", "lesions"],
            [(part, f"{split.num_examples:,}", f"{lesions[part]:,}") for part, split in info.splits.items()],
        ),
        manifest_name=MANIFEST_NAME,
        manifest=manifest_hash(builder.manifest),
        seed=builder.config.seed,
        strata=" and ".join(builder.stratify_by),
        skipped=f"{len(builder.skipped):,}",
        skipped_name=SKIPPED_NAME,
        columns=markdown_table(
            ["column", "type"], [(markdown_code(column), _type_text(kind)) for column, kind in info.features.items()]
        ),
        licence=f"Licence: {source.licence}. {source.homepage}".strip(),
        citation=f"```bibtex\n{source.citation}\n```" if source.citation else "",
    )


def _composition(records: pd.DataFrame) -> list[tuple[str, ...]]:
    """Rows of group, images, lesions and melanomas: of all, and by skin type, sex, body site and source."""

    def row(name: str, part: pd.DataFrame) -> tuple[str, ...]:
        counts = (len(part), part["lesion_id"].nunique(), (part["melanoma"] == MELANOMA_NAMES[1]).sum())
        return (name, *(f"{count:,}" for count in counts))

    rows = [row("all", records)]
    for column in ("fitzpatrick", "sex", "localization", "source"):
        rows += [row(f"{column} {name}", part) for name, part in records.groupby(column)]
    return rows


def _age_text(ages: pd.Series) -> str:
    known = ages.dropna().astype(float)
    if known.empty:
        return "Age is not known of any image."
    span = f"from {known.min():g} to {known.max():g} years, median {known.median():g}"
    return f"Age is known of {len(known):,} of {len(ages):,} images, {span}."


def _size_category(count: int) -> str:
    """The Hub's size category, such as 10K<n<100K."""
    bounds = ["1K", "10K", "100K", "1M"]
    rank = sum(count >= 10**power for power in (3, 4, 5))
    return f"{bounds[rank - 1]}<n<{bounds[rank]}" if rank else "n<1K"


def _type_text(kind) -> str:
    if isinstance(kind, datasets.ClassLabel):
        return ", ".join(kind.names) if len(kind.names) <= 10 else f"one of {len(kind.names)} names"
    return getattr(kind, "dtype", None) if isinstance(kind, datasets.Value) else type(kind).__name__
