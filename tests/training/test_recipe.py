"""Recipes are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from recurrent_memory.errors import RecipeError
from recurrent_memory.training.experiment import load_experiment
from recurrent_memory.training.recipe import Stage, load_recipe
from recurrent_memory.training.settings import is_experiment, read_values

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMALL = Path(__file__).parents[2] / "recipes/small.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_what_to_expect(path: Path) -> None:
    if is_experiment(read_values(path, "a recipe")):
        assert all(load_experiment(path).model_dump()[name] for name in ("expected", "time", "cost"))
        return
    recipe = load_recipe(path)
    assert all((recipe.expected, recipe.time, recipe.cost))
    assert all(stage.segment_length <= recipe.memory["segment_length"] for stage in recipe.stages)


def commands_of(path: Path) -> list[list[str]]:
    """What `rmt train` is given in the comments of a recipe."""
    lines = [line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    return [line.split()[2:] for line in lines if line.startswith("rmt train ")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_a_recipe_are_valid(path: Path) -> None:
    commands = commands_of(path)
    assert commands
    assert {command[0] for command in commands} == {f"recipes/{path.name}"}
    load = load_experiment if is_experiment(read_values(path, "a recipe")) else load_recipe
    for _, *overrides in commands:
        load(path, overrides)


def test_settings_can_be_given_on_the_command_line() -> None:
    recipe = load_recipe(SMALL, ["noise=a,b", "seed=7", "stages.0.lanes=3", "memory.num_memory_tokens=2"])
    assert (recipe.noise, recipe.seed, recipe.stages[0].lanes, recipe.memory["num_memory_tokens"]) == (
        ["a", "b"],
        7,
        3,
        2,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.lanes=-1", "stages.0.lanes: Input should be greater than or equal to 1"),
        ("nonsense=1", "nonsense: Extra inputs are not permitted"),
        ("stages.99.lanes=1", "no such setting"),
        ("lanes", "is not key=value"),
        ("stages.0.max_minutes=5", "stages.0.max_minutes: Extra inputs are not permitted"),
        ("stages.0.learning_rate=fast", "stages.0.learning_rate"),
    ],
)
def test_a_bad_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match="(?s)" + message.replace(".", r"\.")):
        load_recipe(SMALL, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(tmp_path / "bad.yaml")


def test_the_learning_rate_rises_and_falls_by_steps() -> None:
    values = {"num_segments": 1, "segment_length": 8, "lifetime": 1, "facts": (1, 1), "lanes": 1, "max_steps": 100}
    constant = Stage.model_validate({**values, "learning_rate": 0.3})
    assert [constant.learning_rate_at(step) for step in (0, 29, 99)] == pytest.approx([0.01, 0.3, 0.3])
    falling = Stage.model_validate({**values, "learning_rate": 0.3, "final_learning_rate": 0.1})
    assert [falling.learning_rate_at(step) for step in (0, 50, 100)] == pytest.approx([0.01, 0.2, 0.1])
