"""TiM4Rec: the time-aware structured state space recommender, as mathematics only.

Dimension names used throughout: B batch, L sequence length, D model width, E inner width
(expand x D), G groups, H heads, P head width (E = H x P), N state size, K convolution width, V
items.
"""

from model.config import ModelConfig
from model.gaps import UNKNOWN_TIME
from model.recommender import Architecture, Recommender
from model.state import State, StateLayout
from model.tim4rec import TiM4Rec

__all__ = [
    "UNKNOWN_TIME",
    "Architecture",
    "ModelConfig",
    "Recommender",
    "State",
    "StateLayout",
    "TiM4Rec",
]
