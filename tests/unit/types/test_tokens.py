"""Columns of tokens are cut, joined and checked alike, whatever they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridflow.types import Packed, Ragged, TokenColumns, tokens
from hybridflow.types.tokens import concatenate, select

BEGUN = TokenColumns(
    ids=[7, 8],
    rollout_logprobs=[-0.5, -1.5],
    sampling_mask=Ragged([2, 0], [7, 9]),
    experts=Packed((1, 2), 1, b"\x00\x01\x02\x03"),
)
MORE = TokenColumns(
    ids=[4], rollout_logprobs=[-2.5], sampling_mask=Ragged([3], [4, 5, 6]), experts=Packed((1, 2), 1, b"\x04\x05")
)
WHOLE = TokenColumns(
    ids=[7, 8, 4],
    rollout_logprobs=[-0.5, -1.5, -2.5],
    sampling_mask=Ragged([2, 0, 3], [7, 9, 4, 5, 6]),
    experts=Packed((1, 2), 1, b"\x00\x01\x02\x03\x04\x05"),
)


def test_tokens_are_joined_and_cut_in_every_column() -> None:
    assert concatenate([BEGUN, MORE]) == WHOLE
    assert concatenate([TokenColumns(), BEGUN, TokenColumns(), MORE]) == WHOLE
    assert concatenate([TokenColumns()]) == concatenate([]) == TokenColumns()
    assert [WHOLE.first(number) for number in (2, 3, 9)] == [BEGUN, WHOLE, WHOLE]
    assert WHOLE.first(0).present == {}
    assert select(WHOLE.sampling_mask, [0, 2]) == Ragged([2, 3], [7, 9, 4, 5, 6])
    assert select(WHOLE.ids, [2, 0]) == [4, 7]
    assert select(WHOLE.experts, [2, 0]) == Packed((1, 2), 1, b"\x04\x05\x00\x01")


def test_tokens_with_other_columns_are_not_joined() -> None:
    with pytest.raises(ValueError, match="tokens with ids, rollout_logprobs, sampling_mask, experts cannot be joined"):
        concatenate([BEGUN, TokenColumns(ids=[4], rollout_logprobs=[-2.5])])
    with pytest.raises(ValueError, match=r"packed columns of \(\(1, 2\), 1\) and \(\(2, 1\), 1\) cannot be joined"):
        tokens.concatenate_packed([BEGUN.experts, Packed((2, 1), 1, b"\x04\x05")])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (TokenColumns(ids=[1, 2], rollout_logprobs=[-1.0]), "2 tokens but 1 entries of rollout_logprobs"),
        (TokenColumns(ids=[1, 2], sampling_mask=Ragged([1], [5])), "2 tokens but 1 entries of sampling_mask"),
        (TokenColumns(ids=[1], sampling_mask=Ragged([2], [5])), "1 values where the lengths add up to 2"),
        (TokenColumns(ids=[1, 2], experts=Packed((1, 2), 1, b"ab")), "2 tokens but 1 entries of experts"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(columns: TokenColumns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        columns.check()


@pytest.mark.parametrize("wrong", [((1, 2), 1, b"abc"), ((1, 2), 2, b"ab"), ((0, 2), 1, b"a"), ((1, -1), 1, b"")])
def test_bytes_that_are_no_whole_tokens_are_refused(wrong: tuple[tuple[int, int], int, bytes]) -> None:
    with pytest.raises(ValueError, match="are no whole tokens of"):
        Packed(*wrong)
    assert len(Packed((1, 2), 2, b"abcd")) == 1 and len(Packed((3, 2))) == len(Packed()) == 0


FIELD = "    ids: list[int] = []\n"
TOY = """    mood: list[int] = []
    hints: Ragged = _NOTHING
"""
PROGRAM = """
import sys, types
from pathlib import Path

# The one file that a further column touches on its way: two fields more.
path = Path(sys.argv[1])
source = path.read_text()
assert source.count(sys.argv[2]) == 1
package = types.ModuleType("hybridflow.types")
package.__path__ = [str(path.parent)]
sys.modules["hybridflow.types"] = package
module = types.ModuleType("hybridflow.types.tokens")
sys.modules["hybridflow.types.tokens"] = module
exec(compile(source.replace(sys.argv[2], sys.argv[3] + sys.argv[2]), str(path), "exec"), module.__dict__)
exec(compile((path.parent / "__init__.py").read_text(), "types", "exec"), package.__dict__)

from hybridflow.loop.batch import build_train_sequences
from hybridflow.loop.kept_groups import KeptGroups
from hybridflow.loop.step import GroupAssembly, build_requests, plan_all
from hybridflow.rollout.engine.sglang_messages import append_to_partial
from hybridflow.trainer.batch import pack_rank
from hybridflow.types import *
from hybridflow.wire import codec
from hybridflow.wire.messages import Finished
from hybridflow.wire.messages import ScoredPacked, Packer
from megatron_ext.attention.context_split import cut_micro_batch

PROMPT = Prompt(prompt_id="p", token_ids=[1, 2], data_source="s", ability="doc-qa", ground_truth="g")
YES = Scored(value=1.0, rule="r", extracted="", why="")


def decode(ids, finish_reason, request):
    '''As an engine does: what it decodes now, behind what there is.'''
    now = Completion(
        completion_id="t0-g0000-c00", group_id="t0-g0000", prompt_id="p", index=0, text="",
        tokens=TokenColumns(
            ids=ids, rollout_logprobs=[-float(i) for i in ids], mood=[10 * i for i in ids],
            hints=Ragged.of([[i, i] for i in ids])),
        finish_reason=finish_reason, policy_version=0, prompt_tokens=2, cached_tokens=0)
    partial = request.partial(0)
    whole = append_to_partial(partial, now) if partial else now
    frame = codec.encode(Finished("e", 1, Packer().pack(whole)))
    (message,) = codec.decode_from_engine(bytes(frame))
    return ScoredPacked(message.packed, message.packed.num_bytes, YES, "w")


plan = plan_all(build_requests("t0", [PROMPT], 1))
first = GroupAssembly(plan)
first.add(decode([3, 4], "abort", plan.requests[0]))
(_, carried) = first.result()
folder = Path(sys.argv[4])
KeptGroups(carried).save(folder)
(group,) = KeptGroups.load(folder).groups
request = GroupRequest(group_id="t0-g0000", prompt=PROMPT, num_completions=1, partials=group.partials)
second = GroupAssembly(plan_all([request]))
second.add(decode([5], "stop", request))
((group,), _) = second.result()
rows = build_train_sequences([group], {"t0-g0000": [2.0]}, 0)
(micro_batch,) = pack_rank(TrainBatch(sequences=rows, plan=[[[[0]]]], temperature=1.0), 0, ["mood"])
parts = [cut_micro_batch(micro_batch, 2, rank).micro_batch for rank in range(2)]
print(micro_batch.loss_inputs["mood"].tolist(), micro_batch.ragged_inputs["hints"].values_M.tolist())
print(sorted(mood for part in parts for mood in part.loss_inputs["mood"].tolist()))
print(sorted(hint for part in parts for hint in part.ragged_inputs["hints"].values_M.tolist()))
"""


def test_a_further_column_reaches_the_loss_from_one_place(tmp_path: Path) -> None:
    """Completion, frame, partial rollout, checkpoint, completion again, training row, micro-batch, its CP parts."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, tokens.__file__, FIELD, TOY, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[30.0, 40.0, 50.0] [3, 3, 4, 4, 5, 5]",
        "[30.0, 40.0, 50.0]",
        "[3, 3, 4, 4, 5, 5]",
    ]
