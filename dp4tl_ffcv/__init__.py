"""Prune a source dataset for a target task, and load the retained samples with FFCV.

`__init__.pyi` lists the public names. Each name is imported when it is first used, so that
`import dp4tl_ffcv` loads neither torch, numba nor ffcv.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
