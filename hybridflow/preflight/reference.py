"""Whether the directory that KL is measured from holds a policy of the same architecture and tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.policy.load import load_tokenizer
from hybridflow.trainer.layout import check_model_weights, read_model

MAY_DIFFER = ("max_position_embeddings",)
"""A longer window alone changes no number; positions that are scaled do."""


def check_reference_model(config: Config) -> None:
    """Raises ConfigError where `algorithm.kl.reference` is a directory whose weights cannot take the policy's place.

    Its weights are computed with the model of model.path, so that each number of config.json that decides what is
    computed has to be the same, and each token has to have the same id.
    """
    folder = config.algorithm.kl.reference_folder
    if not config.algorithm.kl.is_on or folder is None:
        return
    named = f"algorithm.kl.reference = {folder!r}"
    reference, policy = read_model(folder, named), read_model(config.model.path)
    differing = [
        f"{name} = {found!r} there, {expected!r} in model.path"
        for name, found in dataclasses.asdict(reference).items()
        if name not in MAY_DIFFER and found != (expected := getattr(policy, name))
    ]
    if differing:
        raise ConfigError(
            f"{named} is of another architecture than model.path = {config.model.path!r}: {'; '.join(differing)}. "
            'Remedy: name a directory of the same architecture, or "start" for the policy as RL begins'
        )
    check_model_weights(folder, reference, named)
    _check_tokenizer(Path(folder), config, named)


def _check_tokenizer(folder: Path, config: Config, named: str) -> None:
    theirs, ours = load_tokenizer(folder, named).get_vocab(), load_tokenizer(config.model.path).get_vocab()
    token = next((token for token in sorted({*theirs, *ours}) if theirs.get(token) != ours.get(token)), None)
    if token is not None:
        raise ConfigError(
            f"{named} has another tokenizer than model.path = {config.model.path!r}: {token!r} is token "
            f"{theirs.get(token, 'none')} there and {ours.get(token, 'none')} here, so that its probabilities would be "
            "of other texts. Remedy: name a directory with the tokenizer of model.path"
        )
