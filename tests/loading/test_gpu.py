"""A batch is not overwritten before the GPU has copied it, even if the GPU is far behind."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

from dp4tl_ffcv import PrunedLoader, Selection, training_loader
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from dp4tl_ffcv.loading.decoding.views import view_pipelines
from tests.support.loading import only

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
LONG = 100_000_000  # cycles: about 50 ms, in which the host makes tens of batches
BATCH = 8


def pipelines(decoder: Any, *, channels_last: bool = True, non_blocking: bool = True) -> Any:
    move = ToDevice(DEVICE, non_blocking=non_blocking)
    return only(
        image=[decoder, ToTensor(), move, ToTorchImage(channels_last=channels_last)],
        label=[IntDecoder(), ToTensor(), Squeeze(1), ToDevice(DEVICE, non_blocking=True)],
    )


def delayed(loader: Any, every: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield copies of each batch, which the GPU makes after a long kernel."""
    for number, (images, labels) in enumerate(loader):
        if number % every == 0:
            torch.cuda._sleep(LONG)
        yield images.clone(), labels.clone()


def check(batches: Any, dataset: Any, expected: Any = None) -> None:
    """Compare the batches with the dataset, and wait for the GPU only after the last batch."""
    parts = list(batches)
    torch.cuda.synchronize()
    images, labels = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    ids = dataset.ids_of(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(labels, dataset.labels[ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(120) if expected is None else expected)


@pytest.mark.parametrize("cache", ["extents", "ram"])
@pytest.mark.parametrize("batches_ahead", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_no_batch_is_overwritten_while_the_gpu_is_behind(
    channels_last: bool, batches_ahead: int, cache: str, paged: Any
) -> None:
    loader = PrunedLoader(
        paged.path, BATCH, order="random", cache=cache, batches_ahead=batches_ahead,
        pipelines=pipelines(SimpleRGBImageDecoder(), channels_last=channels_last),
    )  # fmt: skip
    images, labels = next(iter(loader))
    assert images.device == labels.device == DEVICE
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=form)
    for _ in range(3):
        check(delayed(loader), paged)


@pytest.mark.parametrize(
    "decoder",
    [
        RandomResizedCropRGBImageDecoder((96, 96), flip=0.5),
        CenterCropRGBImageDecoder((128, 112), ratio=1.0),
    ],
    ids=["random", "centre"],
)
def test_no_crop_is_overwritten_while_the_gpu_is_behind(decoder: Any, paged: Any) -> None:
    loader = PrunedLoader(
        paged.path, BATCH, order="random", pipelines=pipelines(decoder), batches_ahead=1
    )
    for _ in range(3):
        check(delayed(loader, every=2), paged)


def test_the_loader_waits_for_delayed_copies(paged: Any) -> None:
    """The copy comes after a long kernel on the same stream."""

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(LONG)
            return x

    steps = pipelines(SimpleRGBImageDecoder())
    steps["image"].insert(2, Slow())  # before ToDevice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # ffcv advises against it
        loader = PrunedLoader(paged.path, BATCH, order="random", pipelines=steps, batches_ahead=1)
        for _ in range(2):
            check(((x.clone(), y.clone()) for x, y in loader), paged)


def model_of(classes: int) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(), torch.nn.Linear(128, classes),
    )  # fmt: skip
    return model.to(DEVICE, memory_format=torch.channels_last)


def train(model: Any, loader: Any, epochs: int = 2) -> tuple[list[int], list[float]]:
    """Train under autocast; return the sum of the pixels and the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sums, losses = [], []
    for _ in range(epochs):
        for images, labels in loader:
            torch.cuda._sleep(LONG // 10)
            pixels = images.float().div(255).contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            sums.append(images.long().sum())  # nothing here waits for the GPU
            losses.append(loss.detach())
    return torch.stack(sums).tolist(), torch.stack(losses).tolist()


def test_mixed_precision_training_repeats_its_batches(paged: Any) -> None:
    """Crops are seeded and the GPU is behind, so that only an overwritten batch could differ."""
    selection = Selection.of_classes(paged.index, [1, 4, 6])

    def steps_of(batches_ahead: int, synchronous: bool) -> tuple[list[int], list[float]]:
        steps = pipelines(
            RandomResizedCropRGBImageDecoder((64, 64), flip=0.5), non_blocking=not synchronous
        )
        loader = PrunedLoader(
            paged.path, BATCH, order="random", seed=3, selection=selection, relabel=True,
            pipelines=steps, batches_ahead=batches_ahead,
        )  # fmt: skip
        return train(model_of(3), loader)

    expected, losses = steps_of(8, synchronous=True)
    assert np.isfinite(losses).all()
    for batches_ahead in (1, 3):
        sums, found = steps_of(batches_ahead, synchronous=False)
        assert sums == expected
        np.testing.assert_allclose(found, losses, rtol=1e-2)


def test_a_distributed_group_of_one_trains(paged: Any, tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1,
        device_id=DEVICE,
    )  # fmt: skip
    try:
        model = torch.nn.parallel.DistributedDataParallel(model_of(10), device_ids=[0])
        for cache in ("extents", "ram"):
            loader = PrunedLoader(
                paged.path, BATCH, order="quasi_random", distributed=True, cache=cache,
                pipelines=pipelines(SimpleRGBImageDecoder()),
            )  # fmt: skip
            assert np.isfinite(train(model, loader, epochs=1)[1]).all()
            check(delayed(loader), paged)
    finally:
        torch.distributed.destroy_process_group()


def test_two_views_show_the_same_samples(paged: Any) -> None:
    def steps() -> list[Any]:
        return [ToTensor(), ToDevice(DEVICE, non_blocking=True), ToTorchImage()]

    views = {
        "image": RandomResizedCropRGBImageDecoder((64, 64), flip=0.5),
        "image_2": RandomResizedCropRGBImageDecoder((48, 48), flip=0.5),
    }
    loader = PrunedLoader(
        paged.path, BATCH, order="random", batches_ahead=1,
        pipelines={**view_pipelines(views, steps), "label": None, "identifier": None},
    )  # fmt: skip
    parts = []
    for first, second in loader:
        torch.cuda._sleep(LONG)
        parts.append((first.clone(), second.clone()))
    torch.cuda.synchronize()
    first, second = (
        paged.ids_of(torch.cat(part).cpu().permute(0, 2, 3, 1).numpy())
        for part in zip(*parts, strict=True)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first), np.arange(120))


def test_training_loader_moves_batches_to_the_gpu(paged: Any) -> None:
    loader = training_loader(paged.path, batch_size=BATCH, resolution=64, seed=0, device=DEVICE)
    check(delayed(loader), paged)


def test_an_epoch_is_complete_after_a_loop_was_left_early(paged: Any) -> None:
    loader = PrunedLoader(
        paged.path, BATCH, order="random", pipelines=pipelines(SimpleRGBImageDecoder())
    )
    for _ in range(3):
        torch.cuda._sleep(LONG)
        next(iter(loader))
    check(delayed(loader), paged)
