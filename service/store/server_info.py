"""What a server says of itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.store.errors import StoreError

logger = logging.getLogger(__name__)

_REPLICA, _OFFSET = re.compile(r"slave\d+"), re.compile(r"\boffset=(\d+)")
PERSISTENCE = {
    "append": "aof_last_write_status",
    "rewrite": "aof_last_bgrewrite_status",
    "save": "rdb_last_bgsave_status",
}
"""What a server does to be found again after a restart, and its field of how that went last."""


@dataclass(frozen=True)
class Condition:
    """How the servers of a store are, all primaries together.

    Attributes:
        memory_bytes: in use.
        memory_limit_bytes: most that may be; 0: no limit is set.
        failed: of PERSISTENCE, what failed the last time.
        replicas: connected.
        replica_lag_bytes: what the one furthest behind lacks; 0 without any.
    """

    memory_bytes: int
    memory_limit_bytes: int
    failed: frozenset[str]
    replicas: int
    replica_lag_bytes: int


def parse(reply: bytes) -> dict[str, str]:
    """The answer to INFO."""
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def check(name: str, info: Mapping[str, str], replica_acks: int) -> None:
    """Raises StoreError if the server `name` is too old; logs settings that endanger records."""
    version = info.get("redis_version", "0")
    if "valkey_version" not in info and int(version.split(".")[0]) < 7:
        raise StoreError(f"store {name} is Redis {version}; 7 or newer, or Valkey, is needed")
    risks = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        risks.append(
            f"maxmemory-policy is {policy}, so records can vanish under memory pressure; "
            "set it to noeviction"
        )
    replicas = int(info.get("connected_slaves", 0))
    if replicas < replica_acks:
        risks.append(
            f"it has {replicas} replicas, and interactions are acknowledged when {replica_acks} "
            "have them (replica_acks): none will be"
        )
    if info.get("aof_enabled") == "0":
        risks.append(
            "appendonly is off, so accepted interactions are lost when it stops; set appendonly yes"
        )
    for risk in risks:
        logger.warning("store %s: %s", name, risk)


def condition(infos: Sequence[Mapping[str, str]]) -> Condition:
    """By the answers of all primaries to INFO memory, persistence and replication."""
    limits = [int(info.get("maxmemory", 0)) for info in infos]
    return Condition(
        memory_bytes=sum(int(info["used_memory"]) for info in infos),
        memory_limit_bytes=sum(limits) if all(limits) else 0,
        failed=frozenset(
            part
            for part, field in PERSISTENCE.items()
            if any(info.get(field, "ok") != "ok" for info in infos)
        ),
        replicas=sum(int(info.get("connected_slaves", 0)) for info in infos),
        replica_lag_bytes=max(lag for info in infos for lag in _lags(info)),
    )


def _lags(info: Mapping[str, str]) -> list[int]:
    """What each replica of a primary lacks, in bytes, and 0."""
    replicas = [text for name, text in info.items() if _REPLICA.fullmatch(name)]
    offsets = [int(found[1]) for text in replicas if (found := _OFFSET.search(text))]
    return [0, *(max(0, int(info["master_repl_offset"]) - offset) for offset in offsets)]
