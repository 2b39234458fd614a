"""Fixtures of these tests."""

import pytest
from fitzpatrick17k_raw import (
    ACNE,
    ATLAS,
    CARCINOMA,
    MELANOMA,
    NEVUS,
    Raw,
    as_jpeg,
    photograph,
)


@pytest.fixture
def raw(tmp_path) -> Raw:
    """30 melanomas and nevi, 6 carcinomas and 6 of acne, all there, over all skin types and both atlases."""
    raw = Raw(tmp_path / "raw")
    labels = [MELANOMA] * 15 + [NEVUS] * 15 + [CARCINOMA] * 6 + [ACNE] * 6
    for seed, label in enumerate(labels):
        scale = ["1", "2", "3", "4", "5", "6", "-1"][seed % 7]
        url = f"{ATLAS}/{seed}.jpg" if seed % 3 else f"http://atlasdermatologico.com.br/img?imageId={seed}"
        raw.add(as_jpeg(photograph(seed)), label, scale, url=url)
    return raw.annotate()
