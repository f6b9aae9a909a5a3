"""Errors that a caller may want to tell apart from a plain `ValueError`."""

__all__ = ["BetonError", "CheckpointError", "StaleArtifactError"]


class BetonError(ValueError):
    """A file is not a beton that can be read: unfinished, truncated, foreign or inconsistent."""


class CheckpointError(ValueError):
    """A checkpoint does not fit the model that it is loaded into."""


class StaleArtifactError(ValueError):
    """Scores, features or a selection were made for another beton than the one at hand."""
