"""The log as `tim4rec export-log` wrote it: when its interactions happened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl


@dataclass(frozen=True)
class NewEvents:
    """Times of the events after some moment, epoch ms, in order."""

    times: npt.NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, after_ms: int | None) -> NewEvents:
        """Those of an export after a moment; None: all.

        Raises:
            OSError, polars.exceptions.PolarsError: it can't be read.
        """
        log = pl.scan_parquet(folder / "part-*.parquet").select("timestamp")
        if after_ms is not None:
            log = log.filter(pl.col("timestamp") > after_ms)
        times = log.collect(engine="streaming")["timestamp"].to_numpy()
        return cls(np.sort(times.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.times)

    def cut(self, share: float, least: int) -> int | None:
        """The moment after which a share of them comes, and at least so many, epoch ms; None: no
        moment leaves any of them before it."""
        held = max(math.ceil(share * len(self)), least)
        if held >= len(self):
            return None
        before = self.times[: len(self) - held]
        later = self.times[len(self) - held]
        # Events of one moment stay on one side: the later one, so that enough are held out.
        earlier = before[before < later]
        return int(earlier[-1]) if len(earlier) else None
