"""ffcv's Reader, with the tables of an open `BetonIndex`."""

from typing import Any

from ffcv.reader import Reader

from ...beton import BetonIndex


class IndexReader(Reader):
    """The fields and metadata of a beton, as ffcv's pipelines expect them."""

    def __init__(self, index: BetonIndex) -> None:
        self._index = index
        super().__init__(str(index.path), index.custom_fields)

    def read_metadata(self) -> None:
        """Use the metadata table of the index, with address 0 for empty values.

        ffcv's writer gives an empty value the address of the next value, and ffcv's decoder would
        copy the bytes of the next value. Nothing is stored at address 0.
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
        """Do nothing: the property `alloc_table` reads the table when it is used."""

    @property
    def alloc_table(self) -> Any:
        """The allocation table, read again if it was released."""
        return self._index.allocations
