"""Who is answered by which of two models, and how long a model is kept."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models.deployment import Deployment
from service.models.served_model import ServedModel
from tests.depth import examples


def model(identity: str) -> ServedModel:
    return cast(ServedModel, SimpleNamespace(artefact=SimpleNamespace(identity=identity)))


A, B, C = model("a"), model("b"), model("c")
USERS = [f"user{n}" for n in range(20_000)]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_trial_gets_its_share(share: float) -> None:
    deployment = Deployment(A, B, share)
    part = sum(deployment.of(user) is B for user in USERS) / len(USERS)
    assert part == pytest.approx(share, abs=0.01)  # three standard deviations


@settings(max_examples=examples(25))
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_moves_nobody_back(user: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert Deployment(A, B, small).of(user) is A or Deployment(A, B, large).of(user) is B
    assert Deployment(A, B, one).of(user) is Deployment(A, B, one).of(user)
    assert Deployment(A, B, 0).of(user) is A
    assert Deployment(A).of(user) is A


def test_another_trial_mixes_users_anew() -> None:
    first = [user for user in USERS if Deployment(A, B, 0.1).of(user) is B]
    both = sum(Deployment(A, C, 0.1).of(user) is C for user in first)
    assert both / len(first) == pytest.approx(0.1, abs=0.03)


def test_a_deployment_is_left_when_its_last_request_is(run: Any) -> None:
    async def go() -> None:
        deployment = Deployment(A)
        deployment.hold()
        deployment.hold()
        left = asyncio.create_task(deployment.retire())
        await asyncio.sleep(0)
        deployment.release()
        await asyncio.sleep(0)
        assert not left.done()
        deployment.release()
        await asyncio.wait_for(left, 1)
        await asyncio.wait_for(deployment.retire(), 1)

    run(go())
