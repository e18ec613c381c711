"""How the files that `make run` is given are read: options of the commands that read them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from training.table_format import TableFormat


@dataclass(frozen=True)
class Reading:
    """None: not given."""

    columns: str | None = None
    item_columns: str | None = None
    kinds: str | None = None
    encoding: str | None = None
    time_format: str | None = None
    skip_bad_rows: bool = False

    @property
    def of_log(self) -> list[str]:
        return self._options("columns", "encoding", "time_format", "skip_bad_rows")

    @property
    def of_items(self) -> list[str]:
        columns = ["--columns", self.item_columns] if self.item_columns else []
        return [*columns, *self._options("encoding", "skip_bad_rows")]

    @property
    def of_training(self) -> list[str]:
        return [*self.of_log, *self._options("item_columns", "kinds")]

    @property
    def log_form(self) -> TableFormat:
        return TableFormat.parse(self.columns, self.encoding, self.time_format)

    @property
    def item_form(self) -> TableFormat:
        return TableFormat.parse(self.item_columns, self.encoding)

    @property
    def variables(self) -> dict[str, str]:
        """As make is given them."""
        given = {name.upper(): value for name, value in asdict(self).items() if value}
        return {name: "yes" if value is True else value for name, value in given.items()}

    def _options(self, *names: str) -> list[str]:
        found = []
        for name in names:
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            found += [option] if value is True else [option, value] if value else []
        return found


def assigned(values: Mapping[str, str]) -> str:
    """Variables as they are typed."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
