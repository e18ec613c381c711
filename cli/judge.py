"""`tim4rec judge`: may a candidate take the place of the model that is served?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from cli.console import CommandError, out, say
from cli.steps import Kinds, chosen_kinds, read_steps, say_overlap, say_what_was_read
from cli.table_options import AnyTime, Columns, Encoding, TimeFormat
from model.artefact import Artefact, load_artefact
from model.times import iso, parse_time
from training.judge import Contender
from training.judge import judge as judge_by_walk
from training.table_format import TableFormat
from training.verdict import MARGIN, METRICS, Judgement, Verdict

STATUS = {
    Verdict.BETTER: 0,
    Verdict.NOT_WORSE: 0,
    Verdict.WORSE: 3,
    Verdict.BELOW_COUNTING: 3,
    Verdict.UNDECIDED: 4,
}


def judge(
    incumbent: Annotated[Path, typer.Argument(help="The folder of the model that is served.")],
    candidate: Annotated[Path, typer.Argument(help="The folder of the model that may follow it.")],
    log: Annotated[
        Path, typer.Argument(help="All interactions until today, as of train; also an export.")
    ],
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Judge by what came after that: neither may be trained on it.",
            show_default="the end of what the two are trained on",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of the incumbent's NDCG@10 that may be lost."),
    ] = MARGIN,
    kinds: Kinds = None,
    columns: Columns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the judgement there too.")
    ] = None,
) -> None:
    """Say whether a candidate is better than the incumbent, on events that neither has seen.

    Both are asked as a service is, just before each event. Exit status 0: better, or not worse by
    more than the margin. 3: worse, or below what counting alone gives. 4: undecided, for which
    more events are needed. 1 and 2: errors.
    """
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    artefacts = {path: load_artefact(path) for path in (incumbent, candidate)}
    for path, artefact in artefacts.items():
        if not artefact.model.causal:
            raise CommandError(
                f"{path}: a model of the time path `sequence` can't be judged: it has no query at "
                "each interaction"
            )
    since_ms = _since(since, artefacts)
    rules = chosen_kinds(kinds, {str(path): one.kinds for path, one in artefacts.items()})
    interactions = read_steps(log, rules, skip_bad_rows=False, form=form)
    say_what_was_read(log, interactions)
    for path, artefact in artefacts.items():
        say_overlap(log, interactions, artefact.scored_items.ids, path)
    say(f"judged by what came after {iso(since_ms)}")
    found = judge_by_walk(
        interactions,
        Contender.of(artefacts[incumbent]),
        Contender.of(artefacts[candidate]),
        since_ms,
        margin=margin,
    )
    if found.figures:
        out.print(_table(found))
    say(str(found), out)
    if json_file is not None:
        report: dict[str, Any] = found.to_dict() | {
            "since": iso(since_ms),
            "incumbent": artefacts[incumbent].edition,
            "candidate": artefacts[candidate].edition,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(STATUS[found.verdict])


def _since(given: str | None, artefacts: dict[Path, Artefact]) -> int:
    """What comes after it, in ms, neither was trained on."""
    ends = {path: artefact.until_ms for path, artefact in artefacts.items()}
    if given is None:
        for path, end in ends.items():
            if end is None:
                raise CommandError(
                    f"--since is needed: {path} does not say until when it was trained"
                )
        return max(end for end in ends.values() if end is not None)
    try:
        since_ms = parse_time(given)
    except ValueError as error:
        raise CommandError(f"--since: {error}") from None
    for path, end in ends.items():
        if end is not None and end > since_ms:
            raise CommandError(
                f"--since {given}: {path} was trained on what came until {iso(end)}; give that "
                "time or a later one"
            )
    return since_ms


def _table(found: Judgement) -> Table:
    title = f"{found.events:,} events of {found.users:,} users"
    table = Table("", *METRICS, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for policy, figures in found.figures.items():
        table.add_row(policy, *(f"{figures[metric]:.4f}" for metric in METRICS))
    return table
