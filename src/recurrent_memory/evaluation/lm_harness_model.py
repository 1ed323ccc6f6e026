"""A recurrent-memory model as EleutherAI's lm-evaluation-harness wants it: it asks for texts and probabilities in words.

Importing this module registers `recurrent-memory` there. The package `lm_eval` is optional, and imported by nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import ConfigError, InputError
from ..inference.detokenize import eos_ids
from ..inference.reader import evaluating
from ..model import RecurrentMemoryModel
from ..models import SHIPPED, load_model
from .continuations import Prompt, check_writes_text, read_prompts, score

try:
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
except ImportError as error:
    raise ConfigError(
        f'lm-evaluation-harness is not installed ({error}); install it: pip install "recurrent-memory[lm-eval]"'
    ) from error

LAYOUTS = ("continue", "ask")


@register_model("recurrent-memory")
class RecurrentMemoryLM(TemplateLM):
    """A decoder with a memory, for the harness. Contexts may be of any length: they are read in constant memory.

    Nothing is truncated and there are no windows. A context that several requests share, as the choices of a question
    do, is read once. No special tokens are put in, as everywhere in this library.

    Args:
        pretrained: A model folder, a hub id, "shipped", or a loaded model.
        tokenizer: Of a loaded model. Otherwise the one that lies beside it is taken.
        batch_size: Texts at a time.
        device: "auto", "cpu", "cuda", "cuda:1" … "cuda:0", which the harness says by default, is "auto" where there is no GPU.
        dtype: "auto", "float32", "bfloat16", "float16", "float64" or "int8".
        max_gen_toks: The longest answer, in tokens, where a task does not say.
        layout: "continue": prompt and answer go on with the text. "ask": the prompt up to its last `question_start` is read
            and folded, and the question stands in a fresh segment, as `rmt ask` has it.
        question_start: Where the question begins; it belongs to it.
        backbone: Where the backbone of a model is that was saved without it, if that has moved.
        max_batch_size: Only so that the harness may name it: nothing is found out automatically.
        **unknown: Refused.

    Raises:
        ConfigError: if an argument is not known or out of range.
        GenerationError: if the model does not write text.
        BackboneError: if there is no such model.

    Example:
        >>> lm = RecurrentMemoryLM("shipped", batch_size=8, layout="ask")
        >>> lm_eval.simple_evaluate(lm, tasks=["babilong_qa1"])
    """

    def __init__(
        self,
        pretrained: str | RecurrentMemoryModel = SHIPPED,
        tokenizer: Any = None,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        max_gen_toks: int = 256,
        layout: str = "continue",
        question_start: str = "\n",
        max_batch_size: int | None = None,
        backbone: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ConfigError(
                f"model_args: {', '.join(sorted(unknown))} is not known; it takes pretrained, batch_size, device, dtype, "
                "max_gen_toks, layout, question_start and backbone"
            )
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.max_gen_toks = _at_least_one("max_gen_toks", max_gen_toks)
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")
        if not isinstance(question_start, str) or not question_start:
            raise ConfigError(f'question_start={question_start!r} must be some text, such as "Question:"')
        self.layout, self.question_start = layout, question_start
        if not isinstance(pretrained, RecurrentMemoryModel):
            if tokenizer is not None:
                raise ConfigError("tokenizer: goes with a loaded model; that of a folder lies in it")
            # The harness's command says cuda:0 where nobody has said anything.
            is_default = device == "cuda:0" and not torch.cuda.is_available()
            pretrained, tokenizer = load_model(
                pretrained, "auto" if is_default else device, dtype, backbone=backbone, merged=True
            )
        elif backbone is not None:
            raise ConfigError("backbone: goes with a folder; a loaded model has its own")
        elif tokenizer is None:
            raise ConfigError("tokenizer is missing; a loaded model needs it beside it")
        check_writes_text(pretrained)
        self.model, self.tokenizer = pretrained, tokenizer
        self._device = pretrained.device

    # ------------------------------------------------------------------ what it is

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context: the one that begins texts, else the one that ends them.

        Raises:
            ConfigError: if the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ConfigError(
            "the tokenizer has neither a bos_token nor an eos_token, to score a text without a context after"
        )

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one text.

        Raises:
            ConfigError: if the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ConfigError("this model's tokenizer has no chat template; leave --apply_chat_template out")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness is to write down beside its results."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.compute_dtype,
            "model_fingerprint": self.model.fingerprint,
            "memory_config": self.model.memory_config.to_dict(),
            "layout": self.layout,
        }

    # ------------------------------------------------------------------ tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; no special ones, unless they are asked for."""
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"]

    def _split(self, context: str) -> tuple[str, str]:
        """What of a context is folded before the rest."""
        if self.layout == "continue":
            return "", context
        before, start, question = context.rstrip().rpartition(self.question_start)
        return before, (start + question).lstrip() + context[len(context.rstrip()) :]

    def _prompt(self, context: str) -> Prompt:
        folded, question = self._split(context)
        ids = self.tok_encode(question)
        return Prompt(tuple(self.tok_encode(folded)), tuple(ids) or (self.prefix_token_id,))

    def _prompt_and_continuation(self, context: str, continuation: str) -> tuple[Prompt, list[int]]:
        folded, question = self._split(context)
        if question.strip():
            before, ids = self._encode_pair(question, continuation)
        else:
            before, ids = [self.prefix_token_id], self.tok_encode(question + continuation)
            ids = ids[1:] if ids[:1] == before else ids
        if not ids:
            raise InputError(
                f"the continuation {continuation!r} has no tokens of its own after the context …{context[-40:]!r}; "
                "have it begin with a space, or with a new line"
            )
        return Prompt(tuple(self.tok_encode(folded)), tuple(before)), ids

    # ------------------------------------------------------------------ what it is asked for

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """How probable each continuation is after its context, and whether it is what greedy decoding gives.

        Raises:
            InputError: if a continuation is empty.
        """
        asked = [request.args for request in requests]
        by_context: dict[str, list[int]] = defaultdict(list)
        for index, (context, _) in enumerate(asked):
            by_context[context].append(index)
        results: dict[int, tuple[float, bool]] = {}
        with _bar("loglikelihood", len(asked), disable_tqdm) as bar:
            for contexts in _batches(sorted(by_context, key=len, reverse=True), self.batch_size):
                indices = [index for context in contexts for index in by_context[context]]
                found = self._scores([self._prompt_and_continuation(*asked[index]) for index in indices])
                for index, result in zip(indices, found, strict=True):
                    results[index] = result
                    self.cache_hook.add_partial("loglikelihood", asked[index], result)
                bar.update(len(indices))
        return [results[index] for index in range(len(asked))]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """The same of token ids, a few at a time."""
        pairs = [(Prompt((), tuple(context)), continuation) for _, context, continuation in requests]
        return [result for batch in _batches(pairs, self.batch_size) for result in self._scores(batch)]

    def _scores(self, pairs: Sequence[tuple[Prompt, list[int]]]) -> list[tuple[float, bool]]:
        """Read every prompt once, then score what follows it."""
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in pairs))}
        state = read_prompts(self.model, list(rows))
        results: dict[int, tuple[float, bool]] = {}
        for batch in _batches(sorted(range(len(pairs)), key=lambda index: len(pairs[index][1])), self.batch_size):
            some = state.index([rows[pairs[index][0]] for index in batch])
            for index, result in zip(batch, score(self.model, some, [pairs[i][1] for i in batch]), strict=True):
                results[index] = (result.log_probability, result.is_greedy)
        return [results[index] for index in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """How probable whole texts are: every token once, after all before it, the first after `prefix_token_id`."""
        texts = [request.args[0] for request in requests]
        results: dict[int, float] = {}
        with _bar("loglikelihood_rolling", len(texts), disable_tqdm) as bar:
            for batch in _batches(sorted(range(len(texts)), key=lambda index: -len(texts[index])), self.batch_size):
                ids = {index: self.tok_encode(texts[index]) for index in batch}
                pairs = [(Prompt((), (self.prefix_token_id,)), ids[index]) for index in batch if ids[index]]
                found = iter(self._scores(pairs) if pairs else [])
                for index in batch:
                    results[index] = next(found)[0] if ids[index] else 0.0
                    self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), results[index])
                bar.update(len(batch))
        return [results[index] for index in range(len(texts))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string, the end of the text, or `max_gen_toks`.

        Raises:
            GenerationError: for a way of generating that a memory does not support, such as beams.
        """
        asked = [request.args for request in requests]
        by_settings: dict[str, list[int]] = defaultdict(list)
        for index, (_, settings) in enumerate(asked):
            by_settings[repr(sorted(settings.items()))].append(index)
        results: dict[int, str] = {}
        with _bar("generate_until", len(asked), disable_tqdm) as bar:
            for same in by_settings.values():
                for batch in _batches(sorted(same, key=lambda index: -len(asked[index][0])), self.batch_size):
                    found = self._complete([asked[index][0] for index in batch], asked[batch[0]][1])
                    for index, result in zip(batch, found, strict=True):
                        results[index] = result
                        self.cache_hook.add_partial("generate_until", asked[index], result)
                    bar.update(len(batch))
        return [results[index] for index in range(len(asked))]

    def _complete(self, contexts: Sequence[str], wanted: dict[str, Any]) -> list[str]:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(wanted, self.max_gen_toks))
        if "max_length" in settings:
            raise ConfigError(
                "gen_kwargs: max_length counts the prompt, which may be of any length here; use max_gen_toks"
            )
        until = [stop for stop in settings.pop("until") if stop]
        if not settings["do_sample"]:
            settings.pop("temperature", None)
        ends = eos_ids(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        state = read_prompts(self.model, [self._prompt(context) for context in contexts])
        with evaluating(self.model):
            written = self.model.generate(
                memory_state=state,
                max_new_tokens=settings.pop("max_gen_toks"),
                eos_token_id=sorted(ends) or None,
                pad_token_id=pad if pad is not None else min(ends, default=None),
                stopping_criteria=StoppingCriteriaList([_HasWritten(self.tokenizer, until)]),
                **settings,
            )
        return [self._text_of(row, ends, until) for row in written.tolist()]

    def _text_of(self, ids: list[int], ends: frozenset[int], until: list[str]) -> str:
        length = next((position for position, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return postprocess_generated_text(text, stop=until, think_end_token=None)


class _HasWritten(StoppingCriteria):
    """Whether a row has one of the stop strings in what was written. Those of the prompt do not count."""

    _PROMPT = 1  # what was read is in the state; `generate` goes on from its last token

    def __init__(self, tokenizer: Any, until: list[str]) -> None:
        self._tokenizer, self._until = tokenizer, until
        self._lookback = max((len(stop.encode()) for stop in until), default=0) + 8

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Any, **kwargs: Any) -> Bool[Tensor, " B"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ends = [self._in(row[-self._lookback :]) for row in input_ids[:, self._PROMPT :].tolist()]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)

    def _in(self, ids: list[int]) -> bool:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self._until)


def _at_least_one(name: str, value: int | str) -> int:
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"{name}={value!r} must be an int of at least 1 (nothing is found out automatically)")
    return number


def _batches(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _bar(what: str, total: int, disabled: bool) -> Any:
    return tqdm(total=total, desc=f"Running {what} requests", disable=disabled)
