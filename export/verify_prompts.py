"""What an exported file is asked to read when it is verified.

Two kinds of prompt, since they find different faults. Random ids look up rows of the token table that text never
reaches, but drive a model far from anything it was trained on, where runtimes that round activations to 8 bits move
many near-equal choices. Text is what those are judged on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attar.engine.config import ModelConfig
from attar.engine.tokenizer import load_tokenizer

_TEXT = """\
Distillation is one of the oldest ways of taking a mixture apart. A liquid is heated until the part of it that boils \
most easily turns to vapour, the vapour is led away through a cool pipe, and what drips from the far end is richer \
in that part than the mixture was. The perfume makers of Kannauj still work this way. Before sunrise they fill \
copper stills with petals and water, seal the lids with clay, and light fires of wood and dried dung underneath. A \
bamboo tube carries the steam into a long-necked vessel that stands in a pond, and in that vessel lies a little \
sandalwood oil, which takes up the scent and keeps it. After six hours the fire is put out. The worker who tends it \
has no thermometer: he listens to the sound of the boiling and touches the copper with the back of his hand. Some \
forty kilograms of roses give a few grams of attar, and a good batch is left in leather bottles for years before it \
is sold.

The idea travels well. In 1834 a chemist who wanted lamp oil from coal tar noticed that each fraction came over at a \
temperature of its own, and he wrote the numbers down in a table. Sixty years later refineries had towers with \
dozens of trays, each a small still, so that one pass through the tower did the work of many. Whisky is distilled \
twice or three times in copper pots whose shape decides what is left behind; the first runnings and the last are \
kept apart and go back into the next batch. Sea water is distilled on ships. Even air can be distilled: cooled to \
minus two hundred degrees it becomes a pale blue liquid, from which nitrogen boils off first, then argon, and oxygen \
last.

Software borrowed the word in this century. A large network that has learned to name what is in a picture, or to \
continue a sentence, holds more than its single best answer: it also says how likely it finds all the others. A \
small network that is trained to give the same probabilities learns faster than one that only sees the right \
answers, because a wrong answer that is nearly right teaches something that a plain "no" does not. The large one is \
called the teacher, the small one the student. If the student only reads what the teacher wrote, it never sees its \
own mistakes; so one lets it write for itself and asks the teacher, word by word, what should have come next.

What is gained is room. A telephone has perhaps six gigabytes of memory, which the camera, the radio and a dozen \
other programs want as well, and its battery holds about fifteen watt hours. Each word that a model writes reads \
every weight once, so a model of half the size is about twice as fast and costs half the energy. Rounding the \
weights helps again: four bits instead of thirty-two make the file eight times smaller. Done carelessly it also \
makes the answers worse, and the only way to know is to measure: run the same text through both, compare the \
probabilities at every position, and look at the places where they differ. If the two models would have chosen the \
same word in nearly all of them, and neither is more surprised by the text than the other, the small one may stand \
in for the large one."""


def random_prompt(config: ModelConfig, context_length: int) -> list[int]:
    """Pseudo-random token ids, the same every time, longer than the attention window where the context allows."""
    length = _length(config, context_length)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, length)
    if config.bos_token_id is not None:
        ids[0] = config.bos_token_id
    return [int(i) for i in ids]


def text_prompt(checkpoint: Path, config: ModelConfig, context_length: int) -> list[int]:
    """English text in the checkpoint's own tokens, longer than the attention window where the context allows.

    Raises:
      TokenizerError: If the checkpoint's tokenizer cannot be read.
    """
    ids = load_tokenizer(checkpoint).encode(_TEXT, add_special=True)
    length = _length(config, context_length)
    while len(ids) < length:
        ids = ids + ids
    return ids[:length]


def _length(config: ModelConfig, context_length: int) -> int:
    return min(context_length, max(256, (config.sliding_window or 0) + 128))
