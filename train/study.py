"""Compare scoring methods on sources and targets: pretrain and finetune at each keep and seed.

    dp4tl study glyphs.yaml --dry-run
    dp4tl study glyphs.yaml

A study is a YAML file that names a source, targets, methods, fractions to keep, seeds and the
settings of the recipes; `docs/studies.md` describes it. Each stage runs once, even if several runs
need it, and a finished stage is not repeated: a killed study continues when it is started again.
The study prints tables at its end, and a short one on a terminal while it goes on. Its folder gets
`results.jsonl`, `results.csv` and `report.html`, also while the study goes on.
"""

import tyro

from dp4tl_ffcv.utils import one_line_errors

from .configs.study import Config, read_study

if __name__ == "__main__":  # before the imports below, which take seconds
    arguments = tyro.cli(Config, description=__doc__)

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dp4tl_ffcv.utils import RunFolder, track

from .components.study.launchers import launcher_of, stop_on_signals
from .components.study.overview import estimates_of, states_of
from .components.study.plan import Plan
from .components.study.record import Record, say
from .components.study.results import text_of
from .components.study.schedule import Schedule
from .components.study.stages import Stage, with_needs


def study(config: Config) -> list[dict[str, Any]]:
    """Run the unfinished stages of a study, and return the comparisons with the full source.

    Raises:
        OSError: the study or a beton cannot be opened.
        ValueError: the study is malformed, or a stage failed. All stages that do not need a failed
            one are finished by then.
    """
    plan, out = _plan(config), config.folder
    stages = _chosen(plan, config.only)
    if config.dry_run or config.status:
        print(estimates_of(stages) if config.dry_run else states_of(stages))
        return []
    folder = RunFolder(out, {"study": asdict(plan.study)}, overwrite=True)
    folder.start(resume=True)
    record = Record(out, plan.runs, stages, config.file)
    errors = _run(stages, folder, config, record)
    findings = record.write()
    print(text_of(findings, len(plan.runs)))
    if errors:
        failed = next(stage for stage in stages if stage.key in errors)
        raise ValueError(
            f"{len(errors)} of {len(stages)} stages failed, first {failed.name}: "
            f"{errors[failed.key]} ({failed.folder}). Repeat the command with --retry-failed."
        )
    folder.finish({})
    return findings.comparisons


def _plan(config: Config) -> Plan:
    study = read_study(config.file)
    try:
        return Plan(study, config.file.absolute().parent, config.folder)
    except ValueError as error:
        raise ValueError(f"{str(config.file)!r}: {error}") from error


def _chosen(plan: Plan, only: str) -> list[Stage]:
    """Return the stages whose names contain a text, and what they need."""
    stages = with_needs(run.finetuned for run in plan.runs)
    if chosen := [stage for stage in stages if only in stage.name]:
        return with_needs(chosen)
    examples: dict[str, str] = {}
    for stage in stages:
        examples.setdefault(stage.kind, stage.name)
    raise ValueError(
        f"no stage has `only` {only!r} in its name. Stages are named like "
        f"{', '.join(map(repr, examples.values()))}."
    )


def _run(
    stages: Sequence[Stage], folder: RunFolder, config: Config, record: Record
) -> dict[str, str]:
    schedule = Schedule(stages, retry_failed=config.retry_failed)
    finished = schedule.num_finished
    print(f"{folder.path}: {len(stages)} stages, {finished} finished before", flush=True)
    with stop_on_signals(), launcher_of(config, folder.path) as launcher:
        ended = schedule.run(launcher)
        left = len(stages) - finished
        for stage, error in track(ended, total=left, description="study", unit="stages"):
            key = f"{stage.kind}/{stage.key}"
            folder.log({"stage": key, "name": stage.name, "error": error})
            if error is not None:
                say(f"failed: {stage.name}: {error} ({stage.folder})")
            record.refresh()
    return schedule.errors


if __name__ == "__main__":
    with one_line_errors(arguments):
        if study(arguments):
            print(f"\n{arguments.folder / 'report.html'}")
