"""Folders of runs: the result that a report shows, and the files of a finished or stopped run."""

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dp4tl_ffcv import write_report
from dp4tl_ffcv.report.figures import Panels
from tests.campaigns.fuzz.mutate import mutated_json
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from tests.campaigns.fuzz.targets.checkpoints import Position
from tests.support.reports import rows, write_study
from train.components.counters import Counters
from train.components.processes import Processes
from train.components.saved_state import SavedState
from train.components.session import Session
from train.configs.pretrain import Config

_OUTSIDE = 0.05  # share of the cases that name a file outside of the folder
_DRAWN = 0.03  # share of the panels that are drawn: one takes as long as the rest of a report
_ATTACKED = ("results.jsonl", "summary.json", "config.json")
_LINE = re.compile(r"<tr.*?</tr>", re.DOTALL)
_LOADED = re.compile(r'<script|\b(?:src|href)="(?!data:image/|#)|url\((?!#|data:image/)')


class Reports(Target):
    name = "report of a study"
    cases = 20_000

    def prepare(self, folder: Path) -> list[Sample]:
        write_study(folder, rows(seeds=2, methods=("label_mapping", "random"), keeps=(0.5,)))
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {f"study/{path.relative_to(folder)}": path.read_bytes() for path in paths}
        links = self.links_outside("study")
        return [Sample(files, f"study/{name}", links=links) for name in _ATTACKED]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON, of which the results have one value a line, or name a file outside."""
        if rng.random() < _OUTSIDE:
            outside = self.name_outside(rng, "study")
            name = (b"selection/random_05_0", b"pretrain/full_10_0")[int(rng.integers(2))]
            return sample.data.replace(name, outside.encode())
        words = ("comparisons", "label_mapping", "<script>", "full", "0.5", "auto", "prunings")
        if not sample.attacked.endswith("jsonl"):
            return mutated_json(rng, sample.data, words)
        lines = sample.data.splitlines()
        at = int(rng.integers(len(lines)))
        return b"\n".join((*lines[:at], mutated_json(rng, lines[at], words), *lines[at + 1 :]))

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Write the report, which must be made whole or not at all, and must load nothing."""
        made = folder / "study/report.html"

        def some(panels: Panels, draw: Any) -> str:
            return drawn(panels, draw) if rng.random() < _DRAWN else ""

        drawn = Panels._panel
        try:
            with mock.patch.object(Panels, "_panel", some):
                page = write_report(folder / "study").read_text()
        except Exception:
            if made.exists():
                raise FaultError("left behind", str(made)) from None
            raise
        finally:
            made.unlink(missing_ok=True)
        if found := _LOADED.search(page):
            raise FaultError("a page that loads", page[found.start() :][:200])
        lines = (folder / "study/results.jsonl").read_text().splitlines()
        _check_shown(list(map(json.loads, lines)), page)
        return "equal" if data == sample.data else "accepted, rows compared"


def _check_shown(rows: list[dict[str, Any]], page: str) -> None:
    """Raise `FaultError` unless a line of a table shows the means of each selection rule."""
    shown = _LINE.findall(page)
    paired = ("target", "mode", "budget", "seed")
    full = {tuple(row[name] for name in paired) for row in rows if row["method"] == "full"}
    rules: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != "full" and tuple(row[name] for name in paired) in full:
            names = (*paired[:3], "scored_on", "method", "keep")
            rules.setdefault(tuple(row[name] for name in names), []).append(row)
    for rule, group in rules.items():
        accuracy, classes, samples = (
            sum(row[name] for row in group) / len(group)
            for name in ("test_accuracy", "classes", "samples")
        )
        numbers = (
            f"<td>{100 * accuracy:.2f}</td>", f"<td>{classes:,.0f}</td>",
            f"<td>{samples:,.0f}</td>", f"<td>{len(group)}</td>",
        )  # fmt: skip
        if not any(all(number in line for number in numbers) for line in shown):
            raise FaultError("differs from a plain reading", f"{rule!r:.300}")


class RunFolders(Target):
    name = "run folder"

    def prepare(self, folder: Path) -> list[Sample]:
        samples = []
        for is_finished in (False, True):
            run = folder / str(is_finished)
            session, model = self._session(run), torch.nn.Linear(2, 2)
            session.start()
            session.resume(model=model)
            session.log.write("epoch", 1, loss=0.5)
            counters = Counters(epoch=1, step=2, images=8)
            state = SavedState(session.folder.checkpoints / "resume.pt", session.processes)
            state.save(counters, Position(), {"model": model})
            if is_finished:
                session.folder.finish({"checkpoint": "checkpoints/last.pt", "steps": 2})
                state.delete()
            session.folder.release()
            paths = [path for path in run.rglob("*") if path.is_file()]
            files = {f"run/{path.relative_to(run)}": path.read_bytes() for path in paths}
            samples += [Sample(files, name) for name in files if ".json" in name]
        return samples

    @staticmethod
    def _session(run: Path) -> Session:
        config = Config(run=run, train=Path("a.beton"), num_workers=1)
        return Session("pretrain", config, Processes(torch.device("cpu")), {"train": "a beton"})

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON, of which a log has one value a line."""
        words = ("step", "event", "checkpoint", "environment", "epochs", *self.paths_outside("run"))
        lines = sample.data.splitlines(keepends=True) if "log" in sample.attacked else [sample.data]
        at = int(rng.integers(len(lines)))
        end = lines[at][len(lines[at].rstrip()) :]
        return b"".join((*lines[:at], mutated_json(rng, lines[at], words) + end, *lines[at + 1 :]))

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Start the run again, which takes the result, continues it, or starts over."""
        run = folder / "run"
        session = self._session(run)
        try:
            if (found := session.finished()) is not None:
                return self._check_result(found, session, sample)
            session.start()
            session.resume(model=torch.nn.Linear(2, 2))
        finally:
            session.folder.release()
        for line in (run / "log.jsonl").read_bytes().splitlines():
            if not isinstance(json.loads(line), dict):
                raise FaultError("a damaged row in the log", f"{line!r:.200}")
        return "continued" if session.step else "started over"

    @staticmethod
    def _check_result(found: dict[str, Any], session: Session, sample: Sample) -> str:
        plain = json.loads((session.folder.path / "result.json").read_bytes())
        wanted = {**plain, "checkpoint": str(session.checkpoint)}  # never that of the file
        if json.dumps(found) != json.dumps(wanted):
            raise FaultError("differs from a plain reading", f"{found!r:.200}")
        is_equal = plain == json.loads(sample.files["run/result.json"])
        return "equal" if is_equal else "read as the bytes say"
