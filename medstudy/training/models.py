"""Loading: one function for built-in models, local folders and hub ids, the same for every arm."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import PeftModel
from transformers.utils import logging

from medstudy.params import BUILTIN, RunParams, refuse_missing
from medstudy.training.checkpoint import MISTAKES, ModelError, check_files, locate, reach, revision

#: What the attention of all layers may keep for the backward pass of a batch, where it is computed eagerly.
EAGER_GB = 2
#: Layers (state spaces, Gemma 3n's AltUp, Phi's router) whose weights are used past any adapter.
NO_LORA = re.compile("Mamba|Bamba|H1Mixer|AltUp|PhimoeTopKRouter")


def load_tokenizer(params: RunParams) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, with an end token and one to pad with; without an end token it is a ModelError."""
    # no progress bars and no deprecation notes of the libraries' own making in executed notebooks
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|peft")
    check_files(locate(params))
    tokenizer = _load(params, transformers.AutoTokenizer.from_pretrained)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model = {params.model!r} has no end token, so it would never stop; choose an instruct model")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary(params):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    params: RunParams, adapter: Path | None = None, trainable: bool = False, merged: bool = False, longest: int = 0
) -> transformers.PreTrainedModel:
    """The base model, with a saved LoRA adapter (named ``default``) if one is given, in eval mode unless ``trainable``.

    ``merged`` adds the adapter to the weights where they are fp32, which decodes faster; in fewer bits the sum would
    be rounded to another model. ``longest``: tokens of the longest row to be trained on.

    Raises:
        ModelError: the model cannot be reached, does not fit its own config, or has layers that take no adapter.
    """
    if params.model in BUILTIN and "OMP_NUM_THREADS" not in os.environ:
        # measured on two cores, for matrices this small: a second thread gains a third when the machine is idle, and
        # costs a factor of twenty as soon as anything else runs, because waiting threads spin
        torch.set_num_threads(1)
    check_files(locate(params))
    config = _load(params, transformers.AutoConfig.from_pretrained)
    _prepare(config)
    # a multimodal checkpoint without a text-only class (MedGemma) is loaded whole
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    how = _load_arguments(params, config, longest)
    made, loaded = _load(params, auto.from_pretrained, config=config, output_loading_info=True, **how)
    if wrong := _fault(made, loaded["missing_keys"]):
        raise ModelError(f"model = {params.model!r}: {wrong}")
    made.config.use_cache = True
    if adapter is not None:
        made = PeftModel.from_pretrained(made, str(adapter), is_trainable=trainable)
        if merged and compute_dtype(params) == torch.float32 and params.quantization == "none":
            made = made.merge_and_unload()
    return made.train(trainable)


def context_length(params: RunParams, tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Tokens that the model can hold, prompt and answer together; a ModelError where nothing says so."""
    for length in (getattr(_text_config(params), "max_position_embeddings", None), tokenizer.model_max_length):
        if isinstance(length, int) and length < 1e9:  # a tokenizer that does not know says 1e30
            return length
    raise ModelError(
        f"model = {params.model!r}: neither config nor tokenizer says how many tokens it holds; write "
        '"max_position_embeddings" into its config.json'
    )


def vocabulary(params: RunParams) -> int:
    """How many tokens the model has embeddings for."""
    return int(_text_config(params).vocab_size)


def stop_tokens(params: RunParams) -> tuple[int, ...]:
    """Tokens at which the checkpoint's own settings end generation."""
    try:
        listed = transformers.GenerationConfig.from_pretrained(locate(params), revision=revision(params)).eos_token_id
    except OSError:
        listed = _text_config(params).eos_token_id
    return tuple([listed] if isinstance(listed, int) else listed or [])


def compute_dtype(params: RunParams) -> torch.dtype:
    """Dtype of the weights: as asked, else bf16 on a GPU that has it, else fp32."""
    if params.dtype != "auto":
        return getattr(torch, params.dtype)
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gpu else torch.float32


def train_in_bf16(params: RunParams) -> bool:
    """Whether a training multiplies in bf16: as the weights are, so that all CPUs compute alike unless told."""
    return compute_dtype(params) == torch.bfloat16


def eager_gb(params: RunParams, config: Any, longest: int) -> float:
    """What eager attention keeps: ten bytes for each head, layer and pair of tokens of a batch (measured)."""
    text = config.get_text_config()
    heads, layers = (getattr(text, name, 1_000) for name in ("num_attention_heads", "num_hidden_layers"))
    return 1e-8 * params.batch_size * heads * layers * longest**2


def without_peft(model: Any) -> Any:
    """The model itself, adapters and all, without the wrapper that PEFT puts around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def reads_by_attention(model: Any) -> bool:
    """Whether all that a layer keeps of a text are keys and values, which several readings can share."""
    model = without_peft(model)
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    states = getattr(model, "_is_stateful", False)
    states |= any(isinstance(module, torch.nn.Conv1d) for module in model.get_decoder().modules())
    return kinds <= {"full_attention", "sliding_attention"} and not states


def _prepare(config: Any) -> None:
    """No dropout in any arm: DPO switches off dropout layers, SFT does not, and neither reaches what is a function."""
    for part in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))):
        for name, value in list(vars(part).items()) if part is not None else []:
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    text = config.get_text_config()
    if hasattr(text, "num_local_experts") and not hasattr(text, "num_experts"):
        text.num_experts = text.num_local_experts  # the only name by which TRL knows them


def _load_arguments(params: RunParams, config: Any, longest: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dtype": compute_dtype(params)}
    if torch.cuda.is_available():
        # a model that is larger than one GPU is spread over those that the run was given
        arguments["device_map"] = "auto" if torch.cuda.device_count() > 1 else {"": 0}
    elif longest and compute_dtype(params) == torch.float32 and eager_gb(params, config, longest) <= EAGER_GB:
        # measured: for short rows eager attention trains 1.2 to 1.5 times faster than SDPA on a CPU; SDPA
        # answers faster, with less memory. In fewer bits the two differ by as much as the gates look for
        arguments["attn_implementation"] = "eager"
    if params.quantization == "4bit":
        refuse_missing(params)
        how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype(params)}
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(load_in_4bit=True, **how)
    return arguments


def _load(params: RunParams, load: Any, **arguments: Any) -> Any:
    commit = {"revision": revision(params)} if revision(params) else {}
    return reach(params.model, load, locate(params), **commit, **arguments)


def _text_config(params: RunParams) -> Any:
    return _load(params, transformers.AutoConfig.from_pretrained).get_text_config()


def _fault(model: Any, missing: set[str]) -> str:
    """What would be seen after hours of work only; three tokens show whether the config fits the code."""
    if missing:
        return f"its files lack {', '.join(sorted(missing)[:3])}, which would be random; download it again"
    if model.base_model is model:  # which its losses are computed from
        return f"TRL does not find the backbone of a {type(model).__name__}"
    if kinds := {kind for module in model.modules() if NO_LORA.search(kind := type(module).__name__)}:
        return f"it has layers that take no LoRA adapter ({', '.join(sorted(kinds)[:3])}); choose another model"
    try:
        with torch.inference_mode():
            model.eval()(input_ids=torch.zeros((1, 3), dtype=torch.long, device=model.device))
    except MISTAKES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it does not run ({error}); see its config.json"
    return ""
