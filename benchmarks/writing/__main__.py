"""Compare `write_beton` with `ffcv.DatasetWriter`, and `compact` with `cp`: time and memory.

Both sides read the same files from memory, with the same number of workers, and write new files to
the same disk. `write_beton` and `compact` flush their output to the disk, and do not index JPEGs;
ffcv does neither. Peak memory is that of the process and all its workers, sampled 20 times a
second.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("writing", __doc__)
