"""What is imported is declared: in the core's dependencies, or in those of the extra that the place belongs to."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

import pytest

from tests.support.server import ROOT

OWN = {"agent_memory", "agent_memory_langchain", "examples"}

EXTRAS = {
    "agent_memory/commands.py": ["server"],  # tqdm, for a bar; works without
    "agent_memory/server/": ["server"],
    "agent_memory/storage/object_blobs.py": ["s3"],
    "agent_memory/storage/postgres/errors.py": ["postgres"],
    "agent_memory/storage/sqlite/vectors.py": ["vectors"],
    "integrations/agent_memory_langchain/": ["langchain"],
    "integrations/agent_memory_langchain/sources.py": ["postgres"],
    "examples/": ["examples"],
}
"""Where more than the core's dependencies may be imported."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MODULES = [
    str(path.relative_to(ROOT))
    for folder in ("agent_memory", "integrations", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def declared(requirements: list[str]) -> Iterator[str]:
    """Yield the names of the packages, and for our own those of its extras."""
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match is not None
        if match[1] == PROJECT["name"]:
            for extra in match[2].split(","):
                yield from declared(PROJECT["optional-dependencies"][extra])
        else:
            yield match[1]


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of other projects that a file imports, also those within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        yield from (name for name in names if name.partition(".")[0] not in OWN | sys.stdlib_module_names)


@cache
def package_of() -> dict[str, str]:
    """Return which of all declared packages brings a module along: several share the folder ``langgraph``."""
    everything = {*declared([*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())])}
    found: dict[str, str] = {}
    for name in everything:
        with suppress(PackageNotFoundError):  # some are not for every Python
            for file in distribution(name).files or ():
                if file.suffix in (".py", ".so", ".pyd"):
                    stem = file.parent / file.name.partition(".")[0]
                    found[".".join(part for part in stem.parts if part != "__init__")] = name
    return found


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_declared_where_it_belongs(module: str) -> None:
    extras = [extra for place, allowed in EXTRAS.items() if module.startswith(place) for extra in allowed]
    known = {*declared(PROJECT["dependencies"])}.union(
        *(declared(PROJECT["optional-dependencies"][extra]) for extra in extras)
    )

    assert [name for name in imports(ROOT / module) if package_of().get(name, name) not in known] == []
