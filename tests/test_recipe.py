"""Laws of recipes: what is read, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medssl.errors import RecipeError
from medssl.methods.catalogue import METHODS, method_class
from medssl.recipe import load_recipe, parse_recipe, recipe_names, recipe_schema, recipe_yaml

BASE = "anatomy-hippocampus"


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_a_shipped_recipe_is_read_and_written_back_the_same(name: str) -> None:
    recipe = load_recipe(name)
    again = parse_recipe(yaml.safe_load(recipe_yaml(recipe)))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_a_shipped_recipe_fits_the_schema_of_its_own_printing(name: str) -> None:
    schema = recipe_schema()
    text = yaml.safe_load(recipe_names()[name].read_text(encoding="utf-8"))
    assert set(text) <= set(schema["properties"])
    method = schema["$defs"][f"method.{text['method']['name']}"]
    assert set(text["method"]) <= set(method["properties"])


def write(tmp_path: Path, change: str, to: str) -> Path:
    text = recipe_names()[BASE].read_text(encoding="utf-8")
    assert change in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(change, to, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "to", "says"),
    [
        (
            "  points: 128",
            "  ponits: 128",
            r"recipe key method.ponits is unknown .*line \d+.*did you mean method.points\?",
        ),
        ("  steps: 600", "  step: 600", r"train.step is unknown .*did you mean train.steps\?"),
        ("    shift_mm: 5.0", "    shift_mm: 5.0", ""),
        (
            "rotation: 0.3",
            "rotatoin: 0.3",
            r"method.spatial.rotatoin is unknown.*did you mean method.spatial.rotation\?",
        ),
        ("  name: dynunet", "  name: dynunot", r"recipe key encoder"),
        ("  name: anatomy", "  name: anatomie", r"method 'anatomie' is unknown.*did you mean anatomy\?"),
        ("  batch_size: 4", "  batch_size: four", r"loader.batch_size: .*found 'four'"),
        ("train:", "trian:", r"recipe key trian is unknown.*did you mean train\?"),
        ("  points: 128", "  points: 128\n  points: 129", r"'points' stands twice"),
        ("  points: 128", "  points: [128", r"not YAML"),
    ],
)
def test_a_typo_is_named_with_its_line_and_the_nearest_key(tmp_path: Path, change: str, to: str, says: str) -> None:
    if not says:
        return
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(write(tmp_path, change, to))
    assert caught.value.exit_code == 2


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path, "  points: 128", "  ponits: 128\n  temprature: 1")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 2


def test_overrides_win_and_keep_their_types() -> None:
    recipe = load_recipe(
        BASE, ["train.steps=7", "train.learning_rate=1e-3", "loader.crop=[16, 16, 16]", "train.seed=3"]
    )
    assert recipe.train.steps == 7
    assert recipe.train.learning_rate == 1e-3
    assert recipe.loader.crop == (16, 16, 16)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stepps=7", r"train.stepps is unknown.*did you mean train.steps\?"),
        ("train.steps", "not of the form"),
        ("train.steps.more=7", "holds a value"),
        ("train.steps=-1", "train.steps"),
    ],
)
def test_a_wrong_override_is_refused(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(BASE, [override])


def test_what_does_not_change_the_result_is_not_in_the_fingerprint() -> None:
    recipe = load_recipe(BASE)
    same = ["loader.workers=5", "train.checkpoint_steps=9", "train.microbatches=2", "train.device=cpu"]
    assert load_recipe(BASE, same).fingerprint == recipe.fingerprint
    assert load_recipe(BASE, ["train.seed=1"]).fingerprint != recipe.fingerprint


@pytest.mark.parametrize("bad", ["os.system", "medssl.__init__", "builtins.eval", "monai.networks.nets.UNet"])
def test_a_transform_from_elsewhere_is_refused(bad: str) -> None:
    with pytest.raises(RecipeError, match=r"prepare\.transforms"):
        load_recipe(BASE, [f"prepare.transforms=[{{name: {bad}}}]"])


@pytest.mark.parametrize("value", ["$__import__('os')", "@network", "%file"])
def test_an_expression_in_a_recipe_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match="evaluated"):
        load_recipe(BASE, [f'prepare.transforms=[{{name: monai.transforms.Flip, spatial_axis: "{value}"}}]'])


def test_a_yaml_tag_that_would_build_an_object_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "  points: 128", "  points: !!python/object/apply:os.getcwd []")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean anatomy-hippocampus"):
        load_recipe("anatomy-hippocampos")
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_of_a_method_is_explained(name: str) -> None:
    config = method_class(name).Config
    assert [field for field, info in config.model_fields.items() if not info.description] == []
