"""What an engine's waves come to, in the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from service.engine.batch_runner import Work
from service.observe import metrics
from service.store.event_log import Verdict


class Tally:
    """Sums of a wave, which becomes metrics as a whole: a metric costs more than a sum.

    Args:
        identity: of the model.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self.verdicts, self.kinds = Counter[Verdict](), Counter[str]()
        self.unknown_items = 0

    @cached_property
    def of_model(self) -> metrics.OfModel:
        return metrics.of_model(self._identity)

    def begin(self, kinds: Iterable[str]) -> None:
        """Has everything be exported from now on, what is 0 too."""
        for kind in kinds:
            metrics.kinds(kind)
            metrics.outcomes(self._identity, kind)
        self.of_model.users.set(0)

    def show_lookups(self, users: int, hits: int) -> None:
        metrics.count(
            (metrics.POOL_LOOKUPS["hit"], hits), (metrics.POOL_LOOKUPS["miss"], users - hits)
        )

    def show_appends(self) -> None:
        metrics.count(
            (metrics.UNKNOWN_ITEMS, self.unknown_items),
            *((metrics.EVENTS[verdict], number) for verdict, number in self.verdicts.items()),
            *((metrics.kinds(kind), number) for kind, number in self.kinds.items()),
        )
        self.verdicts.clear()
        self.kinds.clear()
        self.unknown_items = 0

    def show(self, work: Work) -> None:
        popular = [answer for _, answer in work.answers if answer.source != "model"]
        away = [answer for _, answer in work.answers if answer.away]
        popular_away = sum(answer.source != "model" for answer in away)
        unknown = sum(not answer.version and not answer.away for answer in popular)
        indexed = sum(answer.ranking.indexed for _, answer in work.answers)
        metrics.count(
            (metrics.RECOMMENDATIONS["model"], len(work.answers) - len(popular)),
            (metrics.RECOMMENDATIONS["popular"], len(popular)),
            (metrics.RETRIEVALS["index"], indexed),
            (metrics.RETRIEVALS["exact"], len(work.answers) - len(popular) - indexed),
            (metrics.FALLBACKS["unknown_user"], unknown),
            (metrics.FALLBACKS["no_known_item"], len(popular) - unknown - popular_away),
            (metrics.FALLBACKS["store_away"], popular_away),
            (metrics.AWAY["pool"], len(away) - popular_away),
            (metrics.AWAY["popular"], popular_away),
            (metrics.REBUILDS["snapshot"], work.from_snapshot),
            (metrics.REBUILDS["log"], work.from_log),
            (metrics.APPLIED["step"], work.stepped),
            (metrics.APPLIED["prefill"], work.prefilled),
            (metrics.SNAPSHOTS["unfit"], work.unfit),
            (metrics.SNAPSHOTS["unsound"], work.unsound),
            (self.of_model.recommendations, len(work.answers)),
            (self.of_model.rebuilds, work.from_snapshot + work.from_log),
        )
