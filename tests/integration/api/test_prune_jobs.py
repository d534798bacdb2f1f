"""Pruning jobs as they are asked for: what is checked before a worker sees them."""

from typing import Any

import pytest

from tests.integration.api.house import House

UNITS = {
    "groups": [{"name": "conv1", "kind": "channels", "units": 16}],
    "groups_left_out": 0,
    "pinned": [{"operator": "linear", "node": "fc", "reason": "the network's output", "channels": 10, "tensors": []}],
    "pinned_left_out": 0,
    "floor": {"parameters": 7775, "macs": 953000, "bytes": 31200},
}


def request(house: House, dataset: str | None = None, **config: Any) -> dict[str, Any]:
    config.setdefault("target", {"macs": 0.25})
    return {
        "type": "prune",
        "model": house.model(units=UNITS),
        "dataset": dataset or house.dataset(),
        "config": config,
    }


def test_a_pruning_job_is_accepted_with_every_default_filled_in(house: House) -> None:
    answer = house.ann.post("/v1/jobs", json=request(house))
    assert answer.status_code == 201, answer.text
    config = answer.json()["spec"]["config"]
    assert config["criterion"]["name"] == "output_kl"
    assert config["schedule"] == {"name": "interleaved", "step": 0.15, "max_group_share": 0.3}
    assert config["refit"] == {"examples": 2000, "ridge": "auto"}


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"target": {}}, "/config/target"),
        ({"target": {"macs": 1.5}}, "/config/target/macs"),
        ({"target": {"macs": 0.5, "params": 0.5}}, "/config/target"),
        ({"criterion": {"name": "magic"}}, "/config/criterion"),
        ({"criterion": {"mode": "wrong"}}, "/config/criterion/mode"),
        ({"schedule": {"step": 0}}, "/config/schedule/step"),
        ({"refit": {"ridge": -1}}, "/config/refit"),
        ({"round_to": 3}, "/config/round_to"),
        ({"keep": {"nothing": 3}}, "/config/keep"),
        ({"controls": ["scratch"]}, "/config"),
        ({"allocation": "by_feeling"}, "/config/allocation"),
    ],
)
def test_a_wrong_field_is_pointed_at(house: House, config: dict[str, Any], pointer: str) -> None:
    answer = house.ann.post("/v1/jobs", json=request(house, **config))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)


def test_a_target_below_the_floor_is_refused_with_what_pins_the_rest(house: House) -> None:
    body = request(house, target={"macs": 0.05})
    problem = house.ann.post("/v1/jobs", json=body).json()
    assert problem["status"] == 422
    assert problem["errors"][0]["pointer"] == "/config/target/macs"
    assert "0.1 are left" in problem["detail"]
    assert "fc (linear): 10 channels" in problem["detail"]


def test_an_absolute_target_is_judged_by_the_models_own_cost(house: House) -> None:
    within = house.ann.post("/v1/jobs", json=request(house, target={"params": {"absolute": 10_000}}))
    below = house.ann.post("/v1/jobs", json=request(house, target={"params": {"absolute": 7_000}}))
    above = house.ann.post("/v1/jobs", json=request(house, target={"params": {"absolute": 80_000}}))
    assert within.status_code == 201
    assert below.status_code == 422
    assert "already" in above.json()["detail"]


def test_only_asking_tells_how_far_pruning_can_go(house: House) -> None:
    body = request(house, target={"macs": 0.05})
    told = house.ann.post("/v1/jobs?validate_only=true", json=body).json()
    assert (told["valid"], told["reachable"]) == (False, False)
    assert told["floor"] == pytest.approx({"macs": 0.1, "params": 0.1, "bytes": 0.1}, abs=1e-3)
    assert told["pinned"] == ["fc (linear): 10 channels, the network's output"]
    body["config"]["target"] = {"macs": 0.5}
    told = house.ann.post("/v1/jobs?validate_only=true", json=body).json()
    assert (told["valid"], told["reachable"]) == (True, True)
    assert house.ann.get("/v1/jobs").json()["items"] == []


def test_nothing_is_known_of_the_reach_while_the_model_is_inspected(house: House) -> None:
    body = request(house) | {"model": house.model(ready=False)}
    told = house.ann.post("/v1/jobs?validate_only=true", json=body).json()
    assert (told["reachable"], told["floor"]) == (None, None)


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"criterion": {"name": "taylor"}}, "/config/criterion/name"),
        ({"criterion": {"name": "loss_delta"}}, "/config/criterion/name"),
        ({"target": {"max_accuracy_drop": 0.01}}, "/config/target/max_accuracy_drop"),
        ({"recovery": {"objective": {"alpha": 0.5}}}, "/config/recovery/objective/alpha"),
        ({"controls": ["taylor"]}, "/config/controls"),
    ],
)
def test_what_needs_labels_is_refused_without_them(house: House, config: dict[str, Any], pointer: str) -> None:
    unlabelled = house.dataset(labelled=False, num_classes=None)
    answer = house.ann.post("/v1/jobs", json=request(house, unlabelled, **config))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_everything_else_runs_on_unlabelled_data(house: House) -> None:
    unlabelled = house.dataset(labelled=False, num_classes=None)
    answer = house.ann.post("/v1/jobs", json=request(house, unlabelled, recovery={}))
    assert answer.status_code == 201, answer.text


def test_the_literal_starting_formula_comes_with_a_warning(house: House) -> None:
    answer = house.ann.post("/v1/jobs", json=request(house, criterion={"name": "output_entropy"}))
    assert "the best units go first" in answer.json()["warnings"][0]


def test_the_criteria_are_listed_with_their_options_and_terms(house: House) -> None:
    items = {item["name"]: item for item in house.ann.get("/v1/criteria").json()["items"]}
    assert next(iter(items)) == "output_kl"
    assert items["output_kl"]["formula"] == "E KL(p || p_i)"
    assert items["taylor"]["needs_labels"] is True
    assert "ablation" in items["output_kl"]["options"]["properties"]
    assert items["activation_entropy"]["comparable"] is False


def test_a_student_shrunk_from_its_teacher_must_be_within_reach(house: House) -> None:
    teacher = house.model(units=UNITS)
    accepted = house.ann.post("/v1/jobs", json=house.request(teacher=teacher, student={"shrink": {"macs": 0.25}}))
    assert accepted.status_code == 201, accepted.text
    refused = house.ann.post("/v1/jobs", json=house.request(teacher=teacher, student={"shrink": {"macs": 0.05}}))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/student/shrink/macs")
