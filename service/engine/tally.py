"""What an engine's batches come to, in the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from functools import cached_property

from model.kinds import KindRules
from service.engine.kind_labels import KindLabels
from service.engine.pool import StatePool
from service.engine.snapshots import LOGGED
from service.engine.work import Work
from service.observe import metrics, quality_metrics
from service.observe.registry import Part, count
from service.store.events import NewEvent, Verdict


class Tally:
    """Sums of a batch, which become metrics as a whole: a metric costs more than a sum.

    Args:
        edition: of the model.
        vocabulary: the items that it knows.
    """

    def __init__(self, edition: str, vocabulary: Container[str], kinds: KindRules) -> None:
        self._edition, self._vocabulary, self._kinds = edition, vocabulary, kinds
        self._labels = KindLabels(kinds)
        self._verdicts, self._logged = Counter[Verdict](), Counter[str]()
        self._unknown_items = 0
        sizes = metrics.QUEUE_CAPACITY, metrics.POOL_CAPACITY, metrics.POOL_BYTES
        self._sizes = [Part(gauge) for gauge in sizes]
        self._waiting, self._users = Part(metrics.QUEUE), Part(metrics.POOL_USERS)

    @cached_property
    def _of_model(self) -> metrics.OfModel:
        return metrics.of_model(self._edition)

    def begin(self, max_queue: int, pool: StatePool) -> None:
        """Has everything be exported from now on, what is 0 too."""
        sizes = max_queue, pool.capacity, pool.capacity * pool.layout.nbytes()
        for part, size in zip(self._sizes, sizes, strict=True):
            part.set(size)
        for kind in self._kinds.labels:
            metrics.kinds(kind)
            metrics.outcomes(self._edition, kind)
        self._of_model.users.set(0)
        for known in (True, False):
            self._quality(known)

    def end(self) -> None:
        """The engine is gone, and so is its part of what the process shows."""
        for part in self._sizes:
            part.set(0)
        self.show_waiting(0)
        self.show_users(0)

    def show_waiting(self, requests: int) -> None:
        self._waiting.set(requests)

    def show_users(self, users: int) -> None:
        self._users.set(users)
        self._of_model.users.set(users)

    def count(self, event: NewEvent, verdict: Verdict) -> None:
        """An event that the log has answered."""
        self._verdicts[verdict] += 1
        if verdict in LOGGED:
            self._unknown_items += event.item_id not in self._vocabulary
            self._logged[self._labels[event.kind]] += 1

    def show_lookups(self, users: int, hits: int) -> None:
        count((metrics.POOL_LOOKUPS["hit"], hits), (metrics.POOL_LOOKUPS["miss"], users - hits))

    def show_appends(self) -> None:
        count(
            (metrics.UNKNOWN_ITEMS, self._unknown_items),
            *((metrics.EVENTS[verdict], number) for verdict, number in self._verdicts.items()),
            *((metrics.kinds(kind), number) for kind, number in self._logged.items()),
        )
        self._verdicts.clear()
        self._logged.clear()
        self._unknown_items = 0

    def show(self, work: Work) -> None:
        others = [answer for _, answer in work.answers if answer.source != "model"]
        live = sum(answer.source == "live" for answer in others)
        away = [answer for _, answer in work.answers if answer.away]
        others_away = sum(answer.source != "model" for answer in away)
        unknown = sum(not answer.version and not answer.away for answer in others)
        indexed = sum(answer.ranking.indexed for _, answer in work.answers)
        count(
            (metrics.RECOMMENDATIONS["model"], len(work.answers) - len(others)),
            (metrics.RECOMMENDATIONS["live"], live),
            (metrics.RECOMMENDATIONS["popular"], len(others) - live),
            (metrics.RETRIEVALS["index"], indexed),
            (metrics.RETRIEVALS["exact"], len(work.answers) - len(others) - indexed),
            (metrics.FALLBACKS["unknown_user"], unknown),
            (metrics.FALLBACKS["no_known_item"], len(others) - unknown - others_away),
            (metrics.FALLBACKS["store_away"], others_away),
            (metrics.AWAY["pool"], len(away) - others_away),
            (metrics.AWAY["popular"], others_away),
            (metrics.REBUILDS["snapshot"], work.from_snapshot),
            (metrics.REBUILDS["log"], work.from_log),
            (metrics.APPLIED["step"], work.stepped),
            (metrics.APPLIED["prefill"], work.prefilled),
            (metrics.SNAPSHOTS["unfit"], work.unfit),
            (metrics.SNAPSHOTS["unsound"], work.unsound),
            (self._of_model.recommendations, len(work.answers)),
            (self._of_model.rebuilds, work.from_snapshot + work.from_log),
            (quality_metrics.FAILURES, work.unjudged),
        )
        for one in work.judged:
            self._quality(one.known).count(one.served, one.popular)

    def _quality(self, known: bool) -> quality_metrics.Quality:
        return quality_metrics.quality(self._edition, "known" if known else "new")
