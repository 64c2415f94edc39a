"""genai_config.json: what onnxruntime-genai must know to run a decoder folder."""

from __future__ import annotations

from typing import Any

from attar.engine.config import ModelConfig


def genai_config(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """The content of `genai_config.json` for a graph of `attar.export.onnx_emitter`.

    References:
      onnxruntime-genai `src/config.h` and `src/python/py/models/builders/base.py` (make_genai_config), 0.18.
    """
    end_tokens = list(config.eos_token_ids)
    pad_token = config.pad_token_id if config.pad_token_id is not None else next(iter(end_tokens), 0)
    model = {
        "type": config.model_type,
        "vocab_size": config.vocab_size,
        "context_length": context_length,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": end_tokens,
        "pad_token_id": pad_token,
        "decoder": _decoder(config),
    }
    if config.bos_token_id is None:
        del model["bos_token_id"]
    search = {"max_length": context_length, "past_present_share_buffer": True, "do_sample": False}
    return {"model": model, "search": search}


def _decoder(config: ModelConfig) -> dict[str, Any]:
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    local = [i for i, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
    if local:
        # The graph masks by the window itself, over caches of full length.
        decoder["sliding_window"] = {
            "window_size": config.sliding_window,
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": local,
        }
    return decoder
