from __future__ import annotations

import pytest
import torch

from training import mixture

torch.set_num_threads(1)  # tiny tensors, and the suite runs in parallel


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtures are fitted in no more steps than their few events ask for."""
    monkeypatch.setattr(mixture, "LEAST_STEPS", 0)
