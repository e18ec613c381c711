"""What has to be so before any test is imported."""

import os

import pytest
import torch

from tests import depth

depth.register()

if not torch.cuda.is_available():
    # Before anything imports Triton: what it defines is interpreted, or not, from then on.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes come first: in the end all others would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
