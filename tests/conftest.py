"""What all tests share: a home of their own, no network, and small models."""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

# Before kvlab is imported: tests never touch the user's store, and never wait for a hub.
_home = tempfile.TemporaryDirectory(prefix="kvlab-tests-")
os.environ["KVLAB_HOME"] = _home.name
os.environ["HF_HUB_OFFLINE"] = "1"
ON_MAC = os.environ.get("KVLAB_BACKEND") == "mlx"
if ON_MAC:  # processes that tests start get Metal's attention as this one does
    _metal = str(Path(__file__).parent / "metal")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_metal, os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

import kvlab  # noqa: E402, F401
from kvlab import backends  # noqa: E402
from kvlab.models import LoadedModel, bundled_path, load  # noqa: E402
from tests.helpers import FLOAT32, FLOAT32_HEAD, FOUR_BITS, SIXTEEN_BITS, Weights, random_model  # noqa: E402
from tests.metal import fused_attention  # noqa: E402

# No example has a time limit, since no test may need a fast machine.
settings.register_profile("kvlab", deadline=None)
settings.load_profile("kvlab")

if ON_MAC:
    fused_attention.install()


X86_ONLY = ["test_fast_exp.py", "test_flash_attention.py", "test_resumable.py"]
# Their module needs greenlet, which is installed where it is used.
collect_ignore = [f"unit/{name}" for name in X86_ONLY] if importlib.util.find_spec("greenlet") is None else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only x86 CPUs use, where this process decides otherwise."""
    backend = backends.current().name
    for item in items:
        if backend != "x86" and item.get_closest_marker("x86_only"):
            item.add_marker(pytest.mark.skip(reason=f"only x86 CPUs use this, and decisions are those of {backend}"))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A user's files are imported for the time of a test."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in [name for name in sys.modules if name.startswith("kvlab_user_file_") and name not in modules]:
        del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[Path]:
    """The KVLAB_HOME of this test run."""
    yield Path(_home.name)
    _home.cleanup()


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The bundled model."""
    return load(bundled_path())


class MakeModel(Protocol):
    """Makes small random-weight models: arguments as :func:`tests.helpers.random_model`'s, without the folder."""

    def __call__(self, architecture: str, weights: Weights = FLOAT32, **config: Any) -> LoadedModel: ...


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Makes small random-weight models, each once a session."""
    made: dict[str, LoadedModel] = {}

    def make(architecture: str, weights: Weights = FLOAT32, **config: Any) -> LoadedModel:
        key = f"{architecture}-{weights}-{json.dumps(config, sort_keys=True)}"
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{weights}")
            made[key] = random_model(architecture, folder, weights=weights, **config)
        return made[key]

    return make


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def random_weights(request: pytest.FixtureRequest, make_model: MakeModel) -> LoadedModel:
    """Small random-weight models of two architectures."""
    return make_model(request.param)


@pytest.fixture(scope="session", params=[*SIXTEEN_BITS, *FOUR_BITS, FLOAT32_HEAD], ids=str)
def mac_weights(request: pytest.FixtureRequest) -> Weights:
    """Weights as users of Macs have them."""
    return request.param


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def mac_model(request: pytest.FixtureRequest, make_model: MakeModel, mac_weights: Weights) -> LoadedModel:
    """Small models of 16 bits, with weights of 4 bits, and with both and a large head of float32."""
    return make_model(request.param, mac_weights)


@pytest.fixture(scope="session")
def qwen3(make_model: MakeModel) -> LoadedModel:
    """A small random-weight Qwen3."""
    return make_model("qwen3")


@pytest.fixture(scope="session")
def llama(make_model: MakeModel) -> LoadedModel:
    """A small random-weight Llama."""
    return make_model("llama")
