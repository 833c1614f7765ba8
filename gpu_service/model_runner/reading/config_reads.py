"""Which settings of config.json a model's code reads at a place, so that an error can name them.

A setting that is null, zero or too large shows as a TypeError or a wrong shape deep in a model's code, which names no
setting. The code's source does: the expression that failed, or that builds a tensor of the wrong shape, reads settings,
or attributes that were set from them.
"""

import ast
import inspect
import json
import re
import textwrap
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import FrameType, TracebackType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

_MODEL_CODE = ("transformers.models.", "gpu_service.models.")
_MOST = 4
"""Settings that a message names."""

_ENORMOUS = 2**24
"""No count or size of a model is so large."""

_SIZE = re.compile(r"_dim$|_size$|_rank$|^num_|^n_|_heads$|_layers$")
"""Names of settings that are whole numbers."""

_Sources = dict[str, list[ast.expr]]
"""What is assigned to each name, and under which conditions."""


_INHERITED = "super().__init__"
"""The name of what classes give to their bases."""

_sources: dict[str, _Sources] = {}
"""By the full names of classes."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A config.json that the class of its family refuses."""

    settings: Mapping[str, Any]
    cls: type


def blame_failure(error: BaseException, config: Any) -> str:
    """The settings that the failing expression reads, as the end of a sentence; empty if none is found.

    Args:
        error: Raised by the code of a model or of its configuration.
        config: The configuration; an Unread if it is none yet.
    """
    return _shown(_read_by_failure(error), config) or _odd_settings(config)


def is_raised_by_model(error: BaseException) -> bool:
    """Whether an error comes from the code of a model, or from PyTorch as that code calls it."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name.startswith("transformers.") for name in reversed(names) if not name.startswith("torch")), False)


def blame_tensors(module: nn.Module, names: Iterable[str], config: Any, only_odd: bool = False) -> str:
    """The settings that decide the shapes of tensors or whether they are there, as the end of a sentence.

    Args:
        module: The model.
        names: Of its parameters or buffers.
        config: Its configuration.
        only_odd: Whether settings are named only if their values are hardly meant.
    """
    read = [fields for name in names for fields in _read_for_tensor(module, name)]
    return _shown(read, config, only_odd) or _odd_settings(config)


def blame_conditions(module: nn.Module, config: Any) -> str:
    """The settings that decide how many layers a model has and of which kind, as the end of a sentence."""
    found: list[list[str]] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and not len(child):
            owner, _, tail = name.rpartition(".")
            found.append(_fields_behind(type(module.get_submodule(owner)), tail))
        elif isinstance(child, nn.ModuleList):
            sources = _sources_of(type(child[0]))
            for conditions in (value for name, value in sources.items() if name.startswith("if ")):
                found += [_fields(condition, sources, False) for condition in conditions]
    return _shown([[field for fields in found for field in fields]], config)


def _read_by_failure(error: BaseException) -> Iterator[list[str]]:
    """What the failing expression of each frame reads, from the innermost on."""
    for frame, position in reversed(list(_frames_of_models(error.__traceback__))):
        owner = frame.f_locals.get("self")
        sources = _sources_of(type(owner)) if owner is not None else {}
        for node in _nodes_at(frame, position):
            yield _fields(node, sources, isinstance(owner, PreTrainedConfig))


def _read_for_tensor(module: nn.Module, name: str) -> Iterator[list[str]]:
    """What the modules that hold a tensor read to make it, from the innermost on."""
    owner, _, tail = name.rpartition(".")
    while owner:
        child = _submodule(module, owner)
        if child is not None:
            yield _fields_behind(type(child), tail)
        owner, _, tail = owner.rpartition(".")


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _shown(candidates: Iterable[list[str]], config: Any, only_odd: bool = False) -> str:
    """The first settings that have odd values, or the first of all; for example: (config.json: n_group is null)."""
    first: dict[str, Any] = {}
    for fields in candidates:
        values = {name: value for name, value in _values(fields, config) if not isinstance(value, dict | list)}
        if odd := {name: value for name, value in values.items() if _is_odd(name, value, config)}:
            return _sentence(odd)
        first = first or values
    return "" if only_odd or not first else _sentence(first)


def _sentence(values: dict[str, Any]) -> str:
    chosen = list(values.items())[:_MOST]
    return f" (config.json: {', '.join(f'{name} is {json.dumps(value, default=str)}' for name, value in chosen)})"


def _values(fields: Iterable[str], config: Any) -> Iterator[tuple[str, Any]]:
    """The values of those settings that the configuration has, by the names of config.json."""
    for field in fields:
        for values, cls in _sections(config):
            name = getattr(cls, "attribute_map", {}).get(field, field)
            if name in values:
                yield name, values[name]
                break


def _odd_settings(config: Any) -> str:
    names = [name for values, _ in _sections(config) for name in values if not hasattr(PreTrainedConfig, name)]
    return _shown([names], config, only_odd=True)


def _is_odd(name: str, value: Any, config: Any) -> bool:
    """Whether a value is hardly meant: null, a text or a fraction where a family has a number; below 1; enormous."""
    defaults = [getattr(cls, name) for _, cls in _sections(config) if hasattr(cls, name)]
    # some classes set a size without declaring it
    has_number = any(type(each) in (int, float) for each in defaults) or (
        not defaults and _SIZE.search(name) is not None
    )
    if name.endswith("_token_id") or isinstance(value, bool) or value in defaults:
        return False
    if value is None or isinstance(value, str):
        return has_number
    if not isinstance(value, int | float):
        return False
    is_fraction = isinstance(value, float) and (any(type(each) is int for each in defaults) or not defaults)
    return value <= 0 or value >= _ENORMOUS or is_fraction


def _sections(config: Any) -> list[tuple[Mapping[str, Any], type]]:
    """The settings of the language model and of the whole, each with the class that knows what they should be."""
    if isinstance(config, Unread):
        return [(config.settings, config.cls)]
    if not isinstance(config, PreTrainedConfig):
        return []
    return [(vars(each), type(each)) for each in (config.get_text_config(decoder=True), config)]


def _frames_of_models(trace: TracebackType | None) -> Iterator[tuple[FrameType, tuple[int, ...]]]:
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_MODEL_CODE):
            positions = list(trace.tb_frame.f_code.co_positions())[trace.tb_lasti // 2]
            if None not in positions:
                yield trace.tb_frame, positions  # type: ignore[misc]
        trace = trace.tb_next


def _nodes_at(frame: FrameType, position: tuple[int, ...]) -> Iterator[ast.AST]:
    """The expression at (first line, last line, first column, end column) of a frame's file, then its statement."""
    first, last, begin, end = position
    try:
        tree = _tree_of(inspect.getsourcefile(frame.f_code) or "")
    except (OSError, SyntaxError):
        return
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt)
        and (node.lineno, node.col_offset) <= (first, begin)
        and (node.end_lineno or 0, node.end_col_offset or 0) >= (last, end)
    ]
    around.sort(key=lambda node: (node.lineno, node.col_offset, -(node.end_lineno or 0)), reverse=True)
    for node in around:
        yield node
        if isinstance(node, ast.stmt):
            return


@cache
def _tree_of(path: str) -> ast.Module:
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


def _fields_behind(cls: type, name: str) -> list[str]:
    """The settings that a class reads to make its attribute of that name."""
    sources = _sources_of(cls)
    # a tensor that no class of the model's code makes is one of PyTorch's own class, made by its base's __init__
    nodes = sources.get(name) or sources.get(_INHERITED, [])
    return [field for node in nodes for field in _fields(node, sources, False)]


def _fields(node: ast.AST, sources: _Sources, is_config: bool, seen: frozenset[str] = frozenset()) -> list[str]:
    """The settings that an expression reads, directly or through names that were assigned before."""
    found: dict[str, None] = {}
    for each in ast.walk(node):
        name, is_own = _name_read(each)
        if name is None:
            continue
        if is_own is None or (is_own and is_config):
            found[name] = None
        elif name not in seen:
            for source in sources.get(name, []):
                found |= dict.fromkeys(_fields(source, sources, is_config, seen | {name}))
    return list(found)


def _name_read(node: ast.AST) -> tuple[str | None, bool | None]:
    """What an expression reads: a setting (None), an attribute of self (True), a local name (False)."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            return attr, True
        case ast.Attribute(value=ast.Name(id=base) | ast.Attribute(attr=base), attr=attr) if base.endswith("config"):
            return attr, None
        case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=base), ast.Constant(value=str(attr)), *_]) if (
            base.endswith("config")
        ):
            return attr, None
        case ast.Name(id=name) if name != "self":
            return name, False
    return None, None


def _sources_of(cls: type) -> _Sources:
    """All that a class and its bases assign to attributes of their own, and to local names while they are built."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name not in _sources:
        _sources[name] = _collected(cls)
    return _sources[name]


def _collected(cls: type) -> _Sources:
    sources: _Sources = defaultdict(list)
    for base in cls.__mro__:
        if base.__module__.startswith(_MODEL_CODE):
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            except (OSError, SyntaxError, TypeError):
                continue
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef) and function.name in ("__init__", "__post_init__"):
                    _collect(function.body, [], sources)
    return sources


def _collect(body: list[ast.stmt], conditions: list[ast.expr], sources: _Sources) -> None:
    for statement in body:
        if isinstance(statement, ast.If):
            under = [*conditions, statement.test]
            _collect(statement.body, under, sources)
            _collect(statement.orelse, under, sources)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            if ast.unparse(statement.value.func) == _INHERITED:
                arguments = (*statement.value.args, *(each.value for each in statement.value.keywords))
                sources[_INHERITED] += [*arguments, *conditions]
        elif isinstance(statement, ast.For | ast.With):
            _collect(statement.body, conditions, sources)
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                name, _ = _name_read(target)
                if name is not None:
                    sources[name] += [statement.value, *conditions]
                    tests = [each.test for each in ast.walk(statement.value) if isinstance(each, ast.IfExp)]
                    sources[f"if {name}"] += [*conditions, *tests]
