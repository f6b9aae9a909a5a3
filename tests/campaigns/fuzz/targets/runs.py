"""Folders of runs: the result that a report shows, and the files of a finished or stopped run."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dp4tl_ffcv import Selection, write_report
from dp4tl_ffcv.report import report
from dp4tl_ffcv.report.figures import Plot
from tests.campaigns.fuzz.datasets import NAMES
from tests.campaigns.fuzz.mutate import mutated_json
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from tests.campaigns.fuzz.targets.checkpoints import Position
from tests.support.images import picture, write_images
from tests.support.reports import result, row
from tests.support.scores import scores_of
from train.components.counters import Counters
from train.components.processes import Processes
from train.components.saved_state import SavedState
from train.components.session import Session
from train.configs.pretrain import Config

_OUTSIDE = 0.05  # share of the cases that name a file outside of the folder
_DRAWN = 0.04  # share of the reports whose figures are drawn, which takes a second
_ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
_LOADED = re.compile(r'<script|\b(?:src|href)="(?!data:image/|#)')


class Reports(Target):
    name = "report of a demo"

    def prepare(self, folder: Path) -> list[Sample]:
        images = [picture(8, 12, seed) for seed in range(len(NAMES))]
        options = {"page_size": 1 << 21, "num_workers": 0, "jpeg_index": False}
        index = write_images(folder / "a.beton", images, range(3), class_names=NAMES, **options)
        scores_of([2, 1, 0]).save(folder / "scores.npz")
        Selection.of_classes(index, [0, 2]).save(folder / "kept.npz")
        files = {f"demo/{path.name}": path.read_bytes() for path in folder.iterdir()}
        rows = [row("full", 1.0, 0.93), row("label_mapping", 0.5, 0.9), row("random", 0.5, 0.8)]
        classes = {
            "source": "a.beton", "relevant": [0], "scores": {"label_mapping": "scores.npz"},
            "selections": {"label_mapping, keep 0.5": "kept.npz"},
        }  # fmt: skip
        shown = json.dumps({**result(), "rows": rows, "classes": classes}, indent=1).encode()
        links = self.links_outside("demo")
        return [Sample({**files, "demo/result.json": shown}, "demo/result.json", links=links)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON, or let it name a file outside."""
        if rng.random() >= _OUTSIDE:
            words = ("rows", "classes", "a.beton", "<script>", "label_mapping", "full", "0.5")
            return mutated_json(rng, sample.data, words)
        name = ("a.beton", "scores.npz", "kept.npz")[int(rng.integers(3))]
        outside = self.name_outside(rng, "demo")
        return sample.data.replace(json.dumps(name).encode(), json.dumps(outside).encode())

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Write the report, which must be made whole or not at all, and must load nothing."""
        made = folder / "demo/report.html", folder / "demo/figures"
        is_drawn = data == sample.data or rng.random() < _DRAWN
        try:
            undrawn = mock.patch.multiple(report, **_UNDRAWN)
            with nullcontext() if is_drawn else undrawn:
                page = write_report(folder / "demo").read_text()
        except Exception:
            if left := [str(path) for path in made if path.exists()]:
                raise FaultError("left behind", ", ".join(left)) from None
            raise
        finally:
            made[0].unlink(missing_ok=True)
            shutil.rmtree(made[1], ignore_errors=True)
        if found := _LOADED.search(page):
            raise FaultError("a page that loads", page[found.start() :][:200])
        given = json.loads(data)
        _check_shown(given["rows"], page)
        return "equal" if given == json.loads(sample.data) else "accepted, rows compared"


def _check_shown(rows: list[dict[str, Any]], page: str) -> None:
    """Raise `FaultError` unless a row of a table shows the numbers of each row of a result."""
    shown = _ROW.findall(page)
    for each in rows:
        numbers = (
            f"{100 * each['test_accuracy_mean']:.2f}%", f"<td>{each['keep']:g}</td>",
            f"<td>{each['speedup']:.2f}\N{MULTIPLICATION SIGN}</td>",
            f"<td>{each['retained_classes']:,}</td>", f"<td>{each['retained_samples']:,}</td>",
        )  # fmt: skip
        if not any(all(number in line for number in numbers) for line in shown):
            raise FaultError("differs from a plain reading", f"{each!r:.300}")


def _undrawn(name: str) -> Plot:
    return Plot(name=name, svg=b"", png=b"")


_UNDRAWN = {
    "accuracy_plot": lambda _: _undrawn("accuracy_vs_keep"),
    "speedup_plot": lambda _: _undrawn("speedup_vs_keep"),
    "class_scores_plot": lambda given, *_: _undrawn(f"class_scores_{given.method}"),
}


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
