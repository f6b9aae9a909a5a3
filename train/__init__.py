"""Recipes to read, run and fork (`python -m train.NAME`)."""
