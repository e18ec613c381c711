"""A command under way, and what becomes of it by each reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from service.store.errors import (
    AcksMissed,
    NodeDown,
    RecordDamaged,
    StoreError,
    StoreUnavailable,
    one_line,
)
from service.store.script import Command, ScriptCall

_PASSING = (ReadOnlyError, TryAgainError, ClusterDownError)  # over once a failover is


@dataclass(slots=True)
class Pending:
    """Attributes:
    answer: its reply in the end, or a StoreError.
    cause: why it was sent again at first, which says most: the last attempt has little time left.
    unsure: it was sent once without an answer, so perhaps carried out.
    """

    command: Command
    answer: Any = None
    waiting: bool = True
    cause: str = ""
    unsure: bool = False

    def take(self, reply: Any, none_answered: bool) -> bool:
        """Takes the reply to an attempt; whether it is to be sent again, and not at once.

        Args:
            none_answered: so did all commands of the attempt end.
        """
        if isinstance(reply, NoScriptError) and isinstance(self.command, ScriptCall):
            # It goes to the very node that lacks it.
            self.command, self.cause = self.command.with_source(), one_line(reply)
            return False
        if isinstance(reply, Exception) and self._is_passing(reply, none_answered):
            self.cause = self.cause or one_line(reply)
            self.unsure |= isinstance(reply, StoreUnavailable) and not isinstance(reply, NodeDown)
            return True
        self.answer, self.waiting = reply, False
        if isinstance(reply, ResponseError):
            self.answer = refusal(reply)
            if self.unsure and not isinstance(self.answer, RecordDamaged):
                self.answer = StoreUnavailable(f"{self.cause}; then {self.answer}")
        return False

    def give_up(self, timeout_s: float) -> None:
        self.answer = StoreUnavailable(f"{self.cause} ({timeout_s:g} s in all)")

    def _is_passing(self, error: Exception, none_answered: bool) -> bool:
        if isinstance(error, ResponseError):
            return isinstance(error, _PASSING) or str(error).startswith(("BUSY ", "NOREPLICAS"))
        # A node of a Cluster that has failed for a while holds nobody up, nor does that of a
        # snapshot, and replicas that are slow are not quicker when asked again.
        ends = isinstance(error, NodeDown | AcksMissed) or self.command[0] == "GET"
        return isinstance(error, StoreUnavailable) and (none_answered or not ends)


def refusal(error: ResponseError) -> StoreError:
    """What a server's refusal comes to."""
    text = one_line(error)
    if text.startswith("DAMAGED"):
        return RecordDamaged(text.removeprefix("DAMAGED").split(" script:")[0].strip())
    return StoreError(f"the store refused: {text}")
