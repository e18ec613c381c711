"""Going back to what was served before."""

from __future__ import annotations

from learning.admin import Admin
from learning.journal import Journal, newest, now
from learning.serving import go_back, gone_back
from model.journal import Entry


class RollbackError(Exception):
    """There is nothing to go back to. One line."""


async def roll_back(admin: Admin, journal: Journal, to: str | None) -> str:
    """Undoes the last change of the learner: ends its trial, or has everybody go back to the model
    before; `to`: to this one.

    Returns:
        what is now so.

    Raises:
        RollbackError, AdminError, ArtefactStoreError, OSError
    """
    served, entries = await admin.served(), journal.entries()
    on_trial = [one.model for one in entries if one.what == "trial" and one.model in served.trials]
    if to is None and on_trial:
        name = on_trial[-1]
        assert name is not None
        await admin.end_trial(name)
        journal.append(Entry(now(), "rolled back", model=name, reason="was on trial"))
        return f"{name} is no longer on trial"
    target = to
    if to is None:
        if served.base is None:
            raise RollbackError(
                "no model is set: the service serves what it was started with; give --to NAME"
            )
        promoted = newest(entries, "promoted", model=served.base)
        if promoted is None:
            raise RollbackError(
                f"the journal doesn't say what was served before {served.base}: give --to NAME"
            )
        target = promoted.replaced
    if target == served.base:
        raise RollbackError(f"everybody has {target} already")
    await go_back(admin, target)
    journal.append(Entry(now(), "rolled back", model=served.base, reason=gone_back(target)))
    shown = target or "what the service was started with"
    return f"everybody has {shown} now, and {served.base or 'what was started'} no more"
