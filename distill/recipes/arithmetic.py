"""The recipe `arithmetic`: word problems of several steps, with a chain of calculation that can be checked.

Made from a seed, without a download. Prompt and completion have the form that `attar.distill.data` gives GSM8K's lines,
so that models and evaluations move between the two. A problem is told apart from others by its kind of story and the
expressions of its chain, not by names: no problem stands in two splits, whatever the seed or the sizes, because a hash
of these two decides its split. A second test part tells kinds of story that training never does.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from attar.distill.recipes._output import RecipeReport, write_data_set
from attar.distill.recipes._story import Misfit, Problem, Schema, make_problem
from attar.distill.recipes._story_schemas import SCHEMAS
from attar.distill.recipes._story_schemas_held_out import HELD_OUT_SCHEMAS

SPLITS = ("train", "validation", "test", "test_held_out_schemas")
MIN_STEPS, MAX_STEPS = 2, 6

_HELD_OUT_PERCENT = 10
_PATIENCE = 2000  # draws without success that end a search


class TooFewProblemsError(ValueError):
    """There are fewer distinct problems of the steps asked for than were asked for."""


@dataclass
class ArithmeticReport(RecipeReport):
    """A report on word problems.

    Attributes:
      schemas: Problems by kind of story, over all splits.
    """

    schemas: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ArithmeticConfig:
    """What to make.

    Attributes:
      train: Problems to train on.
      held_out: Problems of validation, and of each of the two test parts.
      min_steps: Shortest chain.
      max_steps: Longest chain.
      seed: Of the draws. The problems of a smaller set come first in a larger one of the same seed and steps.
    """

    train: int = 8000
    held_out: int = 500
    min_steps: int = MIN_STEPS
    max_steps: int = MAX_STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        if not MIN_STEPS <= self.min_steps <= self.max_steps <= MAX_STEPS:
            raise ValueError(
                f"steps must satisfy {MIN_STEPS} <= min_steps <= max_steps <= {MAX_STEPS}, "
                f"got {self.min_steps} and {self.max_steps}"
            )


def build(
    folder: Path, config: ArithmeticConfig | None = None, *, progress: Callable[[str], None] | None = None
) -> ArithmeticReport:
    """Writes `train`, `validation`, `test` and `test_held_out_schemas.jsonl` and `recipe.json` into `folder`.

    Args:
      folder: Output folder, made if it does not exist.
      config: What to make; None takes the defaults.
      progress: Called with a few words now and then.

    Raises:
      TooFewProblemsError: If the problems run out before the sizes are reached.
      OSError: If the folder cannot be written.
    """
    config = config or ArithmeticConfig()
    folder.mkdir(parents=True, exist_ok=True)
    splits = make_splits(config, progress)
    problems = [problem for members in splits.values() for problem in members]
    report = ArithmeticReport("arithmetic", "made from the seed", asdict(config))
    report.schemas = dict(Counter(problem.schema for problem in problems))
    write_data_set(folder, {name: [p.to_example() for p in members] for name, members in splits.items()}, report)
    return report


def make_splits(config: ArithmeticConfig, progress: Callable[[str], None] | None = None) -> dict[str, list[Problem]]:
    """The problems of each split.

    Raises:
      TooFewProblemsError: If the problems run out before the sizes are reached.
    """
    splits: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    sizes = dict.fromkeys(SPLITS, config.held_out) | {"train": config.train}
    known, new = draw_problems(SCHEMAS, config), draw_problems(HELD_OUT_SCHEMAS, config)
    while any(len(splits[name]) < sizes[name] for name in SPLITS[:-1]):
        problem = next(known)
        name = split_of(problem)
        if len(splits[name]) < sizes[name]:
            splits[name].append(problem)
            if progress and len(splits[name]) % 100 == 0:
                progress(f"{sum(map(len, splits.values())):,} of {sum(sizes.values()):,} problems")
    splits[SPLITS[-1]].extend(islice(new, config.held_out))
    return splits


def split_of(problem: Problem) -> str:
    """The split of a problem by a hash of its kind and chain; validation and test get a tenth each."""
    text = "|".join((problem.schema, *problem.chain))
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    if bucket < 100 - 2 * _HELD_OUT_PERCENT:
        return "train"
    return "validation" if bucket < 100 - _HELD_OUT_PERCENT else "test"


def draw_problems(schemas: Sequence[Schema], config: ArithmeticConfig) -> Iterator[Problem]:
    """Distinct problems without end, kinds of story and numbers of steps in equal shares.

    Raises:
      TooFewProblemsError: If many draws in a row bring nothing new.
    """
    rng = random.Random(config.seed)
    seen: set[tuple[str, ...]] = set()
    repeats = 0
    while repeats < _PATIENCE:
        problem = _draw(rng.choice(schemas), rng.randint(config.min_steps, config.max_steps), rng)
        key = (problem.schema, *problem.chain)
        repeats = repeats + 1 if key in seen else 0
        if not repeats:
            seen.add(key)
            yield problem
    raise TooFewProblemsError(
        f"only {len(seen):,} distinct problems of {config.min_steps} to {config.max_steps} steps were found; "
        "ask for fewer, or for more steps"
    )


def _draw(schema: Schema, steps: int, rng: random.Random) -> Problem:
    for _ in range(_PATIENCE):
        with suppress(Misfit):
            return make_problem(schema, steps, rng)
    raise TooFewProblemsError(f"no problem of {steps} steps about {schema.name!r} was found")
