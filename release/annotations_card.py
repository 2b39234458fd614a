"""A card of Fitzpatrick17k's annotations, for whoever has no images: who is in it, and who is not.

    python -m release.annotations_card raw/fitzpatrick17k

With the images, `python -m dataset_scripts.fitzpatrick17k` writes the card of what could be had of them.
"""

import dataclasses
from pathlib import Path

import pandas as pd
from huggingface_hub import DatasetCardData

from dataset_scripts.fitzpatrick17k.annotations import read_annotations
from dataset_scripts.fitzpatrick17k.configurations import ANNOTATIONS_NAME, CONFIGURATIONS
from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.flags import Parser
from melanoma_fair_xai.base.tables import markdown_code, markdown_table
from release.tables import CARDS

SOURCE = SOURCES["fitzpatrick17k"]

CARD = """---
{metadata}
---

# Fitzpatrick17k, its annotations

{about}

**The images were not at hand here.** They belong to the two atlases; only the annotations carry a licence. No model of
this project was trained or tested on them, and what share of them can still be fetched was not measured: this card
counts rows of the published table. `python -m dataset_scripts.fitzpatrick17k --download` fetches what the hosts still
have, and leaves a card that says what share of each skin type that is.

**Research only, not for diagnosis.**

## Intended use

- **For:** measuring research models of clinical photographs by skin type; fine-tuning them.
- **Not for:** diagnosis, screening or any decision about a person; finding out who somebody is; dermoscopy.

## What can be asked for

{configurations}

Left out are rows whose label is known to be wrong: {reasons}.

## Who is in it

Rows that are not left out, all labels. "Melanoma" is the nine-part label "malignant melanoma":

{types}

Types V and VI have {dark:,} of the {melanomas:,} melanomas, and a test split holds a fifth of those: with
fewer than 10 melanomas, this project's reports say that a figure is not estimable.

The atlas goes along with the skin type, so a model can seem to tell types apart by the atlas:

{sources}

## Again

```sh
python -m release.annotations_card raw/fitzpatrick17k   # the folder of {table}, from {homepage}
```

## Licence and citation

Annotations: {licence}.

```bibtex
{citation}
```
"""


def main() -> None:
    parser = Parser(prog="python -m release.annotations_card", description=__doc__.partition("\n")[0])
    parser.add_argument("data_dir", help=f"folder of {ANNOTATIONS_NAME}")
    card = annotations_card(read_annotations(str(Path(parser.parse_args().data_dir, ANNOTATIONS_NAME))))
    folder = CARDS / "fitzpatrick17k"
    folder.mkdir(exist_ok=True)
    with atomic_path(folder / "README.md") as path:
        path.write_text(card, encoding="utf-8")


def annotations_card(annotations: pd.DataFrame) -> str:
    """The card of a table as `read_annotations` gives it."""
    usable = annotations[annotations["excluded"] == ""]
    counts = usable["excluded"].groupby(usable["fitzpatrick"])
    types = pd.DataFrame({"images": counts.size()})
    for name, chosen in (
        ("melanoma or nevus", CONFIGURATIONS["original"][1](usable)),
        ("malignant", usable["three_partition_label"] == "malignant"),
        ("melanomas", usable["melanoma"] == "melanoma"),
    ):
        types[name] = chosen.groupby(usable["fitzpatrick"]).sum()
    sources = pd.crosstab(usable["fitzpatrick"], usable["source"])
    excluded = annotations["excluded"][annotations["excluded"] != ""].value_counts()
    configurations = []
    for name, (text, chosen) in CONFIGURATIONS.items():
        rows = usable[chosen(usable)]
        melanomas = (rows["melanoma"] == "melanoma").sum()
        configurations.append((markdown_code(name), text, f"{len(rows):,}", f"{melanomas:,}"))
    metadata = DatasetCardData(
        license=SOURCE.licence,
        pretty_name=f"{SOURCE.title}, annotations",
        tags=dataclasses.replace(SOURCE, may_be_published=True).card_tags,  # the annotations may
        task_categories=["image-classification"],
    )
    return CARD.format(
        metadata=metadata.to_yaml().strip(),
        about=SOURCE.about,
        configurations=markdown_table(["name", "which", "usable rows", "melanomas"], configurations),
        reasons="; ".join(f"{reason} ({count:,})" for reason, count in excluded.items()),
        types=_counts("skin type", types),
        dark=types["melanomas"].reindex(["V", "VI"], fill_value=0).sum(),
        melanomas=types["melanomas"].sum(),
        sources=_counts("skin type", sources),
        table=ANNOTATIONS_NAME,
        homepage=SOURCE.homepage,
        licence=SOURCE.licence,
        citation=SOURCE.citation,
    )


def _counts(title: str, table: pd.DataFrame) -> str:
    rows = [(name, *(f"{count:,}" for count in row)) for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return markdown_table([title, *table.columns], rows)


if __name__ == "__main__":
    run_command(main)
