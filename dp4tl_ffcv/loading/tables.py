"""ffcv's Reader over the tables of a `BetonIndex`, which are read and checked already."""

from collections.abc import Mapping
from typing import Any

from ffcv.reader import Reader

from ..beton import BetonIndex

__all__ = ["IndexReader"]


class IndexReader(Reader):
    """What ffcv's pipelines ask of a file: its fields and their metadata."""

    def __init__(self, index: BetonIndex, custom_fields: Mapping[str, Any]) -> None:
        self._index = index
        super().__init__(str(index.path), custom_fields)

    def read_metadata(self) -> None:
        """Take over the metadata table."""
        self.metadata = self._index.metadata.view(self.metadata_type)

    def read_allocation_table(self) -> None:
        """Leave the allocation table until somebody asks for it."""

    @property
    def alloc_table(self) -> Any:
        """The allocation table, read anew if it has been released."""
        return self._index.allocations
