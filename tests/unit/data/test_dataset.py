"""Prompts of a data set: tokens, numbers, and rows that are too long."""

import msgspec
import pytest

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


def test_prompts_stand_in_file_order_with_their_tokens() -> None:
    rows = generate_rows(SynthSpec(tier="easy", doc_tokens=64, num_train=3, num_test=0), "train", 0)
    prompts = PromptDataset("docqa", rows, TOKENIZER, max_prompt_tokens=74).prompts
    assert [prompt.prompt_id for prompt in prompts] == ["docqa-000000", "docqa-000001", "docqa-000002"]
    for prompt, row in zip(prompts, rows, strict=True):
        text = TOKENIZER.decode(prompt.token_ids)
        assert text == f"<|user|>{row.prompt[0]['content']}<|assistant|>"
        assert prompt.ground_truth == row.reward_model.ground_truth
        assert (prompt.data_source, prompt.ability) == ("synth_easy", "doc-qa")


def test_the_digest_tells_a_changed_row() -> None:
    def digest(*rows: Row) -> str:
        return PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=100).digest()

    one, two = make_row("the"), make_row("the the")
    other_gold = msgspec.structs.replace(one, reward_model=RewardModel(style="rule", ground_truth="another"))
    assert digest(one, two) == digest(one, two)
    assert len({digest(*rows) for rows in ([one, two], [two, one], [one], [one, two, two], [other_gold, two])}) == 5


def test_overlong_prompt_is_an_error_with_a_remedy() -> None:
    rows = [make_row("the"), make_row("the the the the")]
    length = len(TOKENIZER.encode("the the the the")) + 2
    with pytest.raises(DataError, match=rf"row 1 .*has {length} tokens.*max_prompt_tokens is {length - 1}.*overlong="):
        PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=length - 1)
    assert len(PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=length)) == 2


def test_dropped_rows_are_counted_and_rename_no_other() -> None:
    rows = [make_row("the"), make_row("the " * 50), make_row("the.")]
    dataset = PromptDataset("toy", rows, TOKENIZER, max_prompt_tokens=20, overlong="drop")
    assert [prompt.prompt_id for prompt in dataset.prompts] == ["toy-000000", "toy-000002"]
    assert dataset.num_dropped == 1


def test_a_data_set_with_nothing_left_is_refused() -> None:
    with pytest.raises(DataError, match="1 rows, of which 1 are longer"):
        PromptDataset("toy", [make_row("the " * 50)], TOKENIZER, max_prompt_tokens=20, overlong="drop")
    with pytest.raises(DataError, match="no prompts"):
        PromptDataset("toy", [], TOKENIZER, max_prompt_tokens=20)
