import pytest
from accelerate.state import AcceleratorState

from melanoma_fair_xai.engine.launch import create_accelerator


@pytest.fixture
def accelerator():
    yield create_accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
