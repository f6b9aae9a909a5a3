"""Equal pipelines are compiled once per process; different pipelines are not confused."""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ffcv.fields.basics import FloatDecoder, IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import Cutout, RandomHorizontalFlip, ToTensor, ToTorchImage
from numba.core import event

from dp4tl_ffcv import PrunedLoader, RemapLabel, Selection
from dp4tl_ffcv.loading.ffcv_adapter.compilation import copy_values, shared_compilation
from tests.support.loading import Step, only


def compilations(work: Callable[[], Any]) -> list[Any]:
    """Return what numba compiles while `work` runs, in any thread."""
    with event.install_recorder("numba:compile") as recorder:
        work()
    return [entry.data["dispatcher"] for _, entry in recorder.buffer if entry.is_start]


def image_loader(dataset: Any, **options: Any) -> PrunedLoader:
    steps: list[Any] = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), Cutout(4)]
    pipelines = only(image=[*steps, ToTensor(), ToTorchImage()], label=[IntDecoder(), ToTensor()])
    # One worker: parallel code takes several times as long to compile.
    return PrunedLoader(dataset.path, 20, num_workers=1, pipelines=pipelines, **options)


def mapped_loader(dataset: Any, label_map: Any) -> PrunedLoader:
    pipelines = only(label=[IntDecoder(), RemapLabel(label_map), ToTensor()])
    return PrunedLoader(dataset.path, 120, num_workers=1, pipelines=pipelines)


def labels_of(loader: PrunedLoader) -> list[int]:
    return next(iter(loader))[0].reshape(-1).tolist()


@pytest.mark.parametrize("decoder", [IntDecoder, FloatDecoder])
def test_numbers_are_decoded_by_a_function_that_numba_keeps_on_disk(decoder: Any) -> None:
    numbers = np.array([(0, 7), (1, 8), (2, 9)], dtype=[("other", "u1"), ("value", decoder.dtype)])
    ids = np.array([2, 0], dtype=np.int64)
    results = []
    code = decoder().generate_code()
    with shared_compilation():
        compiled = Compiler.compile(code)
    assert compiled is copy_values
    for decode in (compiled, code):
        memory = np.zeros((3, 1), dtype=decoder.dtype)
        results.append((decode(ids, memory, numbers["value"], None).tolist(), memory.tolist()))
    assert results[0] == results[1] == ([[9], [7]], [[9], [7], [0]])
    Compiler.set_enabled(False)
    try:
        with shared_compilation():
            assert Compiler.compile(code) is not copy_values
    finally:
        Compiler.set_enabled(True)


def test_a_second_loader_compiles_nothing(colours: Any, paged: Any) -> None:
    assert len(list(image_loader(colours, cache="ram"))) == 6
    selection = Selection.of_classes(colours.index, [1, 5])
    seconds = {
        "the same": lambda: image_loader(colours),
        "another order": lambda: image_loader(colours, order="random"),
        "another cache": lambda: image_loader(colours, cache="extents"),
        "a selection": lambda: image_loader(colours, selection=selection),
        "another beton, another size": lambda: image_loader(paged),
        "recompiled": lambda: image_loader(colours, recompile=True),
    }
    found = {
        name: compilations(lambda make=make: [list(make()), list(make())])
        for name, make in seconds.items()
    }
    assert not any(found.values()), found


def test_pipelines_with_different_constants_are_not_confused(colours: Any) -> None:
    tables = np.arange(10), np.arange(10)[::-1].copy(), np.zeros(10, int)

    def load() -> None:
        for table in tables:
            found = labels_of(mapped_loader(colours, table))
            np.testing.assert_array_equal(found, table[colours.labels])

    load()
    assert compilations(load) == []


def added(make: Callable[[], Callable[..., Any]], dataset: Any) -> list[int]:
    """Return the numbers that the function of `make` adds to labels."""
    pipelines = only(label=[IntDecoder(), Step(make), ToTensor()])
    loader = PrunedLoader(dataset.path, 120, num_workers=1, pipelines=pipelines)
    return sorted(set(labels_of(loader) - dataset.labels))


def make_module(source: str) -> ModuleType:
    module = ModuleType("made_by_a_test")
    exec(source, vars(module))
    return module


GLOBAL = """
OFFSET = 1
def make():
    def add(labels, _):
        for row in range(len(labels)):
            labels[row] += OFFSET
        return labels
    return add
"""


def test_a_changed_global_is_compiled_again(colours: Any) -> None:
    module: Any = make_module(GLOBAL)
    for offset in (1, 2, 1):
        module.OFFSET = offset
        assert added(module.make, colours) == [offset]


def test_equal_code_of_two_modules_uses_each_modules_globals(colours: Any) -> None:
    one: Any = make_module(GLOBAL)
    other: Any = make_module(GLOBAL.replace("OFFSET = 1", "OFFSET = 7"))
    assert added(one.make, colours) == [1]
    assert added(other.make, colours) == [7]
    assert compilations(lambda: added(make_module(GLOBAL).make, colours)) == []


def test_a_changed_attribute_of_a_module_is_compiled_again(
    colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = ModuleType("settings_of_a_test")
    monkeypatch.setitem(sys.modules, "settings_of_a_test", settings)
    source = "import settings_of_a_test as settings\n" + GLOBAL.replace(
        "OFFSET\n", "settings.size\n"
    )
    module: Any = make_module(source)
    for offset in (3, 4):
        settings.size = offset
        assert added(module.make, colours) == [offset]


def test_functions_with_different_constants_are_not_confused(colours: Any) -> None:
    def calling(offset: int) -> Callable[..., Any]:
        def more(value: int) -> int:
            return value + offset

        more = Compiler.compile(more)

        def add(labels: Any, _: Any) -> Any:
            for row in range(len(labels)):
                labels[row, 0] = more(labels[row, 0])
            return labels

        return add

    def by_default(offset: int) -> Callable[..., Any]:
        def add(labels: Any, _: Any, by: int = offset) -> Any:
            return labels + by

        return add

    for make in (calling, by_default):
        for offset in (1, 2, 1):
            assert added(partial(make, offset), colours) == [offset]


def test_recursive_functions_are_compiled_once() -> None:
    source = """
def even(n):
    return True if n == 0 else odd(n - 1)
def odd(n):
    return False if n == 0 else even(n - 1)
"""
    with shared_compilation():
        one, other = (Compiler.compile(make_module(source).even) for _ in range(2))
    assert one is other


def test_code_that_reads_a_mutable_object_is_compiled_every_time() -> None:
    def make(parts: Any) -> Callable[..., Any]:
        return lambda: parts[0]

    with shared_compilation():
        for parts in ([1], {0: 1}, {1}, object()):
            code = make(parts)
            assert Compiler.compile(code) is not Compiler.compile(code)
        assert Compiler.compile(make((1,))) is Compiler.compile(make((1,)))
        assert Compiler.compile(make((1,))) is not Compiler.compile(make((1.0,)))
        assert Compiler.compile(make((1,))) is not Compiler.compile(make((True,)))


def test_ffcvs_compiler_is_restored_after_the_block() -> None:
    before = vars(Compiler)["compile"]

    def fail() -> None:
        with shared_compilation():
            assert vars(Compiler)["compile"] is not before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert vars(Compiler)["compile"] is before
