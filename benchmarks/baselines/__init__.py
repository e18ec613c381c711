"""Published models in our own code, trained and ranked like ours by `benchmarks.quality`."""

from benchmarks.baselines.lrurec import LRURec, LRURecConfig
from benchmarks.baselines.mamba4rec import Mamba4Rec, Mamba4RecConfig
from benchmarks.baselines.sasrec import SASRec, SASRecConfig
from benchmarks.baselines.tisasrec import TiSASRec, TiSASRecConfig

__all__ = [
    "LRURec",
    "LRURecConfig",
    "Mamba4Rec",
    "Mamba4RecConfig",
    "SASRec",
    "SASRecConfig",
    "TiSASRec",
    "TiSASRecConfig",
]
