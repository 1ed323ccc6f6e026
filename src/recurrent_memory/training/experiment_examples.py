"""What a described training learns from: the examples of its task or text, and those of stages with a task of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import RecipeError
from .beginning import Beginning
from .curriculum import Curriculum
from .noise import load_noise
from .task_examples import TaskExamples
from .text_examples import TextExamples

if TYPE_CHECKING:
    from .experiment import Experiment


def make_examples(experiment: Experiment, beginning: Beginning) -> TaskExamples:
    """The examples of an experiment's task.

    Raises:
        RecipeError: if it has none.
        ConfigError: if a task does not take the options, or a classifier is to learn open answers.
        InputError: if the noise cannot be read.
    """
    task = experiment.task
    if task is None:
        raise RecipeError(
            "task: is missing; say what is learned, such as task: {name: detect, noise: [FOLDER]}, or "
            "text: {train: [FOLDER], valid: [FOLDER]}"
        )
    form = "class" if beginning.classifies else "target" if beginning.family == "seq2seq" else "text"
    if beginning.family == "encoder" and form != "class":
        raise RecipeError("backbone_task: an encoder learns a task with backbone_task: sequence-classification")
    settings = task.settings()
    is_alone = all(each.placement == "alone" for each in settings["tasks"])
    return TaskExamples(
        noise=load_noise(task.noise, task.noise_chars, experiment.seed) if task.noise or not is_alone else [],
        tokenizer=beginning.tokenizer(),
        segment_length=beginning.segment_length,
        form=form,
        **settings,
    )


def with_own_tasks(curriculum: Curriculum, experiment: Experiment, examples: TaskExamples) -> Curriculum:
    """The curriculum, with examples of their own for the stages that have a task of their own.

    Raises:
        RecipeError: if a classifier is to learn other answers in a stage.
        ConfigError: if a task does not take the options.
    """
    stages = list(curriculum.stages)
    for index, recipe in enumerate(experiment.stages):
        if not recipe.task or experiment.task is None:
            continue
        own = replace(examples, **experiment.task.changed(recipe.task).settings())
        if own.classes != examples.classes:
            raise RecipeError(
                f"stages.{index}.task: its answers {own.classes} are not those of the task, {examples.classes}, "
                "which the model has classes for; give the stage tasks with the same answers"
            )
        stages[index] = replace(stages[index], examples=own)
    return replace(curriculum, stages=tuple(stages))


def make_text_examples(experiment: Experiment, beginning: Beginning) -> tuple[TextExamples, TextExamples]:
    """The examples of an experiment's text: to train on, and held out.

    Raises:
        RecipeError: if it has none, or the backbone does not continue a text.
        InputError: if the text cannot be read.
    """
    if experiment.text is None:
        raise RecipeError("text: is missing; say what is learned, such as text: {train: [FOLDER], valid: [FOLDER]}")
    if beginning.family != "decoder":
        raise RecipeError(
            f"text: a model of the family {beginning.family!r} does not continue a text; take a decoder as backbone"
        )
    return experiment.text.examples(beginning.tokenizer(), beginning.segment_length)
