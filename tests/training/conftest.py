from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.interactions import Log, read_log

torch.set_num_threads(1)  # tiny tensors, and the suite runs in parallel


@pytest.fixture(scope="session")
def ml_100k() -> Log:
    path = Path(__file__).parents[2] / "../shared/data/ml-100k/interactions.csv.gz"
    if not path.exists():
        pytest.skip(f"no MovieLens-100K at {path}")
    return read_log(path)
