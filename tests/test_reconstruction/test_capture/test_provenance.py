"""Where the inputs of units come from, by the identity of their tensors."""

import torch

from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.provenance import (
    Links,
    Plan,
    Source,
    TensorTracker,
    outputs_of,
    read_later,
)


def pass_through(steps):
    """Track (unit, inputs, outputs) calls; returns the links by unit."""
    tracker, links = TensorTracker(), {}
    for unit, inputs, outputs in steps:
        own = links.setdefault(unit, Links())
        tracker.before(own, unit, inputs)
        tracker.after(own, unit, outputs)
    return links


def test_input_is_an_earlier_output_or_captured():
    x, y, z, other = (torch.zeros(2) for _ in range(4))
    links = pass_through(
        [(0, [x], [y]), (1, [y, other], [z]), (2, [z, x], [])]
    )
    assert links[0].calls == [[Source('in', 0, 0, 0)]]
    assert links[1].calls == [[Source('out', 0, 0, 0), Source('in', 1, 0, 1)]]
    # A tensor that several units read is captured once, by the first.
    assert links[2].calls == [[Source('out', 1, 0, 0), Source('in', 0, 0, 0)]]
    assert links[2].num_outputs == [0]


def test_changed_in_place_is_another_tensor():
    x, y = torch.zeros(2), torch.zeros(2)
    tracker, first, second = TensorTracker(), Links(), Links()
    tracker.before(first, 0, [x])
    tracker.after(first, 0, [y])
    y.add_(1)
    tracker.before(second, 1, [y])
    assert second.calls == [[Source('in', 1, 0, 0)]]


def test_later_unit_of_an_alternation_is_not_a_source():
    """Unit 1 ran before the second call of unit 0, but is trained later."""
    x, y, z = (torch.zeros(2) for _ in range(3))
    links = pass_through([(0, [x], [y]), (1, [y], [z]), (0, [z], [])])
    assert links[0].calls[1] == [Source('in', 0, 1, 0)]


def plan_of(links):
    return Plan(Unit('unit', torch.nn.Identity()), traced=links)


def test_plans_know_what_is_captured_and_read_later():
    x, y, z = (torch.zeros(2) for _ in range(3))
    links = pass_through([(0, [x], [y]), (1, [y, x], [z]), (2, [x, x], [])])
    plans = [plan_of(links[index]) for index in range(3)]
    captured = Source('in', 0, 0, 0)
    assert plans[0].captured(0) == [captured]
    assert plans[1].captured(1) == plans[2].captured(2) == []
    assert list(outputs_of(plans[0], 0)) == [Source('out', 0, 0, 0)]
    assert read_later(plans, 0) == {Source('out', 0, 0, 0), captured}
    assert read_later(plans, 1) == {captured}
    assert read_later(plans, 2) == set()


def test_calls_of_all_batches_count():
    one = pass_through([(0, [torch.zeros(2)], [torch.zeros(2)])])[0]
    x = torch.zeros(2)
    two = pass_through([(0, [x], [x, x]), (0, [torch.zeros(2)], [x])])[0]
    plan = plan_of(one)
    assert plan.captured(0) == [Source('in', 0, 0, 0)]
    plan.batches = [one, two]
    assert plan.captured(0) == [Source('in', 0, 0, 0), Source('in', 0, 1, 0)]
    assert len(list(outputs_of(plan, 0))) == 1 + 2 + 1
