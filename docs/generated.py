"""What the site has beyond the Markdown files: added to their text while Sphinx reads it, nothing is kept.

- the sidebar, at the end of `index.md`;
- the policy reference, from the docstrings of every module in `kvlab.policies.registry()`;
- the API, from the public names of kvlab and its packages;
- the notebooks, copied to `notebooks/` beside this file, which git ignores.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from pygments.lexers import JsonLexer

import kvlab
import kvlab.policies as policies
from kvlab.policies import SLOTS, ModuleInfo, parse_module, registry

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent / "notebooks"

SIDEBAR = {
    "Begin": ("start", "models", "data", "concepts", "notebooks"),
    "Policies": ("policies", "write", "forced", "quality", "codecs", "budgets", "limits"),
    "How it works": (
        *("store", "two-macs", "tensor-parallel", "live", "serving", "systems"),
        *("stack", "stack-rows", "stack-smollm2", "stack-smollm2-rows"),
        *("calibration", "audit", "advise", "replay", "experiments", "overnight", "figures/README"),
    ),
    "Reference": ("api", "install", "contributing"),
}

QUESTIONS = {
    "retention": "which tokens of a live sequence stay?",
    "reuse": "how does a new request find earlier KV?",
    "codec": "how are K and V written?",
    "tiers": "where does KV at rest live, and who leaves?",
}

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$", re.M)
ITEM = re.compile(r"^ {4}(\w[\w, ]*): ", re.M)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


# -- policies ---------------------------------------------------------------------------------------------------------


def policy_reference() -> str:
    """Markdown: every registered module, by slot."""
    parts = []
    for slot in dict.fromkeys([*SLOTS, *(info.slot for info in registry())]):
        question = QUESTIONS.get(slot, "")
        parts.append(f"## {slot.capitalize()}\n\n*{question[:1].upper()}{question[1:]}*\n")
        parts += [_module(info) for info in registry() if info.slot == slot]
    return "\n".join(parts)


def _module(info: ModuleInfo) -> str:
    cls = type(parse_module(info.name))
    text = SECTION.split(inspect.getdoc(cls) or "")[0].strip()
    lines = [f"### {info.name}", "", f"`{public_name(cls)}`", "", text, ""]
    if info.parameters:
        told, kinds = _told(cls), typing.get_type_hints(cls)
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for name, value in info.parameters.items():
            shown = "none" if value is None else value
            meaning = told.get(name, "").replace("|", "\\|")
            lines.append(f"| `{name}` | {_type_name(kinds[name])} | `{shown}` | {meaning} |")
    else:
        lines.append("No parameters.")
    if info.paper:
        lines += ["", "Source: " + ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", info.paper)]
    return "\n".join([*lines, ""])


def _told(cls: type) -> dict[str, str]:
    """Parameter to its meaning, from the `Args` of the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        sections = SECTION.split(inspect.cleandoc(base.__doc__ or ""))
        for title, body in zip(sections[1::2], sections[2::2], strict=True):
            if title == "Args":
                pieces = ITEM.split(body)
                for names, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
                    found |= {name.strip(): " ".join(meaning.split()) for name in names.split(",")}
    return found


def _type_name(kind: Any) -> str:
    options = [option for option in typing.get_args(kind) or (kind,) if option is not type(None)]
    if float in options:
        return "number"
    names = {str: "text", int: "whole number", bool: "yes or no"}
    return " or ".join(names.get(option, option.__name__) for option in options)


def public_name(item: Any) -> str:
    """The shortest name under which one imports it."""
    for package in (kvlab, policies):
        for name in package.__all__:
            if getattr(package, name) is item:
                return f"{package.__name__}.{name}"
    return f"{item.__module__}.{item.__qualname__}"


# -- API --------------------------------------------------------------------------------------------------------------

PACKAGES = {
    "kvlab": "What one imports first: load a model, run, compare, watch, serve.",
    "kvlab.policies": "What policies are made of. The modules themselves are in the [policy reference](policies.md).",
    "kvlab.results": "Tidy rows, and a folder of them.",
    "kvlab.inspection": "A few prompts in detail.",
    "kvlab.charts": "Functions from frames to Altair charts.",
    "kvlab.widgets": "Panels over the charts, for notebooks.",
    "kvlab.decoder": "Requests and their tokens, below `kvlab.run` and `kvlab.serve`.",
    "kvlab.store": "KV at rest. The [store](store.md) page says what it promises.",
    "kvlab.caches": "Live KV: layer caches for any mlx-lm generator.",
    "kvlab.workloads": "Conversations with known answers.",
    "kvlab.recording.events": "The events: each class is a kind of event, and a frame of `Recorder.frame`.",
    "kvlab.server": "The endpoint behind `kvlab.serve`.",
    "kvlab.systems": "The cache designs of other servers as values; see [systems](systems.md).",
    "kvlab.audit": "The client behind `kvlab audit`: what it asks a server, and what it finds.",
    "kvlab.advising": "Behind `kvlab.advise`: which design [fits a workload](advise.md).",
    "kvlab.replay": "Behind `kvlab replay`: what a tier hits of [a trace](replay.md).",
    "kvlab.errors": "Every error that a user can cause, one line each.",
}


def api_reference() -> str:
    """Markdown with autodoc directives: the public names of each package, each once."""
    modules = {type(parse_module(info.name)) for info in registry()}
    parts, seen = [], set()
    for package, lead in PACKAGES.items():
        parts.append(f"## {package}\n\n{lead}\n")
        for name in public_names(package):
            item = getattr(importlib.import_module(package), name)
            directive = _directive(item)
            if directive is None or id(item) in seen or item in modules:
                continue
            seen.add(id(item))
            options = "\n   :members:" if directive == "autoclass" else ""
            parts.append(f"```{{eval-rst}}\n.. {directive}:: {package}.{name}{options}\n```\n")
    return "\n".join(parts)


def public_names(package: str) -> list[str]:
    """`__all__`; without it, the classes and functions without underscore that are defined there."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, item in vars(module).items()
        if not name.startswith("_") and _directive(item) and str(item.__module__).startswith(package)
    ]


def _directive(item: Any) -> str | None:
    if inspect.isclass(item):
        return "autoexception" if issubclass(item, BaseException) else "autoclass"
    return "autofunction" if inspect.isfunction(item) else None


def _docstring(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Behind napoleon: no signature for the docstring of a dataclass that has none, and properties as they are.

    napoleon takes what stands before a colon in a property's docstring for its type.
    """
    own = name.rpartition(".")[2]
    if what == "class" and dataclasses.is_dataclass(item) and lines and lines[0].startswith(f"{own}("):
        lines.clear()
    if what == "property":
        lines[:] = [*(inspect.getdoc(item) or "").splitlines(), ""]


TYPES = {"mlx.nn": "nn.", "mlx.core": "mx.", "polars": "pl.", "altair": "alt.", "numpy": "np."}
LONG = re.compile(r"~?\b(mlx\.nn|mlx\.core|polars|altair|numpy|kvlab|collections|typing|pathlib)(?:\.\w+)*\.(?=\w)")


def _signature(
    app: Any, what: str, name: str, item: Any, options: Any, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Types as one writes them, not by the file that defines them."""

    def short(text: str | None) -> str | None:
        return None if text is None else LONG.sub(lambda found: TYPES.get(found[1], ""), text)

    return short(arguments), short(returns)


# -- reading ----------------------------------------------------------------------------------------------------------


def sidebar() -> str:
    """The table of contents of the site, which `index.md` has as links."""
    trees = []
    for caption, pages in SIDEBAR.items():
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(trees)


def notebooks_tree() -> str:
    names = "\n".join(f"notebooks/{path.stem}" for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")))
    return f"```{{toctree}}\n:hidden:\n\n{names}\n```"


def _read(app: Any, page: str, source: list[str]) -> None:
    text = source[0].replace("](../notebooks/", "](notebooks/")
    text = text.replace("<!-- generated: policies -->", policy_reference() if page == "policies" else "")
    text = text.replace("<!-- generated: api -->", api_reference() if page == "api" else "")
    if page == "index":
        text += f"\n\n{sidebar()}\n"
    if page == "notebooks":
        text += f"\n\n{notebooks_tree()}\n"
    source[0] = text


def copy_notebooks(app: Any) -> None:
    """Bring `notebooks/` beside this file up to date; a file that is the same is left alone."""
    folder = Path(app.srcdir) / "notebooks"
    folder.mkdir(exist_ok=True)
    wanted = {path.name: _as_pictures(path.read_text()) for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
    for path in folder.glob("*.ipynb"):
        if path.name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        target = folder / name
        if not target.exists() or target.read_text() != content:
            target.write_text(content)


def _as_pictures(text: str) -> str:
    """A notebook in which a chart is only the picture that was saved with it: the rest needs scripts."""
    notebook = json.loads(text)
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if "image/png" in data:
            output["data"] = {kind: value for kind, value in data.items() if not kind.startswith("application/")}
    return json.dumps(notebook, indent=1, ensure_ascii=False)


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _docstring, priority=600)
    app.connect("autodoc-process-signature", _signature)
    app.add_lexer("jsonl", JsonLexer)  # Pygments knows the format by no name
    # The reference follows the code, which Sphinx does not watch: these pages are read anew every time.
    app.connect("env-get-outdated", lambda *_: ["policies", "api"])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
