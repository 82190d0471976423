"""Batched generation: greedy answers of an arm, and samples of the model's own for preference pairs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.data.cases import Case
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.tasks.base import Message, Task
from medstudy.training.models import end_token, load_model, load_tokenizer, model_fingerprint, stop_tokens
from medstudy.training.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

#: Test cases whose answers are looked at again one by one, to see whether batching changes them.
RECHECKED = 8
#: From so many common first tokens on, prompts share what was read of them.
WORTH_SHARING = 32
#: What a stage keeps.
OUTPUTS, PROBABILITIES = "outputs.parquet", "probabilities.parquet"


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. ``temperature`` 0 is greedy; samples come from the model's full distribution."""

    max_new_tokens: int
    batch_size: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


def answer_cases(
    run: Run,
    arm: str,
    task: Task,
    cases: list[Case],
    adapter: Stage | None = None,
    examples: list[Case] | None = None,
) -> list[str]:
    """Greedy answers of one arm to ``cases``, from its saved adapter; kept, and read back the next time.

    Every arm goes through here, so the prompts, the dtype, the batches and the decoding are the same.

    Args:
        run: the run; answers are kept in its private folder.
        arm: base, few_shot, sft, sft_more or dpo.
        task: words the prompts.
        cases: the test cases; or any others, which neither replace those answers nor are rechecked for the gates.
        adapter: the finished training stage, None for the base model.
        examples: worked examples put before each prompt.
    """
    split = run.split_of(cases)
    tested = split == "test"
    # of a task whose answer is a label and nothing else, whatever the outcome is called
    labels = next(iter(task.card.labels.values()), []) if tested and len(task.card.labels) == 1 else []
    labels = labels if cases and task.target(cases[0]) in labels else []
    decoding = Decoding(run.params.max_new_tokens, run.params.eval_batch_size)
    prompts = [task.messages(case, examples) for case in cases]
    kept = _decode_stage(
        run, f"answers_{arm}" if tested else f"{split}_{arm}", prompts, decoding, adapter, labels, recheck=tested
    )
    return [texts[0] for texts in _kept_texts(kept)]


def sample_cases(run: Run, task: Task, cases: list[Case], adapter: Stage) -> list[list[str]]:
    """``samples_per_case`` answers at temperature 1 to each training prompt, from the SFT model."""
    params = run.params
    decoding = Decoding(params.max_new_tokens, params.eval_batch_size, params.samples_per_case, 1.0, params.seed)
    prompts = [task.messages(case) for case in cases]
    return _kept_texts(_decode_stage(run, "samples", prompts, decoding, adapter))


def label_probabilities(run: Run, arm: str) -> np.ndarray:
    """Probability of each label among the allowed ones, as an arm sees them that has answered the test cases.

    Returns:
        Shape (cases, labels), float64; rows add up to 1.
    """
    import pandas as pd

    return pd.read_parquet(run.stages[f"answers_{arm}"].folder / PROBABILITIES).to_numpy()


@dataclass(frozen=True)
class Decoded:
    """What a model made of some prompts: ``texts`` and ``ids`` (prompts, samples).

    ``probabilities`` (prompts, labels), None where no labels were asked about.
    """

    texts: list[list[str]]
    ids: list[list[list[int]]]
    probabilities: np.ndarray | None


def decode(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[Message]],
    how: Decoding,
    labels: Sequence[str] = (),
) -> Decoded:
    """Answers to each prompt: batches of similar length, left-padded. A prompt is read once for all its uses.

    What all prompts begin with, such as worked examples, is read once for all of them.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        prompts: chat messages.
        how: greedy or sampled, and how many.
        labels: answers whose probabilities are wanted: softmax over their log-probabilities, each with its
            end token.
    """
    import torch

    config = _generation_config(model, tokenizer, how)
    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    said = [[*answer_ids(tokenizer, label), end_token(tokenizer)] for label in labels]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    made: list[list[list[int]]] = [[] for _ in prompts]
    log_p = np.empty((len(prompts), len(labels)))
    shared, begun = _common_start(encoded) if _sees_everything(model, encoded, how) else 0, None
    if shared >= WORTH_SHARING:
        with torch.inference_mode():
            first = torch.tensor([encoded[0][:shared]], device=model.device)
            begun = _forward(model, first, torch.ones_like(first)).past_key_values
    else:
        shared = 0
    torch.manual_seed(how.seed)
    per_batch = max(1, how.batch_size // how.samples)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        ids, mask = _left_pad([encoded[i] for i in chosen], config.pad_token_id, model.device, shared)
        with torch.inference_mode():
            # keys and values of all but the last token, which each use reads anew
            cache = copy.deepcopy(begun)
            if cache is not None:
                cache.batch_repeat_interleave(len(chosen))
            cache = _forward(model, ids[:, shared:-1], mask[:, :-1], cache).past_key_values
            for column, label in enumerate(said):
                log_p[chosen, column] = _label_log_p(model, ids, mask, cache, label)
            if how.samples > 1:
                cache.batch_repeat_interleave(how.samples)
            ids, mask = (t.repeat_interleave(how.samples, dim=0) for t in (ids, mask))
            rows = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config)
        for row, new in enumerate(rows[:, ids.shape[1] :].tolist()):
            made[chosen[row // how.samples]].append(_until_stop(new, config.eos_token_id))
    texts = [[t.strip() for t in tokenizer.batch_decode(m, skip_special_tokens=True)] for m in made]
    return Decoded(texts, made, _softmax(log_p) if labels else None)


def changed_alone(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[Message]], answers: list[list[int]]
) -> int:
    """How many greedy answers would be others if the model read its prompt alone, without batch or padding.

    One pass over prompt and answer shows the likeliest token at each place: where all are the answer's own,
    greedy decoding ends at this answer.
    """
    import torch

    changed = 0
    for messages, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, messages) + answer], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
        changed += logits.argmax(-1).tolist() != answer
    return changed


def _decode_stage(
    run: Run,
    name: str,
    prompts: list[list[Message]],
    how: Decoding,
    adapter: Stage | None,
    labels: Sequence[str] = (),
    recheck: bool = False,
) -> Stage:
    import pandas as pd

    stage = run.stage(
        name,
        code=("training.generation", "training.models"),
        model=model_fingerprint(run.params),
        dtype=[run.params.dtype, run.params.quantization],
        start=adapter,
        prompts=prompts,
        decoding=asdict(how),
        labels=labels,
    )
    if not stage.done:
        made, facts = _load_and_decode(run.params, adapter, prompts, how, labels, recheck)
        pd.DataFrame({"outputs": made.texts}).to_parquet(stage.folder / OUTPUTS)
        if labels:
            pd.DataFrame(made.probabilities, columns=labels).to_parquet(stage.folder / PROBABILITIES)
        stage.finish(**facts)
    return stage


def _kept_texts(stage: Stage) -> list[list[str]]:
    import pandas as pd

    return [list(texts) for texts in pd.read_parquet(stage.folder / OUTPUTS)["outputs"]]


def _load_and_decode(
    params: RunParams,
    adapter: Stage | None,
    prompts: list[list[Message]],
    how: Decoding,
    labels: Sequence[str],
    recheck: bool,
) -> tuple[Decoded, dict[str, Any]]:
    tokenizer = load_tokenizer(params)
    model = load_model(params, adapter.folder / "adapter" if adapter else None, merged=True)
    facts: dict[str, Any] = {"training_mode": model.training}
    if adapter:
        facts["reload_difference"] = reload_difference(model, adapter.folder)
    made = decode(model, tokenizer, prompts, how, labels)
    facts |= {"greedy": not model.generation_config.do_sample, "padding": _padded_side()}
    if recheck:
        first = [ids for (ids,) in made.ids[:RECHECKED]]
        changed = changed_alone(model, tokenizer, prompts[:RECHECKED], first)
        facts |= {"rechecked": len(first), "changed_by_batching": changed}
    facts["new_tokens"] = sum(len(ids) for several in made.ids for ids in several)
    return made, facts


def reload_difference(model: Any, folder: Path) -> float:
    """Largest absolute logit difference between this loaded model and the one saved in ``folder``."""
    import torch

    probe = torch.load(folder / "probe.pt", map_location=model.device, weights_only=True)
    with torch.inference_mode():
        return float((model(input_ids=probe["input_ids"]).logits[0, -1].float() - probe["logits"]).abs().max())


def _generation_config(model: Any, tokenizer: PreTrainedTokenizerBase, how: Decoding) -> GenerationConfig:
    """A complete config of our own, so that none of the checkpoint's sampling settings is obeyed."""
    from transformers import GenerationConfig

    if model.training:
        raise RuntimeError("the model is in training mode: dropout would change greedy answers; call model.eval()")
    sampling = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        repetition_penalty=1.0,
        eos_token_id=stop_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **(sampling if how.temperature else {"do_sample": False}),
    )
    model.generation_config = config
    return config


def _sees_everything(model: Any, encoded: list[list[int]], how: Decoding) -> bool:
    """Whether every layer attends to all that was read: a gap in the middle would narrow a window's view."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or [])
    fits = window is None or max(map(len, encoded), default=0) + how.max_new_tokens <= window
    return bool(encoded) and fits and kinds <= {"full_attention", "sliding_attention"}


def _common_start(encoded: list[list[int]]) -> int:
    """How many tokens all prompts begin with; at least two of each are left."""
    shortest, longest = min(encoded), max(encoded)  # in the order of words: these two differ first
    room = min(map(len, encoded)) - 2
    return next((i for i in range(max(0, room)) if shortest[i] != longest[i]), max(0, room))


def _forward(model: Any, ids: Any, mask: Any, cache: Any = None, logits: int = 1) -> Any:
    """One pass over ``ids``; ``mask`` covers ``cache`` too. Logits of the last so many, 0 for all."""
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits,
    )


def _label_log_p(model: Any, ids: Any, mask: Any, cache: Any, label: list[int]) -> np.ndarray:
    """Log-probability of one label, end token included, after each prompt (rows,)."""
    import torch

    tokens = torch.tensor(label, device=ids.device).expand(len(ids), -1)
    read = torch.cat([ids[:, -1:], tokens[:, :-1]], dim=1)
    seen = torch.cat([mask, torch.ones_like(tokens[:, :-1])], dim=1)
    # a pass adds to the cache that it is given
    logits = _forward(model, read, seen, copy.deepcopy(cache), logits=0).logits.float().log_softmax(-1)
    return logits.gather(-1, tokens[..., None]).sum((1, 2)).double().cpu().numpy()


def _softmax(log_p: np.ndarray) -> np.ndarray:
    odds = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    """The tokens up to the first stop token, which is kept; what follows is padding."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _padded_side() -> str:
    """Where a short row beside a longer one is padded, for the gate."""
    _, mask = _left_pad([[1], [1, 1]], 0, "cpu")
    return "left" if mask[0].tolist() == [0, 1] else "right"


def _left_pad(rows: list[list[int]], pad: int, device: Any, shared: int = 0) -> tuple[Any, Any]:
    """Token ids and mask (rows, longest); padding stands before a row, behind ``shared`` first tokens."""
    import torch

    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [row[:shared] + [pad] * gap + row[shared:] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (width - gap - shared) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
