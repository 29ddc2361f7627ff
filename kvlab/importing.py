"""Import a user's file of Python: the scorers, codecs, workloads and metrics in it are known by their names then."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kvlab.errors import UserCodeError

_FILE = "__kvlab_user_file__"
"""The variable of a module made of a user's file that holds its UserFile."""


@dataclass(frozen=True)
class UserFile:
    """A file of the user's own code, as it was when it was imported: its full path and the SHA-256 of its bytes."""

    path: str
    sha256: str


def import_user_file(path: str | Path) -> UserFile:
    """Run a file of Python once in this process, so that what it defines is known; the same file again does nothing.

    Its folder becomes the last place to import modules from. A file that has changed is run anew.

    Raises:
        UserCodeError: the file is missing, is no Python, raises (with the line), or defines a name that is taken.
    """
    source = Path(path).expanduser().resolve()
    content = _read(path, source)
    file = UserFile(str(source), hashlib.sha256(content).hexdigest())
    if file in user_files():
        return file
    if (folder := str(source.parent)) not in sys.path:
        sys.path.append(folder)
    name = module_name(file.path)
    before = sys.modules.get(name)
    module = ModuleType(name)
    module.__file__ = file.path
    module.__dict__[_FILE] = file
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        _execute(path, module, content)
        _check_names(path, module)
    except BaseException:
        for cls in _named_classes(module):
            cls.name = ""  # a class is known by its name until it is collected
        del sys.modules[name]
        if before is not None:  # the file as it was goes on
            sys.modules[name] = before
        raise
    return file


def import_again(file: UserFile) -> None:
    """Import a file that another process has imported. Raises UserCodeError where it is no longer the same."""
    if import_user_file(file.path).sha256 != file.sha256:
        raise UserCodeError(f"{file.path} has changed since this was begun; begin again")


def user_files() -> list[UserFile]:
    """Return the files that were imported, in their order."""
    return [vars(module)[_FILE] for module in _user_modules()]


def user_functions(name: str) -> dict[str, Callable[..., Any]]:
    """Return the functions of this name in the imported files, by the path of their file."""
    found = {vars(module)[_FILE].path: vars(module).get(name) for module in _user_modules()}
    return {path: value for path, value in found.items() if callable(value) and not inspect.isclass(value)}


def user_function_names() -> list[str]:
    """Return the names of the public functions that the imported files define."""
    named = [(module, name, value) for module in _user_modules() for name, value in vars(module).items()]
    return [
        name
        for module, name, value in named
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def where_raised(error: BaseException, file: str) -> int | None:
    """Return the last line of a file that an error came through; None where it did not."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _user_modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if _FILE in getattr(module, "__dict__", ())]


def module_name(path: str) -> str:
    """Return a name that is equal in every process, so that functions of the file can be pickled."""
    return f"kvlab_user_file_{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _read(path: str | Path, source: Path) -> bytes:
    if source.suffix != ".py":
        raise UserCodeError(f"{path}: not a file of Python by its name; give a file that ends in .py")
    try:
        return source.read_bytes()
    except OSError as error:
        raise UserCodeError(f"{path}: {error.strerror or error}; give a file of Python, such as mine.py") from error


def _execute(path: str | Path, module: ModuleType, content: bytes) -> None:
    source = str(module.__file__)
    try:
        exec(compile(content, source, "exec", dont_inherit=True), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: the file must not end the process that imports it
        raise UserCodeError(f"{path}{_told(source, error)}") from error


def _told(source: str, error: BaseException) -> str:
    """Return where a file failed, and why, as one line that its path begins."""
    line, why = where_raised(error, source), " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return f":{line}: it ends the process; put what is not to be imported under if __name__ == '__main__'"
    if line is not None:
        return f":{line}: {type(error).__name__}: {why}; the file must run from top to bottom"
    if isinstance(error, SyntaxError) and error.lineno:
        return f":{error.lineno}: not Python ({error.msg}); correct this line"
    return f": not Python ({why}); give a file of Python, such as mine.py"


def _check_names(path: str | Path, module: ModuleType) -> None:
    """Raise UserCodeError where a class of the file has the name of another class of its kind."""
    for cls in _named_classes(module):
        name = cls.name
        kinds = [base for base in cls.__mro__ if base.__module__.startswith("kvlab.")]
        for other in _subclasses(kinds[-1]) if kinds else ():
            if other.__dict__.get("name") == name and not _may_be_replaced(other, str(module.__file__)):
                raise UserCodeError(
                    f"{path}: {cls.__name__} is named {name!r}, as is {other.__module__}.{other.__name__}; "
                    "give it another name, since results tell them apart by it"
                )


def _may_be_replaced(cls: type, file: str) -> bool:
    """Return whether a class is one of a notebook, or was read from this file, under whatever name of a module."""
    if cls.__module__ == "__main__":
        return True
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return cls.__module__ == module_name(file) or (bool(source) and Path(str(source)).resolve() == Path(file))


def _named_classes(module: ModuleType) -> list[Any]:
    """Return the classes that a module defines and gives a name."""
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    return [cls for cls in classes if isinstance(cls.__dict__.get("name"), str) and cls.__dict__["name"]]


def _subclasses(cls: type) -> Iterator[type]:
    child: type
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
