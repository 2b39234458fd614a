"""Fitzpatrick17k's annotations, checked row by row and put in the record schema's terms."""

import os
import re

import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import UserError

from ..downloads import host_of
from ..raw_files import read_table
from ..schema import UNKNOWN, check_unique, parse_skin_type
from ..sources import SOURCES
from .configurations import ANNOTATIONS_NAME

DIAGNOSES = re.split(
    r";\s",
    """\
acanthosis nigricans; acne; acne vulgaris; acquired autoimmune bullous diseaseherpes gestationis;
acrodermatitis enteropathica; actinic keratosis; allergic contact dermatitis; aplasia cutis; basal cell carcinoma;
basal cell carcinoma morpheiform; becker nevus; behcets disease; calcinosis cutis; cheilitis; congenital nevus;
dariers disease; dermatofibroma; dermatomyositis; disseminated actinic porokeratosis; drug eruption;
drug induced pigmentary changes; dyshidrotic eczema; eczema; ehlers danlos syndrome; epidermal nevus;
epidermolysis bullosa; erythema annulare centrifigum; erythema elevatum diutinum; erythema multiforme;
erythema nodosum; factitial dermatitis; fixed eruptions; folliculitis; fordyce spots; granuloma annulare;
granuloma pyogenic; hailey hailey disease; halo nevus; hidradenitis; ichthyosis vulgaris; incontinentia pigmenti;
juvenile xanthogranuloma; kaposi sarcoma; keloid; keratosis pilaris; langerhans cell histiocytosis; lentigo maligna;
lichen amyloidosis; lichen planus; lichen simplex; livedo reticularis; lupus erythematosus; lupus subacute;
lyme disease; lymphangioma; malignant melanoma; melanoma; milia; mucinosis; mucous cyst; mycosis fungoides; myiasis;
naevus comedonicus; necrobiosis lipoidica; nematode infection; neurodermatitis; neurofibromatosis;
neurotic excoriations; neutrophilic dermatoses; nevocytic nevus; nevus sebaceous of jadassohn;
papilomatosis confluentes and reticulate; paronychia; pediculosis lids; perioral dermatitis; photodermatoses;
pilar cyst; pilomatricoma; pityriasis lichenoides chronica; pityriasis rosea; pityriasis rubra pilaris;
porokeratosis actinic; porokeratosis of mibelli; porphyria; port wine stain; prurigo nodularis; psoriasis;
pustular psoriasis; pyogenic granuloma; rhinophyma; rosacea; sarcoidosis; scabies; scleroderma; scleromyxedema;
seborrheic dermatitis; seborrheic keratosis; solid cystic basal cell carcinoma; squamous cell carcinoma; stasis edema;
stevens johnson syndrome; striae; sun damaged skin; superficial spreading melanoma ssm; syringoma; telangiectases;
tick bite; tuberous sclerosis; tungiasis; urticaria; urticaria pigmentosa; vitiligo; xanthomas;
xeroderma pigmentosum""",
)
MELANOMA_LABEL = "malignant melanoma"  # of the nine-part labels; one of the 114 labels has the same name
NINE_LABELS = [
    "benign dermal",
    "benign epidermal",
    "benign melanocyte",
    "genodermatoses",
    "inflammatory",
    "malignant cutaneous lymphoma",
    "malignant dermal",
    "malignant epidermal",
    MELANOMA_LABEL,
]
THREE_LABELS = ["benign", "malignant", "non-neoplastic"]
WRONGLY_LABELLED = "3 Wrongly labelled"  # the verdict (column qc) of the dermatologists who looked at 504 images
MD5 = re.compile("[0-9a-f]{32}")


def read_annotations(path: str) -> pd.DataFrame:
    """The published annotations, in the schema's terms.

    Columns: image_id, diagnosis, melanoma ("" where excluded), fitzpatrick, source, nine_partition_label,
    three_partition_label, qc, url, and `excluded`: why the label is known to be wrong, "" where it is not.
    Raises UserError naming the line of an id that is no MD5 or stands twice, and of a label or type that is not known.
    """
    if not os.path.isfile(path):
        homepage = SOURCES["fitzpatrick17k"].homepage
        raise UserError(f"{path}: no such file\nget {ANNOTATIONS_NAME} from {homepage} and put it there")
    allowed = {
        "label": DIAGNOSES,
        "nine_partition_label": NINE_LABELS,
        "three_partition_label": THREE_LABELS,
    }
    table = read_table(path, required=["md5hash", "fitzpatrick_scale", *allowed, "qc", "url"])
    _refuse(table, ~table["md5hash"].str.fullmatch(MD5), "md5hash", "32 hexadecimal digits", path)
    check_unique(table["md5hash"], "md5hash", path)
    for column, values in allowed.items():
        text = f"one of {', '.join(values)}" if len(values) < 10 else f"one of the {len(values)} labels"
        _refuse(table, ~table[column].isin(values), column, text, path)
    skin_types = [
        parse_skin_type(cell, f"{path}, line {line}")
        for cell, line in zip(table["fitzpatrick_scale"], table["line"], strict=True)
    ]

    is_melanoma = table["nine_partition_label"] == MELANOMA_LABEL
    excluded = pd.Series("", index=table.index)
    excluded[is_melanoma & table["url"].str.contains("/malignant-lymphoma/", regex=False)] = (
        "labelled melanoma, but the atlas shows it under malignant lymphoma"
    )
    excluded[table["qc"] == WRONGLY_LABELLED] = f"qc: {WRONGLY_LABELLED}"
    return pd.DataFrame(
        {
            "image_id": table["md5hash"],
            "diagnosis": table["label"],
            "melanoma": np.where(excluded != "", "", np.where(is_melanoma, "melanoma", "benign")),
            "fitzpatrick": skin_types,
            "source": table["url"].map(source_of),
            **{name: table[name] for name in ("nine_partition_label", "three_partition_label", "qc", "url")},
            "excluded": excluded,
        }
    )


def _refuse(table: pd.DataFrame, wrong: pd.Series, column: str, expected: str, path: str) -> None:
    if wrong.any():
        row = table[wrong].iloc[0]
        raise UserError(f"{path}, line {row['line']}: {column} {row[column]!r} is not {expected} ({wrong.sum()} such)")


def source_of(url: str) -> str:
    """The atlas that a URL points to, such as `dermaamin`; `unknown` where there is no URL."""
    return host_of(url).removeprefix("www.").partition(".")[0] or UNKNOWN
