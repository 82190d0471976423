"""What differs between families of models: how they are loaded, where an adapter goes, what a layer keeps."""

from __future__ import annotations

import re
from typing import Any


def reads_by_attention(model: Any) -> bool:
    """Whether all that a layer keeps of a text are keys and values, which several readings can share.

    A state or a convolution is also told of what stands between, be it padding or another answer.
    """
    import torch

    model = without_peft(model)
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    states = getattr(model, "_is_stateful", False)
    states |= any(isinstance(module, torch.nn.Conv1d) for module in model.get_decoder().modules())
    return kinds <= {"full_attention", "sliding_attention"} and not states


def without_peft(model: Any) -> Any:
    """The model itself, adapters and all, without the wrapper that PEFT puts around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def without_adapter(model: Any) -> str:
    """Regular expression of the names of layers that LoRA leaves alone; empty where it may go anywhere.

    All but the part that reads and writes text; routers, which are no plain linear layers; and those of state space
    layers and of Gemma 3n's AltUp whose weights are used directly, past any adapter.
    """
    import torch

    found = set()
    if model.config.get_text_config() is not model.config:
        decoder = model.get_decoder()
        name = next(name for name, module in model.named_modules() if module is decoder)
        found.add(rf"(?!{re.escape(name)}\.).*")
    for name, module in model.named_modules():
        kind, pattern = type(module).__name__, re.sub(r"\d+", r"\\d+", re.escape(name))
        if isinstance(module, torch.nn.Linear) and "Router" in kind:
            found.add(pattern)
        elif re.search("Mamba.*Mixer|H1Mixer", kind):
            found.add(rf"{pattern}\.(out_proj|dt_proj|conv1d)")
        elif "AltUp" in kind:
            found.add(rf"{pattern}\..*")
    return "|".join(sorted(found))


def loader(config: Any) -> Any:
    """The loader of a checkpoint: of a multimodal one that has no text-only class, the whole."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return (AutoModelForCausalLM if known else AutoModelForImageTextToText).from_pretrained


def prepare(config: Any) -> None:
    """No dropout in any arm: DPO switches off dropout layers, SFT does not, and neither reaches what is a function."""
    for part in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))):
        for name, value in list(vars(part).items()) if part is not None else []:
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    text = config.get_text_config()
    if hasattr(text, "num_local_experts") and not hasattr(text, "num_experts"):
        text.num_experts = text.num_local_experts  # the only name by which TRL knows them
