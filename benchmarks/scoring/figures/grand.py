"""Gradient norms of single samples (GraNd), against one backward pass per image."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness.bench import CORES
from benchmarks.harness.rows import Row, compare
from benchmarks.scoring.bench import (
    CLASSES,
    Bench,
    Sides,
    alternate_timed,
    check_same,
)
from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import gradient_norms

SIDE = 64  # pixels
TOLERANCE = 1e-3  # norms are sums of millions of products in single precision


def measure(bench: Bench) -> list[Row]:
    torch.manual_seed(0)
    model = build_model(bench.scale.arch, CLASSES).eval()
    count = bench.scale.images, bench.scale.backward
    images = torch.randn(count[0], 3, SIDE, SIDE)
    labels = torch.randint(CLASSES, (count[0],))
    few = images[: count[1]], labels[: count[1]]
    sides: Sides = {
        "ours": lambda: gradient_norms(model, [(images, labels)]),
        "one backward per image": lambda: loop_gradient_norms(model, *few),
    }
    times = alternate_timed(sides, bench.scale.rounds)
    for mine, its in zip(*(side.results for side in times.values()), strict=True):
        check_same("the norms", mine[: count[1]], its, rtol=TOLERANCE)
    ours, other = (
        [second.rate(number) for second in side.seconds]
        for number, side in zip(count, times.values(), strict=True)
    )
    params = {
        "images": count[0],
        "other_images": count[1],
        "model": f"{bench.scale.arch}, {CLASSES} classes",
        "how": f"{SIDE} px, on the processor",
        "threads": CORES,
        "bounded_by": "forward and backward pass of the batch, and products for the norms",
    }
    return [compare("grand", "images/s", ours, other, "one backward per image", **params)]


def loop_gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    norms = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        loss = F.cross_entropy(model(image[None]), label[None])
        loss.backward()  # type: ignore[no-untyped-call]
        squares = [
            value.grad.square().sum() for value in model.parameters() if value.grad is not None
        ]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    return np.array(norms)
