"""Shared code of the recipes."""
