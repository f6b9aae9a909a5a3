"""Compare `PrunedLoader` with other image loaders that load the same subset on one core.

Each peer runs in its own processes, in the way that its authors recommend. Before it is measured,
it must deliver crops of the right images. A peer that is not installed is skipped: the extra
`peers` lists them all.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("peers", __doc__)
