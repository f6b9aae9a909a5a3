"""Compare stock `ffcv.Loader` with `PrunedLoader`: bytes read, memory, time.

Both sides load the same retained samples of the same beton in the same shape on the same cores.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("loader", __doc__)
