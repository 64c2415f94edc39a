"""transformers opens the tokenizers that attar writes, with the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attar.engine.chat_template import render_chat
from attar.engine.tokenizer import gguf_tokenizer_metadata, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from tests.unit.conftest import WriteGguf

pytestmark = pytest.mark.reference
KINDS = ["gpt-2", "smollm", "llama-bpe", "qwen2", "plain", "prefixed"]


def _open(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("default")
def test_a_folder_written_for_a_gguf_teacher(
    kind: str,
    byte_level_folders: dict[str, Path],
    sentencepiece_models: dict[str, Path],
    write_gguf: WriteGguf,
    tmp_path: Path,
    varied_texts: list[str],
) -> None:
    source = (byte_level_folders | sentencepiece_models)[kind]
    tokenizer = load_tokenizer(write_gguf(gguf_tokenizer_metadata(source)))
    save_tokenizer(tokenizer, tmp_path / "student")
    peer = _open(tmp_path / "student")
    for text in varied_texts:
        assert peer.encode(text, add_special_tokens=False) == tokenizer.encode(text), text
        assert peer.encode(text) == tokenizer.encode(text, add_special=True), text
    assert (peer.bos_token_id, peer.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert peer.eos_token_id == tokenizer.eos_token_ids[0]
    assert peer.chat_template == tokenizer.chat_template
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": " Hi  "}, {"role": "assistant", "content": "Yo"}]
        for prompt in (False, True):
            wanted = peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert render_chat(tokenizer.chat_template, messages, add_generation_prompt=prompt) == wanted
