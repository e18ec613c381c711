"""Several histories in one row give what each gives alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from model import TiM4Rec
from tests.depth import examples
from tests.model.test_exactness import FLOAT64, histories, models


@settings(max_examples=examples(12))
@given(data=st.data(), model=models())
def test_a_row_of_histories_is_each_alone(data: st.DataObject, model: TiM4Rec) -> None:
    rows = data.draw(
        st.lists(
            st.lists(histories(model.config.n_items, 40), min_size=1, max_size=4),
            min_size=1,
            max_size=3,
        )
    )
    items = [torch.tensor([i for items, _ in row for i in items]) for row in rows]
    times = [torch.tensor([t for _, times in row for t in times]) for row in rows]
    asked = [part + 1000 for part in times]
    sequence = [
        torch.tensor([number for number, (items, _) in enumerate(row) for _ in items])
        for row in rows
    ]
    packed = model(
        pad_sequence(items, batch_first=True),
        pad_sequence(times, batch_first=True),
        pad_sequence(asked, batch_first=True),
        sequence_BL=pad_sequence(sequence, batch_first=True, padding_value=99),
    )
    for row, found in zip(rows, packed, strict=True):
        start = 0
        for one_items, one_times in row:
            one = torch.tensor([one_items]), torch.tensor([one_times])
            alone = model(*one, one[1] + 1000)[0]
            part = found[start : start + len(alone)]
            torch.testing.assert_close(part, alone, rtol=FLOAT64, atol=FLOAT64)
            start += len(alone)
