"""Batches as a teacher of another vocabulary reads them: its own prompts, and the completions in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attar.distill.alignment import align
from attar.distill.batches import Batch, TeacherView, choose_bounds, pad_batch, round_up
from attar.distill.data import Example
from attar.engine.sharding import to_host
from attar.engine.tokenizer import Tokenizer

_PROMPT_BUCKETS = 3


class TeacherReader:
    """Makes the teacher's view of batches.

    Args:
      prompts: Of every example of the data, as the teacher's tokenizer and chat template render it.
      student, teacher: Their tokenizers.
      max_tokens: Longest completion in the teacher's tokens; what is longer is cut, and not compared there.
    """

    def __init__(
        self, prompts: Sequence[NDArray[np.int32]], student: Tokenizer, teacher: Tokenizer, max_tokens: int
    ) -> None:
        self._prompts = prompts
        self._student, self._teacher = student, teacher
        self._max_tokens = max_tokens
        self._bounds = choose_bounds([len(prompt) for prompt in prompts], _PROMPT_BUCKETS)

    def view(self, batch: Batch, members: Sequence[Sequence[int]]) -> Batch:
        """The batch with the teacher's view of its completions, the data's or the student's own.

        Args:
          batch: B rows; its completions are brought to the host.
          members: The example of each row.
        """
        tokens, lengths = to_host(batch.completions), to_host(batch.completion_lengths)
        positions = np.full(tokens.shape, -1, np.int32)
        rows = []
        for row, (example,) in enumerate(members):
            completion = tokens[row, : lengths[row]].tolist()
            ids, found = align(completion, self._student, self._teacher, self._max_tokens)
            positions[row, : lengths[row]] = found
            rows.append(Example(0, self._prompts[example], np.array(ids, np.int32), "", ""))
        longest = round_up(max(len(row.prompt) for row in rows), self._bounds)
        read = pad_batch(rows, longest, self._max_tokens, self._teacher.eos_token_ids[0])
        return batch._replace(view=TeacherView(*read[:4], positions))
