"""Order of prompts: every prompt once per epoch, and no memory of earlier steps."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.data.dataset import PromptDataset
from hybridflow.data.schema import RewardModel, Row
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.errors import DataError
from hybridflow.policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def make_row(content: str) -> Row:
    return Row(
        data_source="synth_easy",
        prompt=[{"role": "user", "content": content}],
        ability="doc-qa",
        reward_model=RewardModel(style="rule", ground_truth="yen"),
        extra_info={},
    )


def make_dataset(num_rows: int, seed: int = 0) -> PromptDataset:
    rows = [make_row("the " * (index + 1)) for index in range(num_rows)]
    return PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=1000, seed=seed)


def ids(dataset: PromptDataset, step: int, num_prompts: int) -> list[str]:
    return [prompt.prompt_id for prompt in dataset.prompts_from(step * num_prompts, num_prompts)]


def test_prompts_stand_in_file_order_with_their_tokens() -> None:
    rows = generate_rows(SynthSpec(tier="easy", doc_tokens=64, num_train=3, num_test=0), "train", 0)
    prompts = PromptDataset("docqa", rows, TOKENIZER, max_prompt_tokens=74, seed=0).prompts
    assert [prompt.prompt_id for prompt in prompts] == ["docqa-000000", "docqa-000001", "docqa-000002"]
    for prompt, row in zip(prompts, rows, strict=True):
        text = TOKENIZER.decode(prompt.token_ids)
        assert text == f"<|user|>{row.prompt[0]['content']}<|assistant|>"
        assert prompt.ground_truth == row.reward_model.ground_truth
        assert (prompt.data_source, prompt.ability) == ("synth_easy", "doc-qa")


@settings(max_examples=40)
@given(num_rows=st.integers(1, 17), num_prompts=st.integers(1, 23), seed=st.integers(0, 5))
def test_each_epoch_has_every_prompt_once(num_rows: int, num_prompts: int, seed: int) -> None:
    dataset = make_dataset(num_rows, seed)
    num_steps = 3 * num_rows  # whole epochs: 3 * num_rows * num_prompts prompts in all
    walk = [prompt_id for step in range(num_steps) for prompt_id in ids(dataset, step, num_prompts)]
    for start in range(0, len(walk), num_rows):
        assert len(set(walk[start : start + num_rows])) == num_rows


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    walked, fresh = make_dataset(10), make_dataset(10)
    sequence = [ids(walked, step, 4) for step in range(9)]
    assert ids(fresh, 7, 4) == sequence[7]
    assert ids(walked, 2, 4) == sequence[2]


def test_seed_and_epoch_change_the_order() -> None:
    dataset = make_dataset(20)
    first, second = ids(dataset, 0, 20), ids(dataset, 1, 20)
    assert first != second and first != ids(make_dataset(20, seed=1), 0, 20)
    assert Counter(first) == Counter(second)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    assert Counter(ids(make_dataset(3), 0, 7)).most_common()[0][1] == 3


def test_overlong_prompt_is_an_error_with_a_remedy() -> None:
    rows = [make_row("the"), make_row("the the the the")]
    length = len(TOKENIZER.encode("the the the the")) + 2
    with pytest.raises(DataError, match=rf"row 1 .*has {length} tokens.*max_prompt_tokens is {length - 1}.*overlong="):
        PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=length - 1, seed=0)
    assert len(PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=length, seed=0)) == 2


def test_dropped_rows_are_counted_and_rename_no_other() -> None:
    rows = [make_row("the"), make_row("the " * 50), make_row("the.")]
    dataset = PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=20, seed=0, overlong="drop")
    assert [prompt.prompt_id for prompt in dataset.prompts] == ["toy-000000", "toy-000002"]
    assert dataset.num_dropped == 1


def test_a_data_set_with_nothing_left_is_refused() -> None:
    with pytest.raises(DataError, match="1 rows, of which 1 are longer"):
        PromptDataset("toy", [make_row("the " * 50)], TOKENIZER, max_prompt_tokens=20, seed=0, overlong="drop")
    with pytest.raises(DataError, match="no prompts"):
        PromptDataset("toy", [], TOKENIZER, max_prompt_tokens=20, seed=0)
