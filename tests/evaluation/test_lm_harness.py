"""lm-evaluation-harness reads, scores and asks a memory: by its own tasks, prompts and metrics, to the plain numbers."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import recurrent_memory.evaluation.continuations as continuations
from recurrent_memory import MemoryState
from recurrent_memory.errors import BackboneError, ConfigError, GenerationError, InputError
from recurrent_memory.evaluation.continuations import Prompt, read_prompts, score
from recurrent_memory.evaluation.lm_harness import main
from recurrent_memory.inference.asking import ask
from tiny_models import END, VOCAB, S, prose, save_tiny_model, tiny_model, tiny_tokenizer

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason='lm_eval is not installed: pip install "recurrent-memory[lm-eval]"'
)
pytestmark = pytest.mark.filterwarnings("default:::(lm_eval|datasets|evaluate|multiprocess|dill|pyarrow|pandas)")
MODEL = "recurrent_memory.evaluation.lm_harness_model"


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def plain(before: list[int], after: list[int]) -> tuple[float, bool]:
    """The same of one forward pass over everything."""
    with torch.no_grad():
        logits = tiny_model()(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1].double()
    wanted = torch.tensor(after)
    total = logits.log_softmax(1).gather(1, wanted[:, None]).sum().item()
    return total, bool((logits.argmax(1) == wanted).all())


def close(total: float) -> Any:
    return pytest.approx(total, rel=1e-5)


def random_ids(length: int, seed: int) -> list[int]:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


# ---------------------------------------------------------------------- continuations


@pytest.mark.parametrize("at_a_time", [1, 10**9])
def test_continuations_have_the_probability_of_one_forward_pass(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "_LOGITS_AT_A_TIME", at_a_time)
    before = [random_ids(length, length) for length in (1, S, S + 1, 2 * S, 3 * S + 5)]
    after = [random_ids(length, length + 100) for length in (2 * S + 3, 1, S, S + 1, 2)]
    state = read_prompts(tiny_model(), [Prompt((), tuple(ids)) for ids in before])
    for result, *pair in zip(score(tiny_model(), state, after), before, after, strict=True):
        assert result.log_probability == close(plain(*pair)[0])


def test_what_greedy_decoding_writes_is_greedy() -> None:
    model, before = tiny_model(), random_ids(S + 3, 0)
    written = model.generate(torch.tensor([before]), max_new_tokens=S, min_new_tokens=S, do_sample=False)
    after = written[0, len(before) :].tolist()
    other = [*after[:-1], (after[-1] + 1) % VOCAB]
    state = read_prompts(model, [Prompt((), tuple(before))] * 2)
    assert [result.is_greedy for result in score(model, state, [after, other])] == [True, False]


def test_what_is_folded_is_read_before_a_fresh_segment() -> None:
    model, text, question = tiny_model(), random_ids(S + 3, 0), random_ids(4, 1)
    expected = model.read(torch.tensor([question]), memory_state=model.fold(model.read(torch.tensor([text]))).detach())
    state = read_prompts(model, [Prompt(tuple(text), tuple(question)), Prompt((), tuple(question))])
    torch.testing.assert_close(state.index([0]).memory, expected.memory)
    assert state.segments_folded.tolist() == [2, 0]
    assert state.pending_lengths.tolist() == [4, 4]


def test_what_cannot_be_continued_is_named() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="nothing open to continue"):
        read_prompts(model, [Prompt((1,), ())])
    with pytest.raises(InputError, match="nothing is pending"):
        score(model, model.initial_state(), [[1]])
    for wrong in ([], [[]], [[1], [2]]):
        with pytest.raises(InputError, match="continuations for a state of 1 rows"):
            score(model, read_prompts(model, [Prompt((), (1,))]), wrong)


# ---------------------------------------------------------------------- the command


def test_without_the_harness_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, MODEL, raising=False)
    with pytest.raises(ConfigError, match="lm-evaluation-harness is not installed"):
        import_module(MODEL)
    assert main() == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.endswith('install it: pip install "recurrent-memory[lm-eval]"\n')


@needs_lm_eval
def test_the_command_is_that_of_the_harness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import lm_eval.config.evaluate_config
    import lm_eval.tasks

    (tmp_path / "choose.yaml").write_text(CHOICES)
    offer(monkeypatch, "choose", [{"text": "Mary went to the", "choices": ["garden", "kitchen"], "right": 0}])
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(  # it would look through its thousands of tasks
        lm_eval.tasks, "TaskManager", lambda include_path, metadata: manager(None, include_path, False, metadata)
    )
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # it would write to this test's stderr for good
    folder = save_tiny_model(tmp_path / "model")
    call = f"lm_eval --model recurrent-memory --model_args pretrained={folder} dtype=float32 --batch_size 2"
    call += f" --tasks choose --include_path {tmp_path}"
    monkeypatch.setattr(sys, "argv", call.split())
    status, printed = main(), capsys.readouterr()
    assert status == 0, printed.err
    assert "|choose|" in printed.out
    monkeypatch.setattr(sys, "argv", call.replace(str(folder), str(tmp_path / "no" / "such")).split())
    assert main() == 2
    assert "there is no such model folder" in capsys.readouterr().err


# ---------------------------------------------------------------------- what the harness asks for


def offer(monkeypatch: pytest.MonkeyPatch, dataset: str, rows: list[dict[str, Any]]) -> None:
    """Have `datasets` give these rows for a dataset of the hub, for any configuration and split."""
    import datasets

    def load(path: str, name: str | None = None, split: str | None = None, **kwargs: Any) -> Any:
        assert path == dataset
        made = datasets.Dataset.from_list(rows)
        return made if split else datasets.DatasetDict({"test": made})

    monkeypatch.setattr(datasets, "load_dataset", load)


@cache
def the_lm(**arguments: Any) -> Any:
    from recurrent_memory.evaluation.lm_harness_model import RecurrentMemoryLM

    return RecurrentMemoryLM(tiny_model(), tiny_tokenizer(), **{"batch_size": 3} | arguments)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@needs_lm_eval
def test_log_likelihoods_are_those_of_one_forward_pass() -> None:
    context, other = prose(12), prose(2, seed=1)
    asked = [(context, " garden"), (other, " kitchen."), (context, " bathroom. Where is Mary?"), (other + " ", "café")]
    found = the_lm().loglikelihood(requests(*asked), disable_tqdm=True)
    for (before, after), result in zip(asked, found, strict=True):
        total, is_greedy = plain(ids_of(before.rstrip()), ids_of(before + after)[len(ids_of(before.rstrip())) :])
        assert result == (close(total), is_greedy)


@needs_lm_eval
def test_an_empty_context_is_the_token_that_ends_texts() -> None:
    end = tiny_tokenizer().eos_token_id
    found = the_lm().loglikelihood(requests(("", "Mary"), ("", f"{END}Mary"), (" ", "Mary")), disable_tqdm=True)
    assert found[0][0] == close(plain([end], ids_of("Mary"))[0])
    assert found[1] == found[0]
    assert found[2][0] == close(plain([end], ids_of(" Mary"))[0])


@needs_lm_eval
def test_a_shared_context_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = the_lm().model, []

    def counting(ids: torch.Tensor, *args: Any) -> MemoryState:
        read.append(tuple(ids.shape))
        return type(model).read(model, ids, *args)

    monkeypatch.setattr(model, "read", counting)
    context = prose(8)
    the_lm().loglikelihood(requests(*((context, f" {place}") for place in "abcdefg")), disable_tqdm=True)
    assert read == [(1, len(ids_of(context)))]


@needs_lm_eval
def test_a_continuation_without_tokens_is_named() -> None:
    with pytest.raises(InputError, match="the continuation '' has no tokens of its own"):
        the_lm().loglikelihood(requests(("Mary", "")), disable_tqdm=True)


@needs_lm_eval
def test_rolling_scores_every_token_once_with_all_before_it() -> None:
    texts = [prose(10), "", prose(3, seed=1), "Mary"]
    found = the_lm().loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    end = tiny_tokenizer().eos_token_id
    assert found[1] == 0.0
    for text, total in zip(texts, found, strict=True):
        assert not text or total == close(plain([end], ids_of(text))[0])


def written_after(text: str, count: int) -> str:
    model, tokenizer, ids = tiny_model(), tiny_tokenizer(), ids_of(text)
    made = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)[0, len(ids) :]
    return tokenizer.decode(made, skip_special_tokens=True)


@needs_lm_eval
def test_answers_end_at_a_stop_string_and_at_the_limit() -> None:
    texts = [prose(9), prose(2, seed=1), prose(5, seed=2)]
    free = [written_after(text, 20) for text in texts]
    assert all(len(text) > 8 for text in free)
    found = the_lm().generate_until(requests(*((text, {"until": [], "max_gen_toks": 20}) for text in texts)))
    assert found == free
    stops = [text[3:6] for text in free]
    asked = [(text, {"until": [stop, "never"], "max_gen_toks": 20}) for text, stop in zip(texts, stops, strict=True)]
    assert the_lm().generate_until(requests(*asked)) == [
        text.split(stop)[0] for text, stop in zip(free, stops, strict=True)
    ]
    assert the_lm(max_gen_toks=4).generate_until(requests((texts[0], {"until": None}))) == [written_after(texts[0], 4)]


@needs_lm_eval
def test_a_stop_string_ends_the_writing_early(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = the_lm().model, prose(4)
    lengths: list[int] = []

    def counting(**settings: Any) -> torch.Tensor:
        made = type(model).generate(model, **settings)
        lengths.append(made.shape[1])
        return made

    monkeypatch.setattr(model, "generate", counting)
    stop = written_after(text, 6)[-1]
    the_lm().generate_until(requests((text, {"until": [stop], "max_gen_toks": 200})))
    assert lengths[0] <= 6


@needs_lm_eval
def test_the_question_stands_in_a_fresh_segment_where_it_is_asked() -> None:
    model, tokenizer, text, question = tiny_model(), tiny_tokenizer(), prose(7), "Where is Mary?"
    lm, settings = the_lm(layout="ask"), {"until": ["\n"], "max_gen_toks": 8}
    expected = ask(model, tokenizer, model.read(torch.tensor([ids_of(text)])), [question], max_new_tokens=8)[0].text
    found = lm.generate_until(requests((f"{text}\n{question}", settings), (question, settings)))
    assert found[0].strip() == expected
    assert found[1] == the_lm().generate_until(requests((question, settings)))[0]
    assert lm._split("One.\nWhere? ") == ("One.", "Where? ")
    named = the_lm(layout="ask", question_start="Question:")
    assert named._split("One.\n\nQuestion: Where?\nAnswer:") == ("One.\n\n", "Question: Where?\nAnswer:")
    state = read_prompts(model, [Prompt(tuple(ids_of(text)), tuple(ids_of(question)))])
    result = lm.loglikelihood(requests((f"{text}\n{question}", " garden")), disable_tqdm=True)[0]
    assert result[0] == close(score(model, state, [ids_of(" garden")])[0].log_probability)


@needs_lm_eval
def test_what_it_is_told_is_checked() -> None:
    for wrong in ({"batch_size": "auto"}, {"max_gen_toks": 0}, {"layout": "both"}, {"question_start": ""}, {"dtyp": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            the_lm(**wrong)
    settings = {"until": []}
    with pytest.raises(ConfigError, match="use max_gen_toks"):
        the_lm().generate_until(requests(("Mary", settings | {"max_length": 9})))
    with pytest.raises(GenerationError, match="num_beams=2"):
        the_lm().generate_until(requests(("Mary", settings | {"num_beams": 2})))
    with pytest.raises(ConfigError, match="no chat template"):
        the_lm().apply_chat_template([{"role": "user", "content": "Where is Mary?"}])
    model = import_module(MODEL).RecurrentMemoryLM
    with pytest.raises(BackboneError, match="no such model folder"):
        model("./nowhere")
    with pytest.raises(ConfigError, match="tokenizer is missing"):
        model(tiny_model())
    with pytest.raises(ConfigError, match="backbone: goes with a folder"):
        model(tiny_model(), tiny_tokenizer(), backbone="elsewhere")
    assert the_lm(batch_size="4").batch_size == 4


@needs_lm_eval
def test_a_chat_template_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer(), "chat_template", template)
    assert the_lm().apply_chat_template([{"role": "user", "content": "Where?"}]) == "user: Where?\n"
    assert the_lm().chat_template(True) == template
    assert isinstance(the_lm().tokenizer_name, str)


# ---------------------------------------------------------------------- the harness's own tasks

CHOICES = """
task: choose
dataset_path: choose
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list:
  - metric: acc
"""


def evaluated(lm: Any, folder: Path, task: str, **kwargs: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0, **kwargs)


@needs_lm_eval
@pytest.mark.parametrize("layout", ["continue", "ask"])
def test_babilong_by_its_own_prompts_and_metric(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval

    lm, folder = the_lm(layout=layout), Path(lm_eval.__file__).parent / "tasks" / "babilong"
    rows = [{"input": prose(30, seed), "question": "Where is Mary?", "target": "nowhere"} for seed in range(4)]
    offer(monkeypatch, "RMT-team/babilong-1k-samples", rows)
    samples = evaluated(lm, folder, "babilong_qa1")["samples"]["babilong_qa1"]
    prompts = [sample["arguments"][0][0] for sample in samples]
    answers = [sample["resps"][0][0] for sample in samples]
    for prompt, answer, row in zip(prompts, answers, rows, strict=True):
        assert prompt.startswith("I will give you context with the facts about positions")
        assert prompt.endswith(f"balcony.\n\n{row['input']}\nWhere is Mary?".split("\n\n")[-1])
        if layout == "continue":
            assert answer == written_after(prompt, 16)
    said = max(re.findall(r"\w+", answers[0]), key=len)  # whatever it is, it is right now
    rows = [row | {"target": said} for row in rows]
    offer(monkeypatch, "RMT-team/babilong-1k-samples", rows)
    results = evaluated(lm, folder, "babilong_qa1", limit=1)
    assert results["results"]["babilong_qa1"]["acc,none"] == 1.0


@needs_lm_eval
def test_a_task_with_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "choose.yaml").write_text(CHOICES)
    rows: list[dict[str, Any]] = []
    for seed in range(4):
        text, choices = prose(10, seed) + " Mary went to the", ["garden", "kitchen", "bathroom"]
        totals = [plain(ids_of(text), ids_of(f" {choice}"))[0] for choice in choices]
        rows.append({"text": text, "choices": choices, "right": totals.index(max(totals))})
    rows.append(rows[0] | {"right": (rows[0]["right"] + 1) % 3})
    offer(monkeypatch, "choose", rows)
    assert evaluated(the_lm(), tmp_path, "choose")["results"]["choose"]["acc,none"] == 4 / 5
