"""The sources of the input tensors of units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from taskptq.prepare.blocks import Unit


@dataclass(frozen=True)
class Source:
    """Origin of a tensor: leaf of a unit call's inputs or outputs."""

    side: str  # 'in' or 'out'
    unit: int
    call: int
    leaf: int


@dataclass
class Links:
    """The calls of one unit within one forward pass.

    Args:
        calls: Sources of the input tensors of each call; 'in' sources of
            the unit itself must be captured.
        num_outputs: Number of output tensors of each call.
    """

    calls: list[list[Source]] = field(default_factory=list)
    num_outputs: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """How one unit gets its inputs.

    Args:
        unit: The unit.
        traced: Its calls in the traced batch.
        replay: Row-selecting module right before the unit, if any, and its
            call number.
        batches: Its calls in each batch; known after the float capture.
        sizes: Bytes in the cache of each captured input and each output, in
            the traced batch.
    """

    unit: Unit
    traced: Links = field(default_factory=Links)
    replay: tuple[str, int] | None = None
    batches: list[Links] = field(default_factory=list)
    sizes: dict[Source, int] = field(default_factory=dict)

    @property
    def calls(self) -> list[list[Source]]:
        """Sources of the inputs of each call in the traced batch."""
        return self.traced.calls

    def sources(self) -> Iterator[Source]:
        """Yield the source of every input tensor, of all batches."""
        for links in self.batches or [self.traced]:
            for call in links.calls:
                yield from call

    def captured(self, index: int) -> list[Source]:
        """Return the sources that only a pass of the model provides."""
        return [
            source
            for source in dict.fromkeys(self.sources())
            if source.side == 'in' and source.unit == index
        ]


def outputs_of(plan: Plan, index: int) -> Iterator[Source]:
    """Yield the source of every output of a unit, of all batches."""
    for links in plan.batches or [plan.traced]:
        for call, count in enumerate(links.num_outputs):
            for leaf in range(count):
                yield Source('out', index, call, leaf)


def read_later(plans: Sequence[Plan], index: int) -> set[Source]:
    """Return the sources that units after this one read."""
    return {source for plan in plans[index + 1 :] for source in plan.sources()}


class TensorTracker:
    """Follow tensor identities through one forward pass."""

    def __init__(self) -> None:
        # id -> (tensor, its version then, source); holding the tensors keeps
        # their ids unique, the version reveals later in-place changes
        self._seen: dict[int, tuple[Tensor, int, Source]] = {}

    def before(self, links: Links, index: int, leaves: list[Tensor]) -> None:
        """Link the inputs of a unit's next call."""
        call = len(links.calls)
        sources = []
        for place, leaf in enumerate(leaves):
            own = Source('in', index, call, place)
            found = self._source(leaf, own)
            # With alternating units, a later one's output isn't cached yet.
            sources.append(own if found.unit > index else found)
        links.calls.append(sources)

    def after(self, links: Links, index: int, leaves: list[Tensor]) -> None:
        """Remember the outputs of a unit's last call."""
        call = len(links.num_outputs)
        links.num_outputs.append(len(leaves))
        for place, leaf in enumerate(leaves):
            self._source(leaf, Source('out', index, call, place))

    def _source(self, leaf: Tensor, default: Source) -> Source:
        known = self._seen.get(id(leaf))
        if known is not None and known[1] == leaf._version:
            return known[2]
        self._seen[id(leaf)] = (leaf, leaf._version, default)
        return default
