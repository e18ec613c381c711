"""An ensemble is one model whose scores are the sums of its members'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, TiM4Rec
from model.config import ConfigError
from model.ensemble import combine, members_of
from tests.depth import examples
from tests.model.test_exactness import histories, models, tensors


@pytest.mark.slow
@settings(max_examples=examples(12))
@given(data=st.data(), first=models(), count=st.integers(1, 3))
def test_scores_of_an_ensemble_are_sums(data: st.DataObject, first: TiM4Rec, count: int) -> None:
    members = [first]
    for _ in range(count - 1):
        other = TiM4Rec(first.config).double().eval()
        with torch.no_grad():
            for mine, theirs in zip(other.parameters(), first.parameters(), strict=True):
                mine.copy_(theirs + 0.3 * torch.randn_like(theirs))
        members.append(other)
    items, times = tensors(data.draw(histories(first.config.n_items)))
    later = times[:, -1] + 1000
    together = combine(members)

    def scores(model: TiM4Rec) -> torch.Tensor:
        lengths = torch.tensor([items.shape[1]])
        state = model.prefill(items, times, lengths, model.new_state(1))
        return model.scores(model.query(state, later))[:, 1:]

    with torch.no_grad():
        whole = scores(together)
        alone = torch.stack([scores(member) for member in members])
    assert together.config.n_groups == count * first.config.n_groups
    torch.testing.assert_close(whole, alone.sum(0), rtol=1e-9, atol=1e-9)


@settings(max_examples=examples(20))
@given(first=models(), count=st.integers(1, 3))
def test_an_ensemble_is_parted_into_what_it_was_made_of(first: TiM4Rec, count: int) -> None:
    if first.config.n_groups > 1:
        first = members_of(first)[0]
    members = [first]
    for _ in range(count - 1):
        other = TiM4Rec(first.config).double().eval()
        with torch.no_grad():
            for mine, theirs in zip(other.parameters(), first.parameters(), strict=True):
                mine.copy_(theirs + torch.randn_like(theirs))
        members.append(other)
    parted = members_of(combine(members))
    assert len(parted) == count
    for member, part in zip(members, parted, strict=True):
        assert part.config == member.config
        for name, value in member.state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name


def test_members_of_different_architectures_are_refused() -> None:
    config = ModelConfig(n_items=5, d_model=8, head_dim=4, d_state=2)
    with pytest.raises(ConfigError, match="one architecture"):
        combine([TiM4Rec(config), TiM4Rec(replace(config, n_items=6))])
    # What differs in training only is no difference.
    combine([TiM4Rec(config), TiM4Rec(replace(config, dropout=0.5))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_groups": 3}, "n_groups 3 must divide d_model = 8"),
        ({"n_groups": 4}, "head_dim 8 must divide expand \\* d_model / n_groups = 4"),
        ({"n_groups": 2, "time": "sequence"}, "n_groups must be 1 with time=sequence"),
        ({"n_groups": 0}, "n_groups must be at least 1, not 0"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(n_items=5, **({"d_model": 8, "head_dim": 8, "d_state": 2} | options))  # type: ignore[arg-type]
