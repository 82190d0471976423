"""Batched generation: greedy answers of an arm, and samples of the model's own for preference pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.data.cases import Case
from medstudy.models import end_token, load_model, load_tokenizer, model_fingerprint, stop_tokens
from medstudy.params import RunParams
from medstudy.prompts import answer_ids, prompt_ids
from medstudy.runs import Run, Stage
from medstudy.tasks.base import Message, Task

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

#: Test cases answered again one by one, to see whether batching changes answers.
RECHECKED = 8


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
    stage: str = "answers",
) -> list[str]:
    """Greedy answers of one arm to ``cases``, from its saved adapter; kept, and read back the next time.

    Every arm goes through here, so the prompts, the dtype, the batches and the decoding are the same.

    Args:
        run: the run; answers are kept in its private folder.
        arm: base, few_shot, sft, sft_more or dpo.
        task: words the prompts.
        cases: test cases, or validation cases.
        adapter: the finished training stage, None for the base model.
        examples: worked examples put before each prompt.
        stage: what keeps them; only ``answers``, those to test cases, are rechecked for the gates.
    """
    decoding = Decoding(run.params.max_new_tokens, run.params.eval_batch_size)
    prompts = [task.messages(case, examples) for case in cases]
    outputs = _decode_stage(run, f"{stage}_{arm}", prompts, decoding, adapter, stage == "answers")
    return [texts[0] for texts in outputs]


def sample_cases(run: Run, task: Task, cases: list[Case], adapter: Stage) -> list[list[str]]:
    """``samples_per_case`` answers at temperature 1 to each training prompt, from the SFT model."""
    params = run.params
    decoding = Decoding(
        params.max_new_tokens, params.eval_batch_size, params.samples_per_case, 1.0, params.seed
    )
    return _decode_stage(
        run, "samples", [task.messages(case) for case in cases], decoding, adapter, recheck=False
    )


def label_probabilities(
    run: Run,
    arm: str,
    task: Task,
    cases: list[Case],
    adapter: Stage | None = None,
    examples: list[Case] | None = None,
) -> np.ndarray:
    """Probability of each label among the allowed ones, as one arm sees it; kept like its answers.

    Returns:
        Shape (cases, labels), float64; rows add up to 1.
    """
    import pandas as pd

    labels = task.card.labels["label"]
    prompts = [task.messages(case, examples) for case in cases]
    stage = run.stage(
        f"probabilities_{arm}",
        code=("generation", "models"),
        model=model_fingerprint(run.params),
        dtype=[run.params.dtype, run.params.quantization],
        adapter=adapter.key if adapter else None,
        prompts=prompts,
        labels=labels,
        batch_size=run.params.eval_batch_size,
    )
    file = stage.folder / "probabilities.parquet"
    if not stage.done:
        model = load_model(run.params, adapter.folder / "adapter" if adapter else None)
        found = score_labels(model, load_tokenizer(run.params), prompts, labels, run.params.eval_batch_size)
        pd.DataFrame(found, columns=labels).to_parquet(file)
        stage.finish()
    return pd.read_parquet(file).to_numpy()


def score_labels(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[Message]],
    labels: list[str],
    batch_size: int,
) -> np.ndarray:
    """Softmax over the log-probabilities of the labels, each with its end token, after each prompt.

    The prompt runs once; its keys and values are shared by the labels.
    """
    import torch

    config = _generation_config(model, tokenizer, Decoding(1, batch_size))
    answers = [[*answer_ids(tokenizer, label), end_token(tokenizer)] for label in labels]
    width = max(map(len, answers))
    said = torch.tensor([ids + [-100] * (width - len(ids)) for ids in answers], device=model.device)
    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found = np.empty((len(prompts), len(labels)))
    per_batch = max(1, batch_size // len(labels))
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        ids, mask = _left_pad([encoded[i] for i in chosen], config.pad_token_id, model.device)
        with torch.inference_mode():
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            prompt = model(
                input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1
            )
            cache = prompt.past_key_values
            cache.batch_repeat_interleave(len(labels))
            tokens = said.repeat(len(chosen), 1)
            mask = mask.repeat_interleave(len(labels), dim=0)
            after = mask.sum(-1, keepdim=True) + torch.arange(width, device=model.device)
            logits = model(
                input_ids=tokens.clamp(min=0),
                attention_mask=torch.cat([mask, torch.ones_like(tokens)], dim=-1),
                position_ids=after,
                past_key_values=cache,
            ).logits[:, :-1]
        first = prompt.logits.repeat_interleave(len(labels), dim=0)
        losses = torch.nn.functional.cross_entropy(
            torch.cat([first, logits], dim=1).float().flatten(0, 1),
            tokens.flatten(),
            ignore_index=-100,
            reduction="none",
        )
        log_p = -losses.view(len(chosen), len(labels), width).sum(-1)
        found[chosen] = log_p.double().softmax(-1).cpu().numpy()
    return found


def decode(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[Message]], how: Decoding
) -> list[list[str]]:
    """Outputs for each prompt, (prompts, samples): batches of similar length, left-padded."""
    import torch

    config = _generation_config(model, tokenizer, how)
    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    outputs: list[list[str]] = [[] for _ in prompts]
    torch.manual_seed(how.seed)
    per_batch = max(1, how.batch_size // how.samples)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        ids, mask = _left_pad([encoded[i] for i in chosen], config.pad_token_id, model.device)
        with torch.inference_mode():
            cache = _shared_prompt(model, ids, mask, how.samples)
            ids, mask = (t.repeat_interleave(how.samples, dim=0) for t in (ids, mask))
            made = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config
            )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for position, i in enumerate(chosen):
            outputs[i] = [t.strip() for t in texts[position * how.samples : (position + 1) * how.samples]]
    return outputs


def _decode_stage(
    run: Run, name: str, prompts: list[list[Message]], how: Decoding, adapter: Stage | None, recheck: bool
) -> list[list[str]]:
    import pandas as pd

    stage = run.stage(
        name,
        code=("generation", "models"),
        model=model_fingerprint(run.params),
        dtype=[run.params.dtype, run.params.quantization],
        adapter=adapter.key if adapter else None,
        prompts=prompts,
        decoding=asdict(how),
    )
    file = stage.folder / "outputs.parquet"
    if not stage.done:
        outputs, facts = _load_and_decode(run.params, adapter, prompts, how, recheck)
        pd.DataFrame({"outputs": outputs}).to_parquet(file)
        stage.finish(**facts)
    return [list(texts) for texts in pd.read_parquet(file)["outputs"]]


def _load_and_decode(
    params: RunParams, adapter: Stage | None, prompts: list[list[Message]], how: Decoding, recheck: bool
) -> tuple[list[list[str]], dict[str, Any]]:
    tokenizer = load_tokenizer(params)
    model = load_model(params, adapter.folder / "adapter" if adapter else None)
    facts: dict[str, Any] = {"training_mode": model.training}
    if adapter:
        facts["reload_difference"] = reload_difference(model, adapter.folder)
    outputs = decode(model, tokenizer, prompts, how)
    facts |= {"greedy": not model.generation_config.do_sample, "padding": _padded_side()}
    if recheck:
        alone = decode(model, tokenizer, prompts[:RECHECKED], Decoding(how.max_new_tokens, 1))
        changed = sum(a != b for a, b in zip(alone, outputs, strict=False))
        facts |= {"rechecked": len(alone), "changed_by_batching": changed}
    facts["new_tokens"] = sum(len(ids) for ids in tokenizer([t for ts in outputs for t in ts])["input_ids"])
    return outputs, facts


def reload_difference(model: Any, folder: Path) -> float:
    """Largest absolute logit difference between this loaded model and the one saved in ``folder``."""
    import torch

    probe = torch.load(folder / "probe.pt", map_location=model.device, weights_only=True)
    with torch.inference_mode():
        return float(
            (model(input_ids=probe["input_ids"]).logits[0, -1].float() - probe["logits"]).abs().max()
        )


def _generation_config(model: Any, tokenizer: PreTrainedTokenizerBase, how: Decoding) -> GenerationConfig:
    """A complete config of our own, so that none of the checkpoint's sampling settings is obeyed."""
    from transformers import GenerationConfig

    if model.training:
        raise RuntimeError(
            "the model is in training mode: dropout would change greedy answers; call model.eval()"
        )
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


def _shared_prompt(model: Any, ids: Any, mask: Any, samples: int) -> Any:
    """Keys and values of each prompt but for its last token, computed once for all its samples."""
    if samples == 1:
        return None
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    prompt = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
    cache = model(**prompt, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(samples)
    return cache


def _padded_side() -> str:
    """Where a short row beside a longer one is padded, for the gate."""
    _, mask = _left_pad([[1], [1, 1]], 0, "cpu")
    return "left" if mask[0].tolist() == [0, 1] else "right"


def _left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Any, Any]:
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
