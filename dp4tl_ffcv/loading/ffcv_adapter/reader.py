"""ffcv's Reader over the tables of a `BetonIndex`, which are read and checked already."""

from collections.abc import Mapping
from typing import Any

from ffcv.reader import Reader

from ...beton import BetonIndex


class IndexReader(Reader):
    """What ffcv's pipelines ask of a file: its fields and their metadata."""

    def __init__(self, index: BetonIndex, custom_fields: Mapping[str, Any]) -> None:
        self._index = index
        super().__init__(str(index.path), custom_fields)

    def read_metadata(self) -> None:
        """Take over the metadata table, but for the addresses of what is empty.

        ffcv's writer gives an empty value the address of what follows it, whose bytes its decoder
        would copy. Nothing is stored at address 0.
        """
        table = self._index.metadata
        for field in self._index.fields:
            if field.kind in ("bytes", "json"):
                column = table[field.column]
                empty = (column["size"] == 0) & (column["ptr"] != 0)
                if empty.any():
                    table = table.copy()
                    table[field.column]["ptr"][empty] = 0
                    table.setflags(write=False)
        self.metadata = table.view(self.metadata_type)

    def read_allocation_table(self) -> None:
        """Leave the allocation table until somebody asks for it."""

    @property
    def alloc_table(self) -> Any:
        """The allocation table, read anew if it has been released."""
        return self._index.allocations
