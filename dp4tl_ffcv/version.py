"""The installed version of dp4tl_ffcv, recorded in every file that the tool writes."""

from importlib import metadata

try:
    __version__ = metadata.version("dp4tl_ffcv")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
