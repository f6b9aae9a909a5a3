"""Compare scoring methods on sources and targets: pretrain and finetune at each keep and seed.

    dp4tl study glyphs.yaml --dry-run
    dp4tl study glyphs.yaml

A study is a YAML file that names a source, targets, methods, fractions to keep, seeds and the
settings of the recipes; `docs/studies.md` describes it. Each stage runs once, even if several runs
need it, and a finished stage is not repeated: a killed study continues when it is started again.
The study prints a table, and its folder gets `results.jsonl`, `results.csv` and `report.html`, also
while the study goes on.
"""

import tyro

from dp4tl_ffcv.utils import one_line_errors

from .configs.study import Config, read_study

if __name__ == "__main__":  # before the imports below, which take seconds
    arguments = tyro.cli(Config, description=__doc__)

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dp4tl_ffcv.utils import RunFolder, track

from .components.study.estimate import Estimator, total
from .components.study.launchers import launcher_of, stop_on_signals
from .components.study.plan import Plan
from .components.study.record import Record
from .components.study.results import table_of
from .components.study.schedule import Schedule
from .components.study.stages import Stage, with_needs


def study(config: Config) -> list[dict[str, Any]]:
    """Run the unfinished stages of a study, and return the comparisons with the full source.

    Raises:
        OSError: the study or a beton cannot be opened.
        ValueError: the study is malformed, or a stage failed. All stages that do not need a failed
            one are finished by then.
    """
    described = read_study(config.file)
    out = config.folder
    plan = Plan(described, config.file.absolute().parent, out)
    stages = [
        stage
        for stage in with_needs(run.finetuned for run in plan.runs)
        if config.only in stage.description
    ]
    stages = with_needs(stages)
    if config.dry_run:
        _print_estimates(stages)
        return []
    if config.status:
        _print_status(stages)
        return []
    folder = RunFolder(out, {"study": asdict(described)}, overwrite=True)
    folder.start(resume=True)
    record = Record(out, plan.runs, stages, config.file)
    errors = _run(stages, folder, config, record)
    compared = record.write()
    print(table_of(compared))
    if errors:
        failed = next(stage for stage in stages if stage.key in errors)
        raise ValueError(
            f"{len(errors)} of {len(stages)} stages failed; {failed.folder}: {errors[failed.key]}. "
            "Repeat the command with --retry-failed."
        )
    folder.finish({})
    return compared


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
            folder.log({"stage": f"{stage.kind}/{stage.key}", "error": error})
            if error is not None:
                print(f"failed: {stage.description}: {error} ({stage.folder})", flush=True)
            record.refresh()
    return schedule.errors


def _print_estimates(stages: Sequence[Stage]) -> None:
    estimator = Estimator()
    estimates = []
    for stage in stages:
        estimate, state = None, "finished"
        if stage.result() is None:
            estimate, state = estimator.of(stage), "time unknown"
        if estimate is not None:
            state = f"{estimate.seconds:.0f} s, {estimate.num_bytes / 1e6:.1f} MB"
        estimates.append(estimate)
        print(f"{stage.kind}/{stage.key}  {state}  {stage.description}")
    whole = total(estimates)
    cost = (
        f"about {whole.seconds / 60:.0f} min of one core or GPU, and {whole.num_bytes / 1e9:.2f} GB"
    )
    if any(s.kind == "pretrain" and not s.paths["train"].exists() for s in stages):
        cost = "a time that is unknown until the data are written"
    print(f"{len(stages)} stages; pretraining takes {cost}.")


def _print_status(stages: Sequence[Stage]) -> None:
    states: Counter[tuple[str, str]] = Counter()
    for stage in stages:
        states[stage.kind, stage.state] += 1
    for (kind, state), count in sorted(states.items()):
        print(f"{kind:<12}{state:<14}{count:>6}")


if __name__ == "__main__":
    with one_line_errors(arguments):
        if study(arguments):
            print(f"\n{arguments.folder / 'report.html'}")
