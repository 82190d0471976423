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
CODE = ("training.margins", "training.models")


def margins(run: Run, dpo: Stage, sets: Mapping[str, Pairs]) -> pd.DataFrame:
    """What DPO changed against the SFT model that it began as, from the saved adapters.

    Args:
        run: keeps what was measured, also in run.json.
        dpo: the training; it goes on from SFT.
        sets: name -> pairs, of which the first `LOOKED_AT` are measured.

    Returns:
        A row a set that has pairs: ``pairs``; ``margin``, by how much (mean, in nats) log p(chosen) - log p(rejected)
        grew, which is DPO's reward margin without beta; ``accuracy``, the share of pairs in which it grew;
        ``log p(chosen)``, what the chosen answers gained.
    """
    import pandas as pd

    chat, size = load_chat(run.params), run.params.batch_size
    looked_at = {name: made.pairs[:LOOKED_AT] for name, made in sets.items() if made.pairs}
    rows = {name: [chat.trained(pair.row()) for pair in pairs] for name, pairs in looked_at.items()}
    stage = run.stage("margins", CODE, dpo, rows=rows)
    if not stage.done:
        gained = dict.fromkeys(rows, 0.0)
        for sign, adapter in ((-1, dpo.start), (1, dpo)):
            model = load_model(run.params, adapter.folder / "adapter", merged=True)
            gained = {name: gained[name] + sign * log_p(model, rows[name], size) for name in rows}
        stage.finish(**{name: _measured(values) for name, values in gained.items()})
    columns = ["pairs of", "pairs", "margin", "accuracy", "log p(chosen)"]
    table = pd.DataFrame([{"pairs of": name} | stage.facts[name] for name in rows], columns=columns)
    return aggregate(table.set_index("pairs of"), ["pairs of"])


def _measured(gained: Any) -> dict[str, float]:
    margin, chosen = gained[:, 0] - gained[:, 1], gained[:, 0]
    means = {"margin": margin.mean(), "accuracy": (margin > 0).double().mean(), "log p(chosen)": chosen.mean()}
    return {"pairs": len(gained), **{name: float(f"{value:.3g}") for name, value in means.items()}}


def log_p(model: Any, rows: list[dict[str, list[int]]], size: int) -> Any:
    """Log-probability of both answers of each pair in nats, shape (pairs, 2), float64; ``size`` pairs at a time."""
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
    return torch.stack(found).reshape(-1, 2)
