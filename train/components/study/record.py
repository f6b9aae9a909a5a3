"""Results, summary and report of a study, at its end and while it goes on."""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dp4tl_ffcv import write_report
from dp4tl_ffcv.report.findings import Findings
from dp4tl_ffcv.report.tables import Table, as_text, standing_table

from .plan import Run
from .results import rows_of, write_results, write_summary
from .stages import Stage

_SHARE = 0.02  # of the time may go into records of an unfinished study
_OTHER_LINES = 5  # of the terminal: title, columns, rows left out, progress, an empty one


def say(text: str) -> None:
    """Print a text above the progress bar, if there is one."""
    with tqdm.external_write_mode():
        print(text, flush=True)


class Record:
    """Writes `results.jsonl`, `results.csv`, `summary.json` and `report.html`.

    Args:
        out: folder of the study.
        runs: all runs of the plan.
        stages: all stages that the command makes.
        file: the study file.
    """

    def __init__(self, out: Path, runs: Sequence[Run], stages: Sequence[Stage], file: Path) -> None:
        self._out, self._runs, self._stages = out, runs, stages
        self._command = (
            f"dp4tl study {shlex.quote(str(file.absolute()))} --out {shlex.quote(str(out))}"
        )
        self._due = 0.0
        self._shown: Table | None = None

    def _source(self) -> Path | None:
        """Return the beton of the source, unless it is not written yet."""
        path: Path = self._runs[0].pretrained.paths["train"]
        return path if path.exists() else None

    def refresh(self) -> None:
        """Write all files if the last time is long enough ago, and show a table on a terminal.

        The table is shown if it has changed. An error is printed, not raised.
        """
        if time.monotonic() >= self._due:
            try:
                findings = self.write()
            except (OSError, ValueError) as error:
                say(f"no report: {error}")
            else:
                self._show(standing_table(findings))

    def _show(self, table: Table) -> None:
        if not sys.stdout.isatty() or not table.rows or table == self._shown:
            return
        self._shown = table
        fitting = max(shutil.get_terminal_size().lines - _OTHER_LINES, 1)
        say("\n" + as_text(replace(table, rows=table.rows[:fitting])))
        if (others := len(table.rows) - fitting) > 0:
            say(f"{others} more: {self._out / 'report.html'}")

    def write(self) -> Findings:
        """Write all files, and return the findings of the finished runs.

        Raises:
            OSError: a file cannot be read or written.
            ValueError: a result is damaged.
        """
        started = time.monotonic()
        try:
            findings = Findings(rows_of(self._runs))
            write_results(self._out, findings.rows)
            write_summary(self._out, self._runs, self._stages, findings, self._command)
            write_report(self._out, source=self._source())
        finally:
            ended = time.monotonic()
            self._due = ended + (ended - started) / _SHARE
        return findings
