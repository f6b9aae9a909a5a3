"""Rows of a study, from the results of its stages."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.components.study import results as module
from train.components.study.results import rows_of, write_results


class FakeStage:
    """A finished stage."""

    def __init__(
        self, kind: str, needs: dict[str, Any], facts: dict[str, Any] | None = None, **result: Any
    ) -> None:
        self.kind, self.key, self.needs, self.facts = kind, f"{id(self)}", needs, facts or {}
        self.paths = {"test": Path("/nowhere/test.beton")}
        self._result = {"seconds": 9.0, "compile_seconds": 1.0, **result}

    def result(self) -> dict[str, Any]:
        return self._result


@pytest.mark.parametrize(
    ("change", "clock", "seconds", "cost"),
    [
        ({}, "processor", 5.0, 3.0),
        ({"environment": {"gpu": "a GPU"}}, "wall", 7.0, 8.0),
        ({"pretrain_seconds": 11.0}, "wall", 11.0, 8.0),  # continued after a stop
    ],
)
def test_times_are_processor_time_on_a_cpu(
    change: dict[str, Any],
    clock: str,
    seconds: float,
    cost: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.BetonIndex, "open", lambda _: range(10))
    selection = FakeStage("selection", {}, processor_seconds=3.0, keep=0.5)
    trained = FakeStage(
        "pretrain", {"selection": selection}, **{
            "processor_seconds": 5.0, "pretrain_seconds": 7.0, "environment": {"gpu": "none"},
            "retained_classes": 1, "retained_samples": 1, "steps": 1, "images_per_second": 1.0,
            **change,
        },
    )  # fmt: skip
    tuned = FakeStage("finetune", {"pretrained": trained}, test_accuracy=0.5)
    run: Any = SimpleNamespace(
        about={"seed": 0}, keep=0.5, selection=selection, pretrained=trained, finetuned=tuned
    )
    (found,) = rows_of([run])
    assert (found["clock"], found["pretrain_seconds"]) == (clock, seconds)
    assert found["selection_seconds"] == found["select_seconds"] == cost


def fake_run(selection: FakeStage | None = None, **tuned: Any) -> Any:
    about = {"retained_classes": 1, "retained_samples": 1, "steps": 1, "images_per_second": 1.0}
    trained = FakeStage("pretrain", {}, processor_seconds=5.0, **about)
    finetuned = FakeStage("finetune", {}, test_accuracy=0.5, **tuned)
    return SimpleNamespace(
        about={"seed": 0}, keep=0.5, selection=selection, pretrained=trained, finetuned=finetuned
    )


def test_a_row_has_the_number_of_test_images_while_it_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.BetonIndex, "open", lambda _: range(10))
    (old,) = rows_of([fake_run()])
    assert old["test_images"] == 10
    monkeypatch.undo()  # the beton does not exist
    known, unknown = rows_of([fake_run(test_samples=20), fake_run()])
    assert known["test_images"] == 20
    assert "test_images" not in unknown
    write_results(tmp_path, [unknown, known])
    with (tmp_path / "results.csv").open() as stream:
        assert [each["test_images"] for each in csv.DictReader(stream)] == ["", "20"]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [unknown, known]


def test_a_row_has_what_is_known_of_its_selection() -> None:
    drawn = FakeStage("score", {}, facts={"method": "random", "options": {"unit": "sample"}})
    (found,) = rows_of([fake_run(FakeStage("selection", {"scores": drawn}), test_samples=9)])
    assert found["random"] == "sample"
    assert not {"warnings", "coverage", "lower_bound"} & found.keys()
    surrogate = FakeStage("pretrain", {}, warnings=["slow"])
    facts = {"method": "label_mapping", "options": {}}
    scores = FakeStage("score", {"target": surrogate}, facts=facts, warnings=["weak", "weak"])
    chosen = FakeStage(
        "selection", {"scores": scores}, coverage=0.98, lower_bound=0.97, warnings=["few"]
    )
    (found,) = rows_of([fake_run(chosen, test_samples=9)])
    assert "random" not in found
    assert (found["coverage"], found["lower_bound"]) == (0.98, 0.97)
    assert found["warnings"] == ["weak", "few"]
