"""What an interaction adds to a score, against scores computed anew without it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, TiM4Rec
from model.attribution import left_out
from tests.depth import examples

HOUR_MS = 3_600_000


@pytest.mark.parametrize("time_path", ["causal", "sequence"])
@given(
    history=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 10**6)), min_size=2, max_size=12),
    most=st.integers(1, 15),
)
@settings(max_examples=examples(12))
def test_left_out_is_the_score_without(
    time_path: str, history: list[tuple[int, int]], most: int
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        n_items=12,
        d_model=8,
        head_dim=4,
        d_state=4,
        max_len=6,
        time=time_path,  # type: ignore[arg-type]
    )
    model = TiM4Rec(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    history = [(item, second * 1000) for item, second in sorted(history, key=lambda p: p[1])]
    at = history[-1][1] + HOUR_MS

    def scores(events: list[tuple[int, int]]) -> torch.Tensor:
        items, times = torch.tensor(events).T[:, None]
        state = model.prefill(items, times, torch.tensor([len(events)]), model.new_state(1))
        return model.query(state, torch.tensor([at])) @ vectors.T

    with torch.inference_mode():
        vectors = model.item_embedding.weight[[3, 7, 1]]
        items, times = torch.tensor(history).T
        found = left_out(model, items, times, vectors, at, most)
        tried = range(max(0, len(history) - most), len(history))
        whole = scores(history)
        expected = [whole - scores(history[:i] + history[i + 1 :]) for i in tried]
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-9, rtol=0)
        alone = left_out(model, items[:1], times[:1], vectors, at, most)
        torch.testing.assert_close(alone, scores(history[:1]), atol=1e-9, rtol=0)
