"""What the service answers, as the JSON objects that they are; docs/api.md says what each means."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Source = Literal["model", "live", "recent", "popular"]


class Stored(TypedDict):
    user_id: str
    item_id: str
    version: int
    status: Literal["applied", "late", "unknown_item", "duplicate"]
    timestamp: str


class BatchResult(TypedDict):
    """`failed`: not known to be stored; everything else is final."""

    status: Literal[
        "applied", "late", "unknown_item", "duplicate", "conflict", "rejected", "future", "failed"
    ]
    version: int | None
    timestamp: str | None
    detail: str | None


class Reason(TypedDict):
    version: int
    item_id: str
    timestamp: str
    contribution: float


class LivePart(TypedDict):
    share: float
    item_id: NotRequired[str]


class RecommendedItem(TypedDict):
    item_id: str
    score: float
    path: str
    title: NotRequired[str]
    because: NotRequired[list[Reason]]
    live: NotRequired[LivePart]
    explored: NotRequired[bool]
    attributes: NotRequired[dict[str, Any]]


class Recommendations(TypedDict):
    user_id: str
    items: list[RecommendedItem]
    version: int
    at: str | None
    source: Source
    stale: bool
    history_truncated: bool
    model: str
    edition: str
    next: NotRequired[str]
    warnings: NotRequired[list[str]]


class SessionRecommendations(TypedDict):
    items: list[RecommendedItem]
    at: str | None
    source: Source
    unknown_items: int
    model: str
    edition: str
    next: NotRequired[str]
    warnings: NotRequired[list[str]]


class RankedItem(TypedDict):
    item_id: str
    known: bool
    score: NotRequired[float]
    title: NotRequired[str]
    attributes: NotRequired[dict[str, Any]]


class RankedItems(TypedDict):
    user_id: str
    items: list[RankedItem]
    version: int
    at: str | None
    source: Source
    stale: bool
    history_truncated: bool
    model: str
    edition: str
    warnings: NotRequired[list[str]]


class SimilarItem(TypedDict):
    item_id: str
    score: float
    title: NotRequired[str]
    attributes: NotRequired[dict[str, Any]]


class SimilarItems(TypedDict):
    item_id: str
    items: list[SimilarItem]
    model: str
    edition: str
    warnings: NotRequired[list[str]]


class PopularItem(TypedDict):
    item_id: str
    count: float
    title: NotRequired[str]
    attributes: NotRequired[dict[str, Any]]


class PopularItems(TypedDict):
    items: list[PopularItem]
    source: Literal["all", "recent", "training"]
    as_of: str
    warnings: NotRequired[list[str]]


class User(TypedDict):
    user_id: str
    version: int
    last_time: str
    bytes: int
    state_bytes: int
    history_truncated: bool
    model: str
    edition: str


class ListedUser(TypedDict):
    """`version`, `last_time`: None where the record is damaged."""

    user_id: str
    version: int | None
    last_time: str | None


class UserPage(TypedDict):
    users: list[ListedUser]
    next: str | None


class LoggedEvent(TypedDict):
    version: int
    item_id: str
    timestamp: str
    given_timestamp: str | None
    event_id: str | None
    kind: str | None
    weight: float | None


class Erased(TypedDict):
    user_id: str
    erased: bool


class _Item(TypedDict):
    item_id: str
    title: str | None
    categories: list[str]
    available: bool
    known: bool


class ListedItem(_Item):
    attributes: NotRequired[dict[str, Any]]


class CatalogueItem(_Item):
    recorded: bool
    attributes: dict[str, Any]
    hidden: bool
    available_from: str | None
    available_until: str | None
    similar_to: list[str]


class ItemPage(TypedDict):
    items: list[ListedItem]
    next: str | None
    warnings: NotRequired[list[str]]


class ItemsWritten(TypedDict):
    written: int


class ItemDeleted(TypedDict):
    item_id: str
    deleted: bool


class Ready(TypedDict):
    status: str
    model: str
