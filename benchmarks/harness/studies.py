"""The page of a study, made from its results."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import markdown
from dp4tl_ffcv.report.findings import Findings
from dp4tl_ffcv.report.tables import tables_of
from dp4tl_ffcv.report.words import notes_of, summarise

ROOT = Path(__file__).resolve().parents[2]


def page(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown page with the tables of a study.

    Args:
        name: name of the study.
        lines: a head with the `environment`, the number of `runs` of the whole study and a `note`,
            and the rows of `results.jsonl`.
    """
    head, *rows = lines
    return "\n\n".join(_parts(name, head, Findings(rows))) + "\n"


def _parts(name: str, head: Mapping[str, Any], findings: Findings) -> Iterator[str]:
    machine = head["environment"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    yield f"# {name}"
    yield (
        f"`dp4tl study {_file_of(name)}`, on {cores} of {machine['cpu']}, GPU: "
        f"{machine['gpu']}, torch {machine['torch']}. LM: label mapping, FM: feature mapping. "
        "*Keep* is the fraction kept. *Difference*: mean difference to the full source in points "
        "of test accuracy. *Missed*: the true loss that gets the verdict loss with a chance of "
        "about 80 %. *Speed-up*: time of pretraining on the full source divided by that on the "
        "selection, alone and with the whole cost of the selection, as ratios of sums over seeds. "
        "Brackets hold 95 % intervals over seeds (paired; of speed-ups, t on the logarithms). "
        "[Studies](../../../docs/studies.md) describes the rule."
    )
    # Heads of earlier versions lack the number: their studies were finished.
    yield " ".join(summarise(findings, head.get("runs", len(findings.rows))))
    notes = [*([head["note"]] if head.get("note") else []), *notes_of(findings)]
    yield "\n".join(f"- {note}" for note in notes)
    for table in tables_of(findings):
        yield f"## {table.title}"
        if table.note:
            yield table.note
        yield markdown(table.columns, table.rows)


def _file_of(name: str) -> str:
    """Return the study file. That of the demo is installed with the recipes."""
    packaged = f"train/configs/studies/{name}.yaml"
    return packaged if (ROOT / packaged).exists() else f"benchmarks/studies/{name}.yaml"
