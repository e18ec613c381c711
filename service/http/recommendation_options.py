"""What a caller may ask of a list of recommendations, and what it comes to in the catalogue."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.catalogue.choice import Choice
from service.catalogue.cursor import CursorError, Hashes, read_shown, write_shown
from service.catalogue.item_filter import FilterError
from service.catalogue.missing_names import MisspeltError
from service.catalogue.ranking import NO_ITEMS
from service.catalogue.view import Selection
from service.http.dependencies import Services, check_k
from service.http.fields import Fields, missing_fields
from service.http.problems import ProblemError
from service.http.schemas import MOST_LISTED, Body, Id
from service.http.times import RequestTime

_Listed = Field(max_length=MOST_LISTED)
_REPEATED = "in a URL, repeat it for several"


class RecommendationOptions(Body):
    """Each may be left out."""

    k: int = Field(10, ge=1, description="how many items")
    exclude: Annotated[list[str], _Listed] = Field(
        default_factory=list, description=f"item ids not to return; {_REPEATED}"
    )
    exclude_seen: bool = Field(
        True, description="leave out everything the user, or the session, ever interacted with"
    )
    at: RequestTime | None = Field(None, description="the moment recommended for; none: now")
    live: bool = Field(
        True,
        description="whether what has happened since the training counts, beside the model's score",
    )
    category: Annotated[list[Id] | None, _Listed] = Field(
        None, description=f"only items of one of these categories; {_REPEATED}"
    )
    include: Annotated[list[str] | None, _Listed] = Field(
        None, description=f"only these items; {_REPEATED}"
    )
    filter: str | None = Field(
        None,
        description="only items of which this holds: "
        '`price < 20 and brand in ("a", "b") and not has(sale)`',
    )
    promote: str | None = Field(
        None, description="a filter: items that come first in some places of the list"
    )
    promote_share: float = Field(0.2, gt=0, le=1, description="in which share of the places")
    diversity: float = Field(
        0, ge=0, le=1, description="0: the best items, to 1: items as unlike each other as can be"
    )
    paged: bool = Field(
        False, description="whether the list will be gone on with: the answer then has `next`"
    )
    after: str | None = Field(None, description="`next` of the page before")
    fields: Fields = None
    explain: bool = Field(False, description="say which interactions moved the scores")
    reasons: int = Field(3, ge=1, description="most of them for an item")


@dataclass(frozen=True)
class ResolvedOptions:
    """Options, as the engine takes them. `shown`: None where the list will not be gone on with.
    `warnings`: None where there are none."""

    masked: NDArray[np.int32]
    choice: Choice | None
    shown: Hashes | None
    warnings: list[str] | None


def check_size(services: Services, options: RecommendationOptions) -> None:
    """Raises ProblemError: no answer has so many items, or none so many that are explained."""
    check_k(services, options.k)
    if options.explain and options.k > (most := services.settings.explain_k):
        raise ProblemError(422, f"k: at most {most} with explain, not {options.k}", field="k")


async def resolved(services: Services, options: RecommendationOptions) -> ResolvedOptions:
    """Looks up what the options name.

    Raises:
        ProblemError: a filter can't be read, or a cursor is not one of ours.
        TooManyWait: too much of the kind is under way.
    """
    hashes = _hashes(services, options)
    catalogue, rows = services.catalogue, NO_ITEMS
    masked = catalogue.rows(options.exclude) if options.exclude else NO_ITEMS
    selections: list[Selection] = []
    if options.include is not None:
        selections.append(catalogue.only(options.include))
    if options.category is not None:
        selections.append(await catalogue.of_categories(options.category))
    if options.filter is not None:
        selections.append(await _matching(services, "filter", options.filter))
    selection = _all_of(selections)
    promoted = None
    if options.promote is not None:
        selections.append(await _matching(services, "promote", options.promote))
        promoted = _all_of(selections)
    if hashes is not None and len(hashes):
        rows = catalogue.shown(hashes)
        masked = np.concatenate([masked, rows])
    warnings = missing_fields(catalogue, options.fields)
    if selection is None and promoted is None and not options.diversity and not len(rows):
        return ResolvedOptions(masked, None, hashes, warnings)
    places = 0 if hashes is None else len(hashes)
    choice = Choice(selection, promoted, options.promote_share, options.diversity, rows, places)
    warnings = [*(warnings or ()), *(told for one in selections for told in one.warnings)]
    return ResolvedOptions(masked, choice, hashes, list(dict.fromkeys(warnings)) or None)


def _hashes(services: Services, options: RecommendationOptions) -> Hashes | None:
    """What the pages before have shown; None: there are to be no pages."""
    if options.after is None:
        return np.empty(0, np.uint32) if options.paged else None
    try:
        return read_shown(services.seal, options.after, services.settings.max_paged)
    except CursorError as error:
        raise ProblemError(422, str(error), field="after") from None


def next_cursor(
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
    except (FilterError, MisspeltError) as error:
        raise ProblemError(422, f"{name}: {error}", field=name) from None


def _all_of(selections: list[Selection]) -> Selection | None:
    return functools.reduce(operator.and_, selections) if selections else None
