"""Which model a deployment answers by, and how long its models are kept."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from service.feedback.trial_counts import Arm
from service.models.deployment import Deployment
from service.models.served_model import ServedModel
from service.models.traffic_split import TrafficSplit, Variant, segment

A, B, C = (cast(ServedModel, object()) for _ in range(3))


def test_a_user_is_answered_as_the_split_says() -> None:
    split = TrafficSplit().tried(Variant("model b", "b"), 0.5, False, 0)
    split = split.tried(Variant("model c", "c"), 0.2, False, 0)
    deployment = Deployment(split, A, (B, C))
    users = [f"user{n}" for n in range(200)]
    of = dict.fromkeys(split.trials[0].segments, B) | dict.fromkeys(split.trials[1].segments, C)
    assert [deployment.of(user) for user in users] == [of.get(segment(u), A) for u in users]
    assert {deployment.of(user) for user in users} == {A, B, C}
    assert all(Deployment(TrafficSplit(), A).of(user) is A for user in users)
    b, c = (trial.token for trial in split.trials)
    assert deployment.arms(A) == (Arm(b, "base"), Arm(c, "base"))
    assert deployment.arms(B) == (Arm(b, "trial"),)
    # A process may have been started with what is on trial: there is nothing to compare there.
    deployment = Deployment(split, A, (A, C))
    assert deployment.arms(A) == (Arm(c, "base"),)


def test_a_deployment_is_left_when_its_last_request_is(run: Any) -> None:
    async def go() -> None:
        deployment = Deployment(TrafficSplit(), A)
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
