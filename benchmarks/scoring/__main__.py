"""Compare the speed of the scoring kernels with numpy, torch and published code.

Both sides work on the same arrays with the same number of threads. Every measurement also compares
the results, and fails if they differ.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("scoring", __doc__)
