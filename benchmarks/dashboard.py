"""The Grafana dashboard of deploy/: its panels, and their queries as Grafana would send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "tim4rec.json"


@dataclass(frozen=True)
class Dashboard:
    """A dashboard as Grafana's JSON has it."""

    json: dict[str, Any]

    @classmethod
    def read(cls, file: Path = FILE) -> Dashboard:
        return cls(json.loads(file.read_text("utf-8")))

    def panels(self) -> Iterator[dict[str, Any]]:
        """All panels that show something: not the rows."""
        return (panel for panel in self.json["panels"] if panel["type"] != "row")

    def variables(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.json["templating"]["list"]
        return listed

    def filled(self, text: str, scrape_interval_s: float, **chosen: str) -> str:
        """A query or title with its variables filled in.

        Args:
            chosen: values of variables; of others the current one is taken.
        """
        # Grafana takes four scrapes, so that one that failed leaves no gap.
        values = {"__rate_interval": f"{round(4 * scrape_interval_s)}s"}
        for variable in self.variables():
            current = variable["current"]["value"]
            values[variable["name"]] = (
                variable["allValue"] if current == ["$__all"] else str(current)
            )
        values |= chosen
        for name in sorted(values, key=len, reverse=True):
            text = text.replace(f"${name}", values[name])
        return text
