"""The order of the rooms: which folder imports which, one name for one class, and one room that knows the device."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kvlab"

DEVICE_NAMES = {"is_composed", "are_quicker", "is_cpu"}
DEVICE_ATTRIBUTES = ("platform.", "sys.platform", "mx.default_device", "mx.metal")
FLOATS = re.compile(r"mx\.b?float\d+")


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every file of these folders or modules; of the whole package without any."""
    for room in rooms or (".",):
        path = PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


# -- imports ----------------------------------------------------------------------------------------------------------


LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"


def test_no_import_points_up() -> None:
    """In a process of its own: import-linter disables the loggers of the process that it runs in."""
    command = [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml")]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "0 broken" in made.stdout


def test_contract_covers_every_room_and_imports_for_type_checkers() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract for contract in settings["contracts"] if contract["type"] == "layers")
    assert settings["exclude_type_checking_imports"] is False
    assert layers["exhaustive"] is True
    assert not [key for contract in settings["contracts"] for key in contract if key.startswith("ignore")]


def test_rooms_below_the_command_line_do_not_import_the_whole_package() -> None:
    """``import kvlab`` reaches every room, past the contract, which does not look through the package itself."""
    found = [
        path
        for path, tree in sources()
        if not path.startswith("kvlab/cli/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(name.name == "kvlab" for name in node.names)
    ]
    assert found == []


# -- names ------------------------------------------------------------------------------------------------------------


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


# -- the device -------------------------------------------------------------------------------------------------------


def device_checks(path: str, tree: ast.Module) -> list[str]:
    """Every place of a file that asks for platform, device or the float type of an array."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in DEVICE_NAMES:
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if node.attr in DEVICE_NAMES or text.startswith(DEVICE_ATTRIBUTES):
                found.append((node.lineno, text))
        elif isinstance(node, ast.ImportFrom):
            imported = [name.name for name in node.names]
            if node.module == "platform" or (node.module == "sys" and "platform" in imported):
                found.append((node.lineno, ast.unparse(node)))
            found += [(node.lineno, name) for name in imported if name in DEVICE_NAMES]
        elif isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            if any(side.endswith(".dtype") for side in sides) and any(FLOATS.search(side) for side in sides):
                found.append((node.lineno, ast.unparse(node)))
    return [f"{path}:{line}: {text}" for line, text in sorted(set(found))]


MAY_ASK = {
    "backends": "it is the one room that knows the device",
    "bench": "it measures devices",
    "cli": "doctor reports the device",
    "provenance.py": "results name the device",
    "__init__.py": "it loads a BLAS before MLX",
}
ROOMS = [
    room
    for room in sorted(path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or list(path.glob("*.py")))
    if room not in MAY_ASK
]


@pytest.mark.parametrize("room", ROOMS)
def test_only_backends_ask_for_platform_device_or_float_type(room: str) -> None:
    found = [check for path, tree in sources(room) for check in device_checks(path, tree)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import platform\nplatform.machine()",
        "import sys\nsys.platform == 'darwin'",
        "mx.default_device()",
        "mx.metal.is_available()",
        "from kvlab.backends.device import is_cpu",
        "x.is_composed()",
        "keys.dtype == mx.float32",
        "keys.dtype in (mx.bfloat16, mx.float16)",
    ],
)
def test_device_checks_are_seen(line: str) -> None:
    assert device_checks("file.py", ast.parse(line))


@pytest.mark.parametrize("line", ["mask.dtype != mx.bool_", "x.astype(mx.float32)", "row['platform']"])
def test_other_uses_of_dtypes_are_no_device_checks(line: str) -> None:
    assert device_checks("file.py", ast.parse(line)) == []
