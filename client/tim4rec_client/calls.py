"""The calls of the service, one function each; both clients have them as methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import quote

from . import answers, arguments
from .errors import Unavailable
from .interaction import Interaction
from .retries import Backoff, Call, Request, Steps, with_retries

Time = datetime | float | str
HISTORY_PAGE = 1000


def _call(
    method: str,
    path: str,
    params: Mapping[str, Any] | None = None,
    json: Mapping[str, Any] | None = None,
    user: str | None = None,
) -> Call[Any]:
    request = Request(method, path, params and _given(params), json and _given(json), user)
    return lambda backoff: with_retries(request, backoff)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _segment(name: str, value: str) -> str:
    # Clients resolve "." and ".." themselves.
    return quote(arguments.text(name, value), safe="").replace(".", "%2E")


def _interaction(value: object) -> Interaction:
    if not isinstance(value, Interaction):
        raise TypeError(
            f"an interaction is of type {type(value).__name__}: make an Interaction(user_id, "
            "item_id, ...) of it and keep that, for its event_id makes sending it again safe"
        )
    return value


def post(interaction: Interaction) -> Call[answers.Stored]:
    """Stores one interaction, once, however often it takes to send it.

    Raises:
        TypeError: it is no Interaction.
        Refused: it can't be stored (a wrong field, its event id used for another, too old or too
            new where those are refused).
        Unavailable: unknown whether it was stored; post the same object again.
    """
    one = _interaction(interaction)
    return _call("POST", "/interactions", json=one.body(), user=one.user_id)


def post_all(
    interactions: Iterable[Interaction], *, batch: int = 500
) -> Call[list[answers.BatchResult]]:
    """Stores many, in order, at most `batch` in a request; a result each.

    What fails is sent again. If it still fails when there is no time left (each batch has the time
    of one request), its result and those of all that follow are `failed`: post the same objects
    again.

    Raises:
        Refused: a batch as a whole does not fit; nothing of it or after it was stored.
        TypeError: one is no Interaction; so too.
    """
    if arguments.whole("batch", batch) < 1:
        raise ValueError(f"batch is {batch}; give 1 or more")
    if isinstance(interactions, Interaction | Mapping | str):
        raise TypeError(
            f"interactions is of type {type(interactions).__name__}: give a list of Interaction"
        )

    def steps(backoff: Backoff) -> Steps[list[answers.BatchResult]]:
        results: list[answers.BatchResult] = []
        left, failure = iter(interactions), None
        while part := list(islice(left, batch)):
            if failure is None:
                own, failure = yield from _stored(part, backoff.restarted())
                results += own
            else:
                unsent = _failed(f"not sent, because one before it failed: {failure}")
                results += [unsent] * len(part)
        return results

    return steps


def _stored(
    part: Sequence[Interaction], backoff: Backoff
) -> Steps[tuple[list[answers.BatchResult], Unavailable | None]]:
    results: dict[int, answers.BatchResult] = {}
    places, failure = list(range(len(part))), None
    while places:
        body = {"interactions": [_interaction(part[place]).body() for place in places]}
        try:
            request = Request("POST", "/interactions/batch", None, body)
            answer = yield from with_retries(request, backoff)
            results.update(zip(places, answer["results"], strict=True))
            places = [place for place in places if results[place]["status"] == "failed"]
            if places:
                yield backoff.after(Unavailable(str(results[places[0]]["detail"])))
        except Unavailable as error:
            failure = error
            results.update(dict.fromkeys(places, _failed(str(error))))
            break
    return [results[place] for place in range(len(part))], failure


def _failed(detail: str) -> answers.BatchResult:
    return {"status": "failed", "version": None, "timestamp": None, "detail": detail}


class RecommendationOptions(TypedDict, total=False):
    """What a list may and may not hold; docs/api.md says what each means."""

    exclude: Sequence[str]
    include: Sequence[str]
    category: Sequence[str]
    filter: str
    promote: str
    promote_share: float
    live: bool
    diversity: float
    explain: bool
    reasons: int
    paged: bool
    after: str
    fields: Sequence[str]


_SEVERAL = ("exclude", "include", "category", "fields")


def _checked(options: RecommendationOptions) -> dict[str, Any]:
    given: dict[str, Any] = {**options}
    several = (name for name in _SEVERAL if given.get(name) is not None)
    return given | {name: arguments.texts(name, given[name]) for name in several}


def recommend(
    user_id: str,
    k: int = 10,
    *,
    at: Time | None = None,
    exclude_seen: bool = True,
    allow_stale: bool = False,
    explore: bool = True,
    **options: Unpack[RecommendationOptions],
) -> Call[answers.Recommendations]:
    """The best items for a user, by everything stored before the call.

    Args:
        at: the moment recommended for, or "unknown"; None: now.
        explore: some places may be for items of which little is known.
    """
    asked = {
        "user_id": arguments.text("user_id", user_id),
        "k": arguments.whole("k", k),
        "at": arguments.time("at", at),
        "exclude_seen": exclude_seen,
        "allow_stale": allow_stale,
        "explore": None if explore else False,
        **_checked(options),
    }
    # A URL holds only so much; but what balances load may look into it for the user.
    if options.get("exclude") or options.get("include"):
        return _call("POST", "/recommend", json=asked, user=user_id)
    return _call("GET", "/recommend", asked, user=user_id)


def recommend_session(
    events: Iterable[Interaction | tuple[str, Time | None] | str],
    k: int = 10,
    *,
    at: Time | None = None,
    exclude_seen: bool = True,
    **options: Unpack[RecommendationOptions],
) -> Call[answers.SessionRecommendations]:
    """The best items after these events, of which nothing is stored.

    Args:
        events: item ids, pairs of an item id and a time, or interactions, whose users don't matter.
        at: as of `recommend`.
    """
    if isinstance(events, Interaction | Mapping | str):
        raise TypeError(f"events is of type {type(events).__name__}: give a list of events")
    body = {
        "events": [_session_event(event) for event in events],
        "k": arguments.whole("k", k),
        "at": arguments.time("at", at),
        "exclude_seen": exclude_seen,
        **_checked(options),
    }
    return _call("POST", "/recommend/session", json=body)


def _fields(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else arguments.texts("fields", names)


def _session_event(event: Interaction | tuple[str, Time | None] | str) -> dict[str, Any]:
    if isinstance(event, str):
        return {"item_id": event}
    if isinstance(event, tuple) and len(event) == 2:
        item_id, time = event
        named = {"item_id": arguments.text("item_id", item_id)}
        return named | _given({"timestamp": arguments.time("timestamp", time)})
    if not isinstance(event, Interaction):
        raise TypeError(
            f"an event is of type {type(event).__name__}: give an item id, a pair of an item id "
            "and a time, or an Interaction"
        )
    body = event.body()
    return {name: body[name] for name in ("item_id", "timestamp", "kind") if name in body}


def rank(
    user_id: str,
    item_ids: Iterable[str],
    *,
    at: Time | None = None,
    exclude_seen: bool = False,
    allow_stale: bool = False,
    fields: Sequence[str] | None = None,
) -> Call[answers.RankedItems]:
    """These items in the order in which they fit the user; unknown ones last.

    Args:
        at: as of `recommend`.
    """
    body = {
        "user_id": arguments.text("user_id", user_id),
        "item_ids": arguments.texts("item_ids", item_ids),
        "at": arguments.time("at", at),
        "exclude_seen": exclude_seen,
        "allow_stale": allow_stale,
        "fields": _fields(fields),
    }
    return _call("POST", "/rank", json=body, user=user_id)


def popular(
    window: Literal["recent", "all"] = "recent",
    k: int = 10,
    *,
    fields: Sequence[str] | None = None,
) -> Call[answers.PopularItems]:
    """What everybody interacts with, of late or of all time."""
    params = {"window": window, "k": arguments.whole("k", k), "fields": _fields(fields)}
    return _call("GET", "/popular", params)


def similar(
    item_id: str, k: int = 10, *, fields: Sequence[str] | None = None
) -> Call[answers.SimilarItems]:
    """The items most like one."""
    params = {"k": arguments.whole("k", k), "fields": _fields(fields)}
    return _call("GET", f"/items/{_segment('item_id', item_id)}/similar", params)


def users(
    starting_with: str = "", *, limit: int = 100, after: str | None = None
) -> Call[answers.UserPage]:
    """A page of all users, in no order; it may be empty though `next` says that others follow. The
    client's key has to be an admin key."""
    params = {"starting_with": starting_with, "limit": limit, "after": after}
    return _call("GET", "/users", params)


def user(user_id: str) -> Call[answers.User]:
    """What is kept of a user."""
    return _call("GET", f"/users/{_segment('user_id', user_id)}", user=user_id)


def history(user_id: str, after: int = 0) -> Call[list[answers.LoggedEvent]]:
    """All of a user's interactions after a version, oldest first."""

    path = f"/users/{_segment('user_id', user_id)}/history"

    def steps(backoff: Backoff) -> Steps[list[answers.LoggedEvent]]:
        events: list[answers.LoggedEvent] = []
        following: int | None = after
        while following is not None:
            params = {"after": following, "limit": HISTORY_PAGE}
            page = yield from with_retries(
                Request("GET", path, params, user=user_id), backoff.restarted()
            )
            events += page["events"]
            following = page["next"]
        return events

    return steps


def erase(user_id: str) -> Call[answers.Erased]:
    """Forgets a user. Where it had to be sent again, `erased` may be false though it was done."""
    return _call("DELETE", f"/users/{_segment('user_id', user_id)}", user=user_id)


def item(item_id: str) -> Call[answers.CatalogueItem]:
    """What is known of an item."""
    return _call("GET", f"/items/{_segment('item_id', item_id)}")


def put_item(item_id: str, record: Mapping[str, Any]) -> Call[answers.CatalogueItem]:
    """Sets an item's record: title, categories, attributes, hidden, available_from,
    available_until, similar_to."""
    return _call(
        "PUT", f"/items/{_segment('item_id', item_id)}", json=arguments.fields("record", record)
    )


def put_items(records: Mapping[str, Mapping[str, Any]]) -> Call[answers.ItemsWritten]:
    """Sets the records of many items, by item id, in one request."""
    if not isinstance(records, Mapping):
        raise TypeError(f"records is of type {type(records).__name__}: give a dict, by item id")
    body = {
        "items": [
            {"item_id": item_id, **arguments.fields(f"records[{item_id!r}]", record)}
            for item_id, record in records.items()
        ]
    }
    return _call("POST", "/items/batch", json=body)


def delete_item(item_id: str) -> Call[answers.ItemDeleted]:
    """Removes an item's record."""
    return _call("DELETE", f"/items/{_segment('item_id', item_id)}")


def items(
    q: str = "",
    *,
    category: Sequence[str] = (),
    limit: int = 20,
    after: str | None = None,
    unavailable: bool = False,
    fields: Sequence[str] | None = None,
) -> Call[answers.ItemPage]:
    """A page of items by title, or of those whose titles hold `q`."""
    params = {
        "q": q,
        "category": arguments.texts("category", category) or None,
        "limit": limit,
        "after": after,
        "unavailable": unavailable,
        "fields": _fields(fields),
    }
    return _call("GET", "/items", params)


def ready() -> Call[answers.Ready]:
    """Waits until the service is ready, or there is no time left.

    Raises:
        Unavailable: it is not; the message says why.
    """
    return _call("GET", "/readyz")
