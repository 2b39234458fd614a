"""HAM10000: 10,015 dermoscopic images of 7,470 pigmented lesions, from any of the forms in which people have it.

As a command, `python -m dataset_scripts.ham10000 --data_dir RAW --output_dir data/ham10000` writes Parquet that
`load_dataset("data/ham10000")` reads; `HAM10000(data_dir=RAW)` is the builder.
"""

from melanoma_fair_xai.base.lazy import lazy

__getattr__ = lazy(__name__, {"HAM10000": "builder"})
