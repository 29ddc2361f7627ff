"""What all tests share: a home of their own, no network, and small models."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before kvlab is imported: tests never touch the user's store, and never wait for a hub.
_home = tempfile.TemporaryDirectory(prefix="kvlab-tests-")
os.environ["KVLAB_HOME"] = _home.name
os.environ["HF_HUB_OFFLINE"] = "1"
ON_MAC = os.environ.get("KVLAB_BACKEND") == "mlx"
if ON_MAC:  # processes that tests start get Metal's attention as this one does
    _metal = str(Path(__file__).parent / "metal")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_metal, os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402

import kvlab  # noqa: E402, F401
from kvlab.models import LoadedModel, bundled_path, load  # noqa: E402
from tests.helpers import random_model  # noqa: E402
from tests.metal import fused_attention  # noqa: E402

if ON_MAC:
    fused_attention.install()


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[Path]:
    """The KVLAB_HOME of this test run."""
    yield Path(_home.name)
    _home.cleanup()


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The bundled model."""
    return load(bundled_path())


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def random_weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Small random-weight models of two architectures."""
    return random_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A small random-weight Qwen3."""
    return random_model("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A small random-weight Llama."""
    return random_model("llama", tmp_path_factory.mktemp("llama"))
