"""Every import statement follows the table of layers below.

Imports of our own modules count everywhere, also under TYPE_CHECKING. Third-party imports under
TYPE_CHECKING load nothing and do not count.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dp4tl_ffcv", "writers", "train", "benchmarks")
OURS = {*FOLDERS, "tests"}

# Part -> the parts it may import. "public" is `from dp4tl_ffcv import NAME`, which only the top
# layers of the package may use.
HELPERS = {
    "artifacts", "atomic", "errors", "ffcv_import", "parallel", "pickles", "progress", "runs",
    "stored", "text", "torchrun", "validate", "version", "yaml_text",
}  # fmt: skip
LIBRARY = {
    *HELPERS, "kernels", "jpeg", "beton", "writing", "selection", "compaction", "loading",
    "scoring", "distributed", "extraction", "pipeline", "report",
}  # fmt: skip
PACKAGE = {*LIBRARY, "cli", "utils"}
PARTS = {
    **dict.fromkeys(HELPERS, HELPERS),
    "kernels": {"errors", "validate"},
    "jpeg": {*HELPERS, "kernels"},
    "beton": {*HELPERS, "kernels", "jpeg"},
    "writing": {*HELPERS, "kernels", "jpeg", "beton"},
    "scoring": {*HELPERS, "kernels", "beton"},
    "selection": {*HELPERS, "kernels", "beton", "scoring"},
    "compaction": {*HELPERS, "kernels", "jpeg", "beton", "writing", "selection"},
    "loading": {*HELPERS, "kernels", "jpeg", "beton", "selection"},
    "distributed": HELPERS,
    "extraction": {*HELPERS, "distributed", "beton", "scoring", "loading"},
    "pipeline": LIBRARY - {"report"},
    "report": LIBRARY,
    "cli": {*LIBRARY, "public"},
    "public": LIBRARY,
    "utils": LIBRARY,
    "writers": {"public", "utils"},
    "train": {"public", "utils"},
    "benchmarks": {*LIBRARY, "cli", "public", "utils", "writers", "train"},
}
MAY_ALSO = {
    "dp4tl_ffcv.scoring.methods.grand": {"distributed", "loading"},
    "train.demo": {"writers"},
    "train.components.study.graph": {"scoring"},
    "train.components.study.options": {"scoring"},
    "train.components.study.work": {"scoring"},
    "train.components.study.record": {"report"},
    "train.components.study.results": {"report"},
    "train.configs.study": {"report"},
}

# Third-party package -> the modules, with all below them, that may import it.
MODELS = (
    "dp4tl_ffcv.scoring.surrogate",
    "dp4tl_ffcv.scoring.gradients",
    "dp4tl_ffcv.extraction",
    "dp4tl_ffcv.distributed",
    "dp4tl_ffcv.pipeline.cost",
)
RUNNING = ("dp4tl_ffcv.loading", "train", "benchmarks")
WRITING = ("dp4tl_ffcv.writing", "dp4tl_ffcv.ffcv_import")
THIRD_PARTY = {
    "torch": (*MODELS, *RUNNING),
    "torchvision": (*MODELS, *RUNNING),
    "ffcv": (*WRITING, *RUNNING),
    "numba": (
        "dp4tl_ffcv.kernels",
        "dp4tl_ffcv.jpeg",
        "dp4tl_ffcv.ffcv_import",
        "dp4tl_ffcv.loading",
        "benchmarks",
    ),
    "llvmlite": ("dp4tl_ffcv.kernels", "dp4tl_ffcv.jpeg", "dp4tl_ffcv.loading"),
    "lightly": ("train",),
    "ray": ("train",),
    "submitit": ("train",),
    "faiss": ("dp4tl_ffcv.scoring.clustering",),
    "timm": ("dp4tl_ffcv.scoring.surrogate", "benchmarks.peers"),
    "safetensors": ("dp4tl_ffcv.scoring.surrogate",),
}
INSIDE_FUNCTIONS = {"torch": ("dp4tl_ffcv.selection.exports",), "torchvision": ("writers",)}
KERNELS_NEED = {"numpy", "numba", "llvmlite", "threadpoolctl"} | sys.stdlib_module_names


@dataclass(frozen=True)
class Import:
    """One imported name, made absolute, and the place of its import statement."""

    target: str
    line: int
    relative: bool
    in_function: bool
    type_checking: bool


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Yield what `source`, a module of `package`, imports."""

    def walk(node: ast.AST, in_function: bool, type_checking: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            level = getattr(node, "level", 0)
            base = resolve_name("." * level + (getattr(node, "module", None) or ""), package)
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                yield Import(name, node.lineno, level > 0, in_function, type_checking)
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        unguarded = node.orelse if guarded else []
        for child in ast.iter_child_nodes(node):
            inside = type_checking or (guarded and child not in unguarded)
            yield from walk(child, in_function, inside)

    yield from walk(ast.parse(source), False, False)


def part_of(module: str) -> str:
    """Return the part that a module, or a name in a module, belongs to."""
    folder, _, rest = module.partition(".")
    if folder != "dp4tl_ffcv":
        return folder
    name = rest.partition(".")[0]
    return name if name in {*PACKAGE, "train", "writers"} else "public"


def is_below(module: str, tops: tuple[str, ...]) -> bool:
    return any(module == top or module.startswith(f"{top}.") for top in tops)


def fault_of(module: str, found: Import) -> str | None:
    """Return what is wrong with an import of `module`, or None."""
    folder, part = module.partition(".")[0], part_of(module)
    target = found.target.partition(".")[0]
    if target in OURS:
        return _fault_of_ours(module, folder, part, found)
    if found.type_checking:
        return None
    if part == "kernels" and target not in KERNELS_NEED:
        return "kernels import numpy, numba, llvmlite and threadpoolctl only"
    if is_below(module, THIRD_PARTY.get(target, (module,))):
        return None
    if found.in_function and is_below(module, INSIDE_FUNCTIONS.get(target, ())):
        return None
    return f"{target} may be imported by {', '.join(THIRD_PARTY[target])} only"


def _fault_of_ours(module: str, folder: str, part: str, found: Import) -> str | None:
    inside = folder == "dp4tl_ffcv" and found.target.startswith("dp4tl_ffcv")
    if inside and not found.relative:
        return "imports inside the package are relative"
    wanted = part_of(found.target)
    if wanted not in {part} | PARTS[part] | MAY_ALSO.get(module, set()):
        return f"{part} may import {', '.join(sorted(PARTS[part]))} of ours"
    return None


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """List the forbidden imports of a module."""
    if module.startswith("dp4tl_ffcv.") and part_of(module) == "public":
        return [f"{module}: no row for it in PARTS; say what it may import"]
    package = module if is_package else module.rpartition(".")[0]
    found = [(each, fault_of(module, each)) for each in imports_of(source, package)]
    return list(dict.fromkeys(f"{module}:{each.line}: {why}" for each, why in found if why))


def test_imports_follow_the_table() -> None:
    wrong = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        wrong += faults(module, path.read_text(encoding="utf-8"), is_package)
    assert not wrong, "\n".join(wrong)


FORBIDDEN = [
    ("dp4tl_ffcv.kernels.order", "from ..progress import bar", "kernels may import"),
    ("dp4tl_ffcv.kernels.order", "import scipy.stats", "numpy, numba"),
    ("dp4tl_ffcv.errors", "from . import loading", "errors may import"),
    ("dp4tl_ffcv.errors", "from . import select", "errors may import"),
    ("dp4tl_ffcv.beton.index", "from ffcv.reader import Reader", "ffcv may be imported"),
    ("dp4tl_ffcv.beton.index", "from dp4tl_ffcv.errors import BetonError", "relative"),
    ("dp4tl_ffcv.scoring.methods.random", "def f():\n    import torch", "torch may be imported"),
    ("dp4tl_ffcv.scoring.methods.random", "from ...loading import x", "scoring may import"),
    ("dp4tl_ffcv.selection.exports", "import torch", "torch may be imported"),
    ("dp4tl_ffcv.selection.rules", "if TYPE_CHECKING:\n    from .. import cli", "selection may"),
    ("dp4tl_ffcv.selection.rules", "if TYPE_CHECKING: ...\nelse:\n    import torch", "torch"),
    ("dp4tl_ffcv.loading.loader", "import train.pretrain", "loading may import"),
    ("dp4tl_ffcv.plots", "import numpy", "no row"),
    ("writers.components.files", "from dp4tl_ffcv.validate import check_int", "writers may"),
    ("train.pretrain", "from writers import imagefolder", "train may import"),
    ("train.pretrain", "from dp4tl_ffcv.validate import check_int", "train may import"),
]


@pytest.mark.parametrize(("module", "source", "why"), FORBIDDEN)
def test_a_forbidden_import_is_found(module: str, source: str, why: str) -> None:
    (fault,) = faults(module, source)
    assert why in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dp4tl_ffcv.kernels.order", "from concurrent.futures import Future\nimport numba"),
        ("dp4tl_ffcv.scoring.methods.random", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("dp4tl_ffcv.selection.exports", "def save():\n    import torch"),
        ("dp4tl_ffcv.cli.main", "from .. import __version__, select\nfrom ..report import page"),
        ("train.demo", "import torch\nfrom dp4tl_ffcv import select\nfrom writers import digits"),
        ("benchmarks.loader", "import ffcv, torch\nfrom dp4tl_ffcv.loading import _pool"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    assert faults("dp4tl_ffcv.beton", "from . import index\nfrom ..kernels import sums", True) == []
    assert faults("dp4tl_ffcv", "from .version import __version__", True) == []
    assert faults("dp4tl_ffcv", "from .cli import main", True) != []
