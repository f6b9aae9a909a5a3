"""The pretraining runs of the demo."""

from dataclasses import dataclass

from ..configs.demo import Config

MAPPINGS = ("label_mapping", "feature_mapping")
METHODS = (*MAPPINGS, "random")


@dataclass(frozen=True)
class Run:
    """One pretraining run of the plan."""

    method: str
    keep: float
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name."""
        control = "_equal_iterations" if self.budget == "equal_iterations" else ""
        return f"{self.method}_{self.keep:g}{control}_seed{self.seed}"

    @property
    def scores(self) -> str:
        """Name of the scores file: random scores differ by seed."""
        return f"random_seed{self.seed}" if self.method == "random" else self.method

    @property
    def selection(self) -> str | None:
        """Name of the selection file."""
        return None if self.method == "full" else f"{self.scores}_{self.keep:g}"


def plan(config: Config) -> list[Run]:
    """Return all pretraining runs: the full source, each method and fraction, the controls.

    The full source is first for one seed and last for the next, so that a machine that slows
    down favours neither side.
    """
    runs: list[Run] = []
    for position, seed in enumerate(config.seeds):
        turn = [Run("full", 1.0, "equal_epochs", seed)]
        for method in METHODS:
            turn += [Run(method, keep, "equal_epochs", seed) for keep in config.keeps]
            turn.append(Run(method, config.control_keep, "equal_iterations", seed))
        runs += turn if position % 2 == 0 else turn[::-1]
    return runs
