"""Run by `test_axes.py` in a process of its own, in which every annotation of the core is checked at each call."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

CORE = ("segments", "state", "memories", "backbones", "plain_head", "head_loss", "forward", "modeling_output", "model")

sys.path.insert(0, str(Path(__file__).parents[1]))
install_import_hook([f"recurrent_memory.{module}" for module in CORE], "beartype.beartype")

import torch  # noqa: E402

from contract.backbones import BACKBONES  # noqa: E402
from contract.cases import batch, batch_labels, labels_of, model_of, oracle, texts_of  # noqa: E402
from recurrent_memory import MemoryState, segments  # noqa: E402

torch.set_num_threads(1)
for tiny in BACKBONES:
    model = model_of(tiny)
    texts = texts_of(tiny)
    labels = labels_of(tiny, texts)
    ids, mask = batch(texts, "left")
    output = model(input_ids=ids, attention_mask=mask, labels=batch_labels(tiny, labels, "left"))
    state = model.fold(model.read(ids, mask, memory_state=output.memory_state.detach()))
    MemoryState.cat([state[0], state[1:]])
    model.step(torch.tensor([texts[3]]), model.initial_state(), return_logits=tiny.is_decoder or tiny.is_masked_lm)
    oracle(tiny, model, texts[-1], labels[-1])
    if tiny.is_decoder:
        model.generate(torch.tensor([texts[3]]), max_new_tokens=2, do_sample=False)
    print(tiny.name)
try:
    segments.num_folded(torch.zeros(2, 2), 3)  # one axis and one dtype too many
except Exception as error:
    print(type(error).__name__)
