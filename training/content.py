"""Item vectors that are an id's own and what the item is, added up, while a model is trained.

The id's own part is left out at random, as in DropoutNet (Volkovs et al., NeurIPS 2017), so that
the rest is worth something alone: that is all that a new item has.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model import Recommender
from model.content import Content
from training.item_features import ItemFeatures

RIDGE = 1.0
_ITERATIONS = 50


class SharedVectors(nn.Module):
    """From the ids' own vectors (V+1, D) to the items' vectors: what their features add comes to
    them.

    Args:
        id_dropout: the share of the items whose own vector is left out of a step.
    """

    places: Tensor
    begins: Tensor
    weights: Tensor
    bare: Tensor

    def __init__(self, features: ItemFeatures, width: int, id_dropout: float) -> None:
        super().__init__()
        count = np.diff(features.offsets, prepend=0)  # the padding's row has none
        weights = np.repeat(np.maximum(count, 1) ** -0.5, count)
        begins = np.append(0, features.offsets[:-1])
        for name, array in (
            ("places", features.places), ("begins", begins),
            ("weights", weights.astype(np.float32)),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.register_buffer("bare", torch.from_numpy(count == 0)[:, None], persistent=False)
        self.vectors = nn.Parameter(torch.zeros(len(features.hashes), width))
        self.id_dropout = id_dropout

    def parts(self) -> Tensor:
        """(V+1, D) What the features add to the items' vectors."""
        return F.embedding_bag(
            self.places, self.vectors, self.begins, mode="sum", per_sample_weights=self.weights
        )

    def forward(self, own_VD: Tensor) -> Tensor:
        if self.training and self.id_dropout:
            own_VD = own_VD * (self.bare | (torch.rand_like(own_VD[:, :1]) >= self.id_dropout))
        return own_VD + self.parts()

    @torch.no_grad()
    def begin_near(self, table_VD: Tensor) -> None:
        """Sets the features' vectors so that what they add is near a table (V+1, D): least squares
        with a ridge, by conjugate gradients."""
        size = len(self.begins), len(self.vectors)
        items = torch.bucketize(
            torch.arange(len(self.places), device=self.begins.device), self.begins, right=True
        )
        of_items = torch.sparse_coo_tensor(
            torch.stack([items - 1, self.places]), self.weights, size, check_invariants=False
        )
        found = torch.zeros_like(self.vectors)
        rest = of_items.T @ table_VD
        direction, before = rest.clone(), (rest * rest).sum(0)
        for _ in range(_ITERATIONS):
            moved = of_items.T @ (of_items @ direction) + RIDGE * direction
            length = before / (direction * moved).sum(0).clamp(min=1e-20)
            found += length * direction
            rest -= length * moved
            now = (rest * rest).sum(0)
            direction = rest + now / before.clamp(min=1e-20) * direction
            before = now
        self.vectors.copy_(found)


@torch.no_grad()
def share_vectors(model: Recommender, features: ItemFeatures, id_dropout: float) -> None:
    """Makes a model's item vectors sums of ids' own and features'; they stay what they are.

    The features begin with what the model's content has of them, if it has one, else with what
    is nearest to the vectors.
    """
    table = model.item_embedding
    shared = SharedVectors(features, table.embedding_dim, id_dropout).to(model.device)
    if model.content is None:
        shared.begin_near(table.weight)
    else:
        shared.vectors.copy_(_vectors_of(features, model.content))
    table.weight -= shared.parts()
    parametrize.register_parametrization(table, "weight", shared)


def join_vectors(model: Recommender, features: ItemFeatures) -> None:
    """Makes them one table again, and keeps as the model's content what the features add."""
    table = model.item_embedding
    vectors = table.parametrizations.weight[0].vectors.detach().cpu().numpy()  # type: ignore[union-attr,index]
    parametrize.remove_parametrizations(table, "weight")
    before = model.content
    if before is None:
        before = Content(features.hashes, vectors, np.zeros(vectors.shape[1], np.float32))
    model.content = before.updated(features.hashes, vectors)


@torch.no_grad()
def feature_parts(features: ItemFeatures, content: Content) -> tuple[Tensor, Tensor]:
    """What a content has of the items' features.

    Returns:
        what they add to the items' vectors (V, D), and (V) which items have one that it knows.
    """
    shared = SharedVectors(features, content.vectors.shape[1], 0.0)
    shared.vectors.copy_(_vectors_of(features, content))
    found = shared.parts()[1:]
    return found, (found != 0).any(1)


def _vectors_of(features: ItemFeatures, content: Content) -> Tensor:
    """(F, D) Of those features that a content lacks: zeros."""
    place = {own: number for number, own in enumerate(content.hashes.tolist())}
    rows = [place.get(own, -1) for own in features.hashes.tolist()]
    zeros = np.zeros_like(content.vectors[:1])
    return torch.from_numpy(np.concatenate([content.vectors, zeros])[rows])
