"""A training run: its folder, counters, log, resuming and result, the same in every recipe."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp4tl_ffcv import save_checkpoint
from dp4tl_ffcv.utils import Classifier, RunFolder, on_rank_zero, settings_of

from ..configs.common import RunConfig, facts_of
from .counters import Counters
from .epoch_sums import EpochSums
from .processes import Processes
from .run_log import RunLog
from .saved_state import SavedState
from .throughput import Throughput


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
        facts = {**facts_of(config, processes.world_size), **inputs}
        self.folder = RunFolder(config.run, facts, overwrite=config.overwrite)
        self.checkpoint = self.folder.checkpoints / checkpoint
        self.counters = Counters()
        self._sums = EpochSums(processes, self.counters)  # of the steps outside of `batches`
        path = self.folder.checkpoints / "resume.pt"
        self._saved_state = SavedState(path, processes, config.save_every_minutes)
        self._stateful: dict[str, Any] = {}
        self._loader: Any = None
        self._loader_state: Any = None  # of a stopped run, until an epoch begins

    @property
    def epoch(self) -> int:
        """Index of the current epoch, from 0."""
        return self.counters.epoch

    @property
    def step(self) -> int:
        """Index of the current step, from 0."""
        return self.counters.step

    @property
    def scratch(self) -> Path:
        """Folder of files that resuming needs. It is deleted when the run is finished."""
        return self._saved_state.folder

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
        self._saved_state.delete()  # a kill may have come between the result and this
        self.say("finished before, reused")
        return {**result, "checkpoint": str(self.checkpoint)}  # the folder may have moved

    def start(self) -> None:
        """Create the run folder, or keep the state of a stopped run in it.

        Other processes cannot use the folder until the run is finished, or this process ends.

        Raises:
            BlockingIOError: another process uses the folder.
            ValueError: the folder holds another run, and `overwrite` is off.
        """
        on_rank_zero(self._start)

    def resume(self, **stateful: Any) -> None:
        """Load the state of a stopped run, if there is one.

        Args:
            stateful: everything that training changes, by name, except the loader: objects with
                `state_dict` and `load_state_dict`. `save` saves their states.

        Raises:
            ValueError: the state is corrupt or does not fit.
        """
        self._stateful = stateful
        resumed = self._saved_state.exists()
        if resumed:
            self.counters, self._loader_state = self._saved_state.load(stateful)
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
    def batches(
        self,
        loader: Any,
        total_steps: int,
        tell_ids: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> Iterator[Any]:
        """Yield the batches of the next epoch, or of the rest of the run, and show progress.

        A stopped run continues after its last saved step. The order of the samples follows from the
        seed and the epoch, and all random numbers of a step from the seed and the step, so that a
        resumed run trains like a run without interruption.

        Args:
            loader: a loader of training batches.
            total_steps: steps of the whole run.
            tell_ids: is called before each batch with its sample ids `(B,)`.
        """
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
            self._loader_state = None
        loader.set_epoch(self.epoch)
        self._loader, self._total_steps = loader, total_steps
        steps_left = total_steps - self.step
        left_of_epoch = len(loader) - (self.step - self.counters.first_step)
        num_steps = max(0, min(left_of_epoch, steps_left))
        throughput = Throughput(
            self.processes.device,
            description=f"{self.recipe} {self.config.run.name}, step {self.step}/{total_steps}",
            steps_after=steps_left - num_steps,
            quiet=self.processes.rank > 0,
        )
        self._sums = EpochSums(self.processes, self.counters, throughput)
        size = loader.batch_size
        ids = loader.plan_epoch(self.epoch).order if tell_ids else None
        batches = throughput.batches(loader, num_steps, size * self.processes.world_size)
        for number, batch in enumerate(batches):
            self.processes.seed(self.config.seed, self.step)
            if tell_ids and ids is not None:
                tell_ids(ids[number * size : (number + 1) * size])
            yield batch

    def count(self, loss: Tensor, num_images: int) -> None:
        """Count a step, with its loss and its images in this process. Save the state if it is due.

        Call this at the end of the step, when everything has changed that the step changes.

        Raises:
            ValueError: the state is due, and the loss or a weight is not finite.
        """
        self._sums.add(loss)
        self.counters.step += 1
        self.counters.images += num_images * self.processes.world_size
        if self.step % self.config.log_every == 0:
            self.log.loss(self.step, loss)
        # After its last step, an epoch must end before its state can be saved.
        if self._saved_state.is_due(self.step) and self._has_batches():
            self._sums.update()
            self._check_finite("loss is", math.isfinite(self.counters.loss_sum))
            self.log.flush()
            self._save()
            self._sums.restart_clock()

    def end_epoch(self) -> None:
        """Count an epoch, over all processes.

        Raises:
            ValueError: the loss is not finite.
        """
        self._sums.update()
        self.counters.end_epoch()
        self.log.flush()
        self._check_finite("loss is", math.isfinite(self.counters.loss))

    def write(self, event: str, **numbers: Any) -> None:
        """Write a line to the log."""
        self.log.write(event, self.step, **numbers)

    def write_epoch(self, **numbers: Any) -> None:
        """Write the line of an epoch to the log: loss, time, rates and `numbers`."""
        counters = self.counters
        rates = {"loss": counters.loss, "seconds": counters.seconds, **counters.rates()}
        self.write("epoch", **numbers, **rates)

    def save(self, *, last: bool = False) -> None:
        """Save the state to resume from, if it is time to or if the epoch is the last.

        Raises:
            ValueError: the state is due, and a weight is not finite.
        """
        if last or self.epoch % self.config.save_every == 0 or self._saved_state.is_due(self.step):
            self._save()

    # -- after training --------------------------------------------------------------------------
    def finish(self, model: Classifier, summary: str, **result: Any) -> dict[str, Any]:
        """Save the model, print `summary`, write `result.json` and return its content.

        Raises:
            ValueError: a weight is not finite.
        """
        self._check_weights(model)
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
        self._saved_state.delete()
        return written

    def _start(self) -> None:
        self.folder.start(resume=self.config.resume)

    def _save(self) -> None:
        modules = [part for part in self._stateful.values() if isinstance(part, nn.Module)]
        self._check_weights(*modules)
        self._saved_state.save(self.counters, self._loader, self._stateful)

    def _check_weights(self, *modules: nn.Module) -> None:
        # The step that made the weights infinite had a finite loss.
        tensors = [each for part in modules for each in (*part.parameters(), *part.buffers())]
        self._check_finite("weights are", self.processes.all_finite(tensors))

    def _check_finite(self, what: str, is_finite: bool) -> None:
        if not is_finite:
            raise ValueError(f"the {what} no longer finite. Lower `lr`; it is {self.config.lr}.")

    def _has_batches(self) -> bool:
        """Return whether the current epoch has steps left."""
        if self._loader is None or self.step == self._total_steps:
            return False
        return bool(self._loader.state_dict()["epoch"] == self.epoch)
