"""The fingerprint of a model covers what computes, however it got there, and nothing else."""

import functools
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kvlab.caches import batching, forget_results_of_another
from kvlab.caches.attention_hook import install
from kvlab.models import LoadedModel, load
from kvlab.models import array_content as content
from kvlab.models.fingerprints import Fingerprints
from tests.helpers import ROPE, random_model_folder
from tests.model_changes import CHANGES, add_adapter
from tests.quantized import quantize_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_folder("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return load(folder)


# -- what is covered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_change_a_model_changes_its_fingerprint_until_it_is_undone(
    change: str, loaded: LoadedModel
) -> None:
    before, watch = loaded.fingerprint, loaded.watch()
    undo = CHANGES[change](loaded.model)
    try:
        assert loaded.fingerprint != before
        assert watch.may_have_changed() and watch.has_changed()
    finally:
        undo()
    assert loaded.fingerprint == before
    assert watch.has_changed(), "KV may have been computed meanwhile"
    assert not loaded.watch().has_changed()


def test_fingerprints_of_all_changes_differ(loaded: LoadedModel) -> None:
    seen = {loaded.fingerprint}
    for change in CHANGES.values():
        undo = change(loaded.model)
        seen.add(loaded.fingerprint)
        undo()
    assert len(seen) == len(CHANGES) + 1


@given(data=st.data())
def test_any_element_of_any_array_counts(data: st.DataObject, changed_often: LoadedModel) -> None:
    name, array = data.draw(st.sampled_from(tree_flatten(changed_often.model.parameters())))
    at = tuple(data.draw(st.integers(0, length - 1)) for length in array.shape)
    before, old = changed_often.fingerprint, array[at].item()
    array[at] = data.draw(st.sampled_from([old + 1.0, -old if old else 1.0, float(np.nextafter(np.float32(old), 9))]))
    assert changed_often.fingerprint != before, name
    array[at] = old
    assert changed_often.fingerprint == before, name


@pytest.fixture(scope="module")
def changed_often(folder: Path) -> LoadedModel:
    return load(folder)


class Custom(nn.Module):
    """Keeps what decides its result in every place that a model file may use."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        table = mx.arange(3)
        self.table = np.arange(4)
        self.options = {"a": [1, (2, 3)], "b": None}
        self.act = nn.silu
        self.part = functools.partial(max, 3)
        self.closure = lambda x: x + table
        self.args = types.SimpleNamespace(theta=1e4)
        self.weight = mx.ones(2)

    @property
    def scale(self) -> float:
        return 0.5

    @staticmethod
    def shift(x: float) -> float:
        return x + 1

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.scale


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("constant of the class", lambda model: setattr(Custom, "factor", 3.0)),
        ("property", lambda model: setattr(Custom, "scale", property(lambda self: 0.7))),
        ("static method", lambda model: setattr(Custom, "shift", staticmethod(lambda x: x))),
        ("NumPy array", lambda model: model.table.__setitem__(0, 9)),
        ("nested option", lambda model: model.options["a"].__setitem__(1, (2, 4))),
        ("missing option", lambda model: model.options.__setitem__("b", 0)),
        ("compiled function", lambda model: setattr(model, "act", nn.gelu)),
        ("function of C++", lambda model: setattr(model, "act", mx.sin)),
        ("partial", lambda model: setattr(model, "part", functools.partial(max, 4))),
        ("closure", lambda model: setattr(model, "closure", (lambda k: lambda x: x + k)(mx.arange(4)))),
        ("argument", lambda model: setattr(model.args, "theta", 2e4)),
        ("dtype alone", lambda model: setattr(model, "weight", mx.ones(2, mx.int32).view(mx.float32))),
        ("shape alone", lambda model: setattr(model, "weight", mx.ones((2, 1)))),
        ("training", lambda model: model.train(False)),
    ],
)
def test_whatever_a_model_file_computes_with_counts(what: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("factor", "scale", "shift"):
        monkeypatch.setattr(Custom, name, vars(Custom)[name])  # so that it is put back
    model = Custom()
    prints = Fingerprints(model)
    before, state = prints.take()
    assert state.is_current()
    change(model)
    assert not state.is_current(), what
    assert prints.now() != before, what


# -- what is not ------------------------------------------------------------------------------------------------------


def test_what_changes_no_result_leaves_the_fingerprint(loaded: LoadedModel) -> None:
    before, watch = loaded.fingerprint, loaded.watch()
    loaded.model(mx.array([[1, 2, 3]]))
    install(loaded.model)
    assert batching(loaded.model)
    forget_results_of_another(loaded.model, before)
    loaded.model.freeze()
    attention = loaded.model.layers[0].self_attn
    attention.scale = float(str(attention.scale))  # the same value, assigned anew
    attention.q_proj.weight = attention.q_proj.weight + 0
    assert loaded.fingerprint == before
    assert not watch.has_changed()
    loaded.model.unfreeze()


def test_a_model_that_is_loaded_again_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    once = load(folder)
    known = once.fingerprint
    (tmp_path / "another name").symlink_to(folder)
    assert load(tmp_path / "another name").fingerprint == known
    saved = tmp_path / "saved"
    mlx_lm.utils.save(saved, folder, once.model, once.tokenizer, json.loads((folder / "config.json").read_text()))
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({"transformers_version": "9", "_name_or_path": "x", **config}))
    assert load(saved).fingerprint == known
    network, tokenizer = mlx_lm.load(str(folder))
    assert LoadedModel(network, tokenizer, "by hand", folder, "float32", 2).fingerprint == known


def test_folders_with_other_weights_or_settings_differ(folder: Path, tmp_path: Path) -> None:
    others = [
        random_model_folder("llama", tmp_path / "a", seed=1),
        random_model_folder("llama", tmp_path / "b", rope_theta=5e5),
        random_model_folder("llama", tmp_path / "c", rms_norm_eps=1e-5),
        random_model_folder("llama", tmp_path / "d", rope_scaling=ROPE["llama3"]),
        quantize_folder(folder, tmp_path / "e", 32, 4),
        quantize_folder(folder, tmp_path / "f", 32, 8),
        quantize_folder(folder, tmp_path / "g", 32, 4, mode="mxfp4"),
    ]
    prints = {load(one, dequantize=False).fingerprint for one in [folder, *others]}
    assert len(prints) == 8
    expanded = {load(one, dequantize=True).fingerprint for one in others[4:]}
    assert len(expanded) == 3 and not expanded & prints
    assert load(others[4], dequantize=True).fingerprint in expanded


# -- between processes ------------------------------------------------------------------------------------------------

PRINT = """
import sys
import kvlab
from kvlab.models import load
from tests.model_changes import CHANGES
for name in sys.argv[2:]:
    loaded = load(sys.argv[1])
    if name:
        CHANGES[name](loaded.model)
    print(loaded.fingerprint)
"""


def _in_another_process(folder: Path, names: list[str], seed: int) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT, str(folder), *names],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_fingerprints_are_the_same_in_every_process(folder: Path) -> None:
    names = ["", "one element written in place", "quantize", "LoRA", "layer replaced", "function of a file patched"]
    here = []
    for name in names:
        loaded = load(folder)
        undo = CHANGES[name](loaded.model) if name else lambda: None
        here.append(loaded.fingerprint)
        undo()
    assert _in_another_process(folder, names, 1) == here == _in_another_process(folder, names, 2)


def test_custom_code_of_a_model_folder_counts(folder: Path, tmp_path: Path) -> None:
    def of(code: str) -> str:
        target = tmp_path / str(len(code))
        random_model_folder("llama", target, model_file="own.py")
        (target / "own.py").write_text(code)
        network, _ = mlx_lm.utils.load_model(target, trust_remote_code=True)
        return Fingerprints(network).now()

    code = "from mlx_lm.models.llama import Model, ModelArgs\n"
    own = code + (
        "class Model(Model):\n"
        "    def __call__(self, *args, **more):\n"
        "        return {} * super().__call__(*args, **more)\n"
    )
    prints = [of(code), of(own.format(1)), of(own.format(20))]
    assert len(set(prints)) == 3
    assert of(own.format(20)) == prints[2]


# -- how it is noticed ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pointer", "address"])
def descriptors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways to see that an array was written in place."""
    if request.param == "address":
        monkeypatch.setattr(content, "_descriptor_word", lambda: None)
    yield


@pytest.mark.usefixtures("descriptors")
def test_writes_in_place_are_seen_again_and_again(loaded: LoadedModel) -> None:
    weight = loaded.model.layers[0].mlp.up_proj.weight
    seen = set()
    for value in range(30):
        weight[0, 0] = float(value)
        mx.eval(weight)
        seen.add(loaded.fingerprint)
        watch = loaded.watch()
        weight[0, 1] = float(value) + 0.5
        assert watch.may_have_changed()
        mx.eval(weight)
    assert len(seen) == 30


def test_the_content_of_an_array_is_read_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = content._digest
    monkeypatch.setattr(content, "_digest", lambda view: read.append(view.nbytes) or plain(view))
    whole = sum(array.nbytes for _, array in tree_flatten(loaded.model.parameters()))
    first = loaded.fingerprint
    assert sum(read) == whole
    assert loaded.fingerprint == first and sum(read) == whole
    add_adapter(loaded.model)
    assert loaded.fingerprint != first
    adapters = sum(array.nbytes for name, array in tree_flatten(loaded.model.parameters()) if "lora" in name)
    assert sum(read) == whole + adapters


def test_nothing_keeps_weights_that_a_model_has_let_go(loaded: LoadedModel) -> None:
    before = loaded.fingerprint
    digests = loaded._fingerprints._digests
    held = len(digests._known)
    nn.quantize(loaded.model, 32, 4)
    assert len(digests._known) < held / 2
    assert loaded.fingerprint != before
