"""What a server says of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from service.store.errors import StoreError

logger = logging.getLogger(__name__)


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
