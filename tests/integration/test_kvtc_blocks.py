"""``kvtc``: blocks at rest are encoded all rows together, and what is restored is what the code says.

Class of inputs: grouped-query models in float32, 16 bits and with 4-bit weights; whole blocks and tails; prompts that
go on, part within a block, or come back after a restart; layers with a sliding window; other files than the model's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from kvlab.caches import make_caches, serialize
from kvlab.caches.cache_loader import CacheLoader
from kvlab.caches.packed_blocks import CODE, PackedBlockLoader, PackedBlocks
from kvlab.caches.serialize import PayloadError
from kvlab.caches.storage_codec import KVTransform, StorageCodec, transform_of_text
from kvlab.cli.store import app
from kvlab.decoder import Decoder
from kvlab.errors import ModelError, PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.store import commands
from kvlab.store.remote import commands as remote_commands
from tests.architectures import load_recipe
from tests.integration.test_decoder import conversation
from tests.remote_kit import redis_program, redis_server

FINE, USUAL = 0.002, 0.3
TEXT = [token for seed in range(8) for token in conversation(40 + seed, 128)]
PROMPT = conversation(5, 75)
"""Two blocks of 32 tokens and a tail of eleven."""


def transform_file(loaded: LoadedModel, folder: Path, step: float = USUAL) -> Path:
    text = [token % loaded.vocab_size for token in TEXT]
    path = folder / f"{step}.kvtc"
    transform_of_text(loaded.model, text, k_step=step, v_step=step, most_tokens=len(text)).save(path)
    return path


@pytest.fixture(scope="module")
def usual(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transform_file(llama, tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def fine(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transform_file(llama, tmp_path_factory.mktemp("fine"), FINE)


def answer(decoder: Decoder, prompt: Sequence[int], tokens: int = 12) -> tuple[tuple[int, ...], int]:
    done = decoder.generate(list(prompt), max_tokens=tokens)
    return tuple(done.tokens), done.cached_tokens


def restored_rows(loaded: LoadedModel, decoder: Decoder, path: Path, prompt: list[int]) -> dict[str, np.ndarray]:
    """Return rows of a prompt as a request would restore them from the decoder's store."""
    blocks = PackedBlocks(StorageCodec.of(loaded.model, KVTransform.load(path)))
    caches = make_caches(loaded.model, f"kvtc:transform={path}|ram")
    loader = PackedBlockLoader(caches, len(prompt), blocks)
    assert decoder.store is not None
    match = decoder.store.read_into(decoder.store.match(decoder.namespace(), prompt[: len(prompt) // 32 * 32]), loader)
    loader.finish(match.tokens, None)
    return {name: np.array(rows.astype(mx.float32)) for name, rows in serialize.token_rows(caches).items()}


@pytest.mark.parametrize("reuse", ["", "|paged:block=32,live=false"])
def test_fine_steps_answer_as_complete_rows_after_a_restart(
    llama: LoadedModel, fine: Path, tmp_path: Path, reuse: str
) -> None:
    policy = f"kvtc:transform={fine}|tiered:dir={tmp_path}{reuse}"
    longer = PROMPT + conversation(6, 40)
    with Decoder(llama, "full") as full:
        wanted = [answer(full, prompt, 24)[0] for prompt in (PROMPT, longer)]
    with Decoder(llama, policy) as decoder:
        assert answer(decoder, PROMPT, 24) == (wanted[0], 0)
    with Decoder(llama, policy) as decoder:
        assert answer(decoder, longer, 24) == (wanted[1], len(PROMPT) // 32 * 32)  # the tail went on with an answer
        assert answer(decoder, longer, 24)[0] == wanted[1]


def test_restored_rows_are_those_of_the_code_wherever_they_come_from(mac_model: LoadedModel, tmp_path: Path) -> None:
    path = transform_file(mac_model, tmp_path, 0.1)
    policy = f"kvtc:transform={path}|tiered:dir={tmp_path}/store"
    caches = make_caches(mac_model.model, policy)
    mx.eval(mac_model.model(mx.array([PROMPT]), cache=caches))
    computed = serialize.token_rows(caches)
    with Decoder(mac_model, policy) as decoder:
        answer(decoder, PROMPT, 1)
        from_ram = restored_rows(mac_model, decoder, path, PROMPT)
    with Decoder(mac_model, policy) as decoder:
        from_ssd = restored_rows(mac_model, decoder, path, PROMPT)
        assert answer(decoder, PROMPT, 1)[1] == len(PROMPT) // 32 * 32
    assert from_ram.keys() == computed.keys()
    for name, rows in from_ram.items():
        np.testing.assert_array_equal(rows, from_ssd[name])
        exact = np.array(computed[name].astype(mx.float32))[:, :, : rows.shape[2]]
        error = np.linalg.norm(rows - exact) / np.linalg.norm(exact)
        assert 0 < error < 0.5, name  # random weights: every component matters


def test_blocks_take_a_share_of_the_bytes_of_raw_ones(llama: LoadedModel, usual: Path) -> None:
    sizes = []
    for policy in ("paged|ram", f"kvtc:transform={usual}|ram"):
        with Decoder(llama, policy) as decoder:
            answer(decoder, conversation(9, 256), 1)
            assert decoder.store is not None
            sizes.append(decoder.store.tiers_bytes()["ram"])
    assert sizes[1] < 0.35 * sizes[0]  # random weights have no components to leave out, so only bits are saved


def test_of_a_block_that_goes_on_otherwise_no_part_is_used(llama: LoadedModel, usual: Path) -> None:
    with Decoder(llama, f"kvtc:transform={usual}|paged:live=false,reply=false|ram") as decoder:
        answer(decoder, PROMPT, 1)
        assert answer(decoder, [*PROMPT[:50], 9, *PROMPT[50:]], 1)[1] == 32
        assert answer(decoder, [*PROMPT, 9, 8], 1)[1] == len(PROMPT)  # a tail is used where all of it is found


def test_running_requests_share_rows_as_the_model_computes_them(llama: LoadedModel, usual: Path) -> None:
    head, tails = conversation(7, 160), [conversation(seed, 20) for seed in (21, 22, 23)]
    with Decoder(llama, "full") as full, Decoder(llama, f"kvtc:transform={usual}|ram") as decoder:
        streams = [decoder.submit(head + tail, max_tokens=8) for tail in tails]
        done = [stream.result() for stream in streams]
        assert [tuple(one.tokens) for one in done] == [answer(full, head + tail, 8)[0] for tail in tails]
    assert [one.cached_tokens for one in done] == [0, 160, 160]


def test_layers_with_a_sliding_window_keep_their_state_beside_encoded_rows(tmp_path: Path) -> None:
    loaded = load_recipe("gemma3", tmp_path / "model")
    path = transform_file(loaded, tmp_path, FINE)
    prompt = [token % loaded.vocab_size for token in conversation(5, 120)]
    policy = f"kvtc:transform={path}|tiered:dir={tmp_path}/store"
    with Decoder(loaded, policy) as decoder:
        wanted, _ = answer(decoder, prompt)
    with Decoder(loaded, policy) as decoder:
        got, cached = answer(decoder, prompt)
    assert got == wanted and cached > 60


def test_a_folder_of_packed_blocks_is_listed_and_verified(llama: LoadedModel, usual: Path, tmp_path: Path) -> None:
    with Decoder(llama, f"kvtc:transform={usual}|tiered:dir={tmp_path}") as decoder:
        answer(decoder, PROMPT, 1)
    found = {row["metric"]: row["value"] for row in commands.verify(tmp_path)}
    assert found["corrupt"] == 0 and found["verified"] == 3
    assert any("kvtc:" in str(row.get("policy")) for row in commands.ls(tmp_path))


@pytest.mark.parametrize("damage", ["other array", "size", "code"])
def test_a_damaged_block_is_a_miss(llama: LoadedModel, usual: Path, damage: str) -> None:
    blocks = PackedBlocks(StorageCodec.of(llama.model, KVTransform.load(usual)))
    caches = make_caches(llama.model, f"kvtc:transform={usual}|ram")
    mx.eval(llama.model(mx.array([PROMPT[:32]]), cache=caches))
    [plain] = blocks.plain(serialize.token_rows(caches), 0, 32, 32)
    data = blocks.pack(plain)[CODE].copy()
    if damage != "other array":
        data.reshape(-1)[2 if damage == "size" else data.size * 3 // 4] ^= 0xFF
    payload = {"0:k:float32" if damage == "other array" else CODE: data}
    loader = PackedBlockLoader(make_caches(llama.model, f"kvtc:transform={usual}|ram"), 32, blocks)
    loader.take(payload, 0)
    with pytest.raises(PayloadError):
        loader.finish(32, None)


def test_what_is_no_transform_of_the_model_is_refused(
    llama: LoadedModel, bundled: LoadedModel, usual: Path, tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match="has no transform: write kvtc:transform=FILE"):
        Decoder(llama, "kvtc|ram")
    with pytest.raises(PolicyError, match="cannot read transform=/nowhere .*kvlab store fit"):
        Decoder(llama, "kvtc:transform=/nowhere|ram")
    other = tmp_path / "other"
    other.write_bytes(b"no arrays")
    with pytest.raises(ModelError, match="holds no transform of KV"):
        Decoder(llama, f"kvtc:transform={other}|ram")
    with pytest.raises(ModelError):
        Decoder(bundled, f"kvtc:transform={usual}|ram")


def test_another_transform_has_other_keys(usual: Path, fine: Path) -> None:
    keys = [Policy.parse(f"kvtc:transform={path}|ram").storage_key for path in (usual, fine)]
    assert keys[0] != keys[1] and all(key.startswith("kvtc:") and "/" not in key for key in keys)


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        ("kvtc", "does not keep: write"),
        ("kvtc|slots", "does not keep: write"),
        ("kvtc|local|ram", "use one of them"),
        ("kvtc|tiered:restore=auto", "leave restore out"),
        ("local|tiered:restore=auto", "leave restore out"),
        ("kvtc|quantized|ram", "two policies for one slot"),
    ],
)
def test_what_kvtc_cannot_be_with_is_refused(policy: str, hint: str) -> None:
    with pytest.raises(PolicyError, match=hint):
        Policy.parse(policy)


def test_the_command_fits_a_transform_that_a_decoder_takes(bundled: LoadedModel, tmp_path: Path) -> None:
    text, short, out = tmp_path / "text", tmp_path / "short", tmp_path / "fitted.kvtc"
    text.write_text(
        "\n\n".join(f"The code of @user{i} is #{i * 37}. Nobody asked for it on day {i}." for i in range(60))
    )
    short.write_text("too short")
    run = CliRunner().invoke
    done = run(app, ["fit", str(text), "--out", str(out)])
    assert done.exit_code == 0 and f"kvtc:transform={out}|tiered" in done.output
    with Decoder(bundled, f"kvtc:transform={out}|ram") as decoder:
        assert len(answer(decoder, PROMPT, 3)[0]) == 3
    failed = run(app, ["fit", str(short), "--out", str(out)])
    assert isinstance(failed.exception, ModelError) and "give 512 or more" in str(failed.exception)


def test_the_loader_of_packed_blocks_hands_on_what_the_usual_one_takes(llama: LoadedModel, fine: Path) -> None:
    """Rows that go through a fine code are, within its steps, those that go in without one."""
    blocks = PackedBlocks(StorageCodec.of(llama.model, KVTransform.load(fine)))
    caches = make_caches(llama.model, f"kvtc:transform={fine}|ram")
    mx.eval(llama.model(mx.array([PROMPT]), cache=caches))
    rows = serialize.token_rows(caches)
    plain = serialize.to_blocks({n: np.asarray(a) for n, a in serialize.as_bits(rows).items()}, 0, len(PROMPT), 32)
    found = []
    for made in (CacheLoader, None):
        fresh = make_caches(llama.model, f"kvtc:transform={fine}|ram")
        loader = CacheLoader(fresh, len(PROMPT)) if made else PackedBlockLoader(fresh, len(PROMPT), blocks)
        payloads = plain if made else [blocks.pack(one) for one in blocks.plain(rows, 0, len(PROMPT), 32)]
        for at, payload in zip(range(0, len(PROMPT), 32), payloads, strict=True):
            loader.take(payload, at)
        loader.finish(len(PROMPT), None)
        found.append(serialize.token_rows(fresh))
    for name, exact in found[0].items():
        np.testing.assert_allclose(np.array(found[1][name]), np.array(exact), atol=0.02)


@pytest.mark.parametrize(("start", "block"), [(0, 32), (0, 4), (0, 3), (0, 1), (32, 32), (64, 32), (3, 3)])
def test_rows_cut_into_blocks_are_those_of_each_block_alone(
    llama: LoadedModel, usual: Path, start: int, block: int
) -> None:
    codec = StorageCodec.of(llama.model, KVTransform.load(usual))
    blocks = PackedBlocks(codec)
    caches = make_caches(llama.model, f"kvtc:transform={usual}|ram")
    mx.eval(llama.model(mx.array([PROMPT]), cache=caches))
    rows = serialize.token_rows(caches)
    made = [blocks.pack(one)[CODE].tobytes() for one in blocks.plain(rows, start, len(PROMPT), block)]
    layers = range(len(codec.transform.layers))
    spans = [(at, min(at + block, len(PROMPT))) for at in range(start, len(PROMPT), block)]
    alone = [
        blocks.pack(codec.plain([(rows[f"{i}:k"][:, :, a:b], rows[f"{i}:v"][:, :, a:b]) for i in layers], a))[CODE]
        for a, b in spans
    ]
    assert made == [one.tobytes() for one in alone]
    assert blocks.plain(rows, len(PROMPT), len(PROMPT), block) == []


@pytest.mark.parametrize("tokens", [1, 3, 4, 5])
def test_a_prompt_of_rows_that_stay_as_they_are_comes_back(llama: LoadedModel, usual: Path, tokens: int) -> None:
    blocks = PackedBlocks(StorageCodec.of(llama.model, KVTransform.load(usual)))
    caches = make_caches(llama.model, f"kvtc:transform={usual}|ram")
    mx.eval(llama.model(mx.array([PROMPT[:tokens]]), cache=caches))
    rows = serialize.token_rows(caches)
    [plain] = blocks.plain(rows, 0, tokens, 32)
    found = blocks.unpack(blocks.pack(plain))
    for name, exact in serialize.as_bits(rows).items():
        np.testing.assert_array_equal(found[name][:, :4], np.asarray(exact)[0, :, :4])


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_a_second_machine_reads_blocks_from_a_remote_as_the_first_from_its_own(
    llama: LoadedModel, usual: Path, tmp_path: Path, kind: str
) -> None:
    """Tenants stay apart there, and what is left after pruning is of use."""
    pytest.importorskip("obstore" if kind == "file" else "redis", reason="the extra `remote` is not installed")
    with contextlib.ExitStack() as stack:
        if kind == "file":
            url = f"file://{tmp_path}/remote"
        elif redis_program() is None:
            pytest.skip("no redis-server here")
        else:
            url = stack.enter_context(redis_server(tmp_path)).url

        def machine(name: str, tenant: str = "") -> tuple[tuple[int, ...], int, dict[str, int]]:
            tiers = f"tiered:dir={tmp_path}/{name},remote={url},remote_wait=30000"
            with Decoder(llama, f"kvtc:transform={usual}|{tiers}|paged:block=32,live=false", retain=0) as decoder:
                done = decoder.generate(PROMPT, max_tokens=12, tenant=tenant)
                assert decoder.store is not None and decoder.store.flush()
                return tuple(done.tokens), done.cached_tokens, dict(done.cached_by_tier)

        assert machine("first")[1:] == (0, {})
        again, cached, tiers = machine("first")
        assert cached >= len(PROMPT) // 32 * 32 and set(tiers) == {"ssd"}
        assert machine("second") == (again, cached, {"remote": cached})
        assert machine("third", tenant="other")[1:] == (0, {})
        assert {row["metric"]: row["value"] for row in remote_commands.verify(url)}["corrupt"] == 0
        remote_commands.prune(url, keep=0)
        assert machine("fourth")[1:] == (0, {}), "pruned blocks are misses"
