"""What the Dockerfile's last stage says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions(path: Path = ROOT / "Dockerfile") -> Iterator[tuple[str, str]]:
    """Each instruction and what follows it, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


class Image:
    """The image as its last stage leaves it."""

    def __init__(self) -> None:
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []
        self.user = ""
        self.environment: dict[str, str] = {}
        for name, rest in instructions():
            match name:
                case "FROM":
                    self.environment = {}
                case "ENTRYPOINT":
                    self.entrypoint = json.loads(rest)
                case "CMD":
                    self.command = json.loads(rest)
                case "HEALTHCHECK":
                    self.health = json.loads(rest[rest.index("[") :])
                case "USER":
                    self.user = rest
                case "ENV":
                    self.environment |= dict(word.split("=", 1) for word in shlex.split(rest))
