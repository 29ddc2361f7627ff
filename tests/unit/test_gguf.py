"""GGUF files are read as the models that they hold: the same weights, the same logits, the same tokens."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step

from kvlab.backends import device
from kvlab.errors import ModelError
from kvlab.models import ModelSource, is_gguf, load, report_weights, weight_bytes
from kvlab.models.gguf import GgufFile, natural_dtype, write_folder
from tests.gguf_kit import FAMILIES, KINDS, WINDOW, add_byte_level, close, write_twins

MESSAGES = [{"role": "user", "content": "which way is up, and how far is it to the sea?"}]
EVERY_FAMILY_AND_KIND = [
    *((family, kind) for family in ("llama", "qwen2", "qwen3", "gemma3") for kind in KINDS),
    *((family, "Q8_0") for family in FAMILIES if "-" in family),
]
Twins = tuple[Path, Path]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a model as folder and file, each once."""
    made: dict[tuple[str, str], Twins] = {}

    def make(family: str, kind: str = "F32") -> Twins:
        if (family, kind) not in made:
            made[family, kind] = write_twins(FAMILIES[family], kind, tmp_path_factory.mktemp(f"{family}-{kind}"))
        return made[family, kind]

    return make


def tokens_of(model: Any, prompt: list[int], count: int = 8) -> list[int]:
    return [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


@pytest.mark.parametrize(("family", "kind"), EVERY_FAMILY_AND_KIND)
def test_a_gguf_file_computes_what_mlx_lm_computes_with_the_same_weights(family: str, kind: str, twins: Any) -> None:
    folder, file = twins(family, kind)
    network, tokenizer = mlx_lm.load(str(folder))
    loaded = load(file, dtype="float32")
    prompt = loaded.render(MESSAGES)
    assert prompt == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True)
    assert len(prompt) > 2 * WINDOW
    wanted = np.array(network(mx.array([prompt])))
    assert np.array_equal(np.array(loaded.model(mx.array([prompt]))), wanted)
    assert len(set(wanted.argmax(-1)[0].tolist())) > 3
    assert tokens_of(loaded.model, prompt) == tokens_of(network, prompt)
    assert (loaded.eos, loaded.context_length, loaded.name) == (frozenset({2}), 2048, "model")


@pytest.mark.parametrize("family", ["llama", "llama-head-and-biases", "qwen2-linear", "qwen3-yarn", "gemma3"])
def test_a_converted_folder_is_the_same_model_as_its_file(family: str, twins: Any, tmp_path: Path) -> None:
    _, file = twins(family, "Q8_0")
    write_folder(GgufFile.open(file), tmp_path, "float32")
    direct, converted = load(file, dtype="float32"), load(tmp_path, dtype="float32")
    assert direct.fingerprint == converted.fingerprint
    assert direct.render(MESSAGES) == converted.render(MESSAGES)
    assert (direct.eos, direct.context_length) == (converted.eos, converted.context_length)


def test_files_of_other_weights_have_other_fingerprints(twins: Any) -> None:
    kinds = [load(twins("llama", kind)[1], dtype="float32").fingerprint for kind in ("F32", "F16", "Q8_0", "Q4_0")]
    assert len(set(kinds)) == 4
    assert load(twins("llama")[1], dtype="float32").fingerprint == kinds[0]
    assert load(twins("llama")[1], dtype="bfloat16").fingerprint != kinds[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_gguf_file_is_computed_in_the_dtype_asked_for(family: str, dtype: str, twins: Any) -> None:
    loaded = load(ModelSource(twins(family, "Q4_0")[1], dtype=dtype))
    assert loaded.dtype == dtype
    assert loaded.model.model.embed_tokens.weight.dtype == getattr(mx, dtype)
    exact = load(twins(family, "Q4_0")[1], dtype="float32")
    prompt = mx.array([exact.render(MESSAGES)])
    ours, wanted = (np.array(model.model(prompt).astype(mx.float32)) for model in (loaded, exact))
    # On the average: single rows of random weights enlarge the rounding of 16 bits.
    assert np.abs(ours - wanted).mean() < 0.1 * np.abs(wanted).mean()


def test_the_default_dtype_is_the_files_own_except_on_cpus(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_in_float32", lambda: True)
    assert load(twins("qwen3", "F16")[1]).dtype == "float32"
    monkeypatch.setattr(device, "computes_in_float32", lambda: False)
    assert [load(twins("qwen3", kind)[1]).dtype for kind in ("F32", "F16", "BF16", "Q8_0")] == [
        "float32",
        "float16",
        "bfloat16",
        "bfloat16",
    ]


def test_the_header_is_what_the_gguf_packages_own_reader_finds(twins: Any) -> None:
    for family in ("llama-head-and-biases", "gemma3"):
        path = twins(family, "Q4_1")[1]
        ours, theirs = GgufFile.open(path), gguf.GGUFReader(path)
        assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
        for tensor in theirs.tensors:
            found = ours.tensors[tensor.name]
            assert (found.offset, found.nbytes, found.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
            assert list(found.shape) == [int(size) for size in tensor.shape][::-1]
        for key, entry in theirs.fields.items():
            if not key.startswith("GGUF."):
                said, wanted = ours.metadata[key], entry.contents()
                assert said == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)


def test_a_gguf_file_is_known_by_its_content_not_its_name(twins: Any, tmp_path: Path) -> None:
    blob = tmp_path / "sha256-0123"  # as Ollama names them
    blob.write_bytes(twins("llama")[1].read_bytes())
    assert is_gguf(blob)
    assert load(blob).fingerprint == load(twins("llama")[1]).fingerprint
    assert load(blob).argument == str(blob)


def test_a_report_reads_no_weight_and_counts_them_expanded(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = twins("llama", "Q4_0")
    stored = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(GgufFile, "read", lambda *_: pytest.fail("a weight was read"))
    report = report_weights(ModelSource(file, dtype="float32"))
    assert str(report).startswith("yes, as all of GGUF: expanded they need")
    assert report.plan is not None
    assert abs(report.plan.needed - stored) < 5000  # the header of safetensors
    assert weight_bytes(ModelSource(file, dtype="bfloat16")) == report.plan.needed // 2


def test_weights_that_memory_does_not_hold_expanded_are_refused(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 1000)
    with pytest.raises(ModelError, match=r"expanded they need .*--dtype bfloat16 takes half"):
        load(twins("llama", "Q4_0")[1], dtype="float32")


# -- wrong files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.gguf", "model.GGUF", "blob"])
@pytest.mark.parametrize("content", [b"", b"GG", b"\x93NUMPY and more", b"version https://git-lfs\n"])
def test_a_file_that_is_no_gguf_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    wanted = "is no GGUF file" if name != "blob" else "is a file; give the folder"
    with pytest.raises(ModelError, match=wanted):
        load(tmp_path / name)


def test_a_cut_file_is_refused_wherever_it_is_cut(twins: Any, tmp_path: Path) -> None:
    content = twins("qwen3")[1].read_bytes()
    header = GgufFile.open(twins("qwen3")[1])
    start = min(tensor.offset for tensor in header.tensors.values())
    lengths = [*range(4, 64, 7), *range(64, start, 211), start, start + 1, (start + len(content)) // 2]
    for length in lengths:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(content[:length])
        with pytest.raises(ModelError, match="ends too early|no GGUF|damaged"):
            load(cut)


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_header_gives_a_model_or_one_clear_line(
    data: st.DataObject, twins: Any, tmp_path_factory: Any
) -> None:
    source = twins("llama", "Q4_0")[1]
    content = bytearray(source.read_bytes())
    start = min(tensor.offset for tensor in GgufFile.open(source).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, start - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged.write_bytes(content)
    for read in (load, report_weights, weight_bytes):
        try:
            read(damaged)
        except ModelError as error:
            assert "\n" not in str(error)


def test_counts_that_no_file_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    def header(*values: bytes) -> Path:
        path = tmp_path / "wrong.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + b"".join(values))
        return path

    key = struct.pack("<Q", 1) + b"a"
    for array in (
        struct.pack("<IIQ", 9, 4, 1 << 62),
        struct.pack("<IIQ", 9, 8, 1 << 62),
        struct.pack("<IIQ", 9, 9, 1 << 62),
    ):
        with pytest.raises(ModelError, match="ends too early"):
            load(header(key, array))
    with pytest.raises(ModelError, match="unknown kind 99"):
        load(header(key, struct.pack("<I", 99)))
    with pytest.raises(ModelError, match="other byte order"):
        (tmp_path / "big.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
        load(tmp_path / "big.gguf")
    with pytest.raises(ModelError, match="version 1"):
        (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
        load(tmp_path / "old.gguf")


def _changed(tmp_path: Path, architecture: str = "llama", **values: Any) -> Path:
    """A file with a vocabulary, one tensor, and these values of its family; a value of None adds nothing."""
    path = tmp_path / "changed.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    plain = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in (plain | values).items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((5, 64), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float32))
    add_byte_level(writer, list("abcde"), [1] * 5, pre="gpt-2")
    close(writer)
    return path


@pytest.mark.parametrize(
    "name", ["phi3", "gemma2", "qwen2moe", "qwen3moe", "llama4", "smollm3", "granite", "bert", "clip"]
)
def test_other_architectures_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=f"of the architecture '{name}'; GGUF files can be used of llama, qwen2, qwen3, gemma3"
    ):
        load(_changed(tmp_path, name))
    with pytest.raises(ModelError, match=f"of the architecture '{name}'"):
        report_weights(tmp_path / "changed.gguf")


@pytest.mark.parametrize(
    ("architecture", "values", "says"),
    [
        ("llama", {"expert_count": 8}, "a mixture of 8 experts"),
        ("llama", {"block_count": None}, "llama.block_count is missing"),
        ("llama", {"attention.head_count": [2, 4]}, "attention.head_count is not the same in all layers"),
        ("llama", {"rope.dimension_count": 16}, "rope.dimension_count is not the width of a head, 32"),
        ("llama", {"attention.value_length": 16}, "attention.value_length is not the width of a head, 32"),
        ("qwen2", {"attention.key_length": 64}, "heads of 64, where Qwen2 has 32"),
        ("llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "scales its positions by 'longrope'"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "caps its logits"),
        (
            "gemma3",
            {"attention.sliding_window": 8, "attention.sliding_window_pattern": [1, 0, 0, 1]},
            "without a period",
        ),
        ("qwen3", {}, "does not hold the weights that its header tells of: Missing"),
        ("qwen3", {"block_count": 1 << 24}, "does not hold the weights that its header tells of: 16777216 layers"),
    ],
)
def test_models_of_a_family_that_mlx_lm_computes_otherwise_are_refused(
    architecture: str, values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        load(_changed(tmp_path, architecture, **values))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tensor", ["blk.0.ffn_gate_exps.weight", "blk.0.attn_qkv.weight", "rope_freqs.weight", "v.patch"]
)
def test_tensors_that_plain_models_do_not_have_are_refused(tensor: str, tmp_path: Path) -> None:
    path = tmp_path / "more.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 64,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float32))
    writer.add_tensor(tensor, np.full((16,), 3, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((5, 64), np.float32))
    add_byte_level(writer, list("abcde"), [1] * 5, pre="gpt-2")
    close(writer)
    with pytest.raises(
        ModelError, match="other factors than Llama 3's" if "rope" in tensor else f"has the tensor {tensor}"
    ):
        load(path)


def test_a_part_of_a_split_model_says_how_to_merge_it(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    close(writer)
    with pytest.raises(ModelError, match="one of 2 parts.*--merge"):
        load(path)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file .*absent.gguf"):
        load(tmp_path / "absent.gguf")


def test_formats_are_read_as_their_definition_says() -> None:
    """Q4_0: a block is a half-precision scale and 32 numbers of 4 bits, 8 of which mean zero."""
    rng = np.random.default_rng(1)
    packed = gguf.quants.quantize(rng.normal(0, 1, (4, 64)).astype(np.float32), KINDS["Q4_0"])
    expected = []
    for block in packed.reshape(-1, 18):
        scale = float(block[:2].view(np.float16)[0])
        expected += [scale * (int(byte & 15) - 8) for byte in block[2:]]
        expected += [scale * (int(byte >> 4) - 8) for byte in block[2:]]
    path = Path(natural_dtype.__code__.co_filename)  # any file: only the content below is read
    file = GgufFile(path, {}, {"a": _tensor(packed)}, packed.reshape(-1))
    assert np.allclose(file.read("a").reshape(-1), expected)


def _tensor(packed: np.ndarray) -> Any:
    from kvlab.models.gguf.file import GgufTensor

    return GgufTensor((4, 64), KINDS["Q4_0"], 0, packed.nbytes)
