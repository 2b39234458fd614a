"""The data sets that this project knows by name: what flags, commands, cards and loading say of each stands here once.

To add one, write its builder (see `LesionBuilder`) and a row here.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .builder import LesionBuilder

LOCAL_USE_ONLY = "local-use-only"  # the tag of a data set whose images may not be passed on
TAGS = ("medical", "dermatology", "melanoma", "skin-lesion")

ABHISHEK = """\
@article{abhishek2025duplicates,
  title = {Investigating the quality of {DermaMNIST} and {Fitzpatrick17k} dermatological image datasets},
  author = {Abhishek, Kumar and Jain, Aditi and Hamarneh, Ghassan},
  journal = {Scientific Data}, volume = {12}, pages = {196}, year = {2025}, doi = {10.1038/s41597-025-04382-5}
}"""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that has a name.

    Attributes:
        name: what `--dataset_name` calls it.
        title: what cards call it.
        builder: its `LesionBuilder`, as `module:class`; the module is also the command that prepares it.
        licence: of its images, or of what may be passed on of it, by the Hub's identifier.
        about: where the images come from, who labelled them, who is missing.
        homepage, citation: empty where there is none; the citation is BibTeX.
        tags: on its card, beside TAGS.
        tables: CSV files of its prepared folder, beside the manifest and the skipped.
        has_raw_files: whether it is made of files that `--data_dir` names.
        may_be_published: whether its images may be passed on.
    """

    name: str
    title: str
    builder: str
    licence: str
    about: str
    homepage: str = ""
    citation: str = ""
    tags: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    has_raw_files: bool = True
    may_be_published: bool = True

    @property
    def module(self) -> str:
        return self.builder.partition(":")[0]

    @property
    def card_tags(self) -> list[str]:
        return [*TAGS, *self.tags, *([] if self.may_be_published else [LOCAL_USE_ONLY])]

    def load_builder(self) -> "type[LesionBuilder]":
        """The builder's class; imported only now, because it takes `datasets` along."""
        return getattr(importlib.import_module(self.module), self.builder.partition(":")[2])


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="ham10000",
            title="HAM10000",
            builder="dataset_scripts.ham10000:HAM10000",
            licence="cc-by-nc-4.0",
            about=(
                "Dermoscopic images of pigmented lesions from the Medical University of Vienna and a skin cancer "
                "practice in Queensland, Australia, gathered over twenty years with several dermatoscopes and from "
                "digitised slides; the publishers cropped them and corrected the colours of some. Diagnoses were "
                "confirmed by histopathology (all melanomas and about half of the images), by follow-up, by experts' "
                "consensus or by confocal microscopy. No skin types are recorded, and there is almost no dark skin."
            ),
            homepage="https://doi.org/10.7910/DVN/DBW86T",
            citation="""\
@article{tschandl2018ham10000,
  title = {The {HAM10000} dataset, a large collection of multi-source dermatoscopic images of common pigmented skin lesions},
  author = {Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  journal = {Scientific Data}, volume = {5}, pages = {180161}, year = {2018}, doi = {10.1038/sdata.2018.161}
}
@article{tschandl2020masks,
  title = {Human-computer collaboration for skin cancer recognition},
  author = {Tschandl, Philipp and others},
  journal = {Nature Medicine}, volume = {26}, pages = {1229--1234}, year = {2020}, doi = {10.1038/s41591-020-0942-0}
}
"""  # noqa: E501
            + ABHISHEK,
            tags=("dermoscopy",),
        ),
        Source(
            name="fitzpatrick17k",
            title="Fitzpatrick17k",
            builder="dataset_scripts.fitzpatrick17k:Fitzpatrick17k",
            licence="cc-by-nc-sa-3.0",
            about=(
                "Clinical photographs from two online atlases, DermaAmin and Atlas Dermatologico, taken by unknown "
                "cameras under unknown conditions, of unknown patients. Labels are the atlases' own, no "
                "histopathology is on record, and two dermatologists who looked at about 3 % of the images found "
                "some wrong. Skin types were annotated from the photographs by a crowd, not by dermatologists, and "
                "say how skin looks there. Age, sex and body site are not recorded."
            ),
            homepage="https://github.com/mattgroh/fitzpatrick17k",
            citation="""\
@inproceedings{groh2021fitzpatrick17k,
  title = {Evaluating deep neural networks trained on clinical images in dermatology with the {Fitzpatrick} 17k dataset},
  author = {Groh, Matthew and Harris, Caleb and Soenksen, Luis and Lau, Felix and Han, Rachel and Kim, Aerin and
    Koochek, Arash and Badri, Omar},
  booktitle = {CVPR Workshops}, pages = {1820--1828}, year = {2021}
}
"""  # noqa: E501
            + ABHISHEK,
            tags=("fairness", "skin-tone"),
            tables=("coverage.csv", "duplicate_clusters.csv"),
            may_be_published=False,
        ),
        Source(
            name="phantom",
            title="Phantoms: drawn lesions, no patient",
            builder="dataset_scripts.phantom:Phantom",
            licence="apache-2.0",
            about=(
                "Drawings made by a program: no patient, no camera and no diagnosis stands behind them. Skin type, "
                "sex, age and body site were drawn at random, and the truth is known because it was planted."
            ),
            tags=("phantom", "synthetic"),
            has_raw_files=False,
        ),
    )
}
