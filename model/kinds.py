"""What an interaction does, by its kind: moves the state, counts as popular, hides the item."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from functools import reduce
from operator import or_

KIND = re.compile(r"[A-Za-z0-9_.-]{1,32}")
"""What a kind of interaction may be called."""

HEAVIEST = 1e9
"""An interaction weighs 0 to this; a service takes less (`max_weight`)."""

MOST_NAMED = 100
"""So many kinds may have a rule."""

OTHERS = "*"


class Effect(Flag):
    """`STEP`: the state moves on, the item is seen and counts as popular. `COUNT`: it only counts.
    `HIDE`: the item is not given to the user any more. None of them: it is only logged."""

    LOG = 0
    STEP = auto()
    COUNT = auto()
    HIDE = auto()


_EFFECTS = {effect.name.lower(): effect for effect in (*Effect, Effect.LOG) if effect.name}


@dataclass(frozen=True)
class KindRules:
    """The effects of kinds by name, and of those without a rule. No kind at all is a step."""

    named: Mapping[str, Effect] = field(default_factory=dict)
    others: Effect = Effect.STEP

    @classmethod
    def parse(cls, text: str) -> KindRules:
        """Rules such as `view:step,purchase:step+hide,skip:hide,*:count`; `*`: all other kinds.

        Raises:
            ValueError: one of them is no rule; the message says which.
        """
        found: dict[str, Effect] = {}
        for rule in filter(None, map(str.strip, text.split(","))):
            kind, colon, effects = rule.partition(":")
            if not colon or (kind != OTHERS and not KIND.fullmatch(kind)):
                raise ValueError(
                    f"{rule!r} is no rule: give KIND:EFFECT, where a kind has 1 to 32 of "
                    "A-Z a-z 0-9 _ . - and * stands for all others"
                )
            unknown = [effect for effect in effects.split("+") if effect not in _EFFECTS]
            if unknown:
                raise ValueError(
                    f"{rule!r}: {unknown[0]!r} is no effect: give {', '.join(_EFFECTS)}, or "
                    "several with + between"
                )
            if kind in found:
                raise ValueError(f"{kind} has two rules: give one")
            found[kind] = reduce(or_, (_EFFECTS[effect] for effect in effects.split("+")))
        others = found.pop(OTHERS, Effect.STEP)
        if len(found) > MOST_NAMED:
            raise ValueError(f"{len(found)} kinds have a rule: at most {MOST_NAMED} may")
        return cls(found, others)

    def of(self, kind: str | None) -> Effect:
        return Effect.STEP if kind is None else self.named.get(kind, self.others)

    def steps(self, kind: str | None) -> bool:
        return Effect.STEP in self.of(kind)

    def hides(self, kind: str | None) -> bool:
        return Effect.HIDE in self.of(kind)

    def counts(self, kind: str | None) -> bool:
        """Whether it counts as popular, as much as it weighs."""
        return kind is None or bool(self.of(kind) & (Effect.STEP | Effect.COUNT))

    def label(self, kind: str | None) -> str:
        """What it is counted as: itself only where it has a rule."""
        if kind is None:
            return "none"
        return kind if kind in self.named else "other"

    @property
    def labels(self) -> tuple[str, ...]:
        return "none", *self.named, "other"

    @property
    def text(self) -> str:
        """The same for all rules that mean the same: those for other kinds last, and none that is
        like them."""
        rules = {kind: effect for kind, effect in self.named.items() if effect != self.others}
        return self._spelt(rules)

    def __str__(self) -> str:
        """The rules with all kinds that they name, also those that are as all others."""
        return self._spelt(self.named)

    def _spelt(self, rules: Mapping[str, Effect]) -> str:
        names = {effect: name for name, effect in _EFFECTS.items()}

        def spelt(kind: str, effect: Effect) -> str:
            parts = [part for part in _EFFECTS.values() if part and part in effect]
            return f"{kind}:{'+'.join(names[part] for part in parts or [Effect.LOG])}"

        told = [spelt(kind, effect) for kind, effect in sorted(rules.items())]
        return ",".join([*told, spelt(OTHERS, self.others)])

    @property
    def suffix(self) -> str:
        """What the rules add to a model's identity: the same for all that give the same states,
        nothing for those that take every kind for a step."""

        def kept(effect: Effect) -> Effect:
            return effect & (Effect.STEP | Effect.HIDE)

        others = kept(self.others)
        rules = {kind: kept(effect) for kind, effect in self.named.items()}
        rules = {kind: effect for kind, effect in rules.items() if effect != others}
        if not rules and others == Effect.STEP:
            return ""
        text = ",".join(f"{k}:{e.value}" for k, e in sorted({**rules, OTHERS: others}.items()))
        return f"-kinds-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
