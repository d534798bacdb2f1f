"""Inputs of pipelines; a module that needs others has a fixture of the same name."""

from pathlib import Path

import pytest

from tests.integration.pipelines import canonical_digits


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return canonical_digits(tmp_path_factory.mktemp("inputs"))
