"""Recipes to read, run and fork (`python -m train.NAME`)."""

import os

# On a CPU that others use too, OpenMP threads that spin while they wait made training up to ten
# times slower here. It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
