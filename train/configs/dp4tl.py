"""DP4TL's configuration files, translated to the names and units of our settings.

The keys are declared in DP4TL's experiments (OPTML-Group/DP4TL, src/experiment/*.py), and written
here with dots between the sections. As in DP4TL, a null value counts as absent.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from dp4tl_ffcv.utils import check_choice

_SAME = {
    "network.architecture": "arch",
    "network.pretrained_ckpt": "checkpoint",
    "dataset.train_path": "train",
    "dataset.val_path": "val",
    "dataset.test_path": "test",
    "dataset.num_workers": "num_workers",
    "train.seed": "seed",
    "train.epoch": "epochs",
    "train.label_smoothing": "label_smoothing",
    "train.optimizer.lr": "lr",
    "train.optimizer.weight_decay": "weight_decay",
    "validation.resolution": "val_resolution",
    "adv.attack_step": "attack_steps",
    "adv.epsilon": "attack_epsilon",
}
_SWITCHES = {
    "network.blurpool": "blurpool",
    "validation.lr_tta": "tta",
    "test.lr_tta": "tta",
}
_MODES = {"lp": "linear_probe", "ff": "full_finetuning"}
# The other keys of DP4TL's files, by section. Some do not change a result (memory, logs, ports).
_OTHERS = {
    "exp": "identifier",
    "network": "finetune_method",
    "dataset": "prune in_memory indices.training indices.testing",
    "train": "batch_size distributed scheduler_type progressive_resize static_resolution.res",
    "train.optimizer": "type momentum",
    "train.scheduler": "step.step_ratio step.step_size cyclic.lr_peak_epoch "
    "cosine_with_warmup.warmup_epoch cosine_with_warmup.starting_factor",
    "train.resolution": "min_res max_res start_ramp end_ramp",
    "train.progressive_resolution": "min_res max_res start_ramp end_ramp",
    "validation": "batch_size",
    "test": "batch_size resolution",
    "logging": "dry_run path save_intermediate_frequency",
    "distributed": "world_size address port",
}
_KNOWN = {f"{section}.{key}" for section, keys in _OTHERS.items() for key in keys.split()}
# Words of YAML 1.1 that are not text.
_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("null", "~", ""), None),
}
_CYCLE_ENDS = 1e-4  # learning rate at both ends of the cyclic schedule


def fields_of(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings for a configuration of DP4TL.

    DP4TL's fixed choices become settings: SGD without Nesterov momentum, weight decay of norms,
    fp16, one output per source class, a cyclic schedule from 1e-4 to 1e-4. The result may hold
    fields that our recipe for the same task does not have.

    Raises:
        ValueError: a key is unknown or missing, or `dataset.prune` is set.
    """
    given = dict(_flatten(nested))
    unknown = sorted(given.keys() - _SAME.keys() - _SWITCHES.keys() - _KNOWN)
    if unknown:
        raise ValueError(
            f"`config_file` has keys that DP4TL does not have: {', '.join(unknown)}. Remove them, "
            "or write our field names without sections."
        )
    given = {key: value for key, value in given.items() if value is not None}
    lists = [key for key, value in given.items() if isinstance(value, list)]
    if lists:
        raise ValueError(f"`config_file` gives a list for {lists[0]}. Give one value.")
    if given.get("dataset.prune"):
        raise ValueError(
            "`dataset.prune` in `config_file` must be 0. Import the files of `dataset.indices` "
            "with dp4tl_ffcv.import_indices, and pass the selection as --selection."
        )
    fields = {field: given[key] for key, field in _SAME.items() if key in given}
    fields |= {field: bool(given[key]) for key, field in _SWITCHES.items() if key in given}
    if "train.batch_size" in given:  # images of one GPU
        distributed = given.get("train.distributed")
        world_size = _number(given, "distributed.world_size") if distributed else 1
        fields["batch_size"] = _number(given, "train.batch_size") * world_size
    if any(key.startswith("adv.") for key in given):
        fields["attack"] = "pgd"
    return {
        **fields,
        **_task(given),
        **_optimizer(given),
        **_schedule(given),
        **_resolutions(given),
    }


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
            continue
        yield f"{prefix}{key}", _scalar(value) if isinstance(value, str) else value


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def _required(given: Mapping[str, Any], key: str) -> Any:
    if key not in given:
        raise ValueError(f"`config_file` lacks {key}, which DP4TL's files have.")
    return given[key]


def _number(given: Mapping[str, Any], key: str, *, above: float = 0) -> Any:
    value = _required(given, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > above:
        raise ValueError(f"`config_file` must give a positive number for {key}; got {value!r}.")
    return value


def _task(given: Mapping[str, Any]) -> dict[str, Any]:
    if "network.finetune_method" in given:
        method = check_choice("network.finetune_method", given["network.finetune_method"], _MODES)
        return {"mode": _MODES[method]}
    if "dataset.test_path" in given:
        return {"mode": "from_scratch"}
    return {"full_head": True, "norm_weight_decay": True, "amp": "fp16"}


def _optimizer(given: Mapping[str, Any]) -> dict[str, Any]:
    default = "Adam" if "network.finetune_method" in given else "SGD"
    kind = str(given.get("train.optimizer.type", default))
    if kind == "SGD":
        return {
            "optimizer": "sgd",
            "momentum": given.get("train.optimizer.momentum", 0.9),
            "nesterov": False,
        }
    return {"optimizer": kind.lower()}


def _schedule(given: Mapping[str, Any]) -> dict[str, Any]:
    kind = _required(given, "train.scheduler_type")
    section = f"train.scheduler.{kind}"
    if kind == "step":
        return {
            "schedule": "step",
            "warmup": 0.0,
            "step_ratio": given.get(f"{section}.step_ratio", 0.1),
            "step_length": given.get(f"{section}.step_size", 30),
        }
    if kind == "cyclic":
        peak = f"{section}.lr_peak_epoch"
        ends = _CYCLE_ENDS / _number(given, "train.optimizer.lr")
        return {
            "schedule": "cyclic",
            "warmup": _number({peak: 2, **given}, peak, above=-1) / _number(given, "train.epoch"),
            "start_factor": ends,
            "end_factor": ends,
        }
    warmup = {"warmup": 0.0}
    if kind == "cosine_with_warmup":
        epochs = _number(given, f"{section}.warmup_epoch", above=-1)
        warmup = {
            "warmup": epochs / _number(given, "train.epoch"),
            "start_factor": _required(given, f"{section}.starting_factor"),
        }
    return {"schedule": "cosine", "end_factor": 0.0, **warmup}


def _resolutions(given: Mapping[str, Any]) -> dict[str, Any]:
    section = "train.resolution"
    if "train.progressive_resize" in given or "train.static_resolution.res" in given:
        section = "train.progressive_resolution"
    if section == "train.progressive_resolution" and not given.get("train.progressive_resize"):
        start = end = _required(given, "train.static_resolution.res")
    else:
        start, end = _required(given, f"{section}.min_res"), _required(given, f"{section}.max_res")
    fields = {"resolution": start}
    if start != end:
        fields["end_resolution"] = end
        fields["ramp"] = [
            _required(given, f"{section}.{key}") for key in ("start_ramp", "end_ramp")
        ]
    if given.get("test.resolution", end) != end:
        fields["val_resolution"] = given["test.resolution"]
    return fields
