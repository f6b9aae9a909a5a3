"""Recipes (`dp4tl NAME`) and writers (`dp4tl write NAME`) as verbs, found in their packages."""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Program:
    """An entry in the list of verbs. The program parses its own arguments."""


def programs(package: str) -> list[Any]:
    """Return the verbs of all programs in `train` or `writers`."""
    return [_verb(name, _summary(path)) for name, path in _files(package).items()]


def write_verb() -> Any:
    """Return the verb that runs writers."""
    return _verb("write", "Write a dataset as betons. `dp4tl write --help` lists the datasets.")


def run_program(words: Sequence[str]) -> bool:
    """Run the recipe or writer that a command line names. Return False if it names none."""
    package, skipped = ("writers", 1) if words[:1] == ["write"] else ("train", 0)
    verb, arguments = words[: skipped + 1], words[skipped + 1 :]
    path = _files(package).get("".join(verb[skipped:]).replace("_", "-"))
    if path is not None:
        program = " ".join(("dp4tl", *verb))
        _run_as_main(f"dp4tl_ffcv.{package}.{path.stem}", [program, *arguments])
    return path is not None


def _run_as_main(module: str, arguments: list[str]) -> None:
    """Run a module like `python -m`, but let `sys.argv[0]` name the program in help and errors."""
    spec: Any = find_spec(module)
    program = module_from_spec(spec)
    program.__name__ = "__main__"
    saved = sys.argv, sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = arguments, program
    try:
        exec(spec.loader.get_code(module), program.__dict__)
    finally:
        sys.argv, sys.modules["__main__"] = saved


def _files(package: str) -> dict[str, Path]:
    (folder,) = import_module(f"dp4tl_ffcv.{package}").__path__
    names = (module.name for module in iter_modules([folder]) if not module.ispkg)
    return {name.replace("_", "-"): Path(folder, f"{name}.py") for name in names}


def _verb(name: str, description: str) -> Any:
    return Annotated[Program, tyro.conf.subcommand(name, description=description)]


def _summary(path: Path) -> str:
    """Return the first paragraph of a module's docstring, without importing the module."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())
