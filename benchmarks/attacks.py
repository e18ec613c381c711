"""Attacks on the service, and whether it holds: each bounded in time and count, on loopback only.

    python -m benchmarks.attacks --json runs/attacks.json
    python -m benchmarks.attacks "pipelined, split at every byte" --list
    python -m benchmarks.attacks --url http://127.0.0.1:8000 --pid 1234 --api-key KEY
    python -m benchmarks.attacks --markdown --before before.json --after after.json

Without --url each has a service of its own kind: with keys, without, or one that is easily
overloaded; a model with random weights, a catalogue of `--items`, a store of its own. An attack
ends when the service has taken more than `--most-mb`; a service of our own is killed then.

`--list` says what is promised. `status` is what was answered, how often; `bytes` the largest body
of an answer, `s` the slowest. Meanwhile another process asks GET /livez every 10 ms: `livez` is the
longest that took, and `stall` the same without what was waited for a processor, on a machine with
other work. Memory is the service's own, in MB. It holds if everything was as promised, no stall was
over `--most-stall-ms`, and memory grew by no more than the attack's bound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from h11 import RemoteProtocolError
from rich.table import Table

from benchmarks.hostile import access, framing, holding, inputs, meaning
from benchmarks.hostile.attack import Attack
from benchmarks.hostile.target import Found, Grounds, Kind, Target, grounds
from benchmarks.hostile.watch import Watch
from benchmarks.hostile.wire import Stopped
from cli.console import CommandError, errors_without_traceback, out, say

ATTACKS = [
    attack
    for module in (access, inputs, holding, framing, meaning)
    for attack in module.ATTACKS
]  # fmt: skip
ITEMS = 50_000
MOST_MB = 4000.0
STALL_MS = 50.0
MB = 1e6
FAULTS_KEPT = 10
SHAKEN_S = 2.0


@dataclass(frozen=True)
class Row:
    """One attack. Sizes in bytes and MB, times in seconds and milliseconds; `faults`: what was not
    as promised, the first few."""

    attack: str
    promise: str
    status: str
    bytes: int
    seconds: float
    livez_ms: float
    stall_ms: float
    before_mb: float
    peak_mb: float
    after_mb: float
    held: bool
    faults: Sequence[str]


class Arena:
    """Services to attack: one of each kind that is needed, until it has ended."""

    def __init__(self, own: Grounds, most_mb: float) -> None:
        self._own, self._most = own, most_mb
        self._kind: Kind | None = None
        self._stack = ExitStack()
        self._target: Target
        self._watch: Watch

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def on(self, kind: Kind) -> tuple[Target, Watch]:
        """A running service of this kind, and who watches it."""
        if self._kind != kind or self._target.stop.is_set():
            self._stack.close()
            self._target, server = self._stack.enter_context(self._own.service(kind))
            target = self._target

            def too_much() -> None:
                target.stop.set()
                server.process.kill()

            watch = Watch(server.port, server.process.pid, round(self._most * MB), too_much)
            self._watch = self._stack.enter_context(watch)
            self._kind = kind
        return self._target, self._watch


class Given:
    """The service at a URL, whatever its kind is."""

    def __init__(self, target: Target, pid: int, most_mb: float) -> None:
        self._target = target
        self._watch = Watch(target.port, pid, round(most_mb * MB), target.stop.set)

    def __enter__(self) -> Given:
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()

    def on(self, kind: Kind) -> tuple[Target, Watch]:
        if self._target.stop.is_set():
            raise CommandError("the service has taken more memory than --most-mb: start it again")
        return self._target, self._watch


def measure(attack: Attack, arena: Arena | Given, stall_ms: float = STALL_MS) -> Row:
    """Sends one attack."""
    target, watch = arena.on(attack.on)
    found = Found()
    began = watch.now()
    try:
        attack.run(target, found)
    except Stopped:
        found.expect(False, "stopped: too much memory")
    except (OSError, RemoteProtocolError) as error:
        found.expect(False, f"stopped: {error}")
        target.stop.set()
    seen = watch.since(began)
    grown_mb = (seen.peak - seen.before) / MB
    found.expect(grown_mb <= attack.growth_mb, f"memory grew by {grown_mb:.0f} MB")
    found.expect(seen.stall_s * 1e3 <= stall_ms, f"/livez stood for {seen.stall_s * 1e3:.0f} ms")
    if grown_mb > attack.growth_mb or seen.stall_s > SHAKEN_S:
        target.stop.set()  # what comes next has a service that it has not suffered from
    return Row(
        attack.name,
        attack.promise,
        ", ".join(f"{status} x{n}" if n > 1 else status for status, n in found.statuses.items()),
        found.bytes,
        found.seconds,
        seen.longest_s * 1e3,
        seen.stall_s * 1e3,
        seen.before / MB,
        seen.peak / MB,
        seen.after / MB,
        not found.faults,
        found.faults[:FAULTS_KEPT],
    )


def chosen(names: Iterable[str]) -> list[Attack]:
    """The attacks whose names hold one of these; all, if none is given."""
    names = list(names)
    for name in names:
        if not any(name in attack.name for attack in ATTACKS):
            raise CommandError(f"{name}: no such attack; --list shows all")
    some = [a for a in ATTACKS if not names or any(name in a.name for name in names)]
    return sorted(some, key=lambda attack: ("closed", "late", "open").index(attack.on))


@contextmanager
def arena(
    url: str | None,
    pid: int | None,
    key: str | None,
    admin_key: str | None,
    items: int,
    most: float,
) -> Iterator[Arena | Given]:
    """Services of our own, or the one at `url`."""
    if url is None:
        with grounds(items) as own, Arena(own, most) as arena:
            yield arena
        return
    address = urlsplit(url)
    if address.hostname not in ("127.0.0.1", "localhost") or address.port is None:
        raise CommandError(f"--url {url}: give one of this machine, as http://127.0.0.1:8000")
    if pid is None:
        raise CommandError("--pid: give the number of the service's process")
    with Given(Target(address.port, key, admin_key), pid, most) as given:
        yield given


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Parts of attacks' names; none: all attacks.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A service of yours, on loopback.")] = None,
    pid: Annotated[int | None, typer.Option(help="Its process.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Its key, if it has any.")] = None,
    admin_key: Annotated[str | None, typer.Option(help="Its admin key.")] = None,
    items: Annotated[int, typer.Option(min=6000, help="Size of the catalogue.")] = ITEMS,
    most_mb: Annotated[float, typer.Option(help="Memory at which an attack ends.")] = MOST_MB,
    most_stall_ms: Annotated[float, typer.Option(help="Longest stall that holds.")] = STALL_MS,
    listed: Annotated[bool, typer.Option("--list", help="Only name the attacks.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Add the figures to this file.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/security.md.")
    ] = False,
    before: Annotated[
        Path | None, typer.Option(help="With --markdown: figures to stand beside.")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(help="With --markdown: figures in place of a run.")
    ] = None,
) -> None:
    """Attack the service, and say whether it holds."""
    with errors_without_traceback():
        attacks = chosen(names or ())
        if listed:
            for attack in attacks:
                say(f"{attack.name}: {attack.promise}", out)
            return
        rows: list[Row] = []
        if after is not None:
            rows = _read(after)
        else:
            with arena(url, pid, api_key, admin_key, items, most_mb) as ready:
                for attack in attacks:
                    row = measure(attack, ready, most_stall_ms)
                    rows.append(row)
                    say(f"{'held' if row.held else 'NOT HELD'}: {row.attack}")
                    for fault in row.faults:
                        say(f"  {fault}")
                    if json_file is not None:
                        _write(json_file, row)
    if markdown:
        say(table(rows, _read(before) if before is not None else []), out)
    else:
        _show(rows)
    if not all(row.held for row in rows):
        raise typer.Exit(2)


def _write(file: Path, row: Row) -> None:
    """Adds a row to what the file holds; one of the same attack gives way."""
    held = _read(file) if file.exists() else []
    rows = [*(old for old in held if old.attack != row.attack), row]
    found = {"machine": {"cores": os.cpu_count()}, "attacks": [asdict(one) for one in rows]}
    file.write_text(json.dumps(found, indent=2) + "\n")


def _read(file: Path) -> list[Row]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["attacks"]
    return [Row(**row) for row in found]


def _show(rows: Sequence[Row]) -> None:
    shown = Table("attack", "status", "bytes", "s", "livez ms", "stall ms", "MB before", "peak",
                  "after", "held", box=None)  # fmt: skip
    for row in rows:
        shown.add_row(
            row.attack,
            row.status,
            f"{row.bytes:,}",
            f"{row.seconds:.2f}",
            f"{row.livez_ms:.0f}",
            f"{row.stall_ms:.0f}",
            f"{row.before_mb:.0f}",
            f"{row.peak_mb:.0f}",
            f"{row.after_mb:.0f}",
            "yes" if row.held else "no",
        )
    out.print(shown)


def table(rows: Sequence[Row], before: Sequence[Row]) -> str:
    """The table of docs/security.md: what was measured before beside what is now."""
    lines = [
        "| attack | promised | before: +MB, stall, held | now: +MB, stall, held |",
        "|---|---|---|---|",
    ]
    earlier = {row.attack: row for row in before}
    for row in rows:
        was = earlier.get(row.attack)
        figures = f"{_measured(was)} | {_measured(row)}"
        lines.append(f"| {row.attack} | {row.promise} | {figures} |")
    return "\n".join(lines)


def _measured(row: Row | None) -> str:
    if row is None:
        return ""
    grown = f"+{max(0.0, row.peak_mb - row.before_mb):.0f}"
    return f"{grown}, {row.stall_ms:.0f}, {'yes' if row.held else 'no'}"


if __name__ == "__main__":
    typer.run(main)
