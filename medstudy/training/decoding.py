"""From prompts to answers: batches of similar length, each prompt read once for all its uses."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import GenerationConfig

from medstudy.tasks.base import Message
from medstudy.training.chat import Chat
from medstudy.training.models import reads_by_attention, without_peft

#: Share of the largest logit by which two ways of computing may differ, in fp32 and in fewer bits: rounding is far
#: below, another model or a padding that is seen above.
ROUNDING = (0.001, 0.03)
#: Tokens of prompts in a batch, so that long notes need no more memory than short ones: of masks and activations.
BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. ``temperature`` 0 is greedy; samples come from the model's full distribution."""

    max_new_tokens: int
    batch_size: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Decoded:
    """What a model made of some prompts: ``texts`` and ``ids`` (prompts, samples).

    ``probabilities`` (prompts, labels); ``asked``: tokens of each prompt as they stood in its batch; ``padding``: where
    the batches had some (left, right, none); ``config``: how it was drawn.
    """

    texts: list[list[str]]
    ids: list[list[list[int]]]
    probabilities: np.ndarray
    asked: list[list[int]]
    padding: str
    config: GenerationConfig


def decode(model: Any, chat: Chat, prompts: list[list[Message]], how: Decoding, labels: Sequence[str] = ()) -> Decoded:
    """Answers to each prompt, in batches of similar length, left-padded.

    A prompt is read once for all its uses; models that keep more of it than keys and values read it anew for each.
    ``labels`` are answers whose probabilities are wanted: softmax of their log-probabilities, end token included.
    """
    config = _generation_config(model, chat, how)
    encoded = [chat.prompt(messages) for messages in prompts]
    ends = [chat.row(prompts[0], label)[1] for label in labels] if prompts else []
    made: list[list[list[int]]] = [[] for _ in prompts]
    log_p, asked, padded = np.empty((len(prompts), len(labels))), list(encoded), {"none"}
    reuses = reads_by_attention(model) and "past_key_values" in _known(model)
    torch.manual_seed(how.seed)
    for chosen in batches([len(ids) for ids in encoded], how):
        ids, mask = _left_pad([encoded[i] for i in chosen], config.pad_token_id, model.device)
        padded.add("none" if mask.all() else "left" if mask[:, -1].all() else "right")
        for i, row, seen in zip(chosen, ids, mask.bool(), strict=True):
            asked[i] = row[seen].tolist()
        with torch.inference_mode():
            # keys and values of all but the last token, which each use reads anew
            cache = _forward(model, ids[:, :-1], mask[:, :-1]).past_key_values if reuses else None
            for column, label in enumerate(ends):
                log_p[chosen, column] = _label_log_p(model, ids, mask, cache, label)
            if how.samples > 1 and cache is not None:
                cache.batch_repeat_interleave(how.samples)
            ids, mask = (t.repeat_interleave(how.samples, dim=0) for t in (ids, mask))
            given = {"past_key_values": cache} if reuses else {}
            rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **given)
        for row, new in enumerate(rows[:, ids.shape[1] :].tolist()):
            end = next((i for i, token in enumerate(new) if token in chat.stops), len(new))
            made[chosen[row // how.samples]].append(new[: end + 1])  # the stop token is kept
    texts = [[chat.read(ids) for ids in several] for several in made]
    side = next(side for side in ("right", "left", "none") if side in padded)
    return Decoded(texts, made, softmax(log_p, axis=1) if labels else log_p, asked, side, config)


def batches(lengths: list[int], how: Decoding) -> Iterator[list[int]]:
    """Places of prompts, shortest first, in parts of so many rows, or of so many tokens with their padding."""
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = (len(part) + 1) * how.samples
        if part and (rows > how.batch_size or rows * lengths[place] > BATCH_TOKENS):
            yield part
            part = []
        part.append(place)
    yield from [part] if part else []


def changed_alone(model: Any, chat: Chat, prompts: list[list[Message]], answers: list[list[int]]) -> int:
    """How many greedy answers would be others if the model read its prompt alone, without batch or padding.

    One pass over prompt and answer shows the likeliest token at each place: where none is likelier than the answer's
    own by more than rounding, greedy decoding ends at this answer.
    """
    changed, exact = 0, model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    for messages, answer in zip(prompts, answers, strict=True):
        ids, n = torch.tensor([chat.prompt(messages) + answer], device=model.device), len(answer)
        with torch.inference_mode():
            logits = _forward(model, ids, torch.ones_like(ids), logits=n + 1).logits[0, -n - 1 : -1].float()
        own = logits.gather(-1, ids[0, -n:, None])[:, 0]
        gap = (logits.max(-1).values - own) / logits.abs().max(-1).values
        changed += bool((gap > ROUNDING[not exact]).any())
    return changed


def _generation_config(model: Any, chat: Chat, how: Decoding) -> GenerationConfig:
    """A config of our own, so that none of the checkpoint's sampling settings is obeyed."""
    if model.training:
        raise RuntimeError("the model is in training mode: dropout would change greedy answers; call model.eval()")
    sampling = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
    model.generation_config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        repetition_penalty=1.0,
        eos_token_id=list(chat.stops),
        pad_token_id=chat.tokenizer.pad_token_id,
        bos_token_id=chat.tokenizer.bos_token_id,
        **(sampling if how.temperature else {"do_sample": False}),
    )
    return model.generation_config


def _known(model: Any) -> set[str]:
    """Arguments that the model's forward pass names."""
    return set(inspect.signature(without_peft(model).forward).parameters)


def _forward(model: Any, ids: Any, mask: Any, cache: Any = None, logits: int = 1) -> Any:
    """One pass over ``ids``; ``mask`` covers ``cache`` too. Logits of the last so many, or of all."""
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    given = {"attention_mask": mask, "position_ids": places, "past_key_values": cache, "use_cache": True}
    given |= {"logits_to_keep": logits}
    return model(input_ids=ids, **{name: given[name] for name in given.keys() & _known(model)})


def _label_log_p(model: Any, ids: Any, mask: Any, cache: Any, label: list[int]) -> np.ndarray:
    """Log-probability of one label, end token included, after each prompt (rows,)."""
    tokens = torch.tensor(label, device=ids.device).expand(len(ids), -1)
    read = torch.cat([ids if cache is None else ids[:, -1:], tokens[:, :-1]], dim=1)
    seen = torch.cat([mask, torch.ones_like(tokens[:, :-1])], dim=1)
    # a pass adds to the cache that it is given
    logits = _forward(model, read, seen, copy.deepcopy(cache), len(label)).logits[:, -len(label) :]
    chosen = logits.float().log_softmax(-1).gather(-1, tokens[..., None])
    return chosen.sum((1, 2)).double().cpu().numpy()


def _left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and mask (rows, longest); padding stands before a row."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
