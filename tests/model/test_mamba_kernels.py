"""The parts of mamba-ssm that are imported from under a bare package are there."""

from __future__ import annotations

import sys
from inspect import signature

import pytest

from model.mamba_kernels import import_kernels, missing_package

CHANGED = "mamba-ssm has changed, and model/mamba_kernels.py must follow"


def test_the_kernels_are_where_they_are_looked_for() -> None:
    if (package := missing_package()) is not None:
        pytest.skip(f"{package} not installed: `make kernels` installs the kernels")
    try:
        scan, step = import_kernels()
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{CHANGED}: {error}")
    assert "mamba_ssm" not in sys.modules, "the bare package was left where others import it"
    for kernel, wanted in (
        (scan, ("initial_states", "seq_idx", "return_final_states", "dt_softplus")),
        (step, ("D", "z", "dt_bias", "dt_softplus", "state_batch_indices")),
    ):
        lacking = set(wanted) - set(getattr(kernel, "arg_names", signature(kernel).parameters))
        assert not lacking, f"{CHANGED}: {kernel.__name__} takes no {sorted(lacking)}"
