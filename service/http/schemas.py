"""What the API takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonValue

from model.items import LONGEST_ID
from model.kinds import KIND
from service.http import json_shape
from service.http.json_shape import AtMost
from service.http.times import AssumedTime, Time


def _short(value: str) -> str:
    if len(value.encode()) > LONGEST_ID:
        raise ValueError(f"must be at most {LONGEST_ID} bytes of UTF-8")
    return value


Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID), AfterValidator(_short)]
MOST_LISTED = json_shape.MOST_NESTED
"""Entries of one list in a query or a record."""
MODEL = "identity of the model: which states are read"
EDITION = "the same with what decides scores only: which answers are compared"
AT = "the moment recommended for; null: not known"
ATTRIBUTES = "with `fields`: those of them that the item has"
WARNINGS = "names and values in the request that no item has; none: all were found"
STALE = "the log was not asked (allow_stale), or did not answer (store_away)"


Kind = Annotated[
    str,
    Field(
        pattern=rf"^{KIND.pattern}$",
        description="what was done, such as view or purchase; what follows, the service's setting "
        "`kinds` says. None: the state moves on",
    ),
]
Weight = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="how much it counts as popular, at most the service's setting `max_weight`; "
        "none: 1",
    ),
]


def example(**given: JsonValue) -> ConfigDict:
    """A body to try, for the documentation."""
    return ConfigDict(json_schema_extra={"examples": [given]})


class Body(BaseModel):
    """What a caller sends as JSON: no other fields, no values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Interaction(Body):
    """One user interacted with one item."""

    model_config = example(user_id="ann", item_id="50", event_id="ann-50-1")

    user_id: Id
    item_id: Id
    timestamp: Time | None = Field(None, description="when; none: now, by the store's clock")
    event_id: Id | None = Field(
        None, description="applied once however often it is sent; send it with every retry"
    )
    kind: Kind | None = None
    weight: Weight | None = None


class InteractionBatch(Body):
    """Interactions in order; the order of each user's is kept."""

    model_config = example(
        interactions=[{"user_id": "ann", "item_id": "50"}, {"user_id": "ben", "item_id": "181"}]
    )

    interactions: Annotated[list[Interaction], AtMost("max_batch_events")] = Field(min_length=1)


class InteractionResult(BaseModel):
    """What became of an interaction.

    `status`: `applied`; `late` (applied, with its time raised to the user's newest, or put in its
    place before it);
    `unknown_item` (logged; the model skips it until one knows the item); `duplicate` (this
    event_id was there already).
    """

    user_id: str
    item_id: str
    version: int = Field(description="the user's number of interactions up to this one")
    status: Literal["applied", "late", "unknown_item", "duplicate"]
    timestamp: str = Field(description="the time in effect")


class BatchResult(BaseModel):
    """One interaction of a batch: a result, or the problem that kept it out of the log."""

    status: Literal[
        "applied", "late", "unknown_item", "duplicate", "conflict", "rejected", "future", "failed"
    ]
    version: int | None = None
    timestamp: str | None = None
    detail: str | None = None


class BatchResults(BaseModel):
    """A result for each interaction, in the order of the request."""

    results: list[BatchResult]
    accepted: int = Field(description="how many are in the log, duplicates included")


class Reason(BaseModel):
    """An interaction of the user's that moved the model's score of an item."""

    version: int
    item_id: str
    timestamp: str = Field(description="the time in effect")
    contribution: float = Field(
        description="the model's score of the item less what it would be had this interaction "
        "never been"
    )


class LivePart(BaseModel):
    """What has happened since the training did for an item."""

    share: float = Field(
        description="the item's score less what it would be had nothing been counted of the item"
    )
    item_id: str | None = Field(
        None, description="of the user's last items the one that it was had near most, if any"
    )


Path = Literal["model", "live", "popular", "promoted", "cold", "explored"]


@dataclass(slots=True)  # ten of them take a quarter of the time that ten models take
class RecommendedItem:
    item_id: str
    score: float
    path: Annotated[
        Path,
        Field(
            description="what gave it its place; cold: the model, by a vector made for an item "
            "that it was not trained on; live: what has happened since the training, of such an "
            "item or for a user of whom the model knows nothing; explored: it is there to be known "
            "better"
        ),
    ]
    title: str | None = None
    because: Annotated[
        list[Reason] | None,
        Field(
            description="with explain: what moved the model's score most, the largest change "
            "first; none where the model knows nothing of the user"
        ),
    ] = None
    live: Annotated[
        LivePart | None,
        Field(
            description="with explain: what has happened since the training did for it, where that "
            "counted"
        ),
    ] = None
    explored: Annotated[
        bool | None,
        Field(
            description="true: little is known of the item, and it is shown to find out "
            "(explore_share); its score is that of the item after it"
        ),
    ] = None
    attributes: Annotated[dict[str, Any] | None, Field(description=ATTRIBUTES)] = None


class Recommendations(BaseModel):
    """The best items, best first."""

    user_id: str
    items: list[RecommendedItem]
    version: int = Field(description="the number of the user's interactions this answer knows")
    at: AssumedTime = Field(description=AT)
    source: Literal["model", "live", "recent", "popular"] = Field(
        description="the model; where that knows none of the user's interactions, what has "
        "happened since the training (live), or what is popular: recently, or, where too little is "
        "known of that, in training (popular)"
    )
    stale: bool = Field(description=STALE)
    history_truncated: bool = Field(
        description="older interactions were gone when the state was built (history_limit): it is "
        "an approximation"
    )
    model: str = Field(description=MODEL)
    edition: str = Field(description=EDITION)
    next: str | None = Field(
        None, description="`after` of the next page, where the list is paged and goes on"
    )
    warnings: Annotated[list[str] | None, Field(description=WARNINGS)] = None


class User(BaseModel):
    user_id: str
    version: int = Field(description="number of interactions")
    last_time: str = Field(description="time of the newest interaction")
    bytes: int = Field(description="size of the record in the store")
    state_bytes: int = Field(
        description="size of the state in memory, the same for every user and length of history"
    )
    history_truncated: bool = Field(description="the oldest interactions are gone (history_limit)")
    model: str = Field(description=MODEL)
    edition: str = Field(description=EDITION)


class ListedUser(BaseModel):
    user_id: str
    version: int | None = Field(description="number of interactions; null: the record is damaged")
    last_time: str | None = Field(description="time of the newest interaction")


class UserPage(BaseModel):
    """Users, in no order."""

    users: list[ListedUser]
    next: str | None = Field(description="`after` of the next page; none: this was the last")


@dataclass(slots=True)  # as RecommendedItem; a page has 10,000
class LoggedEvent:
    version: int
    item_id: str
    timestamp: Annotated[str, Field(description="the time in effect")]
    given_timestamp: Annotated[str | None, Field(description="the time the caller gave")]
    event_id: str | None
    kind: str | None
    weight: float | None


class HistoryPage(BaseModel):
    """Interactions, oldest first."""

    user_id: str
    events: list[LoggedEvent]
    history_truncated: bool = Field(description="the oldest interactions are gone (history_limit)")
    next: int | None = Field(description="`after` of the next page; none: this was the last")


class Erased(BaseModel):
    user_id: str
    erased: bool = Field(description="false: nothing was known of the user")


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = Field(
        None, description="each wrong field, 20 at most: where it is, and what is wrong with it"
    )
    more_errors: int | None = Field(None, description="how many more there are")
    request_id: str | None = Field(
        None, description="that of the header X-Request-ID: the service's log has it, too"
    )
