"""The configuration of a run: one frozen section per subject, one home and one default per value.

Units stand in the names: `_s` seconds, `_tokens`, `_gib`; counts begin with `num_`. Every class refuses unknown keys.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, model_validator

from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.cluster_section import ClusterSection
from hybridflow.config.conflicts import CONFLICT_BREAK, SECTIONS_ALONE, find_conflicts
from hybridflow.config.curriculum_section import CurriculumSection
from hybridflow.config.layout_section import LayoutSection
from hybridflow.config.paths import AnyPath, InputPath
from hybridflow.config.reward_sections import RewardSection
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.config.section import Section


class RunSection(Section):
    """Identity of the run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    """Name of the run folder; a run of the same name that is there already is renamed."""
    directory: AnyPath = "runs"
    """Folder that holds the run folder `<directory>/<name>`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides drawn weights, the order of prompts and what is sampled."""
    mode: str = Field(default="0700", pattern=r"^07[0-7][0-7]$")
    """Who may enter the run folder, as chmod has it; files get the same without "x". "0750" lets the group read."""


class ModelSection(Section):
    """The policy, an HF model directory."""

    path: InputPath
    """HF directory: config.json, tokenizer files and, unless `init` is "seeded", weights."""
    init: Literal["weights", "seeded"] = "weights"
    """"weights" loads the directory's safetensors; "seeded" draws new weights from `run.seed`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and computation."""
    force_float32: bool = False
    """Run "float32" on GPUs all the same: twice the memory of "bfloat16", and no flash attention."""


class SynthSection(Section):
    """Documents that are generated when no file is given."""

    tier: Literal["easy", "hard"] = "easy"
    """"easy": word look-up for tiny models; "hard": long reports and contracts."""
    doc_tokens: int = Field(default=128, ge=16)
    """Length of a document; in the hard tier 4 characters are a token."""
    min_doc_tokens: int | None = Field(default=None, ge=16)
    """Shortest document to train on, every length up to `doc_tokens` as likely; empty: all of `doc_tokens`, as those to
    evaluate on are."""
    num_records: int = Field(default=8, ge=1)
    """Records of a document (easy), or issuers and agreements (hard)."""
    num_train: int = Field(default=1024, ge=1)
    """Rows to train on."""
    num_test: int = Field(default=256, ge=1)
    """Rows to evaluate on."""


class DataSection(Section):
    """Where prompts come from."""

    train_path: InputPath | None = None
    """Parquet or JSONL in the DocQA-RL schema; empty: generated as `synth` says."""
    test_path: InputPath | None = None
    """The same for evaluation; not needed where eval.num_prompts is 0."""
    synth: SynthSection = SynthSection()
    max_prompt_tokens: int = Field(default=16_000, ge=1)
    """Longest prompt, chat template included."""
    overlong: Literal["error", "drop", "truncate_middle"] = "error"
    """Treatment of a prompt above `max_prompt_tokens`: an error; left out and counted; or its document, between <text>
    and </text>, keeps the first and the last half of the tokens that it may have, counted too."""


class WarmupStage(Section):
    """One stretch of supervised steps on generated conversations."""

    name: str
    """Name of it in messages."""
    num_steps: int = Field(ge=1)
    """Optimizer steps."""
    learning_rate: float = Field(gt=0)
    """Peak, after `warmup.lr_warmup_steps`."""
    conversations_per_step: int = Field(default=16, ge=1)
    """Conversations of one optimizer step."""
    num_questions: int = Field(default=8, ge=1)
    """Questions of a conversation about its document."""
    doc_tokens: int = Field(default=64, ge=16)
    """Length of a document."""
    num_records: int = Field(default=8, ge=1)
    """Records of a document."""
    abstain_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of demonstrations that abstain although the document holds the answer: a habit to unlearn."""


class WarmupSection(Section):
    """Supervised stages before RL, in order; each starts with a fresh optimizer."""

    stages: list[WarmupStage] = Field(default_factory=list)
    lr_warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate of each stage rises from 0."""


class OptimizerSection(Section):
    """AdamW."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of the mean of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second mean."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled from the gradient."""
    clip_grad: float = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""


class WorkerSection(Section):
    """Settings of every command that opens a policy on train workers."""

    layout: LayoutSection = LayoutSection()
    max_tokens_per_micro_batch: int = Field(default=16_384, ge=1)
    """No micro-batch is ever above this."""
    num_threads: int = Field(default=1, ge=1)
    """CPU threads of each train worker."""
    kernels: Literal["auto", "torch", "transformer_engine", "apex"] = "auto"
    """Library that computes Adam, RMSNorm, gradient accumulation and attention; "auto": on GPUs what is installed."""
    attention: Literal["auto", "sdpa", "varlen", "cudnn", "transformer_engine"] = "auto"
    """Attention kernels; "auto" takes those of `kernels`, or of torch the best that this machine has."""
    fp32_head: bool = False
    """Compute logits in float32 from bfloat16 hidden states and weights."""
    offload_activations: bool = False
    """Keep on the host what forward saves for backward."""
    export_dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Dtype of weights written for Hugging Face: that of the model which training began with, or one by name."""


class TrainSection(WorkerSection):
    """The trainer and the length of the run."""

    num_steps: int = Field(default=30, ge=0)
    """RL steps of the run."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups that a step trains on."""
    mini_batch_prompts: int | None = Field(default=None, ge=1)
    """Prompts of one optimizer step, at most: the groups that a step trains on are cut into disjoint mini-batches of
    about equal size, and those after the first are off-policy, so that the clip matters. Empty: one optimizer step."""
    num_updates_per_step: int = Field(default=1, ge=1)
    """Passes over the mini-batches of a step (epochs)."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak, after `train.lr_warmup_steps`."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after the warm-up; the decays end at `lr_decay_steps`."""
    lr_decay_steps: int | None = Field(default=None, ge=1)
    """Updates after which a decay has reached its end. Empty: `num_steps`; then a run cannot be made longer on resume,
    as the rate would jump."""
    lr_min_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of `learning_rate` that a decay ends at."""
    optimizer: OptimizerSection = OptimizerSection()
    max_gate_gap: float | None = Field(default=None, gt=0)
    """Largest mean |trainer - engine| of log-probabilities per token on one text before the first step; empty: 0.001
    with model.dtype = "float32", 0.1 with "bfloat16". Above it they compute different models, and the run stops."""
    max_logprob_gap: float = Field(default=1.0, gt=0)
    """The same of a step's tokens that the present weights decoded; above it the run stops after that step."""
    offload_while_decoding: Literal["auto", "on", "off"] = "auto"
    """Weights, gradients and optimizer state leave the device while engines decode; "auto": where there is CUDA. On a
    CPU the host is the device, and nothing is won."""


class EvalSection(Section):
    """Greedy accuracy on the test split."""

    num_prompts: int = Field(default=256, ge=0)
    """0 switches evaluation off."""
    every_steps: int = Field(default=0, ge=0)
    """Evaluate during the run each so many steps; 0: only before and after RL."""


class CheckpointSection(Section):
    """Resumable state under `<run>/checkpoints`."""

    in_background: bool = False
    """Write while training goes on; a checkpoint then appears when the next one is due, or at the end."""

    every_steps: int = Field(default=10, ge=0)
    """0: only after the warm-up and at the end."""
    keep_last: int = Field(default=2, ge=1)
    """Older checkpoints are removed."""


class TrackingSection(Section):
    """Where metrics go besides the run folder."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases: "offline" needs no account and uploads nothing."""
    wandb_project: str = "hybridflow"
    """Project that the run belongs to."""


class Config(Section):
    """A whole run."""

    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection = DataSection()
    curriculum: CurriculumSection = CurriculumSection()
    warmup: WarmupSection = WarmupSection()
    train: TrainSection = TrainSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _check_across_sections(self, info: ValidationInfo) -> Config:
        """All that `conflicts` finds, as one error."""
        conflicts = [] if info.context == SECTIONS_ALONE else list(find_conflicts(self))
        if conflicts:
            raise ValueError(CONFLICT_BREAK.join(conflicts))
        return self
