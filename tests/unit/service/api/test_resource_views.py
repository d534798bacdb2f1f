"""Models as they are shown: with their units, and in lists with no more of them than their number."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.examples import MODEL_VIEW
from service.api.resource_views import Units, listed_model_view, model_view
from service.contract.records import ModelRecord

UNITS = MODEL_VIEW["units"]


def record(units: Any) -> ModelRecord:
    return ModelRecord(
        id="mdl_" + "0" * 26, owner="o", name="teacher", state="ready", declaration={}, labels={}, error=None,
        facts={"parameters": 7, "units": units, "notes": ["a note"]}, created_at=0.0,
    )  # fmt: skip


def test_a_model_shows_its_units() -> None:
    shown = model_view(record(UNITS), {}).model_dump(mode="json")
    assert shown["units"] == UNITS
    assert shown["notes"] == ["a note"]


def test_a_list_says_how_many_groups_there_are_and_how_small_the_model_can_become() -> None:
    shown = listed_model_view(record(UNITS), {}).model_dump(mode="json")
    assert shown["units"] == {
        "groups": [], "groups_left_out": 12, "pinned": [], "pinned_left_out": 1, "floor": UNITS["floor"],
    }  # fmt: skip
    assert shown["parameters"] == 7


@pytest.mark.parametrize("view", [model_view, listed_model_view])
def test_units_that_are_not_known_are_null(view: Any) -> None:
    assert view(record(None), {}).units is None


def test_a_group_without_its_numbers_is_none() -> None:
    with pytest.raises(ValidationError, match="macs_per_unit"):
        Units.model_validate(
            {**UNITS, "groups": [{key: value for key, value in UNITS["groups"][0].items() if key != "macs_per_unit"}]}
        )
