"""The fingerprint of a step's code: what Snakemake cannot see, since it tracks neither imported modules nor installed packages.

Only the modules a step really imports count, and of them only what can change a result: comments, docstrings, settings classes
(their values are compared as params) and error classes do not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGES: Final = ("sereno.pipeline", "sereno.model")
WITHOUT_RESULTS: Final = frozenset(
    {"sereno.pipeline.config", "sereno.model.config", "sereno.pipeline.errors", "sereno.model.flow", "sereno.model.monitor"}
)
"""Modules that cannot change what a step writes, other than through its settings; nor can what only they import. The monitor draws
pictures, but no other colour on them is worth another training."""


def fingerprint(module: str) -> str:
    """Sixteen hex digits that change when `module`, or anything of ours that it imports, changes in substance."""
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(f"{name}:{_substance(name)}\n".encode())
    return digest.hexdigest()[:16]


def imported_modules(path: Path) -> frozenset[str]:
    """Modules of ours that the file at `path` imports anywhere, also inside functions."""
    return frozenset(_imports(ast.parse(path.read_text())))


@functools.cache
def source_of(module: str) -> Path | None:
    """The file of a module of ours; None for any other name, for example of a class inside a module."""
    for package in PACKAGES:
        if module == package or module.startswith(f"{package}."):
            root = Path(importlib.import_module(package).__path__[0])
            place = root.joinpath(*module.removeprefix(package).strip(".").split("."))
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    return file
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = source_of(module)
    assert path is not None, module
    return ast.parse(path.read_text())


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in WITHOUT_RESULTS:
            found.add(name)
            waiting += _imported(name)
    return found


@functools.cache
def _imported(module: str) -> frozenset[str]:
    return frozenset(_imports(_tree(module)))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if source_of(name))


@functools.cache
def _substance(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_text(item)] or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
