"""TrainConfig: everything that decides what a training run does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attar.distill.config_rules import check_config
from attar.distill.data import PromptFormat
from attar.distill.divergences import DivergenceName
from attar.distill.fake_quantized import fake_quantized
from attar.distill.lora import LORA_TARGETS, Lora
from attar.distill.losses import Normalization
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Method, MethodName
from attar.distill.methods.pretrain import Pretrain
from attar.distill.methods.sft import Sft
from attar.distill.methods.uld import Uld
from attar.distill.parametrization import Direct, Parametrization
from attar.distill.progress import SinkName
from attar.distill.pruning import PruneTarget
from attar.distill.records import Documents
from attar.distill.step import ComputeDtype, OptimizerConfig, Schedule
from attar.engine.config import ModelConfig
from attar.engine.sampling import SamplingParams
from attar.engine.sharding import MeshShape
from attar.quantize.policy import make_scheme


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Lengths are in tokens; paths are folders in Hugging Face layout or `.gguf` files.

    Exactly one of `student`, `student_layers`, `student_shape` and `student_prune` says what is trained.

    Attributes:
      data: Files to train on, by path or glob pattern; see `records` for their kinds.
      data_weights: Weight of each entry of `data` in the mixture; None mixes all files by size.
      documents: What one document of a `.txt` file is.
      max_tokens: Window that plain text is cut into; None is 512, or a shorter context.
      method: `sft` learns the data's completions; `pretrain` learns the teacher's distributions over them; `gkd` brings
        the student's distributions to the teacher's on the data and on the student's own samples; `uld` does so for a
        teacher of another vocabulary.
      teacher: The model to learn from. `sft` uses it for evaluation only, and may go without.
      targets: Folder that `attar label` made of the data; the loss then reads it instead of the teacher.
      student: Model to go on training.
      student_layers: Layers of the teacher that the student starts from.
      student_shape: Name in `engine.presets`, or path of a `config.json`, that starts from random weights; vocabulary
        and token ids are the teacher's.
      student_prune: Cuts the teacher to these sizes, leaving what contributes most on the training data.
      calibration_examples: Training examples, drawn by the seed, that show what contributes.
      on_policy_fraction: λ of GKD: probability that a batch is sampled from the student; drawn once per batch.
      divergence: GKD's divergence; see `divergences`.
      beta: β of `jsd`: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
      skew: α of `skew_kl` and `skew_reverse_kl`.
      divergence_temperature: Divides the student's logits inside the divergence.
      teacher_temperature: Divides the teacher's there; None is `divergence_temperature`.
      reward: What samples are rewarded by, besides the divergence: a name in `rewards.BUILT_IN`, or `module:function`.
      alpha: α, the divergence's share of the objective (1 - α) E[reward] - α D; read where there is a reward.
      samples_per_prompt: Samples of a prompt in a rewarded batch, whose mean is the baseline of each other; of 1, the
        batch's.
      sampling_temperature: Of the student's on-policy samples; `top_k` and `top_p` likewise.
      max_new_tokens: Longest sampled completion, and longest completion kept of the data.
      max_prompt_tokens: Longest prompt allowed; None is what the shorter context of the two models leaves.
      prompt_format: See `data.PromptFormat`.
      normalization: How per-token losses are averaged; see `losses.Normalization`.
      accumulation_steps: Parts that a batch is worked through in; must divide `batch_size`.
      pack: Several examples in one row where rows are the data's (λ = 0); `batch_size` then counts rows.
      pack_tokens: Of a packed row; None is the longest example, rounded up to a multiple of 64.
      prompt_buckets: Lengths that prompts are padded to; each costs a compilation. `completion_buckets` likewise.
      remat: Recompute activations in the backward pass, for less memory and more time.
      compute_dtype: Of both models' products and activations, and of the teacher's weights. The student's weights,
        logits, losses and updates are float32 in any case.
      lora_rank: Trains a low-rank adapter of this rank and freezes the student's weights; None trains the weights.
      lora_alpha: Numerator of the adapter's scale; None is the rank, which makes the scale 1.
      lora_targets: Projections that get an adapter.
      lora_rank_stabilized: Scale by alpha / sqrt(rank) instead of alpha / rank.
      qat: Scheme of `quantize.policy` that the student's weights are rounded to whenever it computes; None rounds none.
      eval_data: File to evaluate on, every `eval_every` steps and at the end; None does not evaluate.
      eval_examples: Examples used of it.
      checkpoint_every: Steps between checkpoints; `keep_checkpoints` of them are kept.
      log: Where else the metrics go while the run goes on; see `log_sinks`.
      mesh: Devices that share the work, see `engine.sharding`; None trains on one. May change on resuming.
      seed: Of initial weights, data order, λ's draws and sampling.
    """

    data: str | tuple[str, ...]
    method: MethodName = "gkd"
    teacher: str | None = None
    targets: str | None = None
    student: str | None = None
    student_layers: tuple[int, ...] | None = None
    student_shape: str | None = None
    student_prune: PruneTarget | None = None
    calibration_examples: int = 32
    on_policy_fraction: float = 0.5
    divergence: DivergenceName = "jsd"
    beta: float = 0.5
    skew: float = 0.1
    divergence_temperature: float = 1.0
    teacher_temperature: float | None = None
    reward: str | None = None
    alpha: float = 0.5
    samples_per_prompt: int = 1
    sampling_temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    max_prompt_tokens: int | None = None
    data_weights: tuple[float, ...] | None = None
    documents: Documents = "file"
    max_tokens: int | None = None
    pack: bool = False
    pack_tokens: int | None = None
    prompt_format: PromptFormat = "auto"
    normalization: Normalization = "sequence"
    steps: int = 1000
    batch_size: int = 16
    accumulation_steps: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    prompt_buckets: int = 3
    completion_buckets: int = 1
    remat: bool = False
    compute_dtype: ComputeDtype = "float32"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = LORA_TARGETS
    lora_rank_stabilized: bool = False
    qat: str | None = None
    eval_data: str | None = None
    eval_every: int = 200
    eval_examples: int = 64
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log: tuple[SinkName, ...] = ()
    mesh: MeshShape | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self)
        # Built once here, so that their own rules are checked before any model is loaded.
        self.make_method()
        self.sampling_params()
        self.make_lora()

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The entries of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def make_method(self, *, from_states: bool = False) -> Method:
        """The method with this run's hyper-parameters.

        Args:
          from_states: The stored targets are hidden states, which give the teacher's logits.
        """
        needs_teacher = self.targets is None or from_states
        if self.method == "sft":
            return Sft()
        if self.method == "pretrain":
            return Pretrain(needs_teacher=needs_teacher)
        gkd = Gkd(
            self.on_policy_fraction,
            self.divergence,
            self.beta,
            self.skew,
            self.divergence_temperature,
            self.teacher_temperature,
            1.0 if self.reward is None else self.alpha,
            needs_teacher=needs_teacher,
        )
        return Uld(gkd) if self.method == "uld" else gkd

    def sampling_params(self) -> SamplingParams:
        """How on-policy completions are drawn."""
        return SamplingParams(self.sampling_temperature, self.top_k, self.top_p)

    def make_lora(self) -> Lora | None:
        """The adapter that is trained, where one is."""
        if self.lora_rank is None:
            return None
        alpha = float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha
        return Lora(self.lora_rank, alpha, self.lora_targets, self.lora_rank_stabilized)

    def make_parametrization(self, student: ModelConfig) -> Parametrization:
        """What is trained of a student of this shape, and how its weights come from it."""
        trained = self.make_lora() or Direct()
        return trained if self.qat is None else fake_quantized(trained, student, make_scheme(self.qat))

    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer's part of this configuration."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, as `config.json` of a run holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TrainConfig:
        """Reads what `to_json` gave.

        Raises:
          ValueError: If a key is unknown or a value breaks a rule.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise ValueError(f"training configuration has unknown keys: {', '.join(unknown)}")
        lists = ("data", "data_weights", "log", "student_layers", "lora_targets")  # which are tuples here
        values = {**raw, **{name: tuple(raw[name]) for name in lists if isinstance(raw.get(name), list)}}
        prune, mesh = raw.get("student_prune"), raw.get("mesh")
        made = {"student_prune": prune and PruneTarget(**prune), "mesh": mesh and MeshShape(**mesh)}
        return cls(**{**values, **made})
