"""What interactions are counted as, by their kinds: also those that no rule names."""

from __future__ import annotations

import logging

from model.kinds import KindRules

logger = logging.getLogger(__name__)

MOST_UNNAMED = 20
"""So many kinds without a rule have a label of their own; callers choose what kinds are called."""


class KindLabels(dict[str | None, str]):
    """The label of each kind. A kind that no rule names is logged once, as it is first met."""

    def __init__(self, rules: KindRules) -> None:
        super().__init__({None: "none"} | {kind: kind for kind in rules.named})
        self._rules = rules
        self._most = len(self) + MOST_UNNAMED

    def __missing__(self, kind: str | None) -> str:
        if kind is None or len(self) == self._most:
            return "other"
        self[kind] = kind
        logger.log(
            logging.WARNING if self._rules.named else logging.INFO,
            "interactions of kind %s come, which none of the rules %s names: `*` says what they do",
            kind,
            self._rules,
        )
        return kind
