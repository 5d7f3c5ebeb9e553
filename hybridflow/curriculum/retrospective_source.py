"""Source of prompts of a phase: its own, and a capped share of retrospective ones between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from hybridflow.algorithms.advantages import SAME_REWARD, group_rewards
from hybridflow.curriculum.difficulty import DifficultyTable
from hybridflow.curriculum.retrospection import Retrospection
from hybridflow.curriculum.source import PromptSource
from hybridflow.types import Group, Prompt

COUNTERS = ("num_taken", "num_draws", "num_unfilled")


class RetrospectiveSource:
    """Hands out prompts of `fresh`, and at evenly spread places those of earlier phases.

    Of the first k prompts at most k x `share` are retrospective, for every k, whatever the sizes of `next`. A prompt
    that turns out all wrong again has used up its place: nothing is drawn instead of it. Where no prompt can be drawn,
    the place goes to a fresh one, and is counted. Where a group does not count, whatever its prompt, a fresh one comes
    in its place: so the groups that a step trains on in the end have no more earlier prompts than those it began with.
    Prompts of one draw differ; a step that reaches into the next one may have a prompt twice. The difficulties are
    those of the moment of a draw; the table is shared by all phases, and not part of the state.
    """

    name = "retrospective"

    def __init__(
        self,
        fresh: PromptSource,
        earlier: Sequence[Prompt],
        table: DifficultyTable,
        rule: Retrospection,
        *,
        share: float,
        per_draw: int,
        stream: tuple[str | int, ...],
    ) -> None:
        """`per_draw`: prompts drawn at once, and so different ones, as many as a step has places for.

        Raises ValueError for a share that is not in [0, 1), and for a draw of nothing.
        """
        if not 0 <= share < 1 or per_draw < 1:
            raise ValueError(f"share is {share} and per_draw {per_draw}: a share is 0 or more and below 1, a draw of 1")
        self._fresh, self._table, self._rule = fresh, table, rule
        self._share = Fraction(str(share))
        self._per_draw, self._stream = per_draw, stream
        self._by_id = {prompt.prompt_id: prompt for prompt in earlier}
        self._counts: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._queue: list[str] = []
        self._observed = (0, 0, 0)

    def next(self, num_prompts: int) -> list[Prompt]:
        """As every source; how many are retrospective depends on the place in the walk alone."""
        first = self._counts["num_taken"]
        self._counts["num_taken"] += num_prompts
        chosen = [self._next_earlier() if self._is_retrospective(first + k) else None for k in range(num_prompts)]
        fresh = iter(self._fresh.next(sum(prompt is None for prompt in chosen)))
        return [next(fresh) if prompt is None else prompt for prompt in chosen]

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self._fresh.replace(prompts)

    def observe(self, groups: Sequence[Group]) -> None:
        """Counts retrospective groups, and those among them that no completion of earned anything."""
        of_earlier = [group for group in groups if group.prompt.prompt_id in self._by_id]
        self._observed = (len(groups), len(of_earlier), sum(_is_all_wrong(group) for group in of_earlier))
        self._fresh.observe(groups)

    def metrics(self) -> dict[str, float]:
        """Shares of the last step's groups: retrospective ones, and those of them that were all wrong again."""
        num_groups, num_earlier, num_wrong = self._observed
        return {
            "curriculum/retrospective_share": num_earlier / max(num_groups, 1),
            "curriculum/retrospective_all_wrong_share": num_wrong / max(num_groups, 1),
        }

    @property
    def num_unfilled(self) -> int:
        """Places of retrospective prompts that went to fresh ones."""
        return self._counts["num_unfilled"]

    def state_dict(self) -> dict[str, Any]:
        return {**self._counts, "queue": list(self._queue), "fresh": self._fresh.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counts = {name: value for name in COUNTERS if type(value := state.get(name)) is int and value >= 0}
        queue, fresh = state.get("queue"), state.get("fresh")
        if len(counts) < len(COUNTERS) or not isinstance(queue, list) or not isinstance(fresh, dict):
            raise ValueError(f"expected numbers {', '.join(COUNTERS)}, a queue and a fresh source, got {state}"[:200])
        if unknown := [one for one in queue if not isinstance(one, str) or one not in self._by_id]:
            raise ValueError(f"queue names {unknown[0]!r}, which is no prompt of an earlier phase")
        self._fresh.load_state_dict(fresh)
        self._counts, self._queue = counts, list(queue)

    def _is_retrospective(self, place: int) -> bool:
        return math.floor((place + 1) * self._share) > math.floor(place * self._share)

    def _next_earlier(self) -> Prompt | None:
        if not self._queue:
            stream = (*self._stream, self._counts["num_draws"])
            self._queue = self._rule.draw(stream, self._per_draw, list(self._by_id), self._table)
            self._counts["num_draws"] += 1
        if not self._queue:
            self._counts["num_unfilled"] += 1
            return None
        return self._by_id[self._queue.pop(0)]


def _is_all_wrong(group: Group) -> bool:
    known = [reward for reward in group_rewards(group) if reward is not None]
    return bool(known) and max(known) <= SAME_REWARD
