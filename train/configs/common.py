"""Settings that every training recipe has, and checks of settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dp4tl_ffcv.utils import check_choice, check_number, settings_of

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Settings that do not change the result.
_WITHOUT_EFFECT = {
    "data", "run", "overwrite", "resume", "log_every", "save_every", "save_every_minutes",
    "num_workers", "timeout", "cache",
}  # fmt: skip
# Settings that earlier versions did not have, and their values then. A setting with this value is
# no fact, so that runs of earlier versions stay finished.
_LATER: dict[str, Any] = {"record_dynamics": False, "infobatch": 0.0, "infobatch_until": 0.875}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every training recipe has."""

    data: Path | None = None
    """Folder with train.beton and, as far as the recipe reads them, val.beton and test.beton."""
    train: Path | None = None
    """Beton to train on, instead of train.beton in --data."""
    run: Path
    """Run folder to write."""
    resume: bool = True
    """Continue a stopped run. --no-resume starts it over."""
    overwrite: bool = False
    """Delete a run with different settings in this folder and start over."""
    seed: int = 0
    """Seed of the initial weights, the order of the samples and the augmentations."""
    num_workers: int | None = None
    """Loading threads per process. None: all cores, shared by the processes."""
    timeout: float | None = 10.0
    """Seconds without a read that ends, before an error. A network disk may need 600 while a server
    is replaced. None waits for ever."""
    log_every: int = 50
    """Steps between two losses in the log."""
    save_every: int = 1
    """Epochs between two saved states to resume from."""
    save_every_minutes: float = 0.0
    """Also save the state in mid-epoch, when this many minutes have passed since it was saved. 0
    saves at the ends of epochs only."""

    epochs: int
    """Passes over the training samples."""
    batch_size: int
    """Images per step, over all processes or in each; see --batch-per."""
    batch_per: Literal["step", "process"] = "step"
    """Whether --batch-size is the total over all processes, or the batch of each process."""
    lr: float
    """Highest learning rate; see --lr-per."""
    lr_per: Literal["step", "process"] = "step"
    """Whether the learning rate is --lr, or --lr times the number of processes."""

    resolution: int
    """Side of the training crops, in pixels."""
    min_scale: float = 0.08
    """Smallest area of a random crop, as a fraction of the image."""
    flip: bool = True
    """Mirror half of the training images. Turn off where left and right matter."""

    schedule: Literal["cyclic", "step", "cosine", "constant"] = "cosine"
    """How the learning rate falls: linearly, by a factor every few epochs, as a cosine, or not."""
    warmup: float = 0.0
    """Fraction of all steps over which the learning rate rises linearly."""
    start_factor: float = 0.0
    """Starting learning rate / --lr. With 0, the first step takes the first nonzero value of the
    line from 0 to --lr."""
    end_factor: float = 0.0
    """Learning rate after the last step / --lr, in the cyclic and cosine schedules."""
    step_length: int = 30
    """Epochs between two falls of the step schedule."""
    step_ratio: float = 0.1
    """Factor of each fall of the step schedule."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Adam with decoupled weight decay or with weight decay in the gradient, or SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum in SGD."""
    weight_decay: float = 0.0
    """Weight decay, decoupled in AdamW."""
    norm_weight_decay: bool = True
    """Decay the weights of norms and the biases too."""
    amp: Literal["bf16", "fp16", "off"] = "bf16"
    """Precision of the forward pass on a GPU. A CPU computes in float32."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                check_choice(name, getattr(self, name), get_args(hint))
        if self.data is not None and self.data.is_file():
            raise ValueError(f"`data` must be a folder of betons; {str(self.data)!r} is a file.")
        self.beton("train")
        check_fields(self, "seed lr weight_decay step_ratio save_every_minutes", at_least=0)
        check_fields(self, "num_workers log_every save_every epochs batch_size", at_least=1)
        check_fields(self, "step_length resolution", at_least=1)
        check_fields(self, "timeout", above=0)
        check_fields(self, "min_scale momentum", at_least=0, at_most=1)
        check_fields(self, "warmup start_factor end_factor", at_least=0, at_most=1)

    def beton(self, split: Split) -> Path:
        """Return the path of a split's beton.

        Raises:
            ValueError: neither the split nor `data` is set.
        """
        given: Path | None = getattr(self, split)
        if given is None and self.data is None:
            raise ValueError(
                f"`{split}` is missing. Name the beton, or pass a folder with all splits as `data`."
            )
        return given or Path(str(self.data)) / f"{split}.beton"


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig):
    """Settings that the recipes with labels have."""

    val_resolution: int | None = None
    """Side of the crops for validation and test. None takes the final training resolution."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image, in validation and test."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_fields(self, "val_resolution", at_least=1)
        check_fields(self, "crop_ratio label_smoothing", at_least=0, at_most=1)


def facts_of(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return the settings that the result of a run depends on, by name."""
    settings = settings_of(config)
    facts = {
        name: settings[name]
        for name in settings.keys() - _WITHOUT_EFFECT
        if (name, settings[name]) not in _LATER.items()
    }
    per_process = "process" in (config.batch_per, config.lr_per)
    return {**facts, "world_size": world_size if per_process else None}


def check_fields(config: Any, names: str, **bounds: float) -> None:
    """Check by `check_number` the fields `names`, which are separated by spaces; None passes."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None:
            check_number(name, value, **bounds)
