"""Which model a deployment answers by, and how long its models are kept."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from service.models.deployment import Deployment
from service.models.served_model import ServedModel
from service.models.traffic_split import TrafficSplit, Variant


def model(identity: str) -> ServedModel:
    return cast(ServedModel, SimpleNamespace(artefact=SimpleNamespace(identity=identity)))


A, B = model("a"), model("b")


def test_a_user_is_answered_as_the_split_says() -> None:
    split = TrafficSplit(trial=Variant("model b", "b"), share=0.5)
    deployment = Deployment(split, A, B)
    users = [f"user{n}" for n in range(200)]
    assert [deployment.of(user) is B for user in users] == list(map(split.tries, users))
    assert {deployment.of(user) is B for user in users} == {True, False}
    assert all(Deployment(TrafficSplit(), A).of(user) is A for user in users)


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
