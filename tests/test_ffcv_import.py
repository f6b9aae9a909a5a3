"""With this package imported, ffcv's own loaders do not edit numba's types."""

import os
import subprocess
import sys

import numba
import pytest
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption

import dp4tl_ffcv.writing.write
from tests.conftest import Colours

TYPES = (numba.uint8[::1], numba.uint8[:, ::1], numba.uint32[::1], numba.uint64[::1])


@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcvs_loader_edits_no_type(colours: Colours, os_cache: bool) -> None:
    assert dp4tl_ffcv.writing.write
    assert numba.typed.Dict.__module__ == "numba.typed.typeddict"
    table = {each: number for number, each in enumerate(TYPES)}
    loader = Loader(
        str(colours.path),
        batch_size=16,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": None, "identifier": None},
    )
    seen = [number for (images,) in loader for number in colours.ids_of(images)]
    assert seen == list(range(len(colours.images)))
    assert numba.uint8[::1] is TYPES[0]
    for each in TYPES:
        assert each.mutable
        assert each in table


MATRIX_PRODUCT = """if True:
    import sys
    from dp4tl_ffcv.ffcv_import import import_ffcv
    import_ffcv()
    assert "scipy.linalg" not in sys.modules
    import numba, numpy
    numbers = numpy.arange(6.0).reshape(2, 3)
    product = numba.njit(lambda left, right: left @ right)(numbers, numbers.T)
    assert product.tolist() == (numbers @ numbers.T).tolist()
"""


def test_numba_imports_scipys_algebra_only_for_matrix_products() -> None:
    subprocess.run([sys.executable, "-c", MATRIX_PRODUCT], check=True)


FORK = """if True:
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import dp4tl_ffcv.writing.write
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_process_on_one_core_ends_after_a_fork() -> None:
    pytest.importorskip("numba.np.ufunc.tbbpool", exc_type=ImportError)
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "tbb"}
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120, env=environment)
