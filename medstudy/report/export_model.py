"""The trained model of an arm as a folder of its own, for use without medstudy or PEFT."""

from __future__ import annotations

import json
from pathlib import Path

from medstudy.data.cases import DataError
from medstudy.params import resolve
from medstudy.report.privacy import is_private
from medstudy.training.fit import PRIVATE_ADAPTER
from medstudy.training.models import compute_dtype, load_model, load_tokenizer


def export_model(run: Path, arm: str, target: Path, allow_private: bool = False) -> None:
    """Write base and adapter of a finished run as one model: safetensors, with tokenizer and chat template.

    The two are added in fp32 and kept in the dtype of the run; of a run on 4-bit weights the sum is with the whole base
    model, from which the one that was trained differs by rounding.

    Raises:
        DataError: the run is not finished, the arm is none that it trained, the target is there, or the cases are
            private, which the weights may give away in parts, and nobody allowed it.
    """
    files = run / "run.json", run / "private" / "parameters.json"
    if not all(file.is_file() for file in files):
        raise DataError(f"{run} is no finished run; see: medstudy status")
    record, parameters = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    trained = [name for name, stage in record["stages"].items() if "steps" in stage]
    if arm not in trained:
        raise DataError(f"{run} trained no arm '{arm}' (allowed: {', '.join(trained)})")
    if is_private(run) and not allow_private:
        raise DataError(
            f"the cases of {run} may not be shown (no `shareable: true` in their data card), and a model may give "
            "parts of them away. If this is allowed, repeat with --allow-private"
        )
    if target.exists():
        raise DataError(f"{target} is there already; give another folder")
    params = resolve(parameters)
    adapter = run / "private" / "stages" / arm / record["stages"][arm]["key"] / "adapter"
    whole = params.model_copy(update={"dtype": "float32", "quantization": "none"})
    load_model(whole, adapter, merged=True).to(compute_dtype(params)).save_pretrained(target)
    load_tokenizer(params).save_pretrained(target)
    if is_private(run):
        (target / "README.md").write_text(PRIVATE_ADAPTER.replace("adapter", "model"), encoding="utf-8")
