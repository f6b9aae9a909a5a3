"""The work of each kind of stage. Each function runs in a process of the launcher."""

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dp4tl_ffcv import BetonIndex, Scores, Selection, cluster, extract_features, select
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import checkpoint_of, compile_timer

from ... import finetune as finetune_recipe
from ... import pretrain as pretrain_recipe
from ... import pretrain_moco as pretrain_moco_recipe
from ...configs.finetune import Config as FinetuneConfig
from ...configs.pretrain import Config as PretrainConfig
from ...configs.pretrain_moco import Config as PretrainMocoConfig
from ...configs.study import AUTO
from .stages import Stage


def run_stage(stage: Stage, threads: int | None = None) -> dict[str, Any]:
    """Do the work of a stage, unless it is finished, and return its result.

    What the work prints goes to `output.txt` in the stage's folder.

    Args:
        stage: the needs must be finished.
        threads: threads of torch and of the loaders. None uses all cores.
    """
    if finished := stage.result():
        return finished
    if threads is not None:
        torch.set_num_threads(threads)
    folder = stage.run_folder
    folder.start(resume=True)
    stage.set_failure(None)
    started, processor = time.perf_counter(), time.process_time()
    with (
        (stage.folder / "output.txt").open("a", buffering=1) as output,
        redirect_stdout(output),
        _recorded_warnings() as texts,
        compile_timer() as compiling,
    ):
        result = _WORK[stage.kind](stage, threads)
    seconds = {
        "seconds": time.perf_counter() - started,
        "compile_seconds": compiling.seconds,
        "processor_seconds": time.process_time() - processor - compiling.processor_seconds,
    }
    return folder.finish({**seconds, "warnings": texts, **result})


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Give a list that gets the text of each warning, which is also shown as usual."""
    texts: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def record(message: Warning | str, *place: Any, **more: Any) -> None:
            texts.append(str(message))
            show(message, *place, **more)

        warnings.showwarning = record
        yield texts


def write(stage: Stage, _: int | None) -> dict[str, Any]:
    """Write betons by a writer."""
    name, *arguments = map(str, stage.facts["arguments"])  # numbers have the text of the study
    module = f"dp4tl_ffcv.writers.{name.replace('-', '_')}"
    command = [sys.executable, "-c", _END_WITH_PARENT, str(os.getpid()), module]
    command += [*arguments, "--out", str(stage.folder / "betons")]
    done = subprocess.run(
        command, cwd=stage.paths["folder"], capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)
    if done.returncode:
        raise ValueError(f"`dp4tl write {' '.join([name, *arguments])}`: {done.stderr.strip()}")
    return {}


def pretrain(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Pretrain on the source or a selection. The need `full` gives the number of steps."""
    iterations = _result(stage, "full")["steps"] if "full" in stage.needs else None
    settings = _recipe_settings(stage, threads)
    return pretrain_recipe.pretrain(
        PretrainConfig(selection=_selected(stage), iterations=iterations, **settings)
    )


def pretrain_moco(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Pretrain a surrogate without labels."""
    settings = _recipe_settings(stage, threads)
    return pretrain_moco_recipe.pretrain_moco(
        PretrainMocoConfig(selection=_selected(stage), **settings)
    )


def weights(stage: Stage, _: int | None) -> dict[str, Any]:
    """Take weights of a surrogate that exist, by the name or path that loads them."""
    if "file" in stage.paths:
        return {}
    name = stage.facts["name"]
    # A bare name would load a file of this name from the working folder, which nodes differ in.
    bare = ":" not in name and name != "efficientnet-lite0"
    return {"checkpoint": f"torchvision:{name}" if bare else name}


def finetune(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Finetune a pretrained model on a target."""
    checkpoint = Path(_model(stage, "pretrained"))
    return finetune_recipe.finetune(
        FinetuneConfig(checkpoint=checkpoint, **_recipe_settings(stage, threads))
    )


def features(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Extract features and logits by the surrogate.

    Features of a stopped stage are made again: their time counts as a cost of the selection.
    """
    model = _model(stage, "surrogate")
    if not Path(model).is_absolute() and Path(model).is_file():
        raise ValueError(
            f"the working folder {str(Path.cwd())!r} has a file {model!r}, which would be loaded "
            "instead of the weights of this name. Move the file."
        )
    out = stage.folder / "features"
    shutil.rmtree(out, ignore_errors=True)
    made = extract_features(
        model,
        stage.paths["beton"],
        out,
        num_workers=threads,
        **{"logits": True, **stage.facts["settings"]},
    )
    return {"samples": len(made)}


def halves(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Pretrain on random halves of the source's classes, each followed by the other half."""
    index = BetonIndex.open(stage.paths["train"])
    included = np.zeros((stage.facts["runs"], index.num_classes), dtype=np.bool_)
    rng, results = np.random.default_rng(stage.facts["settings"]["seed"]), []
    for run, row in enumerate(included):
        if run % 2:
            row[:] = ~included[run - 1]
        else:
            row[rng.permutation(index.num_classes)[: index.num_classes // 2]] = True
        half = Selection.of_classes(index, np.flatnonzero(row), num_classes=index.num_classes)
        chosen = stage.folder / f"half_{run}.npz"
        half.save(chosen)
        settings = _recipe_settings(stage, threads, f"run_{run}")
        results.append(pretrain_recipe.pretrain(PretrainConfig(selection=chosen, **settings)))
    np.save(stage.folder / "included.npy", included)
    return {"pretrain_seconds": sum(each["pretrain_seconds"] for each in results)}


def influence(stage: Stage, threads: int | None) -> dict[str, Any]:
    """Probe each run of `halves` on a target, and keep which validation images are right."""
    settings, outcomes = stage.facts["settings"], []
    crops = {name: settings[name] for name in settings.keys() & {"resolution", "crop_ratio"}}
    for run in range(stage.needs["halves"].facts["runs"]):
        name = f"run_{run}"
        probe = finetune_recipe.finetune(
            FinetuneConfig(
                checkpoint=_folder(stage, "halves") / name, **_recipe_settings(stage, threads, name)
            )
        )
        seen = extract_features(
            probe["checkpoint"],
            stage.paths["val"],
            stage.folder / f"features_{run}",
            num_workers=threads,
            restart=True,
            **crops,
        )
        outcomes.append(seen.predictions == seen.labels)
    np.save(stage.folder / "outcomes.npy", np.array(outcomes))
    return {}


def clusters(stage: Stage, _: int | None) -> dict[str, Any]:
    """Cluster the source's features into pseudo-classes."""
    made = cluster(_folder(stage, "source") / "features", stage.facts["clusters"])
    made.save(stage.folder / "clusters.npz")
    return {}


def score(stage: Stage, _: int | None) -> dict[str, Any]:
    """Score the source's classes or samples."""
    inputs: dict[str, Any] = dict(stage.facts["options"])
    for role in ("target", "source"):
        if role in stage.needs:
            inputs[role] = _folder(stage, role) / "features"
    if "clusters" in stage.needs:
        inputs["clusters"] = _folder(stage, "clusters") / "clusters.npz"
    if "difficulty" in stage.needs:
        inputs["difficulty"] = _folder(stage, "difficulty") / "scores.npz"
    if "dynamics" in stage.needs:
        inputs["dynamics"] = [_folder(stage, "dynamics") / "run" / "dynamics.npz"]
    if "outcomes" in stage.needs:
        inputs["outcomes"] = _folder(stage, "outcomes") / "outcomes.npy"
        inputs["included"] = stage.needs["outcomes"].needs["halves"].folder / "included.npy"
    if "surrogate" in stage.needs:
        inputs["models"] = [Path(_model(stage, "surrogate"))]
    inputs.update(stage.paths)
    methods.score(stage.facts["method"], out=stage.folder / "scores.npz", **inputs)
    return {}


def selection(stage: Stage, _: int | None) -> dict[str, Any]:
    """Select a fraction of the source by scores, and say which fraction that is."""
    keep = stage.facts["keep"]
    options: dict[str, Any] = {"keep": keep, "balanced": stage.facts.get("balanced", False)}
    index = BetonIndex.open(stage.paths["beton"])
    roles = [role for role in stage.needs if role.startswith("scores")]
    found = [Scores.load(_folder(stage, role) / "scores.npz") for role in roles]
    of_clusters = "clusters" in stage.needs and found[0].unit == "class"
    if of_clusters:
        options["clusters"] = _folder(stage, "clusters") / "clusters.npz"
        if keep != AUTO:
            options = {**options, "keep": None, "keep_samples": round(keep * index.num_samples)}
    # Only votes surely have a sum to be divided by; the rule must not differ between seeds.
    votes = methods.get(stage.needs[roles[0]].facts["method"]).votes
    combine = stage.facts.get("combine", "sum" if votes else "rank")
    made = select(found, index, combine=combine, **options)
    made.save(stage.folder / "selection.npz")
    by_class = found[0].unit == "class" and not of_clusters
    kept = len(made.classes) / index.num_classes if by_class else len(made) / index.num_samples
    counts = {"classes": len(made.classes), "samples": len(made)}
    if keep != AUTO:
        return {**counts, "keep": keep}
    evidence, chosen = made.provenance["automatic"], str(made.provenance["keep"])
    about = {name: evidence[name][chosen] for name in ("coverage", "lower_bound")}
    return {**counts, "keep": kept, **about}


# A writer whose process was killed would otherwise go on, and lock the betons for the next one.
_END_WITH_PARENT = """
import runpy, sys
from dp4tl_ffcv.utils import end_with_parent
end_with_parent(int(sys.argv.pop(1)))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
_WORK: dict[str, Callable[[Stage, int | None], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        write, pretrain, pretrain_moco, weights, finetune, features, halves, influence, clusters,
        score, selection,
    )
}  # fmt: skip


def _recipe_settings(stage: Stage, threads: int | None, run: str = "run") -> dict[str, Any]:
    """Return the settings of a recipe's run in the folder `run` of the stage."""
    return {
        **stage.paths,
        "run": stage.folder / run,
        "num_workers": threads,
        "overwrite": True,
        **stage.facts["settings"],
    }


def _selected(stage: Stage) -> Path | None:
    return _folder(stage, "selection") / "selection.npz" if "selection" in stage.needs else None


def _folder(stage: Stage, role: str) -> Path:
    return stage.needs[role].folder


def _model(stage: Stage, role: str) -> str:
    """Return the path of a checkpoint that a stage needs, or the name of pretrained weights.

    The folder may have moved since the result was written, and so may the file of weights.
    """
    need, result = stage.needs[role], _result(stage, role)
    if "file" in need.paths:
        return str(need.paths["file"])
    return str(
        result["checkpoint"] if need.kind == "weights" else checkpoint_of(need.folder / "run")
    )


def _result(stage: Stage, role: str) -> dict[str, Any]:
    result = stage.needs[role].result()
    if result is None:
        raise ValueError(f"{stage.needs[role].folder} is not finished. Run the study again.")
    return result
