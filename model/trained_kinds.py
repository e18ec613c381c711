"""The kind rules that models were trained by, and those by which they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model.artefact import CONFIG, CONFIG_BYTES, ArtefactError, describe
from model.kinds import KindRules
from model.plain_file import read_plain


class KindsDiffer(ArtefactError):
    """A model was trained by other rules than those it would be used by. One line that shows
    both, and the fix."""


def trained_kinds(folder: Path) -> KindRules | None:
    """What a folder's `config.json` says; nothing else of it is read.

    Raises:
        ArtefactError: it says nothing that this version reads.
    """
    try:
        content = read_plain(folder / CONFIG, CONFIG_BYTES, within=folder)
    except OSError as error:
        raise ArtefactError(
            f"{folder / CONFIG}: {error.strerror}: is it an artefact's folder?"
        ) from None
    return describe(content, folder / CONFIG).kinds


def agreed_kinds(
    told: KindRules | None, trained: Mapping[str, KindRules | None], fix: str
) -> KindRules | None:
    """The rules to use models by: those told or, without, those that they were trained by; None:
    nobody says any.

    Args:
        trained: by what to call the model.
        fix: what to do where they differ.

    Raises:
        KindsDiffer: a model was trained by rules of another meaning.
    """
    chosen, where = told, "here"
    for model, rules in trained.items():
        if chosen is None:
            chosen, where = rules, f"in {model}"
        elif rules is not None and rules.text != chosen.text:
            raise KindsDiffer(
                f"{model} was trained by the kind rules {rules}, and {where} they are {chosen}: "
                f"{fix}"
            )
    return chosen
