"""Generation against what was read before: time for each token, and memory, beside full attention with its KV cache.

    python -m benchmarks --only generation [--model small|135m|smollm2|shipped|FOLDER] [--max-tokens 1000000]

Each run writes S tokens, so that it folds a segment once. "without cache" is ours with `use_cache=False`: the present
window is computed anew for each token. Full attention has the same backbone; its cache is filled with random numbers,
since to read the text would take the square of its length: what a token costs does not depend on what is in there.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, GenerationConfig

from recurrent_memory import MemoryState, RecurrentMemoryModel

from .common import Budget, Contender, Peak, Report, Setting, has_room, measure
from .models import load_for
from .peers import kv_bytes
from .reading import text_of

OURS, ANEW, FULL = "ours", "ours without cache", "full attention, KV cache"


def run(setting: Setting, peak: Peak) -> Report:
    """Milliseconds and bytes for each token against the tokens read before."""
    report = Report("generation", "tokens_read", ("ms_per_token", "kept_bytes", "peak_memory_mb"))
    model = load_for(setting)
    length = model.memory_config.segment_length
    ids = text_of(model.view.vocab_size, setting.max_tokens, setting)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    budget, state = Budget(setting, report), model.initial_state()
    for tokens_read in setting.lengths():
        state = model.read(ids[:, int(state.tokens_read) : tokens_read], memory_state=state)
        kept = {OURS: state.num_bytes + kv_bytes(model, model.memory.row_length(model.view)), ANEW: state.num_bytes}
        contenders = [
            Contender(name, lambda use_cache=use_cache, given=state: write(model, given, length, use_cache=use_cache))
            for name, use_cache in ((OURS, True), (ANEW, False))
        ]
        kept[FULL] = kv_bytes(model, tokens_read + length)
        if can_attend(model, tokens_read + length, setting, report, tokens_read=tokens_read):
            full = FullAttention(model, tokens_read, length)
            contenders.append(Contender(FULL, full.write, full.undo))
        running = [
            c for c in contenders if budget.allows(c.name, tokens_read, float(c.name == FULL), tokens_read=tokens_read)
        ]
        for row in measure(running, length, setting, peak, tokens_read=tokens_read):
            name = row["contender"]
            budget.took(name, tokens_read, row["median_s"])
            per_token = {f"{key}ms_per_token": 1e3 * row[f"{key or 'median_'}s"] / length for key in ("low_", "high_")}
            per_token["ms_per_token"] = 1e3 * row["median_s"] / length
            read_bytes = weight_bytes + (kept[name] if name == FULL else 0)
            share = read_bytes * length / row["median_s"] / peak.bytes_per_s
            report.rows.append({**row, **per_token, "kept_bytes": kept[name], "share_of_read_peak": share})
    return report


def write(model: RecurrentMemoryModel, state: MemoryState, count: int, *, use_cache: bool) -> torch.Tensor:
    """So many tokens, greedily, whatever they are."""
    config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(None, config, state, use_cache=use_cache)


class FullAttention:
    """The backbone with the keys and values of a text of some length.

    Args:
        model: Whose backbone.
        tokens: Of the text.
        count: Tokens that are written.
    """

    def __init__(self, model: RecurrentMemoryModel, tokens: int, count: int) -> None:
        self.backbone, self.count = model.backbone, count
        self.cache = DynamicCache(config=self.backbone.config)
        with torch.no_grad():
            first = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            self.backbone(input_ids=first, past_key_values=self.cache, use_cache=True)
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                like = getattr(layer, name)
                setattr(layer, name, like.new_empty(*like.shape[:2], tokens, like.shape[3]).normal_())

    @torch.no_grad()
    def write(self) -> torch.Tensor:
        """Greedily, token by token."""
        made = [torch.zeros(1, 1, dtype=torch.long, device=self.backbone.device)]
        for _ in range(self.count):
            output = self.backbone(input_ids=made[-1], past_key_values=self.cache, use_cache=True)
            made.append(output.logits[:, -1:].argmax(-1))
        return torch.cat(made[1:], 1)

    def undo(self) -> None:
        """The cache as it was."""
        self.cache.crop(-self.count)


def can_attend(model: RecurrentMemoryModel, tokens: int, setting: Setting, report: Report, **where: int) -> bool:
    """Whether full attention has positions and room for so many tokens; a row of the report where it has not."""
    limit = model.view.max_row_length()
    if limit is not None and tokens > limit:
        report.skip(FULL, f"its backbone has positions for {limit:,} tokens", **where)
        return False
    needed = 2 * kv_bytes(model, tokens)
    if not has_room(needed, setting.device):
        report.skip(FULL, f"it needs about {needed / 1e9:.1f} GB, more than half of what is free", **where)
        return False
    return True
