"""`make smollm2`: the fetched GGUF weights become a folder that loads as any other model."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.smollm2 import smollm2
from medstudy.params import RunParams
from medstudy.training.chat import load_chat
from medstudy.training.decoding import Decoding, decode
from medstudy.training.models import load_model


@pytest.mark.network
def test_smollm2_answers(params: RunParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr("demo.smollm2.project_root", lambda: tmp_path)
    params = params.model_copy(update={"model": str(smollm2())})
    asked = [[{"role": "user", "content": "What is the capital of France?"}]]
    assert "Paris" in decode(load_model(params), load_chat(params), asked, Decoding(20, 1)).texts[0][0]
