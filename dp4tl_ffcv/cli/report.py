"""The verb report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the HTML report of a finished `dp4tl demo` again, from the files in its folder."""

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the demo, such as runs/demo."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Write the page and its figures."""
        from .. import write_report

        return {"report": str(write_report(self.run_folder))}
