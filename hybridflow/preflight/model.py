"""The model: is it there, does the layout fit, does it have a template, how long are prompts in its tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hybridflow.config.phases import smallest_top_p
from hybridflow.data.schema import Row
from hybridflow.errors import ConfigError, DataError
from hybridflow.preflight.subject import Finding, Subject
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout

if TYPE_CHECKING:
    from megatron_ext.hf.config import HFConfig

TOKENS_S = 2.0
"""Time for counting tokens; the longest prompts come first."""
SHOWN_CHARS = 300
"""Characters of each end of the prompt that are shown."""


def check_folder(subject: Subject) -> Iterator[Finding]:
    """A Hugging Face directory, on this disk."""
    named, path = subject.config.model.path, Path(subject.config.model.path)
    told = f"model.path = {named!r}: no config.json there"
    if not (path / "config.json").is_file():
        subject.has_model = False
        raise ConfigError(f"{told}{_why_no_model('model.path', path)}. Name a Hugging Face model directory")
    if subject.config.model.init == "weights" and not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"model.path = {named!r} has no safetensors. Remedy: download the weights, or set "
            f'model.init = "seeded" to start from drawn ones'
        )
    if (shape := subject.shape) is not None:
        size = shape.num_parameters
        yield Finding("fact", f"{named}: {shape.model_type}, {shape.num_layers} layers, {size:,} parameters")


def check_reference_folder(subject: Subject) -> Iterator[Finding]:
    """The directory of the reference, where KL is measured from one, and what an estimator does not do."""
    kl = subject.config.algorithm.kl
    if kl.place == "loss" and kl.estimator == "k1":
        yield Finding(
            "warning",
            'algorithm.kl.estimator = "k1" with algorithm.kl.place = "loss": its gradient is 0 in the mean, so it '
            'adds noise and holds nothing back. Remedy: take "unbiased" or "k2", or algorithm.kl.place = "reward"',
        )
    named = kl.reference_folder
    if not kl.is_on or named is None or subject.saved is not None:
        return  # a run that is resumed has it in its folder
    path, told = Path(named), f"algorithm.kl.reference = {named!r}"
    if not (path / "config.json").is_file():
        why = _why_no_model("algorithm.kl.reference", path)
        raise ConfigError(
            f"{told}: no config.json there{why}. {'Or' if 'Remedy: ' in why else 'Remedy:'} name a Hugging Face model "
            'directory, or "start" for the policy as RL begins'
        )
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"{told} has no safetensors. Remedy: copy its weights there, or name another directory")
    yield Finding("fact", f"{named}: the reference of algorithm.kl")


def _why_no_model(key: str, path: Path) -> str:
    """The reason why there is no model in the value of `key`, with what the user may have meant."""
    if path.is_file():
        return f": it is a file. Remedy: name its folder, {path.parent}"
    if path.is_dir():
        inside = sorted(found.parent for found in path.glob("*/config.json"))
        inside = inside or sorted(found.parent for found in path.glob("*/*/config.json"))
        return f". Remedy: set {key} to {inside[0]}" if inside else ", though there is such a folder"
    parts = path.parts
    if len(parts) == 2 and all(parts) and not path.parent.is_dir():
        target = f"models/{parts[1]}"
        return (
            f", and no such folder; nothing is downloaded from the Hub. Remedy: where there is a network, hf download "
            f"{path} --local-dir {target}, copy that folder, and set {key} = {target!r}"
        )
    return f", and no such folder in {Path.cwd()}"


def check_layouts(subject: Subject) -> Iterator[Finding]:
    """train.layout and rollout.tp_size cut the model evenly."""
    config, shape = subject.config, subject.shape
    layout = Layout(**config.train.layout.model_dump())
    if shape is None:
        return
    try:
        check_layout(layout, cast("HFConfig", shape))  # it has the numbers that this looks at
    except LayoutError as error:
        raise ConfigError(f"train.layout does not fit the model in {config.model.path}: {error}") from error
    tp_size = config.rollout.tp_size
    if shape.num_heads % tp_size:
        fitting = [size for size in range(1, shape.num_heads + 1) if shape.num_heads % size == 0]
        raise ConfigError(
            f"rollout.tp_size = {tp_size}: it must divide the model's {shape.num_heads} attention heads; choose one of "
            f"{', '.join(map(str, fitting))}"
        )
    yield Finding(
        "fact",
        f"{layout.world_size} train workers (tp {layout.tp} x pp {layout.pp} x cp {layout.cp} x dp {layout.dp}), "
        f"{config.rollout.num_engines} engines of {tp_size}",
    )


def check_model_files(subject: Subject) -> Iterator[Finding]:
    """Check config, window and weights with the libraries of the run."""
    from hybridflow.preflight.inputs import check_model
    from hybridflow.preflight.phase_models import check_phase_models
    from hybridflow.preflight.reference import check_reference_model
    from hybridflow.rollout.engine.arguments import check_experts, check_names, check_sampling_mask

    subject.need_model()
    check_model(subject.config)
    check_phase_models(subject.config)
    check_reference_model(subject.config)
    check_names(subject.config.rollout.sglang)
    check_sampling_mask(smallest_top_p(subject.config))
    check_experts(subject.config.algorithm.routing_replay == "engine")
    yield Finding("fact", f"window: {subject.config.rollout.context_tokens:,} tokens, which the model has")


def check_prompts(subject: Subject) -> Iterator[Finding]:
    """One prompt as the model will read it; lengths in tokens, the longest first."""
    tokenizer, config = subject.tokenizer, subject.config
    limit = config.data.max_prompt_tokens
    if tokenizer.chat_template is None:
        yield Finding(
            "warning",
            f"model.path = {config.model.path!r}: its tokenizer has no chat template, so prompts go as plain text, "
            f"shown below. Remedy: none for a base model; of a chat model put the chat_template.jinja there",
        )
    for split in subject.splits:
        rows, source = subject.rows(split), subject.source(split).name
        if not rows:
            continue
        if split == "train":
            first = next(iter(rows))
            yield Finding("fact", f"{source}, row {first}, as the model reads it:\n{_show(subject, rows[first])}")
        lengths = count_tokens(subject, rows)
        counted = "" if len(lengths) == len(rows) else f" (of the {len(lengths)} longest of {len(rows)})"
        yield Finding("fact", f"{split}: prompts of {min(lengths.values())} to {max(lengths.values())} tokens{counted}")
        long = [number for number, length in sorted(lengths.items()) if length > limit]
        if long and subject.survey(split) is not None:
            told = (
                f"{source}, row {long[0]}: the prompt has {lengths[long[0]]} tokens with its chat template, the limit "
                f"data.max_prompt_tokens is {limit}; {len(long)} rows are longer"
            )
            yield _tell_overlong(subject, rows, long, told)


def _tell_overlong(subject: Subject, rows: dict[int, Row], long: list[int], told: str) -> Finding:
    """The finding on rows above the limit: by data.overlong they are an error, left out, or cut where that can be."""
    from hybridflow.data.truncation import truncate_middle

    data = subject.config.data
    if data.overlong == "truncate_middle":
        try:
            truncate_middle(subject.tokenizer, rows[long[0]], data.max_prompt_tokens)
        except DataError as error:
            return Finding("error", f"{told}. data.overlong = {data.overlong!r}: {error}")
        return Finding("warning", f"{told}: the middle of their documents is cut (data.overlong)")
    return Finding(
        "warning" if data.overlong == "drop" and len(long) < len(rows) else "error",
        f"{told}. Remedy: raise the limit (and rollout.context_tokens, train.max_tokens_per_micro_batch), shorten the "
        f'rows, or set data.overlong = "drop" or "truncate_middle"',
    )


def count_tokens(subject: Subject, rows: dict[int, Row]) -> dict[int, int]:
    """Tokens by row number, of as many rows as TOKENS_S allows, those with most characters first."""
    from hybridflow.data.chat_encoding import encode_chat

    def size(item: tuple[int, Row]) -> int:
        return -sum(len(message["content"]) for message in item[1].prompt)

    tokenizer = subject.tokenizer  # takes seconds where it is the first
    ends_at, lengths = time.monotonic() + TOKENS_S, dict[int, int]()
    for number, row in sorted(rows.items(), key=size):
        lengths[number] = len(encode_chat(tokenizer, row.prompt))
        if time.monotonic() > ends_at:
            break
    return lengths


def _show(subject: Subject, row: Row) -> str:
    from hybridflow.data.chat_encoding import encode_chat

    text = str(subject.tokenizer.decode(encode_chat(subject.tokenizer, row.prompt)))
    if len(text) > 2 * SHOWN_CHARS:
        left_out = len(text) - 2 * SHOWN_CHARS
        text = f"{text[:SHOWN_CHARS]} [... {left_out} characters ...] {text[-SHOWN_CHARS:]}"
    return "\n".join(f"    | {line}" for line in text.splitlines())
