"""A log, as `tim4rec check` tells of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from cli.steps import several_kinds, steps_of, suggested_rules
from cli.table_head import TableHead
from model.kinds import KindRules
from model.times import iso
from training.ids import doubles
from training.interactions import Log, read_log
from training.log_summary import DAY_MS, CoreLoss, LogSummary
from training.table_files import OLDER_ENCODING, is_export, wrongly_encoded
from training.table_format import TableFormat
from training.tables import InputError, describe_bad_rows

REQUIRED = ("user_id", "item_id", "timestamp")
READ = (*REQUIRED, "kind", "weight", "rating")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """kinds: rules; None: none are given. core: fewest interactions of a user and of an item."""

    kinds: KindRules | None
    core: int
    skip_bad_rows: bool


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """columns: of the file, and how each is read. frame: the rows that would be trained on; None:
    there are none, as `refusals` say. options: of `tim4rec train`, those that it needs."""

    path: Path
    columns: dict[str, str]
    log: Log | None
    summary: LogSummary | None
    core: CoreLoss | None
    frame: pl.DataFrame | None
    refusals: list[str]
    options: list[str]

    @classmethod
    def read(cls, head: TableHead, form: TableFormat, chosen: TrainOptions) -> CheckedLog:
        path, refusals = head.path, list[str]()
        near = form
        try:
            form.picked(path, head.names, REQUIRED, ("kind", "weight"))
        except InputError as error:
            refusals.append(str(error))
            near = form.completed(head.names, REQUIRED) or form
        columns = _columns(head, near)
        options = _options(near, chosen)
        try:
            log = read_log(path, skip_bad_rows=True, kinds=True, form=replace(near, any_time=True))
        except InputError as error:
            refused = refusals or [str(error)]
            return cls(path, columns, None, None, None, None, refused, options)
        wrong = wrongly_encoded(log.bad_rows)
        if wrong is not None and near.encoding is None:
            refusals.append(f"{path}: {wrong}")
            near = replace(near, encoding=OLDER_ENCODING)
            options = _options(near, chosen)
            log = read_log(path, skip_bad_rows=True, kinds=True, form=replace(near, any_time=True))
        summary = LogSummary.of(log.frame)
        fault = summary.span.early_fault or summary.span.late_fault
        implausible = fault is not None and not (form.any_time or is_export(path))
        if implausible:
            refusals.append(f"{path}: {fault}")
        if log.bad_row_count and not chosen.skip_bad_rows:
            refusals.append(f"{path}: {log.bad_row_count} rows can't be read; see above")
            options.append("--skip-bad-rows")
        frame, rules = log.frame, chosen.kinds
        suggested = None if rules is not None else suggested_rules(frame["kind"])
        if suggested is not None and not is_export(path):
            refusals.append(f"{path}: {several_kinds(frame['kind'])}")
            options += ["--kinds", suggested]
            rules = KindRules.parse(suggested)
        if rules is not None:
            frame = steps_of(frame, rules)
        core = CoreLoss.of(frame, chosen.core, chosen.core)
        if core.rows[0] == core.rows[1]:
            refusals.append(
                f"{path}: no interactions are left in the {chosen.core}-core: use a smaller --core"
            )
        mend_first = implausible or core.rows[0] == core.rows[1]
        taken = None if mend_first else frame
        return cls(path, columns, log, summary, core, taken, refusals, options)

    def lines(self) -> list[str]:
        found, log = self.summary, self.log
        lines = [f"columns: {_listed(self.columns)}"]
        if found is None or log is None or self.core is None:
            return [f"{self.path}: {line}" for line in lines]
        if log.bad_row_count:
            listed = describe_bad_rows(log.bad_rows, log.bad_row_count)
            lines.append(f"{log.bad_row_count:,} rows can't be read:\n{listed}")
        lines += [
            f"{found.rows:,} interactions of {found.users:,} users with {found.items:,} items, "
            f"{found.span}",
            *log.notes,
            *_of_times(found),
            *_of_kinds(found),
            *_suspicious(found),
            str(self.core),
        ]
        lines += [text for name in ("item_id", "user_id") if (text := doubles(log.frame[name]))]
        return [f"{self.path}: {line}" for line in lines]

    def to_dict(self) -> dict[str, Any]:
        log = self.log
        return {
            "file": str(self.path),
            "columns": self.columns,
            "notes": [] if log is None else log.notes,
            "bad_rows": 0 if log is None else log.bad_row_count,
            "first_bad_rows": [] if log is None else [asdict(row) for row in log.bad_rows],
            "summary": None if self.summary is None else _plain(self.summary),
            "core": None if self.core is None else asdict(self.core),
            "options": self.options,
        }


def _plain(found: LogSummary) -> dict[str, Any]:
    values = asdict(found)
    values["kinds"] = {kind or "": count for kind, count in found.kinds.items()}
    return values


def _columns(head: TableHead, form: TableFormat) -> dict[str, str]:
    found = {}
    for there, here in zip(head.names, form.renamed(head.names), strict=True):
        if here == "timestamp":
            found[there] = f"timestamp: {head.times_in_words(there, form.time_format)}"
        else:
            found[there] = here if here in READ else "not used"
    return found


def _listed(columns: dict[str, str]) -> str:
    parts = [name if name == said else f"{name} ({said})" for name, said in columns.items()]
    return ", ".join(parts)


def _options(form: TableFormat, chosen: TrainOptions) -> list[str]:
    given = [] if chosen.kinds is None else ["--kinds", str(chosen.kinds)]
    if form.columns:
        given += ["--columns", form.pairs]
    for option, value in (("--encoding", form.encoding), ("--time-format", form.time_format)):
        given += [] if value is None else [option, value]
    given += ["--any-time"] if form.any_time else []
    return given + (["--skip-bad-rows"] if chosen.skip_bad_rows else [])


def _of_times(found: LogSummary) -> list[str]:
    lines = [
        f"no interaction for {(gap.to_ms - gap.from_ms) / DAY_MS:,.1f} days, from "
        f"{iso(gap.from_ms)} to {iso(gap.to_ms)}"
        for gap in found.gaps
        if gap.to_ms - gap.from_ms >= DAY_MS
    ]
    if found.whole_days:
        lines.append("all times are whole days: times of the day would tell the model more")
    if found.tied:
        lines.append(
            f"{found.tied:,} rows of {found.tied_users:,} users have the time of another one of "
            "the same user: their order is that of the file"
        )
    return lines


def _of_kinds(found: LogSummary) -> list[str]:
    if not any(found.kinds):
        return []
    listed = ", ".join(f"{kind or 'without'} {rows:,}" for kind, rows in found.kinds.items())
    return [f"kinds: {listed}"]


def _suspicious(found: LogSummary) -> list[str]:
    lines = []
    if found.repeats:
        lines.append(f"{found.repeats:,} rows repeat an earlier one exactly: exported twice?")
    if found.moment is not None and not found.whole_days:
        at, rows = found.moment
        lines.append(
            f"{rows:,} rows ({rows / found.rows:.0%}) have the same time, {iso(at)}: that of a job?"
        )
    lines += [
        f"user {user.user_id!r} has {user.rows:,} interactions ({user.rows / found.rows:.0%}), up "
        f"to {user.busiest:,} in a day: a bot, or everybody who is not signed in?"
        for user in found.busy
    ]
    if found.busy_users > len(found.busy):
        lines.append(f"and {found.busy_users - len(found.busy):,} more users with so many")
    return lines
