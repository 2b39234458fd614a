"""Fitzpatrick17k: clinical photographs from two dermatology atlases, with skin types, for one's own use.

As a command, `python -m dataset_scripts.fitzpatrick17k --data_dir RAW --output_dir data/fitzpatrick17k` writes Parquet
that `load_dataset("data/fitzpatrick17k")` reads; `Fitzpatrick17k("original", data_dir=RAW)` is the builder. The
annotations may be published, the images not: they belong to the atlases.
"""

from melanoma_fair_xai.base.lazy import lazy

__getattr__ = lazy(__name__, {"Fitzpatrick17k": "builder"})
