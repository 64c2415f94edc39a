"""`attar inspect`: show what is inside a model folder or file."""

from __future__ import annotations

import dataclasses

import click
from rich.table import Table

from attar.cli._console import make_table, out, print_json, spell_bytes
from attar.cli._models import checkpoint_folder
from attar.engine.config import ModelConfig
from attar.export.inspection import Inspection, cache_bytes, inspect_model
from attar.runtime.hub import resolve

_CONTEXTS = (512, 2048, 8192, 32768)


@click.command("inspect")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--context", "-c", type=click.IntRange(1), help="Show the cache's bytes for this many tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, tensors: bool, context: int | None, as_json: bool) -> None:
    """Show MODEL's shape, the bytes and types of its parts, and the KV cache that a context costs.

    MODEL is a name, a checkpoint or run folder, or a .gguf, .onnx or .tflite file. Weights are not loaded.
    """
    found = inspect_model(checkpoint_folder(resolve(model)))
    contexts = (context,) if context else _CONTEXTS
    if as_json:
        print_json(_to_json(found, contexts, tensors))
        return
    out.print(f"[bold]{found.path}[/]  {found.format}, {spell_bytes(found.size_bytes)}", soft_wrap=True)
    if found.config is not None:
        out.print(_config_table(found.config))
    for label, value in found.facts.items():
        out.print(f"[dim]{label}:[/] {value}", soft_wrap=True)
    out.print(_part_table(found))
    if found.config is not None:
        out.print(_cache_table(found.config, contexts))
    if tensors:
        rows = [(t.name, "x".join(map(str, t.shape)), t.type_name, spell_bytes(t.size_bytes)) for t in found.tensors]
        out.print(make_table("tensors", ["name", "shape", "type", "bytes"], rows))


def _config_table(config: ModelConfig) -> Table:
    local = config.layer_types.count("sliding_attention")
    layers = f"{config.num_hidden_layers}" + (f" ({local} local, window {config.sliding_window})" if local else "")
    caps = [config.attn_logit_softcapping, config.final_logit_softcapping]
    rows = [
        ("family", config.model_type),
        ("parameters", f"{config.num_parameters:,} ({config.embedding_parameters:,} of them embedding)"),
        ("layers", layers),
        ("hidden / feed-forward", f"{config.hidden_size} / {config.intermediate_size}"),
        ("heads", f"{config.num_attention_heads} query, {config.num_key_value_heads} KV, {config.head_dim} wide"),
        ("vocabulary", f"{config.vocab_size:,}" + (", tied head" if config.tie_word_embeddings else "")),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("RoPE base", f"{config.rope_theta:g}" + (f", local {config.rope_local_base_freq:g}" if local else "")),
    ]
    if any(caps):
        rows.append(("soft caps", f"attention {caps[0]}, logits {caps[1]}"))
    return make_table(None, ["", ""], rows)


def _part_table(found: Inspection) -> Table:
    types = found.types_by_part()
    totals = found.bytes_by_part()
    whole = sum(totals.values()) or 1
    rows = [(part, types[part], spell_bytes(n), f"{100 * n / whole:.1f} %") for part, n in totals.items()]
    return make_table("weights", ["part", "types", "bytes", "share"], rows)


def _cache_table(config: ModelConfig, contexts: tuple[int, ...]) -> Table:
    shown = [n for n in contexts if n <= config.max_position_embeddings] or list(contexts[:1])
    rows = [
        (f"{n:,} tokens", spell_bytes(cache_bytes(config, n, 2)), spell_bytes(cache_bytes(config, n, 4))) for n in shown
    ]
    return make_table("KV cache", ["context", "float16", "float32"], rows)


def _to_json(found: Inspection, contexts: tuple[int, ...], tensors: bool) -> dict[str, object]:
    config = found.config
    value: dict[str, object] = {
        "path": str(found.path),
        "format": found.format,
        "size_bytes": found.size_bytes,
        "config": None if config is None else dataclasses.asdict(config),
        "parameters": None if config is None else config.num_parameters,
        "bytes_by_part": found.bytes_by_part(),
        "facts": found.facts,
        "cache_bytes_f16": {} if config is None else {str(n): cache_bytes(config, n) for n in contexts},
    }
    if tensors:
        value["tensors"] = [dataclasses.asdict(tensor) for tensor in found.tensors]
    return value
