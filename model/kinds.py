"""What an interaction may carry beside its item and its time, for who logs and for who trains."""

from __future__ import annotations

import re

KIND = re.compile(r"[A-Za-z0-9_.-]{1,32}")
"""What a kind of interaction may be called."""

HEAVIEST = 1e9
"""An interaction weighs 0 to this; a service takes less (`max_weight`)."""
