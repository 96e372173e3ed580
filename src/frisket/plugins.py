"""Registries are folders: a room offers the files that lie in it, and modules of the same form from outside.

    RECIPES = Room("frisket.recipes", "recipe", "Module")      # every file of recipes/ that defines `Module`
    RECIPES.names(); RECIPES.find("train_sam")

A plug-in is a module that would work if it lay in the room's folder: what it defines (a recipe's `Module`, a task's
`Task`, …) says which rooms it joins, its file's name is its name there. `load(["my_package.my_recipe"])` brings one in;
every verb does so for `plugins: […]` in its configuration, and for the entry points of group "frisket.plugins" of
installed packages. Our choice. Nothing is imported before it is asked for.
"""

import ast
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from frisket.errors import UserError, nearest

GROUP = "frisket.plugins"
_outside: dict[str, ModuleType] = {}  # dotted name -> module, in the order they were loaded


@dataclass(kw_only=True)
class Extensible:
    """Settings of a verb. What it names here is imported (by frisket.cli.main) before the verb starts."""

    plugins: list[str] = field(default_factory=list)
    """Modules from outside, by dotted name: recipes, tasks, encoders, strategies, prep sources (docs/extend.md)."""


def load(names: Iterable[str]) -> None:
    """Import plug-in modules by dotted name, from installed packages or the current folder.

    Raises UserError naming the module that cannot be imported, with the reason.
    """
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` would: the console script does not look there
        sys.path.append(here)
    for name in names:
        if name not in _outside:
            try:
                _outside[name] = importlib.import_module(name)
            except Exception as error:  # whatever a foreign module does while it is imported
                why = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"plug-in {name} cannot be imported ({why}): mend or install it, or take it out of plugins"
                ) from error


def loaded() -> dict[str, ModuleType]:
    """{dotted name: module} of all plug-ins: those of `load`, and those that installed packages announce."""
    _announced()
    return dict(_outside)


@functools.cache
def _announced() -> None:
    load(entry.value for entry in importlib.metadata.entry_points(group=GROUP))


class Room:
    """A folder as a registry. package: its dotted name; word: what an entry is called; mark: the name that every entry
    defines at its top level, which tells it from the folder's other files."""

    def __init__(self, package: str, word: str, mark: str) -> None:
        self.package, self.word, self.mark = package, word, mark

    def files(self) -> dict[str, Path]:
        """{name: file} of the folder's own entries. Read as text: importing them all would take seconds."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        return {path.stem: path for path in sorted(folder.glob("*.py")) if self.mark in _defined(path)}

    def outside(self) -> dict[str, ModuleType]:
        """{name: module} of the plug-ins that belong here."""
        return {dotted.rpartition(".")[2]: module for dotted, module in loaded().items() if hasattr(module, self.mark)}

    def names(self) -> list[str]:
        """All entries, ours first."""
        return list(dict.fromkeys([*self.files(), *self.outside()]))

    def find(self, name: str) -> ModuleType:
        """The module called `name`; a plug-in does not replace ours. Raises UserError with the nearest right name."""
        name = str(name)  # a YAML may hold anything
        if name in self.files():
            return importlib.import_module(f"{self.package}.{name}")
        outside = self.outside()
        if name not in outside:
            raise UserError(f"{self.word} '{name}' does not exist: {nearest(name, self.names())}")
        return outside[name]

    def modules(self) -> dict[str, ModuleType]:
        """{name: module} of all entries, imported."""
        return {name: self.find(name) for name in self.names()}


@functools.cache
def _defined(path: Path) -> frozenset[str]:
    """Names that a file defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(names)
