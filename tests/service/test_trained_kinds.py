"""The kind rules that a model was trained by: a service takes them over, and no model of others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from model.artefact import Artefact, load_artefact, save_artefact
from model.kinds import KindRules
from model.trained_kinds import KindsDiffer
from service.engine.kind_labels import MOST_UNNAMED, KindLabels
from service.models.traffic_split import Variant
from tests.service.conftest import ValkeyServer
from tests.service.model_service import ADMIN, choose, counted, served, shown, taken, until
from tests.service.processes import make_artefact
from tests.service.test_kinds import post

ITEMS = [f"i{n}" for n in range(30)]
RULES, OTHERS = "view:step,*:count", "buy:step,*:count"


def trained(folder: Path, name: str, kinds: str | None, seed: int = 0) -> Artefact:
    made = make_artefact(folder / name, ITEMS, seed)
    rules = None if kinds is None else KindRules.parse(kinds)
    save_artefact(made.folder, made.model, made.items, {}, "a test", None, rules)
    return load_artefact(made.folder)


def test_a_service_goes_by_the_rules_of_its_model(
    tmp_path: Path, valkey: ValkeyServer, run: Any
) -> None:
    one = trained(tmp_path, "one", RULES)

    async def go() -> None:
        async with served(tmp_path, valkey.url) as client:
            await post(client, "i1", 0, "view")
            answer = await client.get("/recommend", params={"user_id": "u"})
            assert answer.json()["model"] == one.identity + KindRules.parse(RULES).suffix
            await post(client, "i2", 1, "buy")
            seen = await client.get("/recommend", params={"user_id": "u", "k": 30})
            returned = {item["item_id"] for item in seen.json()["items"]}
            assert "i1" not in returned
            assert "i2" in returned  # `buy` only counts
            found = await until(client, lambda process: process["base"]["kinds"] == RULES)
            assert found["kinds"] == RULES

    run(go())


def test_other_rules_than_those_of_its_model_are_refused(
    tmp_path: Path, valkey: ValkeyServer, run: Any
) -> None:
    trained(tmp_path, "one", RULES)

    async def go() -> None:
        with pytest.raises(KindsDiffer) as caught:
            async with served(tmp_path, valkey.url, kinds=OTHERS):
                pass
        assert RULES in str(caught.value)
        assert OTHERS in str(caught.value)
        async with served(tmp_path, valkey.url, kinds="other:count,view:step,*:count") as client:
            assert (await client.get("/readyz")).status_code == 200  # they mean the same

    run(go())


def test_a_model_of_other_rules_does_not_take_over(
    tmp_path: Path, valkey: ValkeyServer, run: Any
) -> None:
    one = trained(tmp_path, "one", RULES)
    two = trained(tmp_path, "two", OTHERS, seed=1)
    trained(tmp_path, "plain", None, seed=2)
    trained(tmp_path, "alike", RULES, seed=3)

    async def go() -> None:
        async with served(tmp_path, valkey.url) as client:
            for share in (1, 0.5):
                body = {"model": "two", "share": share}
                refused = await client.post("/admin/model", json=body, headers=ADMIN)
                assert refused.status_code == 422
                detail = refused.json()["detail"]
                assert f"two was trained by the kind rules {OTHERS}" in detail
                assert f"here they are {RULES}" in detail
                assert f"TIM4REC_KINDS={OTHERS}" in detail
            # Set past this process, it is followed by nobody.
            registry = client._transport.app.api.state.services.deployer.registry  # type: ignore[attr-defined]
            before = await registry.read()
            variant = Variant("two", two.identity)
            assert await registry.replace(before, before.promoted(variant, 0))
            await until(client, lambda process: "kind rules" in (process["fault"] or ""))
            assert (await client.get("/readyz")).json()["model"].startswith(one.identity)
            for name in ("plain", "alike"):
                said = await choose(client, name)
                await taken(client, said["version"])
            assert (await shown(client))["kinds"] == RULES

    run(go())


def test_a_kind_without_a_rule_is_counted_under_its_name(
    tmp_path: Path, valkey: ValkeyServer, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, "one", RULES)

    async def go() -> None:
        async with served(tmp_path, valkey.url) as client:
            for hours in range(3):
                await post(client, "i1", hours, "veiw")
            await post(client, "i1", 4, "view")
            assert await counted(client, 'tim4rec_kinds_total{kind="veiw"}') >= 3

    with caplog.at_level(logging.WARNING, "service.engine.kind_labels"):
        run(go())
    said = [record.getMessage() for record in caplog.records if "kind veiw" in record.getMessage()]
    assert len(said) == 1
    assert RULES in said[0]


def test_callers_can_not_make_labels_without_end() -> None:
    labels = KindLabels(KindRules.parse("view:step,buy:step"))
    found = {labels[f"kind{n}"] for n in range(10 * MOST_UNNAMED)}
    assert found == {f"kind{n}" for n in range(MOST_UNNAMED)} | {"other"}
    assert [labels[kind] for kind in (None, "view", "buy", "kind0")] == [
        "none", "view", "buy", "kind0"
    ]  # fmt: skip
