"""Study files, and the stages that a study needs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dp4tl_ffcv.utils import sha256_of_file
from train.components.study import work
from train.components.study.plan import Plan, Run
from train.components.study.stages import Stage, with_needs
from train.configs.study import Study, read_study

FILE = """
data:
  digits: [digits, --variants, 2]
source: digits/source_{split}.beton
targets: {upright: "digits/target_{split}.beton", few: "digits/target_few_{split}.beton"}
methods:
  label_mapping: {}
  clusters: {method: feature_mapping, clusters: 40}
  random: {unit: class}
keeps: [0.5, 0.25]
seeds: 2
images: {resolution: 24, flip: false}
pretrain: {arch: resnet8_w16, epochs: 4, lr: 5e-1}
surrogates: {default: {epochs: 2}}
finetune:
  linear_probe: {epochs: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(FILE)
    return path


def runs_of(study: Study, root: Path) -> list[Run]:
    return Plan(study, root, root).runs


def test_a_file_gives_numbers_and_switches_their_types(file: Path) -> None:
    study = read_study(file)
    assert study.data == {"digits": ["digits", "--variants", "2"]}
    assert study.pretrain == {"arch": "resnet8_w16", "epochs": 4, "lr": 0.5}
    assert study.images == {"resolution": 24, "flip": False}
    assert study.seeds == [0, 1]
    assert study.budgets == ("equal_epochs", "equal_steps")
    assert study.methods["random"].keeps == {
        "equal_epochs": [0.5, 0.25], "equal_steps": [0.5, 0.25],
    }  # fmt: skip
    assert study.methods["clusters"].method == "feature_mapping"
    assert study.methods["clusters"].options == {"clusters": 40}


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ("keeps: [0.5, 0.25]", "keeps: [0.5, 1.5]", "`keeps` must be above 0 and at most 1"),
        ("keeps: [0.5, 0.25]", "keep: [0.5]", "unknown entry keep; a study file has"),
        ("keeps: [0.5, 0.25]", "", "keeps"),
        ("keeps: [0.5, 0.25]", "keeps: [50%]", "`keeps` are fractions such as 0.5.*; got '50%'"),
        ("seeds: 2", "seeds: [1, 1]", "`seeds` lists 1 twice"),
        ("keeps: [0.5, 0.25]", "keeps: [0.5, 5e-1]", "`keeps` lists 0.5 twice"),
        ("{upright:", "{both: [few, few], upright:", "`targets: both` lists few twice"),
        ("random: {", "full: {method: random, ", "`methods`: full means the full source"),
        ("linear_probe", "from_scratch", "`finetune` must be one of linear_probe"),
        ("seeds: 2", "seeds: 0", "`seeds` must be at least 1"),
        ("seeds: 2", "seeds: [0, -1]", "`seeds` must be at least 0"),
        ("keeps: [0.5, 0.25]", "keeps: 0.5", r"as in `keeps: \[0.4, 0.2\]`"),
        ("{unit: class}", "{combine: mean}", "`combine` must be one of sum, max, rank"),
        ("{unit: class}", "{keeps: 0.5}", r"`methods: random`: `keeps` .* as in `keeps: \[0.4"),
        ("keeps: [0.5, 0.25]", "keeps: {equal_epochs: []}", "`keeps` is empty"),
        ("keeps: [0.5, 0.25]", "keeps: {epochs: [0.5]}", "keeps"),
        ("{unit: class}", "{surrogate: small}", "`surrogate` must be one of default"),
        ("{epochs: 2}", "{recipe: moco}", "`recipe` must be one of pretrain, pretrain-moco"),
        (
            "{upright:",
            "{both: [upright, none], upright:",
            "targets: both` names 'none', which is no .*: upright, few",
        ),
        ("linear_probe", "probe", "finetune"),
        ("_{split}", "", "a path with {split}"),
        ("{upright:", "{both: [], upright:", "`targets: both` is empty. Name at least one"),
        ("{epochs: 2}", "{samples: half}", "default`: `samples` cannot be .* in `samples: 0.25`"),
    ],
    ids=[
        "all",
        "unknown",
        "missing",
        "text",
        "twice",
        "a keep twice",
        "a target twice",
        "full",
        "from scratch",
        "none",
        "negative",
        "form",
        "combine",
        "form of a method",
        "no keep",
        "budget",
        "surrogate",
        "recipe",
        "target",
        "mode",
        "split",
        "empty target",
        "samples",
    ],
)
def test_a_wrong_file_is_named(file: Path, before: str, after: str, match: str) -> None:
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ValueError, match=match) as caught:
        read_study(file)
    assert "study.yaml" in str(caught.value)


def test_entries_without_a_value_are_empty_mappings(file: Path) -> None:
    before = read_study(file)
    for given in ("label_mapping", "default"):
        file.write_text(file.read_text().replace(f"{given}: {{}}", f"{given}:"))
    assert read_study(file) == before


def test_methods_can_be_spelt_as_on_the_command_line(file: Path) -> None:
    before = {run.finetuned.key for run in runs_of(read_study(file), file.parent)}
    runs = changed(file, "method: feature_mapping", "method: feature-mapping")
    assert {run.finetuned.key for run in runs} == before


def test_every_combination_is_run_and_compared_with_the_full_source(file: Path) -> None:
    runs = runs_of(read_study(file), file.parent)
    found = {(r.target, r.method, r.keep, r.budget, r.seed, r.mode) for r in runs}
    assert len(found) == len(runs) == 2 * 2 * 2 * (1 + 3 * 2)  # targets, seeds, budgets, selections
    assert {run.method for run in runs if run.selection is None} == {"full"}


def test_stages_are_shared_where_they_are_the_same(file: Path) -> None:
    runs = runs_of(read_study(file), file.parent)
    stages = with_needs(run.finetuned for run in runs)
    kinds = [stage.kind for stage in stages]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "write": 1,
        # For each seed: surrogate, full, and per keep and budget: LM and FM by target, random.
        "pretrain": 2 * (2 + 2 * 2 * (2 + 2 + 1)),
        "features": 2 * (2 + 1),
        "clusters": 2,
        "score": 2 * (2 + 2 + 1),
        "selection": 2 * 2 * (2 + 2 + 1),
        # The full run, and random's, are finetuned on both targets.
        "finetune": 2 * (2 + 2 * 2 * (2 + 2 + 2)),
    }
    places = {stage.key: place for place, stage in enumerate(stages)}
    for stage in stages:
        assert all(places[need.key] < places[stage.key] for need in stage.needs.values())


def test_each_seed_has_a_surrogate_of_its_own(file: Path) -> None:
    runs = runs_of(read_study(file), file.parent)
    scores = {
        run.seed: run.selection.needs["scores"] for run in runs if run.method == "label_mapping"
    }
    surrogates = [each.needs["target"].needs["surrogate"] for each in scores.values()]
    assert len({stage.key for stage in surrogates}) == 2
    for seed, stage in zip(scores, surrogates, strict=True):
        assert stage.facts["settings"]["epochs"] == 2
        assert stage.facts["settings"]["seed"] != seed


def test_runs_of_equal_steps_take_their_number_from_the_full_run(file: Path) -> None:
    runs = runs_of(read_study(file), file.parent)
    full = {run.seed: run.pretrained.key for run in runs if run.method == "full"}
    for run in runs:
        if run.method != "full":
            needs = run.pretrained.needs
            assert ("full" in needs) == (run.budget == "equal_steps")
            if "full" in needs:
                assert needs["full"].key == full[run.seed]


@pytest.mark.parametrize(
    ("before", "after", "repeated"),
    [
        ("epochs: 3", "epochs: 5", {"finetune"}),
        ("{epochs: 2}", "{epochs: 3}", {"pretrain", "features", "clusters", "score", "selection"}),
        ("keeps: [0.5, 0.25]", "keeps: [0.5, 0.2]", {"selection", "pretrain", "finetune"}),
        ("--variants, 2", "--variants, 3", {"write"}),
    ],
    ids=["finetuning", "surrogate", "keep", "data"],
)
def test_a_change_repeats_what_depends_on_it(
    file: Path, before: str, after: str, repeated: set[str]
) -> None:
    def keys() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for stage in with_needs(run.finetuned for run in runs_of(read_study(file), file.parent)):
            found.setdefault(stage.kind, set()).add(stage.key)
        return found

    old = keys()
    file.write_text(file.read_text().replace(before, after))
    new = keys()
    assert repeated <= {kind for kind in old if old[kind] != new[kind]}
    if repeated == {"finetune"}:
        assert all(old[kind] == new[kind] for kind in old if kind != "finetune")


KEYS = {  # of stages for seed 0, which folders of earlier versions have
    "write": "0c50ca6df8dee3ab",
    "full": "a6dced872bebed1f",
    "surrogate": "5cc92719c845e54e",
    "score": "c8eee2be291066a1",
    "selection": "17d54bb13444347e",
    "equal steps": "7aca87a7cddc7cb4",
}


def test_stages_of_earlier_versions_keep_their_keys(file: Path) -> None:
    (run, *_) = (
        run
        for run in runs_of(read_study(file), file.parent)
        if (run.method, run.budget) == ("label_mapping", "equal_steps")
    )
    scores = run.pretrained.needs["selection"].needs["scores"]
    surrogate = scores.needs["target"].needs["surrogate"]
    assert {
        "write": surrogate.needs["data"].key,
        "full": run.pretrained.needs["full"].key,
        "surrogate": surrogate.key,
        "score": scores.key,
        "selection": run.pretrained.needs["selection"].key,
        "equal steps": run.finetuned.key,
    } == KEYS


def test_stages_have_names_in_the_words_of_the_study(file: Path) -> None:
    added = (
        "coverage_centric: {difficulty: grand}\n  stretched: {method: label_mapping, "
        "stretch_contrast: true}\n  class_influence: {}\n  random:"
    )
    file.write_text(file.read_text().replace("random:", added).replace("seeds: 2", "seeds: [3]"))
    runs = changed(file, "{upright:", "{both: [upright, few], upright:")
    stages = with_needs(run.finetuned for run in runs)
    names = {stage.name for stage in stages}
    assert len(names) == len(stages)
    assert names >= {
        "write digits",
        "pretrain full, seed 3",
        "pretrain surrogate default, seed 3",
        "features source by surrogate default, seed 3",
        "features upright by surrogate default stretch_contrast=True, seed 3",
        "clusters 40 of source by surrogate default, seed 3",
        "score label_mapping for few, seed 3",
        "score grand in coverage_centric, seed 3",
        "score random, seed 3",
        "halves for class_influence, seed 3",
        "influence for class_influence on few, seed 3",
        "selection label_mapping for both, keep 0.25, seed 3",
        "pretrain random, keep 0.5, equal_steps, seed 3",
        "finetune full, linear_probe on few, seed 3",
        "finetune label_mapping for both, keep 0.5, equal_epochs, linear_probe on few, seed 3",
    }


def changed(file: Path, before: str, after: str) -> list[Run]:
    """Return the runs of the study with another text."""
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    return runs_of(read_study(file), file.parent)


def test_keeps_can_differ_by_budget_and_method(file: Path) -> None:
    file.write_text(file.read_text().replace("{unit: class}", "{keeps: {equal_steps: [0.3]}}"))
    runs = changed(file, "keeps: [0.5, 0.25]", "keeps: {equal_epochs: [0.5, auto]}")
    found = {(run.method, run.budget, run.keep) for run in runs}
    assert found == {
        ("full", "equal_epochs", 1.0),
        ("full", "equal_steps", 1.0),
        *((name, "equal_epochs", keep) for name in ("label_mapping", "clusters") for keep in
          (0.5, "auto")),
        ("random", "equal_steps", 0.3),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["random", "similarity", "soft_label_mapping"])
def test_keep_auto_is_refused_where_scores_are_no_votes(method: str, file: Path) -> None:
    with pytest.raises(ValueError, match="by votes of the target's images, which the method rand"):
        changed(file, "{unit: class}", f"{{method: {method}, keeps: [0.5, auto]}}")


def surrogates_of(runs: list[Run]) -> dict[str, Stage]:
    """Return the surrogate of each method, for the first seed."""
    chosen = {run.method: run.selection for run in runs if run.seed == 0 and run.selection}
    inputs = {name: stage.needs["scores"].needs for name, stage in chosen.items()}
    return {
        name: needs["target"].needs["surrogate"]
        for name, needs in inputs.items()
        if "target" in needs
    }


def test_a_method_can_have_another_surrogate(file: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pt").write_bytes(b"weights")
    file.write_text(
        file.read_text().replace(
            "{default: {epochs: 2}}",
            "{default: {epochs: 2}, moco: {recipe: pretrain-moco, arch: resnet8_w16, queue: 64}, "
            "named: resnet18, file: own.pt}",
        )
    )
    methods = "".join(
        f"  {name}: {{method: feature_mapping, surrogate: {name}}}\n"
        for name in ("moco", "named", "file")
    )
    found = surrogates_of(changed(file, "methods:\n", f"methods:\n{methods}"))
    assert {name: stage.kind for name, stage in found.items()} == {
        "label_mapping": "pretrain", "clusters": "pretrain", "moco": "pretrain_moco",
        "named": "weights", "file": "weights",
    }  # fmt: skip
    # Only settings that the recipe has are taken from `images`, and none from `pretrain`.
    assert found["moco"].facts["settings"] == {
        "arch": "resnet8_w16", "queue": 64, "resolution": 24, "flip": False, "seed": 1000,
    }  # fmt: skip
    assert found["named"].facts == {"name": "resnet18"}
    assert found["file"].facts == {"sha256": sha256_of_file(tmp_path / "own.pt")}


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ("source: digits/", "source: digit/", "`source`: there is no file '.*/digit/source_train"),
        ('"digits/target_{', '"digit/target_{', "`targets: upright`: .*/digit/target_train.beton'"),
        ('"digits/target_{', '"study.yaml/target_{', "`targets: upright`: there is no file"),
    ],
)
def test_a_dataset_that_does_not_exist_is_named(
    file: Path, before: str, after: str, match: str
) -> None:
    with pytest.raises(ValueError, match=f"{match}.*`data` has no entry"):
        changed(file, before, after)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("resnte18", "`surrogates: default`: there is neither a file .*resnte18' nor a model"),
        ("runs/last.pt", "there is neither a file .*/runs/last.pt' nor a model"),
        ("vit_tiny_patch16_224", "nor a model 'vit_tiny_patch16_224'.* timm:NAME"),
        ("resnet8_w16", "nor a model 'resnet8_w16'"),
        ("timm:nope", "`surrogates: default`: there is no architecture 'nope'"),
    ],
)
def test_weights_that_do_not_exist_are_refused(given: str, match: str, file: Path) -> None:
    with pytest.raises(ValueError, match=match):
        changed(file, "{epochs: 2}", given)


@pytest.mark.parametrize("given", ["torchvision:resnet18", "efficientnet-lite0"])
def test_weights_can_be_named_as_for_feature_extraction(given: str, file: Path) -> None:
    surrogate = surrogates_of(changed(file, "{epochs: 2}", given))["label_mapping"]
    assert surrogate.facts == {"name": given}


MOCO = "default: {recipe: pretrain-moco, arch: resnet8_w16, queue: 64}"


@pytest.mark.parametrize(
    ("surrogate", "entry", "match"),
    [
        (MOCO, "label_mapping: {}", "label_mapping reads predictions of a classifier, which its s"),
        (MOCO, "soft_label_mapping: {}", "soft_label_mapping reads predictions"),
        (MOCO, "el2n: {}", "el2n reads logits of a classifier"),
        (MOCO, "grand: {}", "grand reads logits of a classifier"),
        (MOCO, "coverage_centric: {}", "el2n in coverage_centric reads logits of a classifier"),
        (MOCO, "feature_mapping: {}", None),
        (MOCO, "similarity: {}", None),
        ("", "label_mapping: {headless: true}", "predictions, which .* `headless: true` lack"),
        ("", "el2n: {logits: false}", "logits, which features with `logits: false` lack. Leave"),
        ("", "label_mapping: {logits: false}", None),  # predictions are always kept
        ("", "feature_mapping: {headless: true}", None),
    ],
)
def test_methods_that_read_outputs_need_a_classifier(
    surrogate: str, entry: str, match: str | None, file: Path
) -> None:
    file.write_text(file.read_text().replace("default: {epochs: 2}", surrogate or "default: {}"))
    if match is None:
        assert changed(file, "label_mapping: {}", entry)
    else:
        with pytest.raises(ValueError, match=match):
            changed(file, "label_mapping: {}", entry)


@pytest.mark.parametrize(
    ("difficulty", "accepted"),
    [
        ("label_mapping", False),
        ("{method: random, unit: class}", False),
        ("{method: random, unit: sample}", True),
    ],
)
def test_a_difficulty_is_of_samples(difficulty: str, accepted: bool, file: Path) -> None:
    entry = f"coverage_centric: {{difficulty: {difficulty}}}\n  label_mapping:"
    if accepted:
        assert changed(file, "label_mapping:", entry)
    else:
        with pytest.raises(ValueError, match="coverage_centric: difficulty` must be a method that"):
            changed(file, "label_mapping:", entry)


def test_options_of_feature_extraction_go_to_the_features(file: Path) -> None:
    runs = changed(
        file,
        "  label_mapping: {}",
        "  label_mapping: {}\n  half: {method: label_mapping, dtype: float16}",
    )
    scores = {run.method: run.selection.needs["scores"] for run in runs if run.selection}
    assert scores["half"].facts["options"] == {}
    assert scores["half"].needs["target"].facts["settings"] == {
        "resolution": 24,
        "dtype": "float16",
    }
    assert scores["label_mapping"].needs["target"].facts["settings"] == {"resolution": 24}


def test_methods_of_training_dynamics_take_those_of_their_surrogate(file: Path) -> None:
    added = "  label_mapping: {}\n  forgetting: {surrogate: SURROGATE}\n"
    text = file.read_text().replace(
        "{default: {epochs: 2}}",
        "{default: {epochs: 2}, recorded: {epochs: 2, record_dynamics: true}}",
    )
    file.write_text(text.replace("  label_mapping: {}\n", added))
    with pytest.raises(ValueError, match=r"forgetting scores.*Set `record_dynamics: true`"):
        changed(file, "SURROGATE", "default")
    with pytest.raises(ValueError, match="window is 9, but its surrogate trains for 2 epochs"):
        changed(file, "forgetting: {surrogate: default}", "tdds: {surrogate: recorded, window: 9}")
    runs = changed(
        file, "tdds: {surrogate: recorded, window: 9}", "forgetting: {surrogate: recorded}"
    )
    scores = {run.method: run.selection.needs["scores"] for run in runs if run.selection}
    (need,) = scores["forgetting"].needs.items()
    assert need[0] == "dynamics"
    assert need[1].facts["settings"]["record_dynamics"] is True
    assert "record_dynamics" not in str(scores["label_mapping"].needs["target"].needs)


def test_a_difficulty_can_have_options(file: Path) -> None:
    added = (
        "  easy: {method: coverage_centric}\n"
        "  hard: {method: coverage_centric, difficulty: {method: prototype_distance, "
        "clusters: 40, prefer: near}}\n"
    )
    runs = changed(file, "methods:\n", f"methods:\n{added}")
    scores = {run.method: run.selection.needs["scores"] for run in runs if run.selection}
    found = [scores[name].needs["difficulty"] for name in ("easy", "hard")]
    assert [stage.facts["method"] for stage in found] == ["el2n", "prototype_distance"]
    assert found[1].facts["options"] == {"prefer": "near"}
    assert "difficulty" not in scores["hard"].facts["options"]


def test_a_method_can_have_other_settings_of_pretraining(file: Path) -> None:
    added = "  label_mapping: {}\n  easy: {method: label_mapping, pretrain: {infobatch: 5e-1}}\n"
    runs = changed(file, "  label_mapping: {}\n", added)
    trained = {run.method: run.pretrained for run in runs}
    assert trained["easy"].facts["settings"]["infobatch"] == 0.5
    assert "infobatch" not in trained["label_mapping"].facts["settings"]
    assert trained["easy"].needs["selection"].key == trained["label_mapping"].needs["selection"].key


def test_influence_pretrains_on_halves_that_all_targets_share(file: Path) -> None:
    runs = changed(
        file, "random:", "class_influence: {influence: {runs: 6, pretrain: {epochs: 1}}}\n  random:"
    )
    scores = [run.selection.needs["scores"] for run in runs if run.method == "class_influence"]
    outcomes = {stage.needs["outcomes"].key: stage.needs["outcomes"] for stage in scores}
    halves = {stage.needs["halves"].key: stage.needs["halves"] for stage in outcomes.values()}
    assert (len(outcomes), len(halves)) == (2 * 2, 2)  # seeds and targets; seeds
    for stage in halves.values():
        assert stage.facts["runs"] == 6
        assert stage.facts["settings"]["epochs"] == 1
        assert stage.facts["settings"]["lr"] == 0.5  # as in `pretrain`
    assert {stage.facts["settings"]["epochs"] for stage in outcomes.values()} == {3}  # the probe's


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("{influence: {run: 6}}", "class_influence: influence.*got 'run'"),
        ("{influence: {runs: few}}", 'influence`: `runs` cannot be "few". .* `runs: 40`'),
        ("{influence: 5}", "`influence` cannot be 5. .* as in `influence: {runs: 40}`"),
        ("{influence: {pretrain: {epoch: 1}}}", "influence: pretrain` has no setting epoch"),
        ("{influence: {probe: {seed: 1}}}", "influence: probe`: the study itself sets seed"),
    ],
)
def test_wrong_settings_of_influence_are_refused(file: Path, entry: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        changed(file, "random:", f"class_influence: {entry}\n  random:")


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ("epochs: 4", "epoch: 4", "`pretrain` has no setting epoch. Did you mean epochs"),
        ("epochs: 4", "epochs: four", '`pretrain`: epochs cannot be "four"'),
        ("epochs: 4", "epochs: null", "`pretrain`: epochs cannot be null"),
        ("epochs: 4", "epochs: [4]", r"`pretrain`: epochs cannot be \[4\]"),
        ("epochs: 4", "ramp: [1, many]", r"`pretrain`: ramp cannot be \[1, \"many\"\]"),
        ("resnet8_w16", "resnet8_w17", "`pretrain`: .*resnet8_w17"),
        ("epochs: 4", "iterations: 4", "`pretrain`: the study itself sets iterations"),
        ("epochs: 3", "epoch: 3", "`finetune: linear_probe` has no setting epoch"),
        ("resolution: 24", "resolutoin: 24", "`images` has no .* mean resolution"),
        ("{epochs: 2}", "{epoks: 2}", "`surrogates: default` has no setting epoks"),
        ("{unit: class}", "{pretrain: {infobach: 1}}", "`random: pretrain` .* mean infobatch"),
        ("[digits, --variants, 2]", "[]", "`data: digits: writer` must be one of .*; got ''"),
        ("[digits,", "[digit,", "`data: digits: writer` must be one of cifar, .*; got 'digit'"),
    ],
)
def test_wrong_settings_are_named_before_any_work(
    file: Path, before: str, after: str, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        changed(file, before, after)


def test_writers_run_in_the_folder_of_the_study_file_with_its_words(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["1.10", "true", "null", "007", "1e5", "0.1", "250", "-1", "nan"]
    run = changed(file, "--variants, 2", f"--classes, {', '.join(words)}")[0]
    seen = {}

    def fake(command: Any, **options: Any) -> Any:
        seen.update(options, command=command)
        return SimpleNamespace(stdout="", stderr="no such class", returncode=1)

    monkeypatch.setattr("train.components.study.work.subprocess.run", fake)
    with pytest.raises(ValueError, match=r"`dp4tl write digits --classes 1.10 .*no such class"):
        work.write(run.pretrained.needs["data"], None)
    assert seen["cwd"] == file.parent
    assert seen["command"][-len(words) - 3 : -2] == ["--classes", *words]


@pytest.mark.parametrize(
    ("given", "loaded"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("timm:vit", "timm:vit"),
        ("efficientnet-lite0", "efficientnet-lite0"),
    ],
)
def test_a_file_in_the_working_folder_never_replaces_weights_by_name(
    given: str, loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(kind="weights", facts={"name": given}, root=tmp_path)
    assert work.run_stage(stage)["checkpoint"] == loaded
    monkeypatch.chdir(tmp_path)
    (tmp_path / loaded).touch()
    features = Stage(kind="features", facts={}, needs={"surrogate": stage}, root=tmp_path)
    with pytest.raises(ValueError, match=rf"a file '{loaded}', which .* Move the file"):
        work.features(features, None)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("label_mapping: {restart: true}", "label_mapping has no option restart; it has"),
        ("label_mapping: {target: features}", "label_mapping has no option target; it has"),
        ("label_mapping: {clusters: 5}", "label_mapping has no option clusters; it has"),
        ("label_mapping: {stretch_contrast: no}", 'contrast cannot be "no". Write true or false'),
        ("label_mapping: {amp: null}", "`label_mapping`: amp cannot be null"),
        ("label_mapping: {dtype: float8}", "`label_mapping: dtype` must be .*; got 'float8'"),
        ("label_mapping: {batch_size: large}", '`label_mapping`: batch_size cannot be "large"'),
        ("label_mapping: {mean: [0.5, half]}", "`label_mapping`: mean cannot be"),
        ("coverage_centric: {difficulty: {method: el2n, logits: off}}", 'logits cannot be "off"'),
        ("similarity: {unit: klass}", "`similarity: unit` must be one of .*; got 'klass'"),
        ("similarity: {neighbors: two}", '`similarity`: neighbors cannot be "two"'),
        ("semdedup: {clusters: many}", '`clusters` cannot be "many". .* as in `clusters: 1000`'),
        ("semdedup: {clusters: 0}", "`semdedup: clusters` must be at least 1"),
        ("semdedup: {}", "semdedup needs clusters"),
        ("coverage_centric: {difficulty: hard}", "`method` must be one of .*; got 'hard'"),
        ("coverage_centric: {difficulty: {method: el2n, foo: 1}}", "difficulty has no option foo"),
    ],
)
def test_wrong_options_are_named_before_any_work(file: Path, entry: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        changed(file, "label_mapping: {}", entry)


def test_a_list_of_targets_is_scored_together_and_finetuned_on_each(file: Path) -> None:
    runs = changed(file, "targets: {", "targets: {both: [upright, few], ")
    together = [run for run in runs if run.scored_on == "both"]
    assert {run.target for run in together} == {"upright", "few"}
    assert all(run.scored_on == run.target for run in runs if run not in together)
    for run in together:
        scores = [name for name in run.selection.needs if name.startswith("scores")]
        # Scores at random do not depend on the target: there is nothing to combine.
        assert len(scores) == (1 if run.method == "random" else 2)
    assert {run.method for run in together} == {"label_mapping", "clusters", "random"}


def test_a_method_that_needs_more_than_a_study_has_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("label_mapping: {}", "class_list: {}"))
    with pytest.raises(ValueError, match="class_list needs classes"):
        runs_of(read_study(file), file.parent)


def test_a_list_of_classes_is_known_by_its_content(file: Path) -> None:
    def scored() -> Stage:
        runs = runs_of(read_study(file), file.parent)
        return next(run.selection.needs["scores"] for run in runs if run.method == "listed")

    (file.parent / "kept.txt").write_text("1\n2\n")
    entry = "listed: {method: class_list, classes: kept.txt}"
    file.write_text(file.read_text().replace("label_mapping: {}", entry))
    before = scored()
    assert before.paths["classes"] == file.parent / "kept.txt"
    assert str(file.parent) not in str(before.facts)
    (file.parent / "kept.txt").write_text("1\n3\n")
    assert scored().key != before.key
    (file.parent / "kept.txt").unlink()
    with pytest.raises(ValueError, match=r"`listed`: classes names '.*kept.txt', which is no file"):
        scored()


def test_betons_of_ones_own_are_known_by_their_content(file: Path, photos: Any) -> None:
    text = file.read_text().replace("digits/source_{split}.beton", "own_{split}.beton")
    file.write_text(text)
    for split in ("train", "val"):
        (file.parent / f"own_{split}.beton").symlink_to(photos.path)
    (stage,) = {
        run.pretrained.key: run.pretrained
        for run in runs_of(read_study(file), file.parent)
        if run.method == "full" and run.seed == 0
    }.values()
    assert "data" not in stage.needs
    assert stage.paths["train"] == file.parent / "own_train.beton"
    assert str(file.parent) not in str(stage.facts)


def test_a_surrogate_can_be_small(file: Path) -> None:
    runs = changed(file, "{epochs: 2}", "{epochs: 2, samples: 0.25, resolution: 16}")
    surrogate = surrogates_of(runs)["label_mapping"]
    assert "samples" not in surrogate.facts["settings"]
    assert surrogate.facts["settings"]["resolution"] == 16
    drawn = surrogate.needs["selection"]
    assert (drawn.facts["keep"], drawn.facts["balanced"]) == (0.25, True)
    assert drawn.needs["scores"].facts["options"] == {"unit": "sample", "seed": 1000}
    (features,) = {
        run.selection.needs["scores"].needs["target"].facts["settings"]["resolution"]
        for run in runs
        if run.method == "label_mapping" and run.selection
    }
    assert features == 16
    full = next(run for run in runs if run.method == "full")
    assert full.pretrained.facts["settings"]["resolution"] == 24
    with pytest.raises(ValueError, match="samples"):
        changed(file, "samples: 0.25", "samples: 1.5")
