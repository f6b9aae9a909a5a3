"""The commands that are disturbed, on data so small that each takes about a second."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.files import tar_of
from tests.support.reports import rows, write_study

from . import trees
from .processes import HANG, Child
from .sandbox import SHARED

CLASSES, PER_CLASS = 4, 12


@dataclass(frozen=True)
class Verb:
    """A command that writes to the folder `out` of a `Place`."""

    name: str
    command: str
    """Arguments of `dp4tl`. `{out}` is the folder of the output, `{data}` that of the inputs."""
    result: str = ""
    """The file of the output that is old, new or absent at every moment, if there is one."""
    kills: int = 20
    """Share of the kills of a full campaign."""
    old: str = ""
    """Further arguments that make an older output, which the command then replaces."""
    copies: str = ""
    """Pattern of the inputs that are copied into `out`, because the command adds files to them."""


_RUN = "--run {out}/run --arch resnet8_w16 --resolution 32 --num-workers 1 --batch-size 8"
_COMPACT = "compact {data}/train.beton --out {out}/small.beton --num-workers 2"
_TARGET = "--train {data}/train.beton --val {data}/val.beton"

VERBS = (
    Verb(
        "write",
        "write imagefolder --root {data}/photos --out {out} --val 0.2 --test 0.2 --num-workers 2",
        kills=40,
    ),
    Verb(
        "write from tars",
        "write webdataset --train-shards {data}/shards --val-shards {data}/shards/0.tar "
        "--out {out} --num-workers 2",
        kills=15,
    ),
    Verb(
        "compact",
        f"{_COMPACT} --selection {{data}}/kept.npz",
        "small.beton",
        kills=30,
        old="--seed 7",
    ),
    Verb("compact to raw", f"{_COMPACT} --images raw", "small.beton", kills=25),
    Verb("index", "index {out}/train.beton", kills=15, copies="train.beton*"),
    Verb(
        "features",
        "features {data}/train.beton --model {data}/surrogate.pt --out {out}/f --resolution 32 "
        "--logits --num-workers 1",
    ),
    Verb(
        "score",
        "score label-mapping --target {data}/target_features --out {out}/scores.npz",
        "scores.npz",
        kills=15,
    ),
    Verb(
        "select",
        "select --scores {data}/scores.npz --beton {data}/train.beton --out {out}/kept.npz "
        "--keep 0.5",
        "kept.npz",
        kills=15,
    ),
    Verb(
        "cluster",
        "cluster {data}/target_features --num-clusters 4 --out {out}/c.npz",
        "c.npz",
        kills=10,
    ),
    Verb("export", "export {data}/kept.npz --out {out}/kept.indices", "kept.indices", kills=10),
    Verb("pretrain", f"pretrain {_TARGET} {_RUN} --epochs 3", kills=25),
    Verb(
        "finetune",
        f"finetune {_TARGET} --test {{data}}/test.beton --checkpoint {{data}}/surrogate.pt "
        f"--mode full_finetuning --save-every 1 {_RUN} --epochs 3",
    ),
    Verb(
        "pretrain-moco",
        "pretrain-moco --train {data}/train.beton --norm-batch 4 --queue 16 --projection-size 16 "
        f"{_RUN} --epochs 3",
        kills=15,
    ),
    Verb("report", "report {out}/study", "study/report.html", kills=15, copies="study"),
)


class Place:
    """The folders of one disturbed command: inputs, output, temporary and cached files."""

    def __init__(self, work: Path) -> None:
        self.work, self.data, self.out = work, work / "data", work / "out"
        self._watched = (self.out, work / "tmp", work / "cache", work / "home", SHARED)

    def clear(self, verb: Verb) -> None:
        """Empty the output and what commands may leave elsewhere, and copy the inputs to change."""
        for folder in self._watched[:-1]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for path in SHARED.glob("dp4tl_ffcv-*"):
            path.unlink()
        self.copy_inputs(verb)

    def copy_inputs(self, verb: Verb) -> None:
        """Copy the inputs to which a command adds files."""
        for path in self.data.glob(verb.copies) if verb.copies else ():
            if path.is_dir():
                shutil.copytree(path, self.out / path.name)
            elif path.suffix != ".jpegs":
                shutil.copy(path, self.out)

    def files(self) -> trees.Tree:
        """Return all files that a command may have written."""
        return trees.read_tree(self._watched)

    def names(self) -> set[str]:
        """Return the paths of all files that a command may have written."""
        return trees.names(self._watched)

    def start(self, verb: Verb, more: str = "", log: str = "log") -> Child:
        """Start a command in a process of its own."""
        words = self.words(verb, more)
        return Child(lambda: run_command(words), self.work / log)

    def words(self, verb: Verb, more: str = "") -> list[str]:
        """Return the arguments of `dp4tl` for a command."""
        return f"{verb.command} {more}".format(out=self.out, data=self.data).split()

    def run(self, verb: Verb, more: str = "") -> None:
        """Run a command, which must succeed."""
        child = self.start(verb, more)
        if child.wait(HANG) != 0:
            raise RuntimeError(f"dp4tl {verb.name} ended with {child.status}: {child.text}")


def run_command(words: list[str]) -> None:
    """Run `dp4tl` in this process."""
    from dp4tl_ffcv.cli import main

    sys.argv = ["dp4tl", *words]
    main()


def warm_up() -> None:
    """Import all that the commands need, before processes are forked. Starts no thread.

    Commands on little data then record their progress often, as they do on much.
    """
    import dp4tl_ffcv.cli.verbs
    import dp4tl_ffcv.train.finetune
    import dp4tl_ffcv.train.pretrain
    import dp4tl_ffcv.train.pretrain_moco
    import dp4tl_ffcv.train.study
    import dp4tl_ffcv.writers.imagefolder
    import dp4tl_ffcv.writers.webdataset  # noqa: F401
    from dp4tl_ffcv import extraction
    from dp4tl_ffcv.scoring.features import blocks
    from dp4tl_ffcv.writing import pages

    extraction.BLOCK_ROWS = blocks.BLOCK_ROWS = 8
    pages.COMMIT_BYTES = 0


def make_inputs(place: Place) -> None:
    """Write photos, betons, a surrogate, features, scores, a selection and a study."""
    make_photos(place.data / "photos", place.data / "shards")
    by_name = {verb.name: verb for verb in VERBS}
    for name, made, kept in (
        ("write", "", ""),
        ("pretrain", "run/checkpoints/last.pt", "surrogate.pt"),
        ("features", "f", "target_features"),
        ("score", "scores.npz", "scores.npz"),
        ("select", "kept.npz", "kept.npz"),
    ):
        place.clear(by_name[name])
        place.run(by_name[name])
        if made:
            (place.out / made).replace(place.data / kept)
        else:
            for path in list(place.out.iterdir()):
                path.replace(place.data / path.name)
    (place.data / "study").mkdir()
    write_study(place.data / "study", rows(seeds=2, keeps=(0.5,)))


def make_photos(photos: Path, shards: Path) -> None:
    """Write the same photos of a few classes to folders, and to tars with their class ids."""
    from PIL import Image

    rng = np.random.default_rng(0)
    shards.mkdir(parents=True)
    for kind in range(CLASSES):
        folder = photos / f"class{kind}"
        folder.mkdir(parents=True)
        files = {}
        for number in range(PER_CLASS):
            noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            path = folder / f"{number:02}.jpg"
            Image.fromarray(noise).resize((160, 120)).save(path, quality=90)
            files |= {f"{number}.jpg": path.read_bytes(), f"{number}.cls": str(kind).encode()}
        (shards / f"{kind}.tar").write_bytes(tar_of(files))
