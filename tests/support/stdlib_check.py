"""Run by another Python: whether that Python knows what packages are written in.

Compiles every module with warnings as errors, and looks up every name that a module imports from the standard library.
It needs no package but the standard library. Its arguments are the directory of the packages, the modules of the
standard library of the Python that they were written for, with commas between, and the packages.
"""

import ast
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

warnings.simplefilter("error")


def main(root: Path, known: frozenset[str], packages: Sequence[str]) -> int:
    """Prints each trouble on a line, and returns how many there are."""
    troubles = [
        f"{path.relative_to(root)}: {trouble}"
        for package in packages
        for path in sorted((root / package).rglob("*.py"))
        for trouble in _troubles(path, known)
    ]
    print("\n".join(troubles))
    return min(len(troubles), 100)


def _troubles(path: Path, known: frozenset[str]) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        compile(tree, str(path), "exec")
    except (SyntaxError, Warning) as error:
        yield repr(error)
        return
    for module, names in _imported(tree):
        if module.partition(".")[0] in known:
            yield from _missing(module, names)


def _imported(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, [alias.name for alias in node.names]


def _missing(module: str, names: list[str]) -> Iterator[str]:
    try:
        loaded = importlib.import_module(module)
    except (ImportError, Warning) as error:
        yield repr(error)
        return
    for name in names:
        if not hasattr(loaded, name):
            try:
                importlib.import_module(f"{module}.{name}")
            except ImportError:
                yield f"{module} has no {name}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), frozenset(sys.argv[2].split(",")), sys.argv[3:]))
