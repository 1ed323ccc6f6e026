"""A training described by YAML: validated before anything is loaded, then run stage by stage.

`recipe.py` describes how the small model is made, on carried lanes alone; this describes any backbone, memory and task,
trained by the `Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import set_seed

from ..backbones.four_bits import check_bitsandbytes
from ..config import MemoryConfig
from ..errors import ConfigError
from ..locking import alone_in
from ..model import RecurrentMemoryModel
from ..models import SHIPPED
from .beginning import Beginning, begin_with_backbone, begin_with_model
from .curriculum import Curriculum, Stage, StageResult, train_curriculum
from .examples import SegmentedExamples
from .experiment_examples import make_examples, make_text_examples, with_own_tasks
from .experiment_parts import BackpropagationRecipe, BatchRecipe, LoraRecipe, OptimizerRecipe, StageRecipe
from .reporting import Report
from .settings import Strict, load_settings
from .sharding import shard_layers, whole_weights
from .task_examples import TaskExamples
from .task_lanes import check_endless
from .task_recipe import TaskRecipe
from .text_recipe import TextRecipe
from .trained import Trained, choose_trained


class Experiment(Strict):
    """A training.

    Args:
        name: What it makes.
        expected: The result to expect, in words.
        time: How long it takes, on what.
        cost: What that costs, in words.
        backbone: A hub id or a folder of what is given a memory, or "shipped" for what is under the memory of the model in the
            package. Of a model that has a memory, what is under it is taken.
        model: In its place, a model that has a memory already and is trained further: a hub id, a folder, or "shipped" for
            the one in the package.
        backbone_task: The head, as for `RecurrentMemoryModel.from_backbone`; None: the family's own.
        num_labels: Classes of a classification head; None: the answers of the task.
        memory: The settings of `MemoryConfig`; of a backbone only.
        task: What is learned: the answers of a task. Neither `task` nor `text`: whoever runs it brings examples.
        text: What is learned: the next token of texts. A stage's best checkpoint is then the one with the lowest held-out
            loss; for tasks it is the one with the highest held-out accuracy.
        trained: "memory", "lora" or "all".
        lora: The adapter; only with trained: lora.
        curriculum: False: trains at the last stage's number of segments from the start.
        random_num_segments: Whether every step draws a number of segments from 1 to its stage's; False: it is the stage's.
        stages: The stages; a bare number is a number of segments. A number in place of a list: from one segment to so many, one more
            in each stage.
        max_steps: Of a stage that names no limit of its own.
        target_accuracy: Of a stage that names none of its own.
        backpropagation: Which gradient is taken, and how.
        optimizer: The optimizer and its schedule.
        batch: Examples a step.
        precision: "float32", "bf16" or "fp16": what forward passes compute in; weights are kept in float32.
        fsdp: Whether layers are split over the processes that torchrun has started (`shard_layers`), for models that one
            device does not hold with their optimizer; needs a memory.
        eval_every: Steps between measurements, each with a checkpoint.
        num_eval_examples: Held-out examples that are measured on.
        report_to: Trackers of the Trainer, such as [tensorboard, wandb], whose packages must be there; None: TensorBoard, where it is.
        seed: Of everything that is drawn.
        out: The folder of the model; logs and checkpoints go to `<out>.run`.
        save_backbone: False: what is as in the backbone is left out of the model's folder and of the checkpoints, and loaded from
            the backbone with them; a memory and an adapter take a few megabytes.
    """

    name: str
    expected: str
    time: str
    cost: str
    backbone: str | None = None
    model: str | None = None
    backbone_task: str | None = None
    num_labels: int | None = Field(None, ge=1)
    memory: dict[str, Any] = Field(default_factory=dict[str, Any])
    task: TaskRecipe | None = None
    text: TextRecipe | None = None
    trained: Trained = "all"
    lora: LoraRecipe | None = None
    curriculum: bool = True
    random_num_segments: bool = True
    stages: tuple[StageRecipe, ...] = Field(min_length=1)
    max_steps: int = Field(1000, ge=1)
    target_accuracy: float | None = Field(None, gt=0, le=1)
    backpropagation: BackpropagationRecipe = Field(default_factory=BackpropagationRecipe)
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe.model_construct)
    batch: BatchRecipe = Field(default_factory=BatchRecipe.model_construct)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    fsdp: bool = False
    eval_every: int = Field(100, ge=1)
    num_eval_examples: int = Field(64, ge=1)
    report_to: tuple[str, ...] | None = None
    seed: int = 0
    out: str
    save_backbone: bool = True

    @field_validator("memory")
    @classmethod
    def _memory_is_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        MemoryConfig.from_dict(value)
        return value

    @field_validator("report_to")
    @classmethod
    def _trackers_are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in INTEGRATION_TO_CALLBACK:
                raise ConfigError(
                    f"{name!r} is no tracker of the Trainer; choose from {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
                )
            if name not in get_available_reporting_integrations():
                raise ConfigError(f"the package of {name} is not installed; install it, or leave {name} out")
        return value

    @field_validator("stages", mode="before")
    @classmethod
    def _numbers_are_stages(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            value = range(1, value + 1)
        if not isinstance(value, list | tuple | range):
            return value
        return [{"num_segments": stage} if isinstance(stage, int) else stage for stage in value]  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _has_one_beginning(self) -> Self:
        if (self.backbone is None) == (self.model is None):
            raise ConfigError("an experiment has either a backbone, to give a memory to, or a model, to train further")
        if self.model is not None and (self.memory or self.backbone_task or self.num_labels):
            raise ConfigError("a model has its memory and its head; leave memory, backbone_task and num_labels out")
        if self.model is not None and self.lora is not None and self.lora.bits is not None:
            raise ConfigError("lora.bits is of a backbone that is loaded; leave it out with a model")
        if self.backbone_task == "sequence-classification" and self.lora is not None and self.lora.bits is not None:
            raise ConfigError(
                "lora.bits: the head of a classifier is new and has to be trained, not packed; leave bits out"
            )
        if self.fsdp and self.lora is not None and self.lora.bits is not None:
            raise ConfigError("lora.bits: fsdp cannot split packed weights; leave one of them out")
        if not self.save_backbone and (self.backbone in (None, SHIPPED) or (self.lora and self.lora.bits)):
            raise ConfigError(
                "save_backbone: false leaves out what can be loaded from a backbone: a hub id or a folder, not in 4 bits"
            )
        if not self.save_backbone and self.trained == "all":
            raise ConfigError(
                "save_backbone: false leaves out what is not trained, and trained is all; leave save_backbone out"
            )
        return self

    @model_validator(mode="after")
    def _lora_is_asked_for(self) -> Self:
        if self.lora is not None and self.trained != "lora":
            raise ConfigError(f"lora is given, but trained is {self.trained}; set trained: lora, or leave lora out")
        return self

    @model_validator(mode="after")
    def _tasks_of_stages_are_valid(self) -> Self:
        for stage in self.stages:
            if self.task is not None:
                task = self.task.changed(stage.task)
                if stage.carried is not None:
                    check_endless(task.max_tokens, task.question_apart, task.unanswerable)
                if stage.candidates > 1 and task.questions > 1:
                    raise ConfigError(
                        f"candidates={stage.candidates}, questions={task.questions}: the hardest of several texts is chosen by one "
                        "question each; leave one of them at 1"
                    )
            elif stage.task:
                raise ConfigError("a stage has a task of its own, the experiment none; leave it out, or give both")
        return self

    @model_validator(mode="after")
    def _text_goes_with_the_rest(self) -> Self:
        if self.text is None:
            return self
        if self.task is not None:
            raise ConfigError("text and task are both given; a training learns one of them: leave the other out")
        if self.target_accuracy is not None or any(stage.target_accuracy is not None for stage in self.stages):
            raise ConfigError("target_accuracy is of a task; a training on text ends at max_steps: leave it out")
        if any(stage.carried is not None for stage in self.stages):
            raise ConfigError("carried lanes are made from tasks; leave carried out of a training on text")
        return self

    def plan(self) -> Curriculum:
        """The curriculum."""
        stages = [
            Stage(
                s.num_segments,
                s.max_steps or self.max_steps,
                s.target_accuracy if "target_accuracy" in s.model_fields_set else self.target_accuracy,
                s.learning_rate,
                s.eval_segments,
                s.carried.build() if s.carried is not None else None,
                s.candidates,
                eval_every=s.eval_every,
                num_eval_examples=s.num_eval_examples,
                batch_size=s.batch_size,
            )
            for s in self.stages
        ]
        return Curriculum(tuple(stages), self.curriculum, self.random_num_segments)

    def arguments(self, **changes: Any) -> TrainingArguments:
        """The Trainer's settings, some of them changed."""
        optimizer = self.optimizer
        values: dict[str, Any] = {
            "output_dir": f"{self.out}.run",
            "per_device_train_batch_size": self.batch.size,
            "per_device_eval_batch_size": self.batch.size,
            "gradient_accumulation_steps": self.batch.parts,
            "learning_rate": optimizer.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": optimizer.warmup,
            "weight_decay": optimizer.weight_decay,
            "adam_beta1": optimizer.betas[0],
            "adam_beta2": optimizer.betas[1],
            "max_grad_norm": optimizer.clip,
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
            "eval_steps": self.eval_every,
            "logging_steps": max(1, self.eval_every // 10),
            "save_total_limit": 2,
            "seed": self.seed,
            "report_to": self._trackers(),
        }
        return TrainingArguments(**(values | changes))

    def _trackers(self) -> list[str]:
        if self.report_to is None:
            return ["tensorboard"] if is_tensorboard_available() else []
        return list(self.report_to)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment, with `key=value` in place of what it says. Nothing is loaded but the file.

    Raises:
        RecipeError: if the file is missing, is not YAML, or a setting is not valid; names the setting.
    """
    return load_settings(path, Experiment, "an experiment", overrides)


def begin(experiment: Experiment) -> Beginning:
    """What an experiment begins with.

    Raises:
        BackboneError, OSError: if it cannot be found.
        ConfigError: if it cannot be loaded as is said.
    """
    if experiment.model is not None:
        return begin_with_model(experiment.model, experiment.seed)
    assert experiment.backbone is not None
    # Many are stored in half precision, which small steps get lost in.
    loading: dict[str, Any] = {"dtype": torch.float32}
    if experiment.lora is not None and experiment.lora.bits == 4:
        from transformers import BitsAndBytesConfig

        compute = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[experiment.precision]
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        # Packed on the CPU, as everywhere else: the same numbers, whatever the machine has.
        loading |= {"quantization_config": quantization, "device_map": {"": "cpu"}}
    memory = MemoryConfig.from_dict(experiment.memory)
    beginning = begin_with_backbone(experiment.backbone, memory, experiment.backbone_task, loading)
    if "quantization_config" in loading:
        check_bitsandbytes("lora.bits")
    if not experiment.save_backbone and not beginning.bare:
        raise ConfigError(
            f"save_backbone: false leaves out what can be loaded from a backbone, and {experiment.backbone} is under a memory; "
            "leave save_backbone out"
        )
    return beginning


def run_experiment(
    experiment: Experiment,
    examples: SegmentedExamples | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    **changes: Any,
) -> tuple[RecurrentMemoryModel, list[StageResult]]:
    """Train what an experiment describes, and write the model, with its tokenizer, into its `out` folder.

    Args:
        experiment: The experiment.
        examples: In place of its task or text.
        resume: Whether to go on with what is in `<out>.run`, if anything is.
        report: Called with rows of the log; the Trainer then prints nothing.
        **changes: In place of the Trainer's settings, such as `use_cpu=True`.

    Raises:
        BackboneError, ConfigError: if the backbone cannot be loaded, or a segment with its memory does not fit it.
        RecipeError: if there is a training already and `resume` is not set, or the loss stops being a number.
        OutputError: if another process trains into `<out>.run`.
    """
    set_seed(experiment.seed)
    beginning, tokenizer, curriculum = begin(experiment), None, experiment.plan()
    eval_examples: SegmentedExamples | None = None
    if examples is None:
        tokenizer = beginning.tokenizer()
        if experiment.text is not None:
            examples, eval_examples = make_text_examples(experiment, beginning)
        else:
            examples = make_examples(experiment, beginning)
            curriculum = with_own_tasks(curriculum, experiment, examples)
    classes = examples.classes if isinstance(examples, TaskExamples) else ()
    model = beginning.build(classes, experiment.num_labels)
    lora = experiment.lora
    choose_trained(model, experiment.trained, lora.build() if lora is not None else None)
    args = experiment.arguments(**changes)
    backbone = None if experiment.save_backbone else experiment.backbone
    if experiment.fsdp:
        model.to(args.device)  # pyright: ignore[reportArgumentType]
        shard_layers(model)
    with alone_in(Path(str(args.output_dir))) if args.process_index == 0 else nullcontext():
        results = train_curriculum(
            model,
            args,
            examples=examples,
            curriculum=curriculum,
            backpropagation=experiment.backpropagation.build(),
            num_eval_examples=experiment.num_eval_examples,
            eval_examples=eval_examples,
            best_by="accuracy" if experiment.text is None else "loss",
            memory_learning_rate=experiment.optimizer.memory_learning_rate,
            processing_class=tokenizer,
            backbone=backbone,
            report=report,
            resume=resume,
        )
        model.eval()
        weights = whole_weights(model)
        if args.process_index == 0:
            model.save_pretrained(experiment.out, backbone=backbone, state_dict=weights)
            if tokenizer is not None:
                tokenizer.save_pretrained(experiment.out)
    return model, results
