"""The two answers of a preference pair behind one copy of their prompt.

TRL gives the model two rows a pair and so computes every prompt twice. Here the backbone gets one row, prompt + chosen
+ rest of rejected, with a mask by which neither answer sees the other, and the hidden states are put back where TRL
looks for them. Loss and metrics stay TRL's; log-probabilities are the same up to rounding, which is checked.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from medstudy.training.models import reads_by_attention, without_peft

#: Pairs on which a DPO is looked at before its first step.
FIRST_ROWS = 8
#: Rows are padded to a multiple of so many tokens.
PADDED_TO = 16


def share_prompts_if_equal(trainer: Any) -> Callable[[], None] | None:
    """Read each prompt of a `DPOTrainer` once; returns a function that takes it back.

    None where this model's log-probabilities would be others: every prompt is read twice then.
    """
    if getattr(trainer, "aux_loss_enabled", False) or not reads_by_attention(trainer.model):
        return None  # the routers of a mixture of experts are scored by TRL, in rows of its own
    alone = _log_p_of_pairs(trainer)
    unshare = share_prompts(trainer.model)
    largest, mean = (1e-3, 1e-4) if trainer.model.dtype == torch.float32 else (0.2, 0.02)
    try:
        difference = (_log_p_of_pairs(trainer) - alone).abs()
        equal = difference.max() <= largest and difference.mean() <= mean
    except (TypeError, ValueError, IndexError, RuntimeError):
        equal = False  # a model that knows no such mask
    if equal:
        return unshare
    unshare()
    return None


def _log_p_of_pairs(trainer: Any) -> torch.Tensor:
    """Log-probability of every token of both answers of the longest pairs (tokens,), float32."""
    rows = sorted(trainer.train_dataset, key=row_length, reverse=True)[:FIRST_ROWS]
    size, found = trainer.args.per_device_train_batch_size, []
    for start in range(0, len(rows), size):
        inputs = trainer._prepare_inputs(trainer.data_collator(rows[start : start + size]))
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            made = trainer.model(**given, labels=labels, fused_lm_head=True, use_cache=False)
        found.append(made.log_probs.float()[labels[:, 1:] != -100])
    return torch.cat(found)


def row_length(row: dict[str, Any]) -> int:
    """Tokens of a row, for a pair of its longer side."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def share_prompts(model: Any) -> Callable[[], None]:
    """Have the backbone of a model, with or without PEFT, read each prompt once; returns a function to take it back."""
    backbone = without_peft(model).base_model
    forward, text = backbone.forward, backbone.config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min(filter(None, windows), default=None)

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        if window and input_ids.shape[1] > window:  # a mask of one's own knows no window
            return forward(input_ids=input_ids, attention_mask=attention_mask, **others)
        rows, device = pack(input_ids, attention_mask), input_ids.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else backbone.dtype
        hidden = torch.zeros(rows.allowed.shape, dtype=dtype, device=device)
        hidden.masked_fill_(~rows.allowed, torch.finfo(dtype).min)
        made = forward(input_ids=rows.ids, attention_mask=hidden, position_ids=rows.positions, **others)
        state = made.last_hidden_state
        index = rows.back[..., None].expand(-1, -1, state.shape[-1])
        made.last_hidden_state = torch.cat([state.gather(1, part) for part in index.chunk(2)])
        return made

    backbone.forward = shared
    return partial(setattr, backbone, "forward", forward)


class Packed(NamedTuple):
    """Pairs as one row each: the chosen sequence, then the rejected one from where the two part."""

    ids: torch.Tensor  # (pairs, width), int64
    positions: torch.Tensor  # places of the tokens in their own sequence (pairs, width), int64
    allowed: torch.Tensor  # which token may look at which (pairs, 1, width, width), bool
    back: torch.Tensor  # for each place of the two padded sequences, its place in the row (2 x pairs, length), int64


def pack(ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Pack TRL's batch of chosen, then rejected sequences, padded on the right: ids and mask (2 x pairs, length)."""
    (chosen, rejected), (real, also) = ids.chunk(2), mask.bool().chunk(2)
    long, other = real.sum(1, keepdim=True), also.sum(1, keepdim=True)
    shared = ((chosen == rejected) & real & also).cumprod(1).sum(1, keepdim=True)
    width = -(-int((long + other - shared).max()) // PADDED_TO) * PADDED_TO
    place, there = (torch.arange(n, device=ids.device)[None] for n in (width, ids.shape[1]))
    rest = place >= long  # of the rejected sequence, and padding, which nothing sees
    positions = torch.where(rest, place - long + shared, place).clamp(max=ids.shape[1] - 1)
    packed = torch.where(rest, rejected.gather(1, positions), chosen.gather(1, positions))
    not_shared = (place >= shared) & (place < long)  # what of the chosen sequence the rejected one has not
    allowed = (place[0, :, None] >= place) & ~(rest[:, :, None] & not_shared[:, None])
    moved = torch.where(there < shared, there, there - shared + long)
    back = torch.cat([there.expand_as(moved), moved]).clamp(max=width - 1)
    return Packed(packed, positions, allowed[:, None], back)
