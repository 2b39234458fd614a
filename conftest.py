"""Caches of their own for the tests, set before any library that reads where its cache is has been imported.

Each test process has one set: diffusers, for one, rewrites the code that comes with models at every load.
"""

import os
import tempfile

# What would point into a user's caches, or log in as the user; without them all are under XDG_CACHE_HOME.
FOLDERS = (
    "DIFFUSERS_CACHE HF_ASSETS_CACHE HF_DATASETS_CACHE HF_EVALUATE_CACHE HF_HOME HF_HUB_CACHE HF_METRICS_CACHE "
    "HF_MODULES_CACHE HF_TOKEN HF_TOKEN_PATH HF_XET_CACHE HUGGINGFACE_ASSETS_CACHE HUGGINGFACE_HUB_CACHE "
    "HUGGING_FACE_HUB_TOKEN TORCH_HOME TRANSFORMERS_CACHE TRITON_CACHE_DIR"
)
# What runs are held to, to the bit, holds on a CPU; CUDA_VISIBLE_DEVICES=0 tests a GPU, which may round otherwise.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

_caches = tempfile.TemporaryDirectory(prefix="melanoma-fair-xai-tests-")

for name in FOLDERS.split():
    os.environ.pop(name, None)
os.environ["XDG_CACHE_HOME"] = _caches.name
for name in ("MELANOMA_FAIR_XAI_CACHE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME"):
    os.environ[name] = os.path.join(_caches.name, name.lower())


def pytest_configure(config) -> None:
    config.add_cleanup(_caches.cleanup)
