"""On a machine with a GPU, only the tests that ask for it run on it:
the others compare bits, on the CPU."""

import os

import pytest
import torch

import models

_available = torch.cuda.is_available
if _available():
    torch.cuda.init()
    torch.cuda.device_count()  # looks at the variable below the first time
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes that tests start


@pytest.fixture
def registry():
    """Networks registered by a test are gone after it."""
    before = dict(models.ARCHITECTURES)
    yield
    models.ARCHITECTURES.clear()
    models.ARCHITECTURES.update(before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = any(str(mark.kwargs.get("reason")).startswith("needs a GPU")
                 for mark in item.iter_markers("skipif"))
    torch.cuda.is_available = _available if wanted else lambda: False
