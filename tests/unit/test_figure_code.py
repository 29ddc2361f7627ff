"""Which code the rows of a figure depend on: what its fingerprint leaves out, what it holds, and what is stale."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kvlab.errors import RunError
from kvlab.experiments.cell import execute
from kvlab.experiments.config import read_experiment
from kvlab.figures import relevant_code as relevance
from kvlab.figures import saved as saved_rows
from kvlab.figures.build import measured, source_tree
from kvlab.figures.declared import FIGURES
from kvlab.figures.relevant_code import changed, relevant_code
from kvlab.figures.saved import Saved
from kvlab.figures.script import Script
from kvlab.figures.source_code import SourceTree, code_hash
from kvlab.figures.stale import reason, stale
from kvlab.models import LoadedModel
from kvlab.paths import PACKAGE
from tests.unit.test_figures import FACTS, FIGURE, some_rows

EXPERIMENTS = source_tree().experiments
SOURCE = '''
"""A file."""
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a import B
LIMIT = 3
"""Most of them."""
class A:
    """A class."""
    def f(self, x: int = 1) -> list[str]:
        """Return it."""
        return ["", f"{x!r:>{LIMIT}}", 'text']  # twice
'''
SYNTAX = """
from __future__ import annotations
import a.b as c
X: dict[str, int] = {"": 1, **{"b": -2}}
async def f(a, /, b=1, *args: int, c: str | None = None, **kw) -> None:
    async with a as b, c: await b
    return [x async for x in y if (n := x) > 1_000.5]
@dec(1)
class A(B, metaclass=M):
    x = "one" "two"
    def g(self): return lambda z=0: f"{z!r:>{self.w}} a{z=}{{}}" f"b" "" + str(rb"c"[0:1:2])
match p:
    case {"k": [1, *rest], **other} if rest: pass
    case A(x=1) | None: del q
try: ...
except* (OSError, E) as e: raise X from e
else: y = 1e10 + 3j
finally: global_ = not True
while 1: break
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A file."""', '"""Another sentence."""'),
        ('"""A file."""', "# nothing"),
        ('"""Most of them."""', ""),
        ('        """Return it."""\n', "\n\n        # it\n"),
        ('    """A class."""\n', "    pass\n"),
        ("'text'", '"text"'),
        ("'text'", '"te" "xt"'),
        ("LIMIT = 3", "LIMIT = 0x3"),
        ("LIMIT = 3", "LIMIT = (\n    3\n)"),
        ("    from a import B", "    from a import C"),
        ("if TYPE_CHECKING:\n    from a import B\n", ""),
    ],
)
def test_comments_docstrings_layout_and_imports_for_type_checkers_leave_the_hash(old: str, new: str) -> None:
    assert old in SOURCE
    assert code_hash(SOURCE.replace(old, new)) == code_hash(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("LIMIT = 3", "LIMIT: Final = 3"),
        ("x: int = 1", "x: int"),
        ("def f", "async def f"),
        ("def f", "def g"),
        ('["", ', "["),
        ("!r", ""),
        ("'text'", "b'text'"),
        ("return [", "yield ["),
        ("class A:", "class A(B):"),
    ],
)
def test_whatever_a_file_does_is_in_the_hash(old: str, new: str) -> None:
    assert old in SOURCE
    assert code_hash(SOURCE.replace(old, new, 1)) != code_hash(SOURCE)


def test_every_file_has_the_hash_of_its_code_without_comments_and_layout() -> None:
    for file in sorted(PACKAGE.rglob("*.py"))[::12]:
        text = file.read_text(encoding="utf-8")
        assert code_hash(ast.unparse(ast.parse(text))) == code_hash(text), file


def test_every_version_of_python_gives_the_same_hash() -> None:
    assert code_hash(SYNTAX) == "27b2d8a248b8", "3.11.7, 3.12.1 and 3.13.0 give this one"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "from p.shapes import Square\nfrom p.colors import RED as SIGNAL\n",
        "shapes/__init__.py": "from p.shapes.square import Square\nfrom p.shapes.circle import Circle\n",
        "shapes/square.py": "import p.tools.ruler\n",
        "shapes/circle.py": "",
        "colors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.unused\nRED = 1\n",
        "tools/__init__.py": "",
        "tools/ruler.py": "import json\ndef f():\n    from p import SIGNAL\n",
        "unused.py": "from p import shapes\n",
    }
    for name, text in files.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    return tmp_path / "p"


def test_names_lead_to_the_files_that_define_them(package: Path) -> None:
    tree = SourceTree(package)
    assert tree.taken_from("p") == {"p.shapes.square", "p.colors"}, "through the package that hands them on"
    assert tree.closure(["p.shapes.square"]) == ["p.colors", "p.shapes.square", "p.tools.ruler"]
    assert tree.closure(["p.shapes.square"], ["p.tools"]) == ["p.shapes.square"]
    assert tree.taken_from("p.unused") == {"p.shapes"}
    assert tree.taken_from(package / "unused.py") == {"p.shapes"}
    with pytest.raises(RunError, match="no module p.nothing; name one"):
        tree.closure(["p.nothing"])
    (package / "tools" / "ruler.py").write_text("def f(:")
    with pytest.raises(RunError, match=r"ruler\.py cannot be read as Python"):
        SourceTree(package).hash("p.tools.ruler")


def test_the_modules_that_relevance_names_exist() -> None:
    tree = SourceTree()
    named = (relevance.MEASURING, relevance.DEVICE, relevance.NOT_MEASURED, relevance.WITHOUT_REUSE)
    for name in (one for names in (*named, relevance.WITHOUT_FILES) for one in names):
        assert tree.file(name) is not None or (PACKAGE.parent / name.replace(".", "/")).is_dir(), name


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree()


def edited(tree: SourceTree, module: str, text: str = "\nALTERED = 1\n") -> SourceTree:
    """A source tree in which one module ends with other text."""
    other, file = copy.copy(tree), tree.file(module)
    assert file is not None
    for name in ("_trees", "_hashes", "_imports"):
        vars(other)[name] = {known: value for known, value in vars(tree)[name].items() if known != file}
    vars(other)["_trees"][file] = ast.parse(file.read_text(encoding="utf-8") + text)
    return other


@pytest.mark.parametrize(
    ("experiment", "counts", "does_not"),
    [
        (
            "quality",
            ["kvlab.policies.scorers.snapkv", "kvlab.caches.codecs.quantized", "kvlab.workloads.retrieval"],
            ["kvlab.store.store", "kvlab.workloads.agent", "kvlab.server.service", "kvlab.charts.quality"],
        ),
        (
            "ttft",
            ["kvlab.store.ssd.folder", "kvlab.decoder.reuse.paged", "kvlab.store.replacement.lru"],
            ["kvlab.policies.scorers.snapkv", "kvlab.caches.codecs.quantized", "kvlab.store.replacement.sieve"],
        ),
        (
            "concurrency",
            ["kvlab.store.ram.tier", "kvlab.backends.x86.flash_attention", "kvlab.workloads.desk"],
            ["kvlab.store.ssd.folder", "kvlab.results.report", "kvlab.experiments.config"],
        ),
    ],
)
def test_a_change_of_what_an_experiment_runs_is_found_and_no_other(
    experiment: str, counts: list[str], does_not: list[str], tree: SourceTree
) -> None:
    path = EXPERIMENTS / f"{experiment}.toml"
    before = relevant_code(path, tree)
    for module in counts:
        assert changed(before, relevant_code(path, edited(tree, module))) == [module]
        assert changed(before, relevant_code(path, edited(tree, module, "\n# a remark\n"))) == []
    for module in does_not:
        assert changed(before, relevant_code(path, edited(tree, module))) == [], module


def test_the_preset_of_a_measured_system_counts_and_no_other(tmp_path: Path, tree: SourceTree) -> None:
    file = tmp_path / "some.toml"
    file.write_text('policies = ["full"]\nsystems = ["omlx"]\n')
    presets = {name for name in relevant_code(file, tree) if name.startswith("kvlab.systems.presets.")}
    assert presets == {"kvlab.systems.presets.omlx"}
    file.write_text('policies = ["full"]\n')
    assert not any("presets" in name for name in relevant_code(file, tree))


def test_settings_libraries_and_the_bundled_model_count(tmp_path: Path, tree: SourceTree) -> None:
    text = (EXPERIMENTS / "eviction.toml").read_text()
    path = tmp_path / "eviction.toml"
    hashes = []
    for one in (text, f"# a remark\n{text}", text.replace("tokens = 500", "tokens = 501")):
        path.write_text(one.replace("Which positions", "What") if one is not text else one)
        hashes.append(relevant_code(path, tree))
    assert hashes[0] == hashes[1] and changed(hashes[0], hashes[2]) == ["eviction.toml"]
    assert {"mlx", "mlx-lm", "tiny/model.safetensors"} <= set(hashes[0])
    path.write_text(f'model = "some/other-model"\n{text}')
    assert "tiny/model.safetensors" not in relevant_code(path, tree)


def executed_while(work: Callable[[], object]) -> set[str]:
    """The modules of kvlab of which any thread runs a function meanwhile."""
    codes: set[Any] = set()

    def seen(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    root = str(PACKAGE)
    files = {
        Path(code.co_filename)
        for code in codes
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(root)
    }
    names = (".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__") for name in names}


@pytest.mark.parametrize(
    "policies", [["full", "snapkv:budget=0.5"], ["paged", "paged|quantized:bits=8"], ["tiered", "snapshot"]]
)
def test_all_code_that_runs_while_measuring_counts(policies: list[str], qwen3: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(f'workload = "chat"\nturns = 2\nmodel = "{qwen3.path}"\npolicies = {json.dumps(policies)}\n')
    cells = read_experiment(path).cells()
    execute(cells[0])  # what is imported and loaded once
    ran = executed_while(lambda: [execute(dataclasses.replace(cell, repeat=1)) for cell in cells])
    assert "kvlab.decoder.scheduler" in ran
    shown = tuple(f"{name}." for name in relevance.NOT_MEASURED)
    assert {one for one in ran - set(relevant_code(path)) if not f"{one}.".startswith(shown)} == set()


def test_rows_of_other_code_are_named_with_the_command_that_makes_them_anew(tmp_path: Path, tree: SourceTree) -> None:
    experiments, folder = tmp_path / "experiments", tmp_path / "rows"
    experiments.mkdir()
    (experiments / "some.toml").write_text((EXPERIMENTS / "eviction.toml").read_text())
    code = relevant_code(experiments / "some.toml", tree)
    figure = dataclasses.replace(FIGURE, experiments=("some",))

    def lines(facts: dict[str, Any], now: SourceTree = tree) -> list[str]:
        saved_rows.write(folder, "some", Saved(some_rows(), {**FACTS, **facts}), figure.needs())
        return stale([figure], experiments, folder, now)

    assert lines({"code": code}) == []
    assert "kvlab figures --rerun --only small" in lines({})[0] and "do not say which code" in lines({})[0]
    (line,) = lines({"code": code, "time": "2026-11-22T14:43:47+00:00"}, edited(tree, "kvlab.decoder.scheduler"))
    assert "(0123456789ab, 2026-11-22)" in line and "changed since has kvlab.decoder.scheduler; make" in line
    gone = code | {f"kvlab.caches.gone_{i}": "0" for i in range(6)}
    assert "kvlab.caches.gone_3 and 2 more" in lines({"code": gone})[0]
    (experiments / "some.toml").write_text('policies = ["full", "snapkv:budget=0.3"]\n')
    assert "some.toml" in lines({"code": code})[0]
    (experiments / "some.toml").unlink()
    assert "cannot be told which code" in lines({"code": code})[0]


@pytest.mark.parametrize("code", [None, "", [], 3, {}])
def test_a_fingerprint_that_is_none_is_no_fingerprint_of_this_code(code: Any) -> None:
    assert reason({"code": code}, {"kvlab.decoder": "1"})


def test_what_is_changed_while_it_is_measured_has_no_hash(
    tmp_path: Path, qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]
    path = tmp_path / "some.toml"
    path.write_text(f'workload = "chat"\nturns = 1\nmodel = "{qwen3.path}"\npolicies = ["full"]\n')
    monkeypatch.setattr(saved_rows, "relevant_code", lambda _: answers.pop(0))
    found = saved_rows.measure(path, tmp_path / "cells", progress=False)
    assert found.provenance["code"] == {"a": "1", "b": "", "c": ""}


PROGRAM = """
import json, sys
from kvlab.workloads import chat
rows = [{"policy": "full", "workload": "x", "metric": "ttft_ms", "value": 2, "unit": "ms", "turn": 1, "server": "s"}]
print(json.dumps({"provenance": {"commit": "abc", "asked": sys.argv[1:]}, "rows": rows}))
"""


def test_a_script_is_an_experiment_and_its_files_count(tmp_path: Path, tree: SourceTree) -> None:
    (tmp_path / "bench").mkdir()
    program, beside = tmp_path / "bench" / "bench.py", tmp_path / "bench" / "beside.py"
    program.write_text(PROGRAM)
    beside.write_text("X = 1\n")
    path = tmp_path / "some.toml"
    path.write_text(
        'script = "bench/bench.py"\narguments = ["--turns", 2]\nmodules = ["kvlab.server.access"]\ntitle = "T"\n'
        'policies = ["tiered"]\n'
    )
    found = saved_rows.measure(path, tmp_path / "cells")
    assert found.rows["value"].to_list() == [2.0] and found.rows["turn"].to_list() == [1]
    assert found.provenance["asked"] == ["--turns", "2", "--json"]
    code = found.provenance["code"]
    assert {"bench/bench.py", "bench/beside.py", "kvlab.workloads.chat", "kvlab.server.access"} <= set(code)
    assert "kvlab.decoder.reuse.paged" in code, "it carries out tiered"
    beside.write_text("X = 2\n")
    assert changed(code, relevant_code(path)) == ["bench/beside.py"]
    program.write_text("print('hello')")
    with pytest.raises(RunError, match="printed no document of rows"):
        saved_rows.measure(path, tmp_path / "cells")
    program.write_text("raise SystemExit(3)")
    with pytest.raises(RunError, match="ended with status 3"):
        saved_rows.measure(path, tmp_path / "cells")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('script = "nothing.py"', "there is no .*nothing.py; write the path"),
        ('script = "some.toml"\nworkload = "chat"', "unknown key 'workload' beside script; known are title, script"),
        ('script = "some.toml"\narguments = "--json"', "arguments is '--json'; write a list"),
    ],
)
def test_a_script_that_cannot_be_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text(text)
    with pytest.raises(RunError, match=says):
        Script.of(tmp_path / "some.toml")


def test_the_code_of_every_declared_figure_can_be_told() -> None:
    place = source_tree()
    lines = stale(measured(FIGURES, place.rows), place.experiments, place.rows)
    assert all("make them anew: kvlab figures --rerun --only" in line for line in lines), lines
