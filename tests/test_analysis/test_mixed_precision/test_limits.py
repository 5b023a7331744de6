"""Budgets hold up to rounding."""

from taskptq.analysis.mixed_precision.cost import MacsAbove
from taskptq.analysis.mixed_precision.limits import Limit, Task, fits


def test_budgets_and_the_largest_loss_both_count(draw):
    problem = draw(0)
    named = problem.named()
    loss = problem.loss(named)
    none = Limit(cost=MacsAbove(), most=0.0)
    assert fits(problem, Task(limits=[none], max_loss=loss), named)
    assert not fits(problem, Task(max_loss=0.9 * loss), named)
    raised = {**named, ('layer0', 'activation'): 16}
    assert not fits(problem, Task(limits=[none]), raised)
    assert fits(problem, Task(), raised)


def test_slack_is_that_of_sums():
    limit = Limit(cost=MacsAbove(), most=1e9)
    assert 1e9 < limit.with_slack < 1e9 + 2
