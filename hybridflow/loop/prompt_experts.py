"""Experts of prompts: told by one completion of a group, and meant for all that say so."""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, Group, Packed, TrainSequence


def find_prompt_experts(group: Group, completion: Completion) -> Packed:
    """Those that `completion` or another of its group has; empty where nobody was asked.

    A completion whose teller was lost with its engine has those of the teller that was decoded in its place.

    Raises ProtocolError where it refers to one that is not there, or to itself.
    """
    heads = {member.head.completion_id: member.head for member in group.members}
    head, asked = completion, [completion.completion_id]
    while head.prompt_experts_of:
        asked.append(head.prompt_experts_of)
        if head.prompt_experts_of not in heads or len(asked) > len(heads) + 1:
            raise ProtocolError(
                f"experts of the prompt of group {group.group_id} are said to be with {' -> '.join(asked)}, which has "
                "none. Remedy: run the same hybridflow version on every node"
            )
        head = heads[head.prompt_experts_of]
    return head.prompt_experts


def check_experts(rows: Sequence[TrainSequence]) -> None:
    """Raises ProtocolError where a row does not say which experts computed each of its tokens."""
    for row in rows:
        found = len(row.prompt_experts), len(row.response.experts)
        wanted = len(row.prompt_token_ids) - 1, len(row.response)
        if found != wanted:
            raise ProtocolError(
                f"completion {row.sequence_id} says of {found[0]} + {found[1]} tokens of prompt and response which "
                f'experts computed them, and algorithm.routing_replay = "engine" needs {wanted[0]} + {wanted[1]}. '
                'Remedy: discard what was begun before it was set, or set algorithm.routing_replay = "off"'
            )
