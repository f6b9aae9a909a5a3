"""A beton is parsed once, caches and orders have names, resolution and epoch can be set."""

from pathlib import Path
from typing import Any

import pytest
from ffcv.transforms import ToTensor

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    Selection,
    evaluation_loader,
    training_loader,
    view_pipelines,
)
from dp4tl_ffcv.beton import index as index_module
from dp4tl_ffcv.loading import CACHES, ORDERS


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The betons whose tables are read, in order."""
    found: list[Path] = []
    load = index_module.load_tables

    def recorded(path: Path, *arguments: Any) -> Any:
        found.append(path)
        return load(path, *arguments)

    monkeypatch.setattr(index_module, "load_tables", recorded)
    return found


@pytest.mark.parametrize("relabel", [True, False])
def test_a_path_is_parsed_once(relabel: bool, colours: Any, parsed: list[Path]) -> None:
    selection = Selection.of_classes(colours.index, [1, 5])
    parsed.clear()
    loader = training_loader(
        colours.path, batch_size=6, resolution=8, seed=0, selection=selection, relabel=relabel
    )
    list(loader)
    assert parsed == [colours.path]


def test_an_index_is_not_parsed_again(colours: Any, parsed: list[Path]) -> None:
    index = BetonIndex.open(colours.path)
    training = training_loader(index, batch_size=6, resolution=8, seed=0)
    for loader in (training, evaluation_loader(index, batch_size=6, resolution=8)):
        list(loader)
    training.set_selection(Selection.of_classes(index, [1]))
    list(training.filter("label", lambda label: label == 1))
    assert len(index.allocations)
    assert parsed == [colours.path]


def test_a_loader_releases_the_allocation_table_that_it_opened(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 6)
    assert loader._index._allocations is None
    for index in (loader._index, loader.filter("label", lambda label: label < 5)._index):
        assert index._allocations is None


# Resolution and epoch.


def crops() -> RandomResizedCropRGBImageDecoder:
    return RandomResizedCropRGBImageDecoder((8, 8))


def test_a_resolution_takes_effect_in_the_next_epoch(colours: Any) -> None:
    loader = training_loader(colours.path, batch_size=60, resolution=8, seed=0)
    assert loader.resolution == (8, 8)
    sizes: Any = {12: (12, 12), (10, 6): (10, 6)}
    for size, expected in sizes.items():
        loader.resolution = size
        assert loader.resolution == expected
        assert next(iter(loader))[0].shape == (60, 3, *expected)
        with pytest.raises(ValueError, match="output_size"):
            loader.resolution = 0
        assert loader.resolution == expected


def test_a_resolution_applies_to_all_views(colours: Any) -> None:
    views = view_pipelines({"image": crops(), "second": crops()}, list)
    loader = PrunedLoader(colours.path, 20, pipelines={**views, "label": None})
    assert loader.resolution == (8, 8)
    loader.resolution = 12
    first, _, second = next(iter(loader))
    assert first.shape == second.shape == (20, 12, 12, 3)


def test_a_resolution_needs_an_image_decoder(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 60, pipelines={"image": None})
    with pytest.raises(ValueError, match="no image decoder"):
        loader.resolution = 8
    with pytest.raises(ValueError, match="no image decoder"):
        _ = loader.resolution


def test_an_epoch_can_be_loaded_again_by_its_number(colours: Any) -> None:
    pipelines = {"image": [crops(), ToTensor()], "identifier": None}
    loader = PrunedLoader(colours.path, 60, order="random", seed=2, pipelines=pipelines)
    epochs = [[labels.tolist() for _, labels in loader] for _ in range(3)]
    assert epochs[1] != epochs[2]
    loader.set_epoch(1)
    assert loader.next_epoch == 1
    assert [labels.tolist() for _, labels in loader] == epochs[1]
    for epoch, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="`epoch` must be"):
            loader.set_epoch(epoch)  # type: ignore[arg-type]


# Names.


def test_caches_and_orders_are_listed_by_their_names() -> None:
    assert set(CACHES) == {"extents", "ram"}
    assert {"sequential", "random", "quasi_random"}.issubset(ORDERS)
