"""The keys of the users' records.

Layout (`<ns>` a namespace, users percent-encoded):

    <ns>:u:<user>          hash    n           version: events accepted so far
                                   e<k>        event k: uid 8 | effective time 8 | what was given
                                   ic<id>      version of the event with this event_id
                                   iu<uid>     version of the event without one
                                   o           version of the oldest event kept, if it is not 1
    <ns>:s:<model>:<user>  string  snapshot of a model's state (opaque here)
    <ns>:models            set     the models that have written snapshots
    <ns>:erased            stream  users erased of late, newest last
    <ns>:backup            string  the store's clock, ms, before the last whole backup was begun
    <ns>:restoring         string  there while a backup is being loaded
"""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from service.store.errors import InvalidRequest


class RecordKeys:
    """Those of one namespace. Raises InvalidRequest where a user's or model's name is none."""

    def __init__(self, namespace: str) -> None:
        self.namespace = quote(namespace, safe="")
        self.records = f"{self.namespace}:u:"
        self.models, self.erased = f"{self.namespace}:models", f"{self.namespace}:erased"
        self.backup, self.restoring = f"{self.namespace}:backup", f"{self.namespace}:restoring"

    def record(self, user_id: str) -> str:
        return self.records + quote(encoded("user_id", user_id), safe="")

    def starting_with(self, users: str) -> str:
        """What the keys of all users begin with whose ids begin so."""
        return self.records + quote(users, safe="")

    def user_of(self, record: bytes) -> str:
        return unquote_to_bytes(record[len(self.records) :]).decode()

    def snapshot(self, model: str, user_id: str) -> str:
        names = encoded("model", model), encoded("user_id", user_id)
        return ":".join((f"{self.namespace}:s", *(quote(name, safe="") for name in names)))


def encoded(field: str, value: str) -> bytes:
    """Text as it is stored. Raises InvalidRequest if it is empty or not valid Unicode."""
    try:
        stored = value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{field} {value!a} contains half a surrogate pair; send valid Unicode"
        ) from None
    if not stored:
        raise InvalidRequest(f"{field} is empty")
    return stored
