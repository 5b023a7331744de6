"""Which tensors of a network need grids so that a runtime stays in integers.

ONNX Runtime runs a convolution in integers only if its output lies on a grid
as well, and only if one grid alone reads that output. This module decides
where such grids belong, for a graph of operators that are known by what they
do to a grid; where the graph comes from is the caller's business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

# Kinds of operators.
PRODUCT = 'product'  # convolution: integer if its output is on a grid
ABSORBED = 'absorbed'  # ReLU: part of the grid of its output
MOVER = 'mover'  # moves or selects values: one grid before and behind it
SUM = 'sum'  # add, concat, average: integer between grids
SMOOTH = 'smooth'  # product, leaky ReLU: integer between grids, at a price
SQUASH = 'squash'  # sigmoid and its kin: as SMOOTH, and flat at both ends
GRID = 'grid'  # a quantizer that is there already
OTHER = 'other'  # stays float


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a graph.

    Args:
        name: Unique name.
        kind: One of the kinds above.
        inputs: Names of the tensors it reads, without constants.
        outputs: Names of the tensors it computes.
        per_channel: Of a quantizer, whether channels have scales.
        adds: Of a sum, whether it adds its inputs to each other.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_channel: bool = False
    adds: bool = False


@dataclass(kw_only=True)
class SharedGrid:
    """One grid for all tensors that have to share it.

    Args:
        sources: Tensors that are computed anew: the grid acts here.
        moved: Tensors that only hold moved values of the sources.
        replaced: Names of quantizers that read these tensors, and whose
            place it takes.
        gated: Whether a gate alone reads it, x * squash(x) such as SiLU,
            which is flat far below zero.
        free: Whether only float operators read it, so that channels may
            have scales of their own.
    """

    sources: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    gated: bool = False
    free: bool = False


def plan_grids(
    operators: Sequence[Operator],
    *,
    outputs: Collection[str],
    keep_float: Collection[str] = (),
    gates: Collection[str] = (),
    returned: Collection[str] = (),
) -> list[SharedGrid]:
    """Return the grids that a network lacks, in order of execution.

    >>> operators = [
    ...     Operator(name='a', kind=PRODUCT, inputs=('x',), outputs=('y',)),
    ...     Operator(name='b', kind=ABSORBED, inputs=('y',), outputs=('z',)),
    ...     Operator(name='q', kind=GRID, inputs=('z',), outputs=('zq',)),
    ...     Operator(name='r', kind=GRID, inputs=('z',), outputs=('zr',)),
    ... ]
    >>> [grid] = plan_grids(operators, outputs=())
    >>> grid.sources, grid.replaced
    (['z'], ['q', 'r'])

    Args:
        operators: In order of execution.
        outputs: Tensors that the network returns; they stay float.
        keep_float: Tensors that stay float.
        gates: Tensors x whose x * squash(x) runs in integers, too.
        returned: Tensors that the network returns on grids: one quantizer
            that reads such a tensor is not its only reader.
    """
    plan = _Plan(
        operators,
        outputs=set(outputs),
        keep_float=set(keep_float),
        returned=returned,
    )
    plan.want_products()
    plan.want_sums(gates=set(gates))
    return list(plan.shared())


def plan_residuals(operators: Sequence[Operator]) -> list[SharedGrid]:
    """Return grids of what is added to the outputs of convolutions.

    TensorRT makes a sum part of the convolution in front of it if the other
    side is in integers. Its readers share the grid.

    Args:
        operators: In order of execution.
    """
    plan = _Plan(operators, outputs=set(), keep_float=set())

    def is_product(name: str) -> bool:
        producer = plan.producer.get(name)
        return (
            producer is not None
            and producer.kind == PRODUCT
            and len(plan.readers[name]) == 1
        )

    for operator in operators:
        if not operator.adds or len(operator.inputs) != 2:
            continue
        first, second = operator.inputs
        if is_product(first):
            plan.want(second)
        elif is_product(second):
            plan.want(first)
    return list(plan.shared())


def gated_tensors(operators: Sequence[Operator]) -> dict[str, str]:
    """Return x -> y for each y = x * squash(x) behind a convolution."""
    plan = _Plan(operators, outputs=set(), keep_float=set())
    plan.want_products()
    found = {}
    for name in plan.wanted:
        products = {
            output
            for reader in plan.readers[name]
            if reader.kind == SMOOTH
            for output in reader.outputs
        }
        if plan.is_gated(name) and len(products) == 1:
            found[name] = products.pop()
    return found


class _Plan:
    """Tensors that are wanted on a grid, and which of them share it."""

    def __init__(
        self,
        operators: Sequence[Operator],
        *,
        outputs: set[str],
        keep_float: set[str],
        returned: Collection[str] = (),
    ) -> None:
        self.operators = operators
        self.outputs = outputs
        self.returned = outputs | set(returned)
        self.keep_float = keep_float
        self.producer: dict[str, Operator] = {}
        self.readers: dict[str, list[Operator]] = defaultdict(list)
        self.parent: dict[str, str] = {}
        self.wanted: dict[str, None] = {}
        for operator in operators:
            for name in operator.outputs:
                self.producer[name] = operator
            for name in dict.fromkeys(operator.inputs):
                self.readers[name].append(operator)

    def want_products(self) -> None:
        """Want the outputs of convolutions, behind what they absorb."""
        for operator in self.operators:
            if operator.kind == PRODUCT:
                for name in operator.outputs:
                    self.want(self.end_of(name))

    def want_sums(self, *, gates: set[str]) -> None:
        """Want the outputs of sums between grids, until nothing changes."""
        count = -1
        while len(self.wanted) > count:
            count = len(self.wanted)
            for operator in self.operators:
                chosen = operator.kind == SUM or (
                    operator.kind in (SMOOTH, SQUASH)
                    and bool(gates & set(operator.inputs))
                )
                if chosen and self.joins(operator):
                    for name in operator.inputs:
                        self.want(name)
                    for name in operator.outputs:
                        self.want(self.end_of(name))

    def joins(self, operator: Operator) -> bool:
        """Whether all that an operator reads is, or may be, on a grid."""
        names = operator.inputs
        if not names or any(name in self.keep_float for name in names):
            return False
        if not any(self.is_wanted(name) for name in names):
            return False
        on_grids = all(self.comes_from_grid(name) for name in names)
        if on_grids and not self.reaches_grid(operator):
            # As a query's content and position: one grid for both costs
            # precision, and no integer layer reads it.
            return False
        return all(self.is_wanted(n) or self.has_grid(n) for n in names)

    def reaches_grid(self, operator: Operator) -> bool:
        """Whether a quantizer reads what becomes of an operator's output."""
        names, seen = list(operator.outputs), set(operator.outputs)
        while names:
            for reader in self.readers[names.pop()]:
                if reader.kind == GRID:
                    return True
                if reader.kind in (OTHER, PRODUCT):
                    continue
                names += [name for name in reader.outputs if name not in seen]
                seen.update(reader.outputs)
        return False

    def comes_from_grid(self, name: str) -> bool:
        """Whether a quantizer computes a tensor."""
        producer = self.producer.get(name)
        return producer is not None and producer.kind == GRID

    def has_grid(self, name: str) -> bool:
        """Whether a quantizer reads a tensor."""
        return any(reader.kind == GRID for reader in self.readers[name])

    def is_wanted(self, name: str) -> bool:
        """Whether a tensor gets, or has, a grid."""
        return name in self.wanted or self.comes_from_grid(name)

    def want(self, name: str) -> None:
        """Want a tensor on a grid, and what moves to and from it."""
        if name in self.wanted or name in self.keep_float:
            return
        if name in self.outputs or self.comes_from_grid(name):
            return
        self.wanted[name] = None
        producer = self.producer.get(name)
        if producer is not None and producer.kind == MOVER:
            for source in producer.inputs:
                self.join(source, name)
        for reader in self.readers[name]:
            if reader.kind == MOVER:
                for target in reader.outputs:
                    self.join(name, target)

    def join(self, source: str, target: str) -> None:
        """Let the two ends of a mover share a grid, where both can."""
        self.want(source)
        self.want(target)
        if source in self.wanted and target in self.wanted:
            self.parent[self.root(target)] = self.root(source)

    def root(self, name: str) -> str:
        """Return the tensor that stands for all that share a grid."""
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def end_of(self, name: str) -> str:
        """Return the tensor behind the activations that a grid absorbs."""
        while name not in self.returned:
            readers = self.readers[name]
            if len(readers) != 1 or readers[0].kind != ABSORBED:
                break
            name = readers[0].outputs[0]
        return name

    def shared(self) -> Iterator[SharedGrid]:
        """Yield the grids, but for those that are there already."""
        members: dict[str, list[str]] = defaultdict(list)
        for operator in self.operators:
            for name in operator.outputs:
                if name in self.wanted:
                    members[self.root(name)].append(name)
        for name in self.wanted:
            if name not in self.producer:
                members[self.root(name)].insert(0, name)
        for names in members.values():
            found = self._grid_of(names)
            # What is only moved, from a quantizer's output or a constant,
            # lies on the grid that this has.
            if found.sources and not self._is_complete(found):
                yield found

    def _grid_of(self, names: Sequence[str]) -> SharedGrid:
        found = SharedGrid()
        for name in names:
            producer = self.producer.get(name)
            moved = producer is not None and producer.kind == MOVER
            (found.moved if moved else found.sources).append(name)
            found.replaced += [
                reader.name
                for reader in self.readers[name]
                if reader.kind == GRID
            ]
        found.gated = all(self.is_gated(name) for name in names)
        found.free = len(names) == 1 and not any(
            self.is_integer(reader) for reader in self.readers[names[0]]
        )
        return found

    def is_gated(self, name: str) -> bool:
        """Whether x * squash(x) alone reads a tensor x."""
        readers = self.readers[name]
        squashed = {
            output
            for reader in readers
            if reader.kind == SQUASH
            for output in reader.outputs
        }
        return bool(squashed) and all(
            reader.kind == SQUASH or squashed & set(reader.inputs)
            for reader in readers
        )

    def is_integer(self, reader: Operator) -> bool:
        """Whether an operator reads integers, or hands them on."""
        return reader.kind == GRID or any(
            name in self.wanted or self.end_of(name) in self.wanted
            for name in reader.outputs
        )

    def _is_complete(self, found: SharedGrid) -> bool:
        """Whether one quantizer alone reads the one tensor."""
        if found.moved or len(found.sources) != 1:
            return False
        name = found.sources[0]
        readers = self.readers[name]
        if name in self.returned or len(readers) != 1:
            return False
        if readers[0].kind != GRID:
            return False
        # Only a convolution can take the scales of channels in.
        return not readers[0].per_channel or self._from_product(name)

    def _from_product(self, name: str) -> bool:
        """Whether a convolution computes a tensor, perhaps with a ReLU."""
        producer = self.producer.get(name)
        if producer is not None and producer.kind == ABSORBED:
            producer = self.producer.get(producer.inputs[0])
        return producer is not None and producer.kind == PRODUCT
