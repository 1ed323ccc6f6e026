"""More segments, stage by stage; each stage begins with the best checkpoint of the one before.

A stage is a training of its own (`trainer.py`), with its own schedule, in its own folder. What has been reached is in
`curriculum.json`; a training that is stopped at any moment goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint

from ..errors import ConfigError, RecipeError
from ..files import atomic_write
from ..model import RecurrentMemoryModel
from .bptt import Backpropagation
from .checkpoint import load_weights
from .examples import SegmentedExamples
from .frozen_weights import cast_once
from .lane_trainer import LaneTrainer, check_lanes
from .reporting import Report, RowsCallback, report_rows
from .task_examples import TaskExamples
from .task_lanes import Carried, check_endless, check_waits
from .trainer import RecurrentMemoryTrainer

RECORD = "curriculum.json"
BestBy = Literal["accuracy", "loss"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the curriculum: it ends at its target accuracy or at its limit.

    Args:
        num_segments: The largest number of segments of an example.
        max_steps: Its limit, in optimizer steps.
        target_accuracy: The held-out accuracy that ends it; None: the limit.
        learning_rate: Its own, at its highest; None: that of the Trainer's settings.
        eval_segments: Segments of the held-out examples; None: `num_segments`.
        eval_every: Steps between measurements; None: as in the Trainer's settings.
        num_eval_examples: How many held-out examples a measurement reads; None: as many as in the other stages.
        batch_size: Examples that a process reads at once; None: as in the Trainer's settings.
        carried: Its texts go on from step to step, `num_segments` at a time; None: every step has texts of its own.
        candidates: Examples that are drawn for each place of a batch, of which the hardest is trained on (online hard example
            mining, `hardest`).
        examples: Its own; None: those of the training.

    Raises:
        ConfigError: if a number is out of range.
    """

    num_segments: int
    max_steps: int
    target_accuracy: float | None = None
    learning_rate: float | None = None
    eval_segments: int | None = None
    carried: Carried | None = None
    candidates: int = 1
    examples: SegmentedExamples | None = None
    eval_every: int | None = None
    num_eval_examples: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        optional = ("eval_segments", "eval_every", "num_eval_examples", "batch_size")
        for name in ("num_segments", "max_steps", "candidates", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} of a stage must be an int of at least 1")
        if self.carried is not None and self.candidates > 1:
            raise ConfigError(
                f"candidates={self.candidates}: carried lanes go on, and none can be left out; leave it out"
            )
        if self.target_accuracy is not None and not 0.0 < self.target_accuracy <= 1.0:
            raise ConfigError(f"target_accuracy={self.target_accuracy} of a stage must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The stages, in order.

    Args:
        stages: The stages.
        curriculum: False: the last stage alone, with as many steps as all of them have together, in which every example has
            its number of segments from the start.
        random_num_segments: Whether in every batch of a stage the number of segments is drawn from 1 up to the stage's;
            False: it is the stage's.

    Raises:
        ConfigError: if there is no stage.

    Example:
        >>> Curriculum.of([1, 2, 4, 7], max_steps=1000, target_accuracy=0.99).planned()[-1]
        Stage(num_segments=7, max_steps=1000, target_accuracy=0.99)
    """

    stages: tuple[Stage, ...]
    curriculum: bool = True
    random_num_segments: bool = True

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty; a curriculum has at least one stage, such as Stage(1, max_steps=1000)")

    @classmethod
    def of(
        cls,
        num_segments: Sequence[int],
        max_steps: int,
        target_accuracy: float | None = None,
        *,
        curriculum: bool = True,
    ) -> Curriculum:
        """Stages that differ in their number of segments only."""
        return cls(tuple(Stage(number, max_steps, target_accuracy) for number in num_segments), curriculum)

    def planned(self) -> tuple[Stage, ...]:
        """The stages that are run."""
        if self.curriculum:
            return self.stages
        return (replace(self.stages[-1], max_steps=sum(stage.max_steps for stage in self.stages)),)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage has reached.

    Args:
        num_segments: The largest number of segments of its examples.
        num_steps: Optimizer steps taken.
        checkpoint: The folder of its best checkpoint; the last one, where nothing was measured.
        accuracy: Its held-out accuracy; None where it was not measured.
        loss: Its held-out loss; None likewise.
    """

    num_segments: int
    num_steps: int
    checkpoint: str
    accuracy: float | None
    loss: float | None = None


def train_curriculum(
    model: RecurrentMemoryModel,
    args: TrainingArguments,
    *,
    examples: SegmentedExamples,
    curriculum: Curriculum,
    backpropagation: Backpropagation | None = None,
    num_eval_examples: int = 64,
    eval_examples: SegmentedExamples | None = None,
    best_by: BestBy = "accuracy",
    memory_learning_rate: float | None = None,
    processing_class: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    backbone: str | None = None,
    report: Report | None = None,
    resume: bool = False,
) -> list[StageResult]:
    """Train a model stage by stage; in the end it has the weights of the last stage's best checkpoint.

    Args:
        model: The model, with `requires_grad` set (`choose_trained`); to resume, made in the same way as before.
        args: The Trainer's settings of every stage. `output_dir` gets a folder for each; `max_steps` is the stage's.
            `eval_steps` is how often accuracy is measured, and a checkpoint written.
        examples: The task.
        curriculum: The stages.
        backpropagation: Which gradient is taken, and how.
        num_eval_examples: How many held-out examples an evaluation reads.
        eval_examples: What they are drawn from; None: from `examples`.
        best_by: Which checkpoint of a stage is its best: the one with the highest held-out accuracy (among equals, the lowest
            held-out loss), or with the lowest held-out loss.
        memory_learning_rate: Of the memory's parameters, at its highest, in every stage; None: that of the others.
        processing_class: The tokenizer, saved beside the model.
        callbacks: Further callbacks of the Trainer.
        backbone: The hub id or the folder of the backbone, if checkpoints are to be without what is frozen in it.
        report: Called with rows (`RowsCallback`); the Trainer then prints nothing.
        resume: Whether to go on with what is in `output_dir`, if anything is.

    Raises:
        ConfigError: if a setting cannot work.
        RecipeError: if there is a training already and `resume` is not set, or the loss stops being a number.
    """
    out = Path(str(args.output_dir))
    stages = [
        stage if stage.examples is not None else replace(stage, examples=examples) for stage in curriculum.planned()
    ]
    for stage in stages:
        _check_lanes(stage, model, args)
    done = _read_record(out)
    folders = [out / f"stage-{index + 1}-segments-{stage.num_segments}" for index, stage in enumerate(stages)]
    if not resume and (done or any(folder.exists() for folder in folders)):
        raise RecipeError(f"{out}: a training is there already; go on with resume=True, or give another output_dir")
    if [result.num_segments for result in done] != [stage.num_segments for stage in stages][: len(done)]:
        raise RecipeError(f"{out / RECORD}: is of a curriculum with other stages; give another output_dir")
    for index, (stage, folder) in enumerate(zip(stages, folders, strict=True)):
        if index < len(done):
            continue
        if done:
            load_weights(model, done[-1].checkpoint)
        result = _result(folder, stage)
        if result is None:
            settings: dict[str, Any] = {
                "num_segments": stage.num_segments,
                "random_num_segments": curriculum.curriculum and curriculum.random_num_segments,
                "backpropagation": backpropagation,
                "num_eval_examples": stage.num_eval_examples or num_eval_examples,
                "eval_examples": eval_examples,
                "memory_learning_rate": memory_learning_rate,
                "eval_segments": stage.eval_segments,
                "target_accuracy": stage.target_accuracy,
                "candidates": stage.candidates,
                "first_step": sum(earlier.max_steps for earlier in stages[:index]),
                "processing_class": processing_class,
                "callbacks": callbacks,
                "backbone": backbone,
            }
            trainer = _trainer(model, _stage_args(args, stage, folder, best_by), stage, settings)
            if report is not None:
                report_rows(trainer, RowsCallback(report, index, len(stages), stage.num_segments))
            with cast_once(model):
                trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
            result = _result(folder, stage)
            trainer.accelerator.wait_for_everyone()
        if result is None:
            raise RecipeError(
                f"{folder}: the stage ended without a checkpoint (was it stopped?); go on with resume=True"
            )
        done.append(result)
        if args.process_index == 0:
            with atomic_write(out / RECORD) as temporary:
                temporary.write_text(json.dumps([asdict(item) for item in done], indent=1), encoding="utf-8")
    load_weights(model, done[-1].checkpoint)
    return done


def _check_lanes(stage: Stage, model: RecurrentMemoryModel, args: TrainingArguments) -> None:
    """Before the first stage, what its own would refuse hours later."""
    if stage.carried is None:
        return
    if not isinstance(stage.examples, TaskExamples):
        raise ConfigError("carried lanes are made from tasks; give examples=TaskExamples(…), or leave carried out")
    made = stage.examples
    check_endless(made.max_tokens, made.question_apart, made.unanswerable)
    check_waits(stage.carried, made)
    check_lanes(model, args, stage.carried)


def _trainer(
    model: RecurrentMemoryModel, args: TrainingArguments, stage: Stage, settings: dict[str, Any]
) -> RecurrentMemoryTrainer:
    examples = stage.examples
    assert examples is not None, "those of the training, if it has none of its own"
    if stage.carried is None:
        return RecurrentMemoryTrainer(model, args, examples=examples, **settings)
    assert isinstance(examples, TaskExamples), "_check_lanes has looked"
    return LaneTrainer(model, args, examples=examples, carried=stage.carried, **settings)


def _stage_args(args: TrainingArguments, stage: Stage, folder: Path, best_by: BestBy) -> TrainingArguments:
    args = copy.copy(args)
    args.output_dir, args.max_steps = str(folder), stage.max_steps
    args.eval_strategy, args.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
    args.save_steps = args.eval_steps = min(stage.eval_every or args.eval_steps or stage.max_steps, stage.max_steps)
    if args.save_total_limit == 1:  # in the end the Trainer would keep the best alone, and nobody know how far it got
        args.save_total_limit = 2
    if stage.batch_size is not None:
        args.per_device_train_batch_size = stage.batch_size
    if stage.learning_rate is not None:
        args.learning_rate = stage.learning_rate
    args.metric_for_best_model, args.greater_is_better = best_by, best_by == "accuracy"
    return args


def _result(folder: Path, stage: Stage) -> StageResult | None:
    """What a stage has reached, if it has ended; read from its last checkpoint, so that a killed training finds it too."""
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    if last is None:
        return None
    state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
    measured = [row["eval_accuracy"] for row in state.log_history if "eval_accuracy" in row]
    reached = stage.target_accuracy is not None and max(measured, default=0.0) >= stage.target_accuracy
    if not reached and state.global_step < stage.max_steps:
        return None
    # Found by its step: the folder may have been moved since it was written.
    best = folder / f"checkpoint-{state.best_global_step}"
    checkpoint = best if state.best_global_step and best.is_dir() else Path(last)
    at = int(checkpoint.name.rpartition("-")[2])
    found = next((row for row in state.log_history if row["step"] == at and "eval_loss" in row), dict[str, Any]())
    return StageResult(
        stage.num_segments, state.global_step, str(checkpoint), found.get("eval_accuracy"), found.get("eval_loss")
    )


def _read_record(out: Path) -> list[StageResult]:
    path = out / RECORD
    if not path.is_file():
        return []
    try:
        done = [StageResult(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: is not the record of a curriculum ({error}); give another output_dir") from error
    # The folder may have been moved since it was written.
    return [replace(result, checkpoint=str(out.joinpath(*Path(result.checkpoint).parts[-2:]))) for result in done]
