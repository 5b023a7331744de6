"""The solver without scipy comes near the exact one."""

import pytest

from taskptq.analysis.mixed_precision.cost import BitOperations, uniform_choice
from taskptq.analysis.mixed_precision.greedy import best_greedy
from taskptq.analysis.mixed_precision.limits import Limit, Task
from taskptq.analysis.mixed_precision.milp import best_exact


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('most', [0.6, 0.9, 1.5])
def test_within_a_factor_of_the_best(draw, seed, most):
    pytest.importorskip('scipy')
    problem = draw(seed, layers=8)
    floor = 500 * 1024 / (64 * problem.inner_macs)
    task = Task(limits=[Limit(cost=BitOperations(), most=most + floor)])
    exact, greedy = best_exact(problem, task), best_greedy(problem, task)
    # Float operands are no candidates of this problem.
    assert exact.loss * (1 - 3e-4) <= greedy.loss <= 3 * exact.loss
    assert greedy.gap is None


def test_layers_become_float_as_a_whole(draw):
    problem = draw(1, candidates=(8, 'float'))
    found = best_greedy(problem, Task())
    assert found.choice == uniform_choice(problem, 'float')
    assert found.loss == 0
