"""Gradient norms from the inputs of layers and the gradients at their outputs (ghost norms)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .rules import RULES, Rule, UnsuitedError, kind_of

# Relative tolerances on CPU and GPU (TF32), and absolute tolerance; each is above rounding errors.
AGREEMENT, AGREEMENT_ON_GPU, TINY = 1e-3, 1e-2, 1e-6

Edges = set[tuple[Any, int]]  # in autograd's graph: a node, and the position of its next node


def ghost_norms(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    loss_of: Callable[[], Tensor],
    count: int,
) -> Tensor:
    """Return the gradient norms `(count,)` of `count` samples, in float64.

    `loss_of` runs the model and returns the sum of the samples' losses. Raises UnsuitedError if a
    parameter is used outside layers that have a rule.
    """
    loss, calls = _recorded(model, parameters, loss_of, count)
    # Given edges, autograd does not compute the gradients of the weights.
    edges = [call.returned for call in calls]
    gradients = torch.autograd.grad(loss, edges, allow_unused=True) if edges else ()
    rules = {call.layer: call.rule for call in calls}
    together: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        if call.fed._version != call.version:
            raise UnsuitedError(f"The input of {call.layer} is changed in place later.")
        if gradient is not None:
            together.setdefault(call.layer, []).append((call.fed, gradient))
    total = torch.zeros(count, dtype=torch.float64, device=loss.device)
    for layer, pairs in together.items():
        total += rules[layer](layer, pairs).double()
    return total.sqrt()


def check_apart(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
) -> None:
    """Raise UnsuitedError unless each row of a layer's output affects only its own sample.

    The gradients of the first sample's logits must be exactly 0 in the rows of other samples, at
    the layers and, if images are floating-point, at the images.
    """
    places: list[Any] = []
    if images.is_floating_point():
        places.append(images.detach().requires_grad_())
        images = places[0].clone()  # the model may change it in place
    logits, calls = _recorded(model, parameters, lambda: logits_of(images), len(images))
    # Different weights, because the plain sum of logits with mean 0 has no gradient.
    weights = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    places += [call.returned for call in calls]
    gradients = torch.autograd.grad((logits[0] * weights).sum(), places, allow_unused=True)
    # NaN passes: the caller reports it with its sample.
    if any(bool((found[1:].abs() > 0).any()) for found in gradients if found is not None):
        raise UnsuitedError("The model mixes samples.")


def check_same(norms: Tensor, alone: Tensor) -> None:
    """Raise UnsuitedError unless `norms` of a ghost pass equal `alone`, of separate passes."""
    tolerance = AGREEMENT if norms.device.type == "cpu" else AGREEMENT_ON_GPU
    # NaN passes: the caller reports it with its sample.
    wrong = torch.nonzero((norms - alone).abs() > tolerance * alone + TINY)
    if len(wrong):
        first = int(wrong[0])
        raise UnsuitedError(
            f"The norm of a sample is {norms[first].item():.6g} in a batch, but "
            f"{alone[first].item():.6g} alone: the model mixes samples."
        )


@dataclass(frozen=True)
class _Call:
    """One call of a layer."""

    layer: nn.Module
    rule: Rule
    fed: Tensor
    version: int  # of `fed`; in-place operations change it
    returned: torch.autograd.graph.GradientEdge  # the output, before in-place operations
    uses: Edges  # edges to the layer's parameters


def _recorded(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    run: Callable[[], Tensor],
    count: int,
) -> tuple[Tensor, "list[_Call]"]:
    """Return the result of `run`, and the calls of trained layers that it made."""
    calls: list[_Call] = []
    with ExitStack() as hooks:
        for layer in model.modules():
            if kind := kind_of(layer):
                hook = partial(_record, calls, RULES[kind])
                hooks.enter_context(layer.register_forward_hook(hook))
        output = run()
    _check_complete(parameters, output, calls, count)
    return output, calls


def _record(
    calls: list[_Call], rule: Rule, layer: nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    if len(args) != 1 or not isinstance(output, Tensor) or output.grad_fn is None:
        return  # _check_complete then finds that no call owns the parameters' edges
    fed = args[0]
    own = dict(layer.named_parameters(recurse=False))
    ids = {id(own[name]) for name in ("weight", "bias") if name in own}
    uses = _uses(output.grad_fn, ids, stop=fed.grad_fn)
    if not uses:
        return  # frozen
    edge = torch.autograd.graph.get_gradient_edge(output)
    calls.append(_Call(layer, rule, fed.detach(), fed._version, edge, uses))


def _uses(root: Any, parameters: Collection[int], stop: Any = None) -> Edges:
    """Return the edges between `root` and `stop` that lead to parameters with these ids."""
    found, seen, ahead = set(), {root, stop}, [root]
    while ahead:
        node = ahead.pop()
        for at, (below, _) in enumerate(node.next_functions):
            if id(getattr(below, "variable", None)) in parameters:
                found.add((node, at))
            elif below is not None and below not in seen:
                seen.add(below)
                ahead.append(below)
    return found


def _check_complete(
    parameters: Mapping[str, nn.Parameter], output: Tensor, calls: Sequence[_Call], count: int
) -> None:
    """Check that only recorded calls use the parameters, on one row per sample."""
    names = {id(value): name for name, value in parameters.items()}
    owned = {edge for call in calls for edge in call.uses}
    for node, at in _uses(output.grad_fn, names) - owned:
        name = names[id(node.next_functions[at][0].variable)]
        raise UnsuitedError(f"{name} is used outside the layers that `ghost` supports.")
    owners: dict[int, nn.Module] = {}
    for call in calls:
        for parameter in call.layer.parameters(recurse=False):
            if owners.setdefault(id(parameter), call.layer) is not call.layer:
                raise UnsuitedError(f"{call.layer} shares a parameter with another layer.")
        if len(call.fed) != count:
            raise UnsuitedError(f"{call.layer} gets {len(call.fed)} rows for {count} samples.")
