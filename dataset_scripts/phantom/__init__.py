"""Phantoms: drawn skin lesions with known truth, the embedded default data set. No patient stands behind any of them.

As a command, `python -m dataset_scripts.phantom --output_dir data/phantom` writes Parquet that
`load_dataset("data/phantom")` reads; `Phantom(num_images=200, image_size=64)` is the builder.
"""

from melanoma_fair_xai.base.lazy import lazy

__getattr__ = lazy(__name__, {"Phantom": "builder"})
