"""The source of kvlab's modules: a hash of what each does, and the modules that it takes names from."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvlab.errors import RunError
from kvlab.paths import PACKAGE

HASH_DIGITS = 12
"""Hexadecimal digits of a hash."""


def hash_of(*parts: str | bytes) -> str:
    """Return a short hash of texts or bytes, in their order."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big") + data)
    return found.hexdigest()[:HASH_DIGITS]


def code_hash(source: str) -> str:
    """Return a hash of Python source that comments, docstrings, layout and imports for type checkers leave as it is.

    It is the same under every version of Python that kvlab runs on. Raises SyntaxError.
    """
    return hash_of(*_tokens(ast.parse(source)))


class SourceTree:
    """The modules of a package as their files say now; a file is read once.

    Args:
        package: the package's folder, whose name is the first part of its modules' names.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self.package = package
        self._trees: dict[Path, ast.Module] = {}
        self._hashes: dict[Path, str] = {}
        self._imports: dict[Path, tuple[tuple[str, str, str], ...]] = {}

    def file(self, name: str) -> Path | None:
        """Return the file of a module by its full name; None where there is none."""
        path = self.package.parent.joinpath(*name.split("."))
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    def hash(self, module: str | Path) -> str:
        """Return the hash of a module, or of any Python file, without what `code_hash` leaves out. Raises RunError."""
        file = self._known(module)
        if file not in self._hashes:
            self._hashes[file] = hash_of(*_tokens(self._tree(file)))
        return self._hashes[file]

    def modules_of(self, name: str) -> list[str]:
        """Return the modules of a package that lie in its folder, and the package itself. Raises RunError."""
        folder = self._known(name).parent
        return [name, *sorted(f"{name}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")]

    def closure(self, roots: Iterable[str], without: Iterable[str] = ()) -> list[str]:
        """Return these modules and all that they take names from, directly or not, sorted; none below `without`.

        A name that a package hands on counts for the module that defines it: `from kvlab.policies import Paged` leads
        to `kvlab.policies.reuse`, and to no other file of `kvlab.policies`. Raises RunError for an unknown module.
        """
        found: set[str] = set()
        pending, left_out = list(roots), tuple(f"{other}." for other in without)
        while pending:
            name = pending.pop()
            if name not in found and not f"{name}.".startswith(left_out):
                found.add(name)
                pending += self.taken_from(name)
        return sorted(found)

    def taken_from(self, module: str | Path) -> set[str]:
        """Return the modules of the package that a module, or any Python file, takes names from. Raises RunError."""
        found = (self._home(base, one) for base, one, _ in self._imports_of(self._known(module)))
        return {name for name in found if self.file(name) is not None}

    def _home(self, base: str, name: str) -> str:
        """Return the module that defines a name which is imported from `base`; `base` itself for no name."""
        if name and self.file(f"{base}.{name}") is not None:
            return f"{base}.{name}"
        file = self.file(base)
        if name and file is not None and file.name == "__init__.py":
            for other, one, known_as in self._imports_of(file):
                if known_as == name and other != base:
                    return self._home(other, one)
        return base

    def _known(self, module: str | Path) -> Path:
        file = module if isinstance(module, Path) else self.file(module)
        if file is None:
            raise RunError(f"{self.package} has no module {module}; name one that exists")
        return file

    def _tree(self, file: Path) -> ast.Module:
        if file not in self._trees:
            try:
                self._trees[file] = ast.parse(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError) as error:
                raise RunError(f"{file} cannot be read as Python ({error}); mend it") from error
        return self._trees[file]

    def _imports_of(self, file: Path) -> tuple[tuple[str, str, str], ...]:
        """Return module, name in it (empty for the module itself) and the name here, of each import of the package."""
        if file not in self._imports:
            found = (one for node in _nodes(self._tree(file)) for one in _imported(node))
            self._imports[file] = tuple(one for one in found if one[0].partition(".")[0] == self.package.name)
        return self._imports[file]


def _imported(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, ast.Import):
        yield from ((one.name, "", one.asname or one.name) for one in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from ((node.module, one.name, one.asname or one.name) for one in node.names)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not _is_for_type_checkers(child):
            yield from _nodes(child)


def _is_for_type_checkers(node: object) -> bool:
    if not isinstance(node, ast.If) or node.orelse:
        return False
    name = getattr(node.test, "attr", getattr(node.test, "id", ""))
    return name == "TYPE_CHECKING"


def _does_nothing(node: object) -> bool:
    """Return whether a statement is text by itself, `pass`, or for type checkers only."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or isinstance(node, ast.Pass) or _is_for_type_checkers(node)


def _tokens(node: object) -> Iterator[str]:
    """Yield a tree as text, without what versions of Python write in different ways: empty fields, contexts, kinds."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for field, value in ast.iter_fields(node):
            if value is not None and value != [] and field not in ("ctx", "kind", "type_comment"):
                yield f".{field}"
                yield from _tokens(_without_empty_text(value) if isinstance(node, ast.JoinedStr) else value)
        yield ";"
    elif isinstance(node, list):
        yield "["
        for item in node:
            if not _does_nothing(item):
                yield from _tokens(item)
        yield "]"
    else:
        yield f"{type(node).__name__} {node!r}"


def _without_empty_text(values: list[ast.expr]) -> list[ast.expr]:
    """Some versions put empty text between the parts of an f-string."""
    return [value for value in values if not (isinstance(value, ast.Constant) and value.value == "")]
