"""What a caller may ask of a list of recommendations, beside the best items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.catalogue.choice import Choice
from service.catalogue.cursor import CursorError, Hashes, read_shown, write_shown
from service.catalogue.item_filter import FilterError
from service.catalogue.retrieval import NO_ITEMS
from service.catalogue.view import Selection
from service.http.dependencies import Services, waiting_bounded
from service.http.json_shape import AtMost
from service.http.problems import ProblemError
from service.http.schemas import MOST_LISTED, Id

Share = Annotated[float, Gt(0), Le(1)]
Diversity = Annotated[float, Ge(0), Le(1)]
_LISTED = AtMost(MOST_LISTED)

CATEGORY = "only items of one of these categories"
INCLUDE = "only these items"
FILTER = 'only items of which this holds: `price < 20 and brand in ("a", "b") and not has(sale)`'
PROMOTE = "a filter: items that come first in some places of the list"
PROMOTE_SHARE = "in which share of the places"
DIVERSITY = "0: the best items, to 1: items as unlike each other as can be"
PAGED = "whether the list will be gone on with: the answer then has `next`"
AFTER = "`next` of the page before"


class Wishes(BaseModel):
    """Each may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    exclude: Annotated[list[str], _LISTED] = Field(
        default_factory=list, description="item ids not to return"
    )
    category: Annotated[list[Id] | None, _LISTED] = Field(None, description=CATEGORY)
    include: Annotated[list[str] | None, _LISTED] = Field(None, description=INCLUDE)
    filter: str | None = Field(None, description=FILTER)
    promote: str | None = Field(None, description=PROMOTE)
    promote_share: Share = Field(0.2, description=PROMOTE_SHARE)
    diversity: Diversity = Field(0, description=DIVERSITY)
    paged: bool = Field(False, description=PAGED)
    after: str | None = Field(None, description=AFTER)


@dataclass(frozen=True)
class Wanted:
    """Wishes, as the engine takes them. `shown`: None where the list will not be gone on with."""

    masked: NDArray[np.int32]
    choice: Choice | None
    shown: Hashes | None


async def wanted(services: Services, wishes: Wishes) -> Wanted:
    """Looks up what the wishes name.

    Raises:
        ProblemError: a filter or cursor is none.
        Overloaded: too much of the kind is under way.
    """
    with waiting_bounded():
        return await _wanted(services, wishes)


async def _wanted(services: Services, wishes: Wishes) -> Wanted:
    catalogue = services.catalogue
    hashes, rows = _places(services, wishes), NO_ITEMS
    masked = catalogue.rows(wishes.exclude) if wishes.exclude else NO_ITEMS
    parts: list[Selection] = []
    if wishes.include is not None:
        parts.append(catalogue.only(wishes.include))
    if wishes.category is not None:
        parts.append(await catalogue.of_categories(wishes.category))
    if wishes.filter is not None:
        parts.append(await _matching(services, "filter", wishes.filter))
    selection = _joined(parts)
    promoted = None
    if wishes.promote is not None:
        parts.append(await _matching(services, "promote", wishes.promote))
        promoted = _joined(parts)
    if hashes is not None and len(hashes):
        rows = await catalogue.shown(hashes)
        masked = np.concatenate([masked, rows])
    if selection is None and promoted is None and not wishes.diversity and not len(rows):
        return Wanted(masked, None, hashes)
    places = 0 if hashes is None else len(hashes)
    choice = Choice(selection, promoted, wishes.promote_share, wishes.diversity, rows, places)
    return Wanted(masked, choice, hashes)


def _places(services: Services, wishes: Wishes) -> Hashes | None:
    """What the pages before have shown; None: there are to be no pages."""
    if wishes.after is None:
        return np.empty(0, np.uint32) if wishes.paged else None
    try:
        return read_shown(services.seal, wishes.after, services.settings.max_paged)
    except CursorError as error:
        raise ProblemError(422, str(error), field="after") from None


def following(
    services: Services, before: Hashes | None, rows: NDArray[np.int64], k: int
) -> str | None:
    """The cursor of the page after one with these rows; None: it was the last."""
    if before is None or len(rows) < k:
        return None
    shown = np.concatenate([before, services.catalogue.hashes(rows)])
    return None if len(shown) >= services.settings.max_paged else write_shown(services.seal, shown)


async def _matching(services: Services, name: str, expression: str) -> Selection:
    longest = services.settings.max_filter_length
    if len(expression) > longest:
        raise ProblemError(
            422, f"{name}: at most {longest} characters, not {len(expression)}", field=name
        )
    try:
        return await services.catalogue.matching(expression)
    except FilterError as error:
        raise ProblemError(422, f"{name}: {error}", field=name) from None


def _joined(parts: list[Selection]) -> Selection | None:
    if not parts:
        return None
    found = parts[0]
    for part in parts[1:]:
        found = found & part
    return found
