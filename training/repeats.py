"""How much more, or less, an item that the user has had is to be expected than its score says.

The scores of a sequence model are products: the nearer a query comes to what a user will want
next, the nearer it comes to what the user has just had. Where nobody comes back to an item, the
best places then go to items that can't be the answer. One number sets right what a product can't:
it is added to the scores of all items that the user has had.
"""

from __future__ import annotations

import numpy as np
import torch

from model import Recommender
from training.dataset import Dataset
from training.evaluation import scored

LARGEST = 100.0
"""The bias is looked for between minus this and this."""


def repeat_bias(model: Recommender, dataset: Dataset) -> float:
    """The bias under which the validation targets are likeliest.

    The request time is known where the model takes one. The likelihood of a target is the softmax
    of the scores; a half target that its user has had and a half one that is new are added
    (Jeffreys' prior), so that a log without a repeat has a finite bias. Independent of the bias
    that the model has.
    """
    repeated, odds = [], []
    asked = model.config.uses_request_time
    for batch in scored(model, dataset.histories, dataset.validation, at_target_time=(asked,)):
        scores, seen = batch.scores[asked], batch.seen
        had = torch.full_like(scores, -torch.inf).scatter(1, seen, scores.gather(1, seen))
        new = scores.scatter(1, seen, -torch.inf)
        odds.append((had.logsumexp(1) - new.logsumexp(1)).double().cpu().numpy())
        repeated.append(batch.repeated)
    return _fit(np.concatenate(odds), np.concatenate(repeated))


def _fit(odds: np.typing.NDArray[np.float64], repeated: np.typing.NDArray[np.bool_]) -> float:
    """The maximum of a logistic likelihood with an offset each, by bisection of its slope."""
    usable = np.isfinite(odds)  # an infinite one: every item was had, or none
    odds, repeated = odds[usable], repeated[usable]
    if not len(odds):
        return 0.0
    centre = odds.mean()
    low, high = -LARGEST, LARGEST
    while high - low > 1e-4:
        bias = (low + high) / 2
        expected = _sigmoid(odds + bias).sum() + _sigmoid(centre + bias)
        if expected < repeated.sum() + 0.5:
            low = bias
        else:
            high = bias
    return round((low + high) / 2, 4)


def _sigmoid(x: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * x))
