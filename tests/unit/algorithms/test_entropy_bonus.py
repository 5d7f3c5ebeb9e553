"""The entropy bonus as a term: its value, its gradient, and that it is there only where it is asked for."""

import torch

from hybridflow.algorithms.entropy_bonus import EntropyBonus
from hybridflow.algorithms.objective import ENTROPY, TokenBatch, build_objective
from hybridflow.algorithms.spec import policy_spec
from hybridflow.config.algorithm_section import AlgorithmSection


def test_worked_by_hand() -> None:
    """Entropies of 0.5 and 2 at a coefficient of 0.1: losses of -0.05 and -0.2, gradients of -0.1."""
    entropy_N = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    loss_N, metrics = EntropyBonus(0.1)(TokenBatch(torch.zeros(2), {ENTROPY: entropy_N}))
    loss_N.sum().backward()
    torch.testing.assert_close(loss_N.detach(), torch.tensor([-0.05, -0.2], dtype=torch.float64))
    torch.testing.assert_close(entropy_N.grad, torch.tensor([-0.1, -0.1], dtype=torch.float64))
    assert not metrics


def test_it_adds_to_the_policy_loss_in_every_pass_and_is_aggregated_with_it() -> None:
    """Later passes measure no entropy, but reward it."""
    entropy_N = torch.tensor([1.0, 3.0], dtype=torch.float64)
    columns = {ENTROPY: entropy_N, "advantages": torch.tensor([2.0, -1.0]), "old_logprobs": torch.zeros(2)}
    for is_first_pass in (True, False):
        plain, rewarded = (
            build_objective(policy_spec(AlgorithmSection(entropy_coefficient=c)), is_first_pass=is_first_pass)
            for c in (0.0, 0.25)
        )
        assert (ENTROPY in plain.columns, ENTROPY in rewarded.columns) == (is_first_pass, True)
        tokens = TokenBatch(torch.zeros(2), columns | {"rollout_logprobs": torch.zeros(2), "staleness": torch.zeros(2)})
        sums = [objective(tokens) for objective in (plain, rewarded)]
        assert [one.loss.item() for one in sums] == [-1.0, -2.0]
        assert [one.denominator for one in sums] == [2, 2]


def test_without_a_coefficient_there_is_no_term() -> None:
    assert policy_spec(AlgorithmSection()).terms == ["clip"]
