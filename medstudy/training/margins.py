"""How far DPO set the two answers of a pair apart, on the pairs that it was trained on and on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medstudy.runs import Run, Stage
from medstudy.show import aggregate
from medstudy.training.chat import load_chat
from medstudy.training.models import load_model
from medstudy.training.preferences import Pairs

if TYPE_CHECKING:
    import pandas as pd

#: Pairs of a set that are looked at.
LOOKED_AT = 32


def margins(run: Run, dpo: Stage, sets: Mapping[str, Pairs]) -> pd.DataFrame:
    """What DPO changed against the SFT model that it began as, on up to `LOOKED_AT` pairs of each set.

    Returns:
        A row a set that has pairs: ``pairs``; ``margin``, by how much (mean, in nats) log p(chosen) - log p(rejected)
        grew, which is DPO's reward margin without beta; ``accuracy``, the share of pairs in which it grew;
        ``log p(chosen)``, what the chosen answers gained.
    """
    import pandas as pd

    chat = load_chat(run.params)
    rows = {name: [chat.trained(pair.row()) for pair in made.pairs[:LOOKED_AT]] for name, made in sets.items()}
    rows = {name: some for name, some in rows.items() if some}
    stage = run.stage("margins", ("training.margins", "training.models"), dpo, rows=rows)
    if not stage.done:
        gained = dict.fromkeys(rows, 0.0)
        for sign, adapter in ((-1, dpo.start), (1, dpo)):
            model = load_model(run.params, adapter.folder / "adapter", merged=True)
            gained = {name: gained[name] + sign * log_p(model, rows[name], run.params.batch_size) for name in rows}
        stage.finish(**{name: _means(chosen, chosen - rejected) for name, (chosen, rejected) in gained.items()})
    columns = ["pairs of", "pairs", "margin", "accuracy", "log p(chosen)"]
    table = pd.DataFrame([{"pairs of": name} | stage.facts[name] for name in rows], columns=columns)
    return aggregate(table.set_index("pairs of"), ["pairs of"])


def _means(chosen: Any, margin: Any) -> dict[str, float]:
    means = {"margin": margin.mean(), "accuracy": (margin > 0).double().mean(), "log p(chosen)": chosen.mean()}
    return {"pairs": len(chosen), **{name: float(f"{value:.3g}") for name, value in means.items()}}


def log_p(model: Any, rows: list[dict[str, list[int]]], size: int) -> Any:
    """Log-probability in nats of the chosen and the rejected answers, shape (2, pairs), float64; ``size`` at a time."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    found = []
    for start in range(0, len(rows), size):
        taken = rows[start : start + size]
        batch = [(row["prompt_ids"], row[side]) for row in taken for side in ("chosen_ids", "rejected_ids")]
        whole = [torch.tensor(prompt + answer, device=model.device) for prompt, answer in batch]
        ids = pad_sequence(whole, batch_first=True)
        mask = pad_sequence([torch.ones_like(one) for one in whole], batch_first=True)
        with torch.inference_mode():
            scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        each = scores.gather(2, ids[:, 1:, None])[..., 0].double().cpu()
        found += [each[i, len(p) - 1 : len(p) + len(a) - 1].sum() for i, (p, a) in enumerate(batch)]
    return torch.stack(found).reshape(-1, 2).T
