"""The two answers of a preference pair behind one copy of their prompt.

TRL gives the model two rows a pair, prompt + chosen and prompt + rejected, so that every prompt is computed
twice. Here the backbone gets one row, prompt + chosen + rest of rejected, with a mask by which neither answer
sees the other, and the hidden states are put back where TRL looks for them. Loss and metrics stay TRL's; the
answers' log-probabilities are the same up to rounding (`training.train` checks that on the first pairs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medstudy.training.architectures import reads_by_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

#: Pairs on which a DPO is looked at before its first step.
FIRST_ROWS = 8
#: Rows are padded to a multiple of so many tokens.
PADDED_TO = 16


def share_prompts_if_equal(trainer: Any) -> Callable[[], None] | None:
    """Read each prompt once (`shared_prompt`), where that gives this model's own log-probabilities.

    Returns:
        A function that takes it back; None where it does not, and every prompt is read twice.
    """
    import torch

    if getattr(trainer, "aux_loss_enabled", False) or not reads_by_attention(trainer.model):
        return None  # the routers of a mixture of experts are scored by TRL, in rows of its own
    alone = log_p_of_pairs(trainer)
    unshare = share_prompts(trainer.model)
    try:
        difference = (log_p_of_pairs(trainer) - alone).abs()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        difference = torch.tensor([math.inf])  # a model that knows no such mask
    largest, mean = (1e-3, 1e-4) if trainer.model.dtype == torch.float32 else (0.2, 0.02)
    if difference.max() <= largest and difference.mean() <= mean:
        return unshare
    unshare()
    return None


def log_p_of_pairs(trainer: Any) -> torch.Tensor:
    """Log-probability of every token of both answers of the longest pairs (tokens,), float32."""
    import torch

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


@dataclass(frozen=True)
class Packed:
    """Pairs as one row each: chosen sequence, then the rejected one from where the two part.

    Attributes:
        ids, positions: token ids and their places in their own sequence (pairs, width), int64.
        allowed: which token may look at which (pairs, 1, width, width), bool.
        back: for each place of the two padded sequences, its place in the row (2 x pairs, length), int64.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor
    back: torch.Tensor


def pack(ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Pack TRL's batch: the chosen sequences, then the rejected ones, padded on the right.

    Args:
        ids: token ids (2 x pairs, length), int64.
        mask: 1 at tokens, 0 at padding, of the same shape.
    """
    import torch

    chosen, rejected = ids.chunk(2)
    long, other = (part.sum(1, keepdim=True) for part in mask.chunk(2))
    shared = ((chosen == rejected) & mask.bool().chunk(2)[0] & mask.bool().chunk(2)[1]).cumprod(1).sum(1)[:, None]
    width = -(-int((long + other - shared).max()) // PADDED_TO) * PADDED_TO
    place = torch.arange(width, device=ids.device)[None]
    first, second = place < long, (place >= long) & (place < long + other - shared)
    positions = torch.where(second, place - long + shared, place * first)
    packed = torch.where(second, rejected.gather(1, positions), chosen.gather(1, positions))
    # a token sees its own sequence up to itself; the rest of the rejected one also what the two share
    q, k = slice(None), None
    rows, columns = (first[:, q, k], second[:, q, k]), (first[:, k, q], second[:, k, q])
    own = (rows[0] & columns[0]) | (rows[1] & (columns[1] | (place[:, k, q] < shared[:, q, k])))
    causal = place[0, q, k] >= place[0, k, q]
    itself = torch.eye(width, dtype=torch.bool, device=ids.device)  # padding must see something
    there = torch.arange(ids.shape[1], device=ids.device)[None]
    moved = torch.where(there < shared, there, there - shared + long).clamp(max=width - 1)
    back = torch.cat([there.clamp(max=width - 1).expand_as(moved), moved])
    return Packed(packed, positions, ((own & causal) | itself)[:, None], back)


def share_prompts(model: Any) -> Callable[[], None]:
    """Have the backbone of ``model`` read each prompt of a batch of pairs once.

    Args:
        model: a causal language model, with or without PEFT, that a `DPOTrainer` trains.

    Returns:
        A function that takes this back.
    """
    import torch

    backbone = (model.get_base_model() if hasattr(model, "peft_config") else model).base_model
    forward, text = backbone.forward, backbone.config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min(filter(None, windows), default=None)

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        if window and input_ids.shape[1] > window:  # a mask of one's own knows no window
            return forward(input_ids=input_ids, attention_mask=attention_mask, **others)
        rows = pack(input_ids, attention_mask)
        device = input_ids.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else backbone.dtype
        hidden = torch.zeros(rows.allowed.shape, dtype=dtype, device=input_ids.device)
        hidden.masked_fill_(~rows.allowed, torch.finfo(dtype).min)
        made = forward(input_ids=rows.ids, attention_mask=hidden, position_ids=rows.positions, **others)
        state = made.last_hidden_state
        index = rows.back[..., None].expand(-1, -1, state.shape[-1])
        made.last_hidden_state = torch.cat([state.gather(1, part) for part in index.chunk(2)])
        return made

    backbone.forward = shared

    def take_back() -> None:
        backbone.forward = forward

    return take_back
