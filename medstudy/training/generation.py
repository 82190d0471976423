"""Answers that are kept: greedy ones of an arm, and samples of the model's own for preference pairs."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medstudy.data.cases import Case
from medstudy.files import fingerprint
from medstudy.runs import Run, Stage
from medstudy.tasks.base import Message, Task
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import note_model
from medstudy.training.decoding import Decoding, changed_alone, decode
from medstudy.training.models import load_model

#: Test cases whose answers are looked at again one by one, to see whether batching changes them.
RECHECKED = 8
#: What a stage keeps.
OUTPUTS, PROBABILITIES = "outputs.parquet", "probabilities.parquet"


def answer_cases(
    run: Run, arm: str, task: Task, cases: list[Case], adapter: Stage | None = None, examples: list[Case] | None = None
) -> list[str]:
    """Greedy answers of one arm (base, few_shot, sft, …) to ``cases``; kept in private/, and read back the next time.

    ``cases`` other than the test cases do not replace those answers; ``adapter`` is the finished training, None for
    the base model; ``examples`` are put before each prompt.
    """
    split, labels = run.split_of(cases), []
    if split == "test" and len(task.card.labels) == 1 and cases:
        [of_card] = task.card.labels.values()
        labels = of_card if task.target(cases[0]) in of_card else []  # else an answer is more than a label
    how = Decoding(run.params.max_new_tokens, run.params.eval_batch_size)
    prompts = [task.messages(case, examples) for case in cases]
    name = f"answers_{arm}" if split == "test" else f"{split}_{arm}"
    return [text for (text,) in _decode_stage(run, name, prompts, how, adapter, labels)]


def sample_cases(run: Run, task: Task, cases: list[Case], adapter: Stage) -> list[list[str]]:
    """``samples_per_case`` answers at temperature 1 to each preference case, from the SFT model."""
    params = run.params
    how = Decoding(params.max_new_tokens, params.eval_batch_size, params.samples_per_case, 1.0, params.seed)
    return _decode_stage(run, "samples", [task.messages(case) for case in cases], how, adapter)


def label_probabilities(run: Run, arm: str) -> np.ndarray:
    """Probability of each allowed label (cases, labels), as an arm sees them that has answered the test cases."""
    return pd.read_parquet(run.stages[f"answers_{arm}"].folder / PROBABILITIES).to_numpy()


def _decode_stage(
    run: Run, name: str, prompts: list[list[Message]], how: Decoding, adapter: Stage | None, labels: Sequence[str] = ()
) -> list[list[str]]:
    """Texts (prompts, samples) of a stage; the first answers to test cases are looked at again, for the gates."""
    chat = load_chat(run.params)
    stage = run.stage(
        name,
        code=("training.generation", "training.decoding", "training.models"),
        model=note_model(run),
        dtype=[run.params.dtype, run.params.quantization],
        start=adapter,
        prompts=[chat.prompt(messages) for messages in prompts],
        stops=chat.stops,
        decoding=asdict(how),
        labels=[chat.row(prompts[0], label)[1] for label in labels] if prompts else [],
    )
    if not stage.done:
        model = load_model(run.params, adapter.folder / "adapter" if adapter else None, merged=True)
        facts: dict[str, Any] = {"training_mode": model.training, "adapter": adapter_hash(adapter)}
        if adapter:
            facts["reload_difference"] = reload_difference(model, adapter.folder)
        made = decode(model, chat, prompts, how, labels)
        facts |= {"greedy": not made.config.do_sample, "padding": made.padding}
        facts["drawn"] = {name: getattr(made.config, name) for name in ("temperature", "top_k", "top_p")}
        if name.startswith("answers_"):
            first = [ids for (ids,) in made.ids[:RECHECKED]]
            changed = changed_alone(model, chat, prompts[:RECHECKED], first)
            facts |= {"rechecked": len(first), "changed_by_batching": changed}
        facts["new_tokens"] = sum(len(ids) for several in made.ids for ids in several)
        asked = [fingerprint(ids) for ids in made.asked]
        pd.DataFrame({"outputs": made.texts, "asked": asked}).to_parquet(stage.folder / OUTPUTS)
        if labels:
            pd.DataFrame(made.probabilities, columns=labels).to_parquet(stage.folder / PROBABILITIES)
        stage.finish(**facts)
    return [list(texts) for texts in pd.read_parquet(stage.folder / OUTPUTS)["outputs"]]


def adapter_hash(training: Stage | None) -> str:
    """Tells adapters apart by their weights; empty for the base model."""
    file = training and training.folder / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file else ""


def reload_difference(model: Any, folder: Path) -> float:
    """Largest logit difference between this loaded model and the one saved in ``folder``, as share of the largest."""
    probe = torch.load(folder / "probe.pt", map_location=model.device, weights_only=True)
    with torch.inference_mode():
        seen = model(input_ids=probe["input_ids"]).logits[0, -1].float()
    return float((seen - probe["logits"]).abs().max() / probe["logits"].abs().max())
