"""Recipes to read, run and fork (`python -m train.NAME`)."""

import os

# GNU OpenMP's threads spin for milliseconds at every barrier, which halves training on a CPU that
# others use as well; ten thousand turns keep the speed on a quiet one. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
