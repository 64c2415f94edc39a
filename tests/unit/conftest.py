"""Tiny tokenizers of every kind attar reads, trained here, and the varied texts they are compared on."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

_SCRIPTS = (
    (0x20, 0x7F), (0xA0, 0x180), (0x370, 0x400), (0x400, 0x500), (0x590, 0x600), (0x600, 0x700), (0x900, 0x980),
    (0xE00, 0xE80), (0x1100, 0x1200), (0x1E00, 0x1F00), (0x2000, 0x2070), (0x20A0, 0x20D0), (0x2100, 0x2200),
    (0x2460, 0x2500), (0x2600, 0x2700), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0xFB00),
    (0xFE00, 0xFFFF), (0x10000, 0x10100), (0x1D400, 0x1D800), (0x1F300, 0x1FAFF), (0x20000, 0x20100),
    (0xE0100, 0xE01F0), (0x0, 0xD800), (0xE000, 0x110000),
)  # fmt: skip
_WORDS = (
    "the of and to in is that it was on are as with his they be at one have this from hot word but what some out were "
    "all when your how said an each she which their time if will way about many then them write would like these long "
    "see him look more could go number people over know water first who may down side been now find any new work part "
    "don't I'm we've they'll she'd it's HE'S WE'RE"
).split()
_CODE = (
    "def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n}\n", "<h1><b>1</b></h1>",
    '{"k": [1, 2.5e-3, null]}', "SELECT * FROM t WHERE a='b';", "https://example.org/a?b=c&d=%20e",
    "#include <stdio.h>\r\n\r\nint main(void)", r"\frac{a}{b}", "==== ---- ____ **** ....", "/* comment */ // x",
)  # fmt: skip
_SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<|endoftext|>", "<0x41>",
    "<0xFF>", "\u2581", "\u2581\u2581", "\u0120", "<unk>", "</s>", "<s>", "<h1>", "<|im_", "end_of_turn>",
)  # fmt: skip
_BLANKS = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", " \t ", "\u00a0", "\u3000", "\u2003", "\u200b",
    "\u2028", "\x0b", "\x0c", "\x85",
)  # fmt: skip
# Emoji sequences, combining marks, Indic and Thai clusters, ligatures, odd cases, numbers that are not digits.
_CLUSTERS = (
    "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3", "e\u0301\u0323", "नमस्ते", "ที่นี่", "\ufb01", "\u017f",
    "'\u017f", "İ", "ß", "\u01c5", "\u2135", "½", "\u2167", "٣", "५", "㊿", "\U0001d7d8", "\U00010348",
)  # fmt: skip
_PERIODS = ("ha", "ab", "=", "-", "a", "aba", "あ", "!", "''", "{}", "10")


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Strings of every script, emoji, blanks, control characters, code, special tokens and repetitions."""
    draw = random.Random(seed)
    texts = ["", " ", "  ", "a", "\n", "\x00", "\u2581", "Hello world, こんにちは"]
    while len(texts) < count:
        texts.append("".join(_piece(draw) for _ in range(draw.randrange(1, 14))))
    return texts


def _piece(draw: random.Random) -> str:
    first, last = draw.choice(_SCRIPTS)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: "".join(chr(draw.randrange(first, last)) for _ in range(draw.randrange(1, 12))),
        lambda: " " + draw.choice(_WORDS),
        lambda: (
            " ".join(draw.choice(_WORDS).capitalize() for _ in range(draw.randrange(1, 6))) + draw.choice(".,;:!?…")
        ),
        lambda: str(draw.randrange(10 ** draw.randrange(1, 12))) + draw.choice(("", ".5", "%", "st", "€", " km")),
        lambda: draw.choice(_BLANKS) * draw.randrange(1, draw.choice((2, 4, 40))),
        lambda: draw.choice(_CODE),
        lambda: draw.choice(_SPECIAL),
        lambda: "".join(chr(draw.choice((*range(32), 127))) for _ in range(draw.randrange(1, 5))),
        lambda: draw.choice(_CLUSTERS) * draw.randrange(1, 4),
        lambda: draw.choice(_PERIODS) * draw.randrange(2, 40),
    )
    return draw.choice(kinds)()


@pytest.fixture(scope="session")
def varied_texts() -> list[str]:
    """2,000 strings, the same every time."""
    return make_texts(2000)


def _corpus() -> Iterator[str]:
    """What the tiny vocabularies are trained on: other texts of the same kind."""
    yield from make_texts(1500, seed=1)


def _lines() -> Iterator[str]:
    """The corpus in the characters up to Greek; all others are for the byte pieces."""
    for text in _corpus():
        yield from ("".join(c for c in line if "\0" < c < "\u0400") for line in text.split("\n"))


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splits() -> dict[str, Any]:
    """The published pre-tokenizers of GPT-2, SmolLM2, Llama 3 and Qwen 2, by their GGUF names."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def regex(pattern: str) -> Any:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), spelled])

    return {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "llama-bpe": regex(_LLAMA3),
        "qwen2": regex(_LLAMA3.replace("{1,3}", "")),
    }


BYTE_LEVEL_RULES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"


def _train_byte_level(rule: str, folder: Path) -> None:
    tokenizer = Tokenizer(BPE(ignore_merges=rule == "llama-bpe"))
    tokenizer.pre_tokenizer = _splits()[rule]
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken("<h1>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def byte_level_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders with a byte-level tokenizer, by the GGUF name of their splitting rule."""
    folders = {rule: tmp_path_factory.mktemp(rule) for rule in BYTE_LEVEL_RULES}
    for rule, folder in folders.items():
        _train_byte_level(rule, folder)
    return folders


@pytest.fixture(scope="session")
def sentencepiece_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SentencePiece BPE files: "plain" as Gemma's, "prefixed" as Llama 2's (a blank before every text)."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    paths = {name: folder / f"{name}.model" for name in ("plain", "prefixed")}
    for name, path in paths.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=1400,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=name == "prefixed",
            user_defined_symbols=["\u2581" * n for n in range(2, 9)] + ["\n" * n for n in range(1, 5)] + ["<h1>"],
            control_symbols=["<start_of_turn>", "<end_of_turn>"],
            pad_id=3,
            minloglevel=2,
        )
        path.write_bytes(model.getvalue())
    return paths


WriteGguf = Callable[[dict[str, Any]], Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Writes a GGUF of one tiny Llama layer, with the tokenizer metadata given."""
    count = iter(range(1000))

    def write(metadata: dict[str, Any]) -> Path:
        path = tmp_path / f"{next(count)}.gguf"
        write_tiny_llama(path, metadata)
        return path

    return write


def write_tiny_llama(path: Path, metadata: dict[str, Any], width: int = 32) -> None:
    """A well-formed model of zeros around a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": width, "feed_forward_length": width}
    for key, value in (sizes | {"attention.head_count": 1, "attention.head_count_kv": 1}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    rows = max(1, len(metadata.get("tokenizer.ggml.tokens", "a")))
    writer.add_tensor("token_embd.weight", np.zeros((rows, width), np.float16))
    vectors, matrices = ("attn_norm", "ffn_norm"), ("attn_q", "attn_k", "attn_v", "attn_output")
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name in vectors:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
    for name in (*matrices, "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
