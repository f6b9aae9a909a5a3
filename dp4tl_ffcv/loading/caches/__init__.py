"""Caches: where the bytes of the retained samples are while an epoch runs."""
