"""`attar merge`: fold a low-rank adapter into the model that it was trained on."""

from __future__ import annotations

from pathlib import Path

import click

from attar.cli._console import err, out
from attar.cli._models import model_source


@click.command("merge")
@click.argument("base")
@click.argument("adapter", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Model folder.")
def command(base: str, adapter: Path, folder: Path) -> None:
    """Add a LoRA adapter to the weights of BASE and write a model folder that every other command reads.

    ADAPTER is the `adapter` folder of a run that was trained with --lora-rank, or one that PEFT wrote
    (adapter_config.json and adapter_model.safetensors).
    """
    from attar.distill.adapters import load_adapter
    from attar.engine.checkpoint import load_params, save_model

    source = model_source(base)
    with err.status("merging"):
        config, params = load_params(source)
        lora, trained = load_adapter(adapter, config)
        provenance = {"merged_from": base, "adapter": adapter.name, "rank": lora.rank, "scale": lora.scale}
        save_model(folder, config, lora.saved(trained, params), source, provenance)
    where = ", ".join(lora.targets)
    out.print(f"added rank {lora.rank}, scale {lora.scale:g}, on {where}\nwrote {folder}", soft_wrap=True)
