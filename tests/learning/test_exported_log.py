from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from learning.exported_log import NewEvents

TIMES = st.lists(st.integers(0, 20), max_size=30).map(sorted)


@given(times=TIMES, share=st.floats(0.01, 0.9), least=st.integers(1, 10))
def test_the_cut_leaves_something_on_either_side(
    times: list[int], share: float, least: int
) -> None:
    cut = NewEvents(np.array(times, dtype=np.int64)).cut(share, least)
    judged = max(share * len(times), least)
    if cut is None:
        # No moment would do.
        assert all(
            sum(t > moment for t in times) < judged or not any(t <= moment for t in times)
            for moment in range(-1, 21)
        )
        return
    after = sum(t > cut for t in times)
    assert cut in times
    assert after >= judged
    later = [t for t in times if t > cut]
    assert sum(t > later[0] for t in times) < judged  # nor more than needed


def test_the_events_after_a_moment(tmp_path: Path) -> None:
    for place, times in enumerate(([5, 3, 9], [1, 9, 4])):
        frame = pl.DataFrame({"timestamp": times, "item_id": ["a"] * 3})
        frame.write_parquet(tmp_path / f"part-{place}.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    assert NewEvents.read(tmp_path, 4).times.tolist() == [5, 9, 9]
    assert len(NewEvents.read(tmp_path, None)) == 6
    assert len(NewEvents.read(tmp_path, 9)) == 0
