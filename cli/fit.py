"""`tim4rec live fit`: an artefact's mixture fitted anew, as the log goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, out, say
from cli.steps import Kinds, chosen_kinds, read_steps, say_what_was_read
from cli.table_options import AnyTime, Columns, Encoding, TimeFormat
from model.artefact import CARD, load_artefact, save_artefact
from model.times import iso, parse_time
from training.mixture import LEAST_EVENTS, fit_mixture
from training.table_format import TableFormat


def fit(
    artefact: Annotated[Path, typer.Argument(help="A trained model's folder.")],
    log: Annotated[
        Path, typer.Argument(help="Interactions from before the training until today, as of train.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where it goes.", show_default="ARTEFACT"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Fit on what came from then on: the model must not be trained on it.",
            show_default="the end of what the model is trained on",
        ),
    ] = None,
    kinds: Kinds = None,
    columns: Columns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    seed: Annotated[int, typer.Option(help="Same seed, same mixture.")] = 0,
) -> None:
    """Fit how an artefact's scores and the live evidence join, on what came after its training.

    The model stays as it is, and so do all states: services take the new mixture over by
    `POST /admin/model`. On Amazon Beauty a mixture fitted anew every five weeks brings a quarter
    more hits than the first one kept.
    """
    found = load_artefact(artefact)
    if not found.model.causal:
        raise CommandError(f"{artefact}: a model of the time path `sequence` has no mixture")
    begin = _since(since, found.core_until_ms)
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    rules = chosen_kinds(kinds, {str(artefact): found.kinds})
    interactions = read_steps(log, rules, skip_bad_rows=False, form=form)
    say_what_was_read(log, interactions)
    mixture = fit_mixture(interactions, found.model, found.scored_items.ids, begin, seed=seed)
    if mixture is None:
        raise CommandError(
            f"{log}: fewer than {LEAST_EVENTS} interactions from {iso(begin)} on are with items "
            "that could be foreseen: too few to fit a mixture on; nothing was changed"
        )
    card = (artefact / CARD).read_text(encoding="utf-8")
    metrics = found.metrics | {"mixture": {"since": iso(begin), "seed": seed}}
    target = folder or artefact
    save_artefact(target, found.model, found.items, metrics, card, mixture, found.kinds)
    say(f"{target}: mixture fitted on what came from {iso(begin)} on", out)


def _since(given: str | None, until_ms: int | None) -> int:
    if given is not None:
        try:
            return parse_time(given)
        except ValueError as error:
            raise CommandError(f"--since: {error}") from None
    if until_ms is None:
        raise CommandError("--since is needed: the artefact does not say until when it was trained")
    return until_ms + 1
