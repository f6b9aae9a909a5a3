"""Write betons: sources, fields, encoding, pages, journal."""

from ..ffcv_import import import_ffcv

import_ffcv()  # before anything below imports ffcv
