"""Which multiply-accumulates ran quantized, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# A model has far fewer modules; a file that lists more is not read.
MAX_ENTRIES = 100_000
MAX_TEXT = 1_000
MAX_COUNT = 2**62


@dataclass(kw_only=True)
class Product:
    """What one function multiplied inside one module.

    Args:
        module: Qualified name of the innermost module that was running; ''
            is the model itself.
        type: Its class.
        function: As its caller knows it: 'linear', 'matmul', 'conv2d'.
        calls: How often it ran.
        both: Multiply-accumulates with both operands quantized.
        one: With one of them quantized.
        none: With neither.
        reason: Why they are not all in ``both``.
    """

    module: str
    type: str
    function: str
    calls: int = 0
    both: int = 0
    one: int = 0
    none: int = 0
    reason: str = ''

    @property
    def total(self) -> int:
        """Multiply-accumulates in all."""
        return self.both + self.one + self.none


@dataclass(kw_only=True)
class ProductReport:
    """Every product that ran, and the counterparts that did not.

    Args:
        products: By module and function, in the order of their first calls.
        num_batches: Batches that were traced; counts are sums over them.
        unreached: Counterparts that none of these batches called.
        read_by: Layer -> module that reads its weight without calling it.
        left_float: Counterpart that calibration left float -> why.
    """

    products: list[Product] = field(default_factory=list)
    num_batches: int = 0
    unreached: list[str] = field(default_factory=list)
    read_by: dict[str, str] = field(default_factory=dict)
    left_float: dict[str, str] = field(default_factory=dict)

    @property
    def both(self) -> int:
        """Multiply-accumulates with both operands quantized."""
        return sum(product.both for product in self.products)

    @property
    def one(self) -> int:
        """Multiply-accumulates with one operand quantized."""
        return sum(product.one for product in self.products)

    @property
    def none(self) -> int:
        """Multiply-accumulates of two float operands."""
        return sum(product.none for product in self.products)

    @property
    def total(self) -> int:
        """Multiply-accumulates in all."""
        return self.both + self.one + self.none

    @property
    def share(self) -> float:
        """Share of them with both operands quantized, 0 to 1."""
        return self.both / self.total if self.total else 0.0

    def of_module(self, name: str) -> list[Product]:
        """Return what ran in one module, children apart."""
        return [p for p in self.products if p.module == name]

    def summary(self) -> str:
        """Return the share of the whole model in one sentence."""
        total = self.total
        if not total:
            return 'no matrix product or convolution ran'
        return (
            f'{percent(self.both, total)} of {count_text(total)} '
            'multiply-accumulates run with both operands quantized '
            f'({percent(self.one, total)} one, '
            f'{percent(self.none, total)} none)'
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON and for the quantized file."""
        return {
            'summary': self.summary(),
            'total': self.total,
            'both': self.both,
            'one': self.one,
            'none': self.none,
            'share': self.share,
            'num_batches': self.num_batches,
            'products': [asdict(product) for product in self.products],
            'unreached': list(self.unreached),
            'read_by': dict(self.read_by),
            'left_float': dict(self.left_float),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ProductReport:
        """Read what ``to_dict`` gave; totals are counted anew.

        Raises:
            ValueError: If an entry is missing, of the wrong type or too
                large; the message names it.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f'products: a dict is needed, got {plain!r:.80}')
        return cls(
            products=[
                _product(item, f'products[{i}]')
                for i, item in enumerate(_items(plain, 'products', list))
            ],
            num_batches=_count(plain.get('num_batches'), 'num_batches'),
            unreached=[
                _text(name, 'unreached')
                for name in _items(plain, 'unreached', list)
            ],
            read_by=_texts(plain, 'read_by'),
            left_float=_texts(plain, 'left_float'),
        )


def percent(part: int, total: int) -> str:
    """Return a share that reads 100.0 or 0.0 only where it is.

    >>> percent(9999, 10000), percent(0, 7), percent(1, 10000)
    ('99.9 %', '0.0 %', '<0.1 %')
    """
    # Tenths of a percent; whole numbers, as floats may round up.
    tenths = (2000 * part + total) // (2 * total)
    if part and not tenths:
        return '<0.1 %'
    if part < total:
        tenths = min(tenths, 999)
    return f'{tenths // 10}.{tenths % 10} %'


def count_text(count: int) -> str:
    """Return a count for readers.

    >>> count_text(12_345_678_901), count_text(512)
    ('12.3 G', '512')
    """
    for unit, size in (
        ('T', 10**12),
        ('G', 10**9),
        ('M', 10**6),
        ('k', 10**3),
    ):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return str(count)


def _product(plain: Any, name: str) -> Product:
    if not isinstance(plain, Mapping):
        raise ValueError(f'{name}: a dict is needed, got {plain!r:.80}')
    values: dict[str, Any] = {
        item.name: (_text if item.type == 'str' else _count)(
            plain.get(item.name), f'{name}.{item.name}'
        )
        for item in fields(Product)
    }
    return Product(**values)


def _items(plain: Mapping[str, Any], name: str, kind: type) -> Any:
    found: Any = plain.get(name)
    fits = isinstance(found, kind)
    if not fits or len(found) > MAX_ENTRIES:
        raise ValueError(
            f'{name}: a {kind.__name__} of at most {MAX_ENTRIES} entries is '
            f'needed, got {found!r:.80}'
        )
    return found


def _texts(plain: Mapping[str, Any], name: str) -> dict[str, str]:
    items: Iterable[tuple[Any, Any]] = _items(plain, name, dict).items()
    return {_text(key, name): _text(value, name) for key, value in items}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(
            f'{name}: a text of at most {MAX_TEXT} characters is needed, '
            f'got {value!r:.80}'
        )
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(
            f'{name}: a whole number from 0 to 2^62 is needed, got '
            f'{value!r:.80}'
        )
    return value
