"""A training run: its folder, counters, log, resuming and result, the same in every recipe."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dp4tl_ffcv import save_checkpoint
from dp4tl_ffcv.utils import Classifier, RunFolder, atomic_open, on_rank_zero, settings_of

from ..configs.common import RunConfig
from .processes import Processes
from .run_log import RunLog
from .throughput import Throughput

# Settings that do not change the result.
_WITHOUT_EFFECT = {
    "run", "overwrite", "resume", "log_every", "save_every", "num_workers", "cache",
}  # fmt: skip


@dataclass
class Counters:
    """Progress of a run, including the part before a restart."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Optimiser steps."""
    images: int = 0
    """Images in these steps, over all processes."""
    seconds: float = 0.0
    """Training time, without set-up and validation."""
    stalled: float = 0.0
    """Part of `seconds` spent waiting for the loader: mean over the processes."""
    warm_up_seconds: float = 0.0
    """Time to compile and to set up at first use."""
    loss: float = float("nan")
    """Mean loss of the last epoch."""

    def rates(self) -> dict[str, float]:
        """Return images per second, and the fraction of time spent waiting for the loader."""
        return {
            "images_per_second": self.images / self.seconds,
            "stall_share": self.stalled / self.seconds,
        }

    def result(self, work: str) -> dict[str, Any]:
        """Return what `result.json` reports of a run, with its time as `WORK_seconds`."""
        return {
            "steps": self.step,
            "images": self.images,
            f"{work}_seconds": self.seconds,
            "warm_up_seconds": self.warm_up_seconds,
            **self.rates(),
            "loss": self.loss,
        }

    def __str__(self) -> str:
        rates = self.rates()
        return (
            f"{self.step} steps, {self.seconds:.1f} s, {rates['images_per_second']:.0f} images/s, "
            f"{rates['stall_share']:.1%} of the time waiting for the loader, loss {self.loss:.3f}"
        )


class Session:
    """A run of a recipe, from its folder to its result. Each process makes its own session.

    A recipe calls `finished`, `start`, `resume`, `warm_up`; in each epoch `batches`, `count`,
    `end_epoch`, `save`; and `finish`.

    Args:
        recipe: name of the recipe, for messages.
        config: settings of the run.
        processes: processes of the run.
        inputs: fingerprints of the files that the result depends on. A fingerprint named like a
            setting replaces it, so a run depends on a file's content, not its path.
        checkpoint: name of the checkpoint that the run writes.
    """

    def __init__(
        self,
        recipe: str,
        config: RunConfig,
        processes: Processes,
        inputs: Mapping[str, Any],
        *,
        checkpoint: str = "last.pt",
    ) -> None:
        self.recipe = recipe
        self.config = config
        self.processes = processes
        settings = settings_of(config)
        facts = {name: settings[name] for name in settings.keys() - _WITHOUT_EFFECT}
        per_process = "process" in (config.batch_per, config.lr_per)
        facts["world_size"] = processes.world_size if per_process else None
        self.folder = RunFolder(config.run, {**facts, **inputs}, overwrite=config.overwrite)
        self.checkpoint = self.folder.checkpoints / checkpoint
        self.counters = Counters()
        self._state_file = self.folder.checkpoints / "resume.pt"
        self._stateful: dict[str, Any] = {}
        self._total_loss = torch.zeros((), device=processes.device)

    @property
    def epoch(self) -> int:
        """Index of the current epoch, from 0."""
        return self.counters.epoch

    @property
    def step(self) -> int:
        """Index of the current step, from 0."""
        return self.counters.step

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self.processes.rank == 0:
            print(f"{self.config.run}: {text}")

    # -- before training -------------------------------------------------------------------------
    def finished(self) -> dict[str, Any] | None:
        """Return the result of an earlier run with the same settings and inputs, or None."""
        result = on_rank_zero(self.folder.finished)
        if result is None:
            return None
        self.say("finished before, reused")
        return {**result, "checkpoint": str(self.checkpoint)}  # the folder may have moved

    def start(self) -> None:
        """Create the run folder, or keep the state of a stopped run in it.

        Raises:
            ValueError: the folder holds another run, and `overwrite` is off.
        """
        on_rank_zero(partial(self.folder.start, resume=self.config.resume))

    def resume(self, **stateful: Any) -> None:
        """Load the state of a stopped run, if there is one.

        Args:
            stateful: everything that training changes, by name: objects with `state_dict` and
                `load_state_dict`. `save` saves their states.

        Raises:
            ValueError: the state is corrupt or does not fit.
        """
        self._stateful = stateful
        resumed = on_rank_zero(self._state_file.exists)
        if resumed:
            self._load()
        self.log = RunLog(self.folder, active=self.processes.rank == 0, first_step=self.step)
        if resumed:
            self.write("continue")

    def warm_up(self, action: Callable[[], Any]) -> None:
        """Call `action`, which compiles and sets up what training needs.

        Its time is reported, but is not part of the training time.
        """
        started = time.perf_counter()
        action()
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        self.counters.warm_up_seconds += time.perf_counter() - started

    # -- training --------------------------------------------------------------------------------
    def batches(self, loader: Any, total_steps: int) -> Iterator[Any]:
        """Yield the batches of the next epoch, or of the rest of the run, and show progress.

        The order of the samples and all random numbers of an epoch follow from the seed and the
        number of the epoch, so that a resumed run trains like a run without interruption.
        """
        loader.set_epoch(self.epoch)
        self.processes.seed(self.config.seed, self.epoch)
        self._num_steps = min(len(loader), total_steps - self.step)
        self._throughput = Throughput(
            self.processes.device,
            description=f"{self.recipe} {self.config.run.name}, step {self.step}/{total_steps}",
            steps_after=total_steps - self.step - self._num_steps,
            quiet=self.processes.rank > 0,
        )
        self._total_loss = torch.zeros((), device=self.processes.device)
        self._started = time.perf_counter()
        images_per_step = loader.batch_size * self.processes.world_size
        yield from self._throughput.batches(loader, self._num_steps, images_per_step)

    def count(self, loss: Tensor, num_images: int) -> None:
        """Count a step, with its loss and its images in this process."""
        self._total_loss += loss  # on the device, without waiting for it
        self.counters.step += 1
        self.counters.images += num_images * self.processes.world_size
        if self.step % self.config.log_every == 0:
            self.log.loss(self.step, loss)

    def end_epoch(self) -> None:
        """Count an epoch, over all processes.

        Raises:
            ValueError: the loss is not finite.
        """
        counters, processes = self.counters, self.processes
        counters.loss = processes.mean_over(self._total_loss) / self._num_steps
        counters.seconds += time.perf_counter() - self._started  # the mean has waited for the GPU
        stalled = torch.tensor(
            self._throughput.stalled, dtype=torch.float64, device=processes.device
        )
        counters.stalled += processes.mean_over(stalled)
        counters.epoch += 1
        self.log.flush()
        if not math.isfinite(counters.loss):
            raise ValueError(f"the loss is no longer finite. Lower `lr`; it is {self.config.lr}.")

    def write(self, event: str, **numbers: Any) -> None:
        """Write a line to the log."""
        self.log.write(event, self.step, **numbers)

    def write_epoch(self, **numbers: Any) -> None:
        """Write the line of an epoch to the log: loss, time, rates and `numbers`."""
        counters = self.counters
        rates = {"loss": counters.loss, "seconds": counters.seconds, **counters.rates()}
        self.write("epoch", **numbers, **rates)

    def save(self, *, last: bool = False) -> None:
        """Save the state to resume from, every `save_every` epochs and after the last epoch."""
        if last or self.epoch % self.config.save_every == 0:
            on_rank_zero(self._save)

    # -- after training --------------------------------------------------------------------------
    def finish(self, model: Classifier, summary: str, **result: Any) -> dict[str, Any]:
        """Save the model, print `summary`, write `result.json` and return its content."""
        on_rank_zero(partial(save_checkpoint, self.checkpoint, model))
        self.log.close()
        self.say(summary)
        full = {
            "settings": settings_of(self.config),
            "checkpoint": str(self.checkpoint),
            **result,
            "world_size": self.processes.world_size,
        }
        written = on_rank_zero(partial(self.folder.finish, full))
        if self.processes.rank == 0:
            self._state_file.unlink(missing_ok=True)
        return written

    def _save(self) -> None:
        states = {name: part.state_dict() for name, part in self._stateful.items()}
        with atomic_open(self._state_file) as stream:
            torch.save({"counters": asdict(self.counters), "states": states}, stream)

    def _load(self) -> None:
        try:
            values = torch.load(self._state_file, map_location="cpu", weights_only=True)
            states = values["states"]
            if states.keys() != self._stateful.keys():
                raise KeyError(f"the file holds {sorted(states)}")
            for name, part in self._stateful.items():
                part.load_state_dict(states[name])
            self.counters = Counters(**values["counters"])
        except OSError:
            raise
        except Exception as error:  # torch does not document what it raises for a corrupt file
            raise ValueError(
                f"cannot resume: {str(self._state_file)!r} is corrupt, or another version of this "
                "recipe wrote it. Start over with --no-resume."
            ) from error


def try_batch(
    model: nn.Module, loader: Iterable[tuple[Tensor, ...]], loss_of: Callable[..., Tensor]
) -> None:
    """Take the first batch forward and backward, and leave the model as it was."""
    batch = next(iter(loader))
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    changing = [(tensor, tensor.clone()) for tensor in (*model.buffers(), *frozen)]
    model.train()
    loss_of(*batch).backward()
    for weight in model.parameters():
        weight.grad = None
    with torch.no_grad():
        for tensor, before in changing:
            tensor.copy_(before)
