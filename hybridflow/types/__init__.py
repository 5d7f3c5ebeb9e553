"""Records that cross a process boundary.

All but ScoredCompletion are frozen msgspec structs: they travel over ZeroMQ as msgpack, over Ray by pickle, and into
JSONL, unchanged.

Identity. Every record carries ids that never change, so that a duplicate is recognised and a late message dropped:

    prompt_id      "train-000017"            data set name and row index
    group_id       "t00003-g0005"            stage and step, slot within the step
    completion_id  "t00003-g0005-c02"        group, index within the group

The logprobs of a token are kept apart by name everywhere, all at the sampling temperature: `rollout_logprobs` (the
engine, while decoding), `old_logprobs` (the trainer, before the update), `logprobs` (the trainer, in the update) and
`ref_logprobs` (the reference policy, where there is one).
"""

from __future__ import annotations

from hybridflow.types.rewards import (
    Group,
    JudgeReport,
    Scored,
    ScoredCompletion,
    ScoreRequest,
    Unknown,
    Verdict,
)
from hybridflow.types.rollout import (
    Completion,
    FinishReason,
    GroupRequest,
    Lease,
    MemoryTag,
    Partial,
    Prompt,
    RolloutReport,
    SamplingParams,
    VersionRun,
    without_numbers,
)
from hybridflow.types.tokens import Packed, Ragged, TokenColumns
from hybridflow.types.training import (
    Collected,
    FilteredBatch,
    Measured,
    MeasuredRow,
    PartialGroup,
    StepCounts,
    TrainBatch,
    TrainSequence,
    UpdateMetric,
    UpdateReport,
    WorkerMemory,
)

__all__ = [
    "Collected",
    "Completion",
    "FilteredBatch",
    "FinishReason",
    "Group",
    "GroupRequest",
    "JudgeReport",
    "Lease",
    "Measured",
    "MeasuredRow",
    "MemoryTag",
    "Packed",
    "Partial",
    "PartialGroup",
    "Prompt",
    "Ragged",
    "RolloutReport",
    "SamplingParams",
    "ScoreRequest",
    "Scored",
    "ScoredCompletion",
    "StepCounts",
    "TokenColumns",
    "TrainBatch",
    "TrainSequence",
    "Unknown",
    "UpdateMetric",
    "UpdateReport",
    "Verdict",
    "VersionRun",
    "WorkerMemory",
    "without_numbers",
]
