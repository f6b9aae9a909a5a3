"""Where the weights lie in other programs' checkpoints, and which of several are loaded."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dp4tl_ffcv import CheckpointError, load_checkpoint
from tests.support.models import assert_same_state, make

State = dict[str, Any]
NETWORK = make().network
STATE = NETWORK.state_dict()
OTHER = {name: value + 1 for name, value in STATE.items()}
HEAD = list(STATE)[-2:]
BODY = {name: value for name, value in STATE.items() if name not in HEAD}


def under(prefix: str, state: State = STATE) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def inside(component: str) -> State:
    """Put a component before the last one of each key, and before all."""
    return {
        ".".join((component, *name.split(".")[:-1], component, name.split(".")[-1])): value
        for name, value in STATE.items()
    }


def averaged() -> State:
    return AveragedModel(NETWORK).state_dict()


def robustness() -> State:
    """As madrylab/robustness saves an AttackerModel, whose attacker holds the model again."""
    constants = {"new_mean": torch.zeros(3, 1, 1), "new_std": torch.ones(3, 1, 1)}
    return {
        "model": {
            **under("module.normalizer", constants),
            **under("module.model"),
            **under("module.attacker.normalize", constants),
            **under("module.attacker.model"),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "epoch": 3,
    }


LAYOUTS: dict[str, tuple[State, str]] = {
    "Lightning with a loss": (
        {"state_dict": under("model") | {"criterion.weight": torch.ones(5)}},
        "in 'state_dict.model', and left out state_dict.criterion.",
    ),
    "Lightning with a metric": (
        {"state_dict": under("net") | {"accuracy.tp": torch.ones(5), "steps": torch.ones(1)}},
        "left out state_dict.accuracy, state_dict.steps.",
    ),
    "moving average": (averaged(), "in 'module', and left out n_averaged."),
    "robustness": (
        robustness(),
        "in 'model.module.model', and left out model.module.attacker.model, "
        "model.module.normalizer, model.module.attacker.",
    ),
    "nested prefixes": ({"a": {"b": under("learner.backbone._orig_mod")}}, ""),
    "FSDP": (inside("_fsdp_wrapped_module"), ""),
    "activation checkpointing": (inside("_checkpoint_wrapped_module"), ""),
    "compiled parts": (inside("_orig_mod"), ""),
    "several wrappers": (under("_orig_mod.module", inside("_fsdp_wrapped_module")), ""),
    "half precision": ({"model": {name: value.half() for name, value in STATE.items()}}, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_wherever_they_lie(layout: str, tmp_path: Path) -> None:
    values, left_out = LAYOUTS[layout]
    torch.save(values, tmp_path / "a.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    assert model.num_classes == 5
    tolerance = 1e-3 if layout == "half precision" else 0
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, STATE[name], rtol=tolerance, atol=tolerance)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == bool(left_out)
    assert all(left_out in message and "a.pt" in message for message in messages)


BESIDE: dict[str, Any] = {
    "tuples as keys": {("layer1", 2): 0.5, (1, 2): "a", (): (3,), b"b": 1, torch.float32: 2},
    "byte array": bytearray(b"\xff\x00a"),
    "sparse": torch.eye(3).to_sparse(),
    "sparse by rows": torch.eye(3).to_sparse_csr(),
    "quantized": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
    "quantized by channel": torch.quantize_per_channel(
        torch.rand(3, 2), torch.rand(3), torch.zeros(3), 0, torch.qint8
    ),
    "meta": torch.empty(1 << 40, device="meta"),
    "one number in memory": torch.zeros(1).expand(1 << 40),
    "entries of one name": {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
    "numbers of numpy": [np.float64(0.5), np.arange(3), np.bool_(True)],
    "random state of numpy": np.random.RandomState(0).get_state(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*left out", "ignore:Validating sparse")
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_torch_reads_may_lie_beside_the_weights(
    kind: str, is_zip: bool, tmp_path: Path
) -> None:
    values = {"model": STATE, "extra": BESIDE[kind]}
    torch.save(values, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    model = load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    assert_same_state(model.network.state_dict(), STATE)


CHOICES: dict[str, tuple[State, State]] = {
    "torchvision": ({"model": OTHER, "model_ema": averaged()}, STATE),
    "timm": ({"state_dict": OTHER, "state_dict_ema": STATE}, STATE),
    "Lightning": ({"state_dict": under("net", OTHER) | under("ema_net")}, STATE),
    "more keys": ({"backbone": {n: v + 1 for n, v in BODY.items()}, "classifier": STATE}, STATE),
    "another width": ({"teacher": make("resnet8_w32").network.state_dict(), "net": STATE}, STATE),
    "MoCo": (under("encoder_k", OTHER) | under("encoder_q"), BODY),
    "equal copies": ({"a": STATE, "b": {n: value.clone() for n, value in STATE.items()}}, STATE),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("program", CHOICES)
def test_one_network_of_several_is_loaded(program: str, tmp_path: Path) -> None:
    values, expected = CHOICES[program]
    torch.save(values, tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    assert model.num_classes == (None if expected is BODY else 5)
    assert_same_state(model.network.state_dict(), expected)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("names", [("student", "teacher"), ("ema_1", "x.ema.y")], ids=" ".join)
def test_networks_that_fit_equally_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    torch.save({names[0]: STATE, names[1]: OTHER}, tmp_path / "a.pt")
    message = rf"it holds several networks that fit: {names[0]}, {names[1]}\. Save one of them"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


def changed(change: Callable[[Tensor], Tensor]) -> State:
    return STATE | {"0.weight": change(STATE["0.weight"])}


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(weights: Tensor) -> Tensor:
        weights = weights.double()
        weights[0, 0, 0, 0] = value
        return weights

    return change


REFUSED: dict[str, tuple[State, str]] = {
    "one weight missing": (
        {"net": {name: v for name, v in STATE.items() if name != "1.bias"}},
        r"its weights under 'net' do not fit resnet8_w16 with 5 classes; missing keys: 1\.bias\.",
    ),
    "NaN": (changed(with_value(float("nan"))), r"0\.weight holds NaN or infinite values"),
    "infinite": (changed(with_value(float("-inf"))), r"0\.weight holds NaN or infinite values"),
    "beyond float32": (changed(with_value(1e300)), r"0\.weight holds NaN or infinite values"),
    "integers": (changed(torch.Tensor.char), r"wrong types: 0\.weight int8, strided, cpu\."),
    "complex": (changed(lambda w: w.to(torch.complex64)), r"types: 0\.weight complex64, strided"),
    "sparse": (changed(torch.Tensor.to_sparse), r"types: 0\.weight float32, sparse_coo, cpu\."),
    "meta": (changed(lambda w: w.to("meta")), r"types: 0\.weight float32, strided, meta\."),
    "quantized counter": (
        STATE | {"1.num_batches_tracked": torch.quantize_per_tensor(
            torch.tensor(1.0), 1.0, 0, torch.qint8)},
        r"types: 1\.num_batches_tracked qint8, strided, cpu\.",
    ),
    "two entries of one name": (
        {"net": STATE | {"0": {"weight": STATE["0.weight"]}}},
        r"under 'net' do not fit .*; keys for the same weight: 0\.weight, 0\.weight\.",
    ),
    "one number in memory": (
        changed(lambda w: torch.zeros(1).expand(w.shape)), r"types: 0\.weight repeats its numbers",
    ),
    "head of one number": (
        STATE | {HEAD[0]: torch.zeros(1).expand(1 << 40, 64)}, r"types: 8\.weight repeats its num",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_weights_that_cannot_be_used_are_named(fault: str, tmp_path: Path) -> None:
    values, message = REFUSED[fault]
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


def test_a_deeper_network_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    deeper = nn.Sequential(*NETWORK, nn.Linear(5, 5)).state_dict()
    torch.save({"net": deeper}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"unknown keys: 9\.weight, 9\.bias"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
