"""Helpers for recipes, writers and benchmarks: files, run folders, progress bars, processes.

`utils.pyi` lists the names. Each name is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub("dp4tl_ffcv", __file__)
