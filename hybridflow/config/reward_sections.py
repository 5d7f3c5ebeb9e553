"""`[reward]`: who scores completions, and by which rules."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from hybridflow.config.function_names import FILE_NAME, to_module
from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.section import Section

THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
)
"""Marks of Qwen, DeepSeek, Claude, Seed, Mistral, Kimi, Sky-T1, Command, Gemma, gpt-oss; the last pair is left of
the channels of gpt-oss where special tokens are not decoded."""
_VERIFIER_NAME = re.compile(r"[A-Za-z_][\w.-]*(?::[A-Za-z_][\w.]*)?")


class RulesSection(Section):
    """Which rules judge completions."""

    compat: Literal["none", "qwenlong_l1"] = "none"
    """"qwenlong_l1" follows the rules of the released QwenLong-L1 code, holes included, for comparison with it."""
    thinking_tags: Annotated[tuple[Annotated[tuple[str, str], Strict(False)], ...], Strict(False)] = THINKING_TAGS
    """[opening, closing] of each way in which a model marks its thoughts; one that is never closed is no answer. In any
    case; a bare word opens a thought at the start of a completion alone."""
    verifiers: dict[str, str] = Field(default_factory=dict)
    """Key: an ability, or a part of a data_source. Value: docqa, docqa_exact, docmath, multiple_choice, the name of an
    entry point of the group hybridflow.verifiers, or "module:function". Read in order, before the built-in table."""

    @field_validator("thinking_tags")
    @classmethod
    def _check_tags(cls, tags: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for opening, closing in tags:
            if not opening.strip() or not closing.strip() or opening == closing:
                raise ValueError(
                    f"[{opening!r}, {closing!r}] marks no thought: a tag is empty, or both are the same. Remedy: "
                    f'give two tags, such as ["<think>", "</think>"]'
                )
        return tags

    @field_validator("verifiers")
    @classmethod
    def _check_verifiers(cls, verifiers: dict[str, str]) -> dict[str, str]:
        for key, name in verifiers.items():
            if not key.strip():
                raise ValueError(
                    f"the key of {name!r} is empty, which stands in every data_source. Remedy: name an ability "
                    f"(doc-qa, doc-math, doc-mc) or a part of a data_source"
                )
            if FILE_NAME.search(name):
                raise ValueError(f"{key!r} is given {name!r}, which is a file. Remedy: write {to_module(name)}")
            if not _VERIFIER_NAME.fullmatch(name):
                raise ValueError(
                    f"{key!r} is given {name!r}, which is neither a name nor a function. Remedy: give the name of a "
                    f'verifier, such as "docqa", or a function as "package.module:function"'
                )
        return verifiers


class FunctionSection(Section):
    """One of several verifiers whose mean by weight is the reward."""

    call: str
    """"module:function", found beside the configuration file, in the working folder or installed; the name of a
    built-in verifier or an entry point; or "rule", which is what `reward.rules` chooses for the row."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Share in the reward, relative to the others; 0: its value is logged, and counts for nothing."""
    name: str = Field(default="", pattern=r"^[\w.-]*$")
    """Name that its value is logged under; empty: the name of the function."""

    @field_validator("call")
    @classmethod
    def _check_call(cls, call: str) -> str:
        if not _VERIFIER_NAME.fullmatch(call) or FILE_NAME.search(call):
            raise ValueError(f"{call!r} is neither a name nor a function. Remedy: write {to_module(call)}")
        return call

    @property
    def label(self) -> str:
        """The name that its value is logged under."""
        return self.name or self.call.rpartition(":")[2]


class OverlongSection(Section):
    """The penalty for completions near the length limit, see algorithms/overlong.py; a term beside the reward."""

    buffer_tokens: int = Field(default=0, ge=0)
    """Tokens below `rollout.max_new_tokens` at which it begins; 0 switches it off. QwenLong-L1: 1000 of 10000."""
    penalty_factor: float = Field(default=1.0, gt=0)
    """Penalty at the limit."""


class RewardSection(Section):
    """Reward workers."""

    rules: RulesSection = RulesSection()
    functions: list[FunctionSection] = Field(default_factory=list)
    """Verifiers of every row, in place of the rules; the reward is their mean by weight. Empty: the rules alone."""
    module_folders: list[str] = Field(default_factory=list)
    """Where "module:function" is looked for before the installed packages; those of the configuration files and the
    working folder are added where a verifier needs them."""
    environment: list[str] = Field(default_factory=list)
    """Environment variables that verifiers need, by name. They get paths, locale, proxies and thread limits anyway, and
    no token or key of their user."""
    overlong: OverlongSection = OverlongSection()
    """Added to the reward for advantages alone: filters, accuracy and evaluation do not see it."""
    judge: JudgeSection = JudgeSection()
    """Asked after the rules; without endpoints, rules decide alone."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that score."""
    credits: int = Field(default=8, ge=1, le=64)
    """Unanswered completions that one worker may hold. With a judge, fewer than its slots leave some of them empty."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for any verdict once decoding has ended."""
    lease_s: float = Field(default=10.0, ge=3.0)
    """Silence after which a worker loses what it holds; workers speak once a second."""
    cpu_limit_s: float = Field(default=10.0, gt=0)
    """CPU seconds that scoring one completion may take; more makes it unknown."""
    item_timeout_s: float = Field(default=30.0, gt=0)
    """The same by the clock."""
    memory_limit_gib: float = Field(default=4.0, ge=0.5)
    """Address space of a scoring process; a completion that needs more is unknown."""
    unknown_retries: int = Field(default=1, ge=0)
    """Times that a completion whose verdict is unknown is scored again."""
    max_unknown_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the last 1,000 verdicts that may be unknown, and of the last 1,000 that a judge was asked for; above it
    the run stops and says why."""
    min_known_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of a group's verdicts that must be known for it to be trained on."""
    max_pending_mib: float = Field(default=64.0, gt=0)
    """Completions that wait for a verdict, in MiB, above which engines are held back."""

    @property
    def names_module(self) -> bool:
        """Whether a verifier is named as "module:function"."""
        names = [*self.rules.verifiers.values(), *(function.call for function in self.functions)]
        return any(":" in name for name in names)

    @model_validator(mode="after")
    def _check_functions(self) -> RewardSection:
        if not self.functions:
            return self
        labels = [function.label for function in self.functions]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            calls = [function.call for function in self.functions if function.label == twice[0]]
            raise ValueError(
                f"reward.functions has two functions of the name {twice[0]!r} ({', '.join(calls)}): their values would "
                f'be logged as one. Remedy: give one of them another name: name = "{twice[0]}_2"'
            )
        if not sum(function.weight for function in self.functions):
            raise ValueError(
                f"the weights of reward.functions ({', '.join(labels)}) sum to 0, so there is no reward. Remedy: give "
                f"one of them a weight above 0"
            )
        if self.rules.verifiers and not any(function.call == "rule" for function in self.functions):
            raise ValueError(
                f"reward.rules.verifiers ({', '.join(self.rules.verifiers)}) would never be asked: reward.functions "
                f'takes the place of the rules. Remedy: add a function with call = "rule", or remove one of the two'
            )
        return self
