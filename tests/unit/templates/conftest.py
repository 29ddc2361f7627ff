"""The bundled model with the chat template of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab.models import LoadedModel
from tests.template_kit import FAMILIES, TemplateModel, with_template


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def served(
    request: pytest.FixtureRequest, bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp(str(request.param))
    return with_template(bundled, request.param, folder / "model")


@pytest.fixture
def model(served: LoadedModel) -> TemplateModel:
    return TemplateModel(served)
