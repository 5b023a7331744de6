"""What a recipe's name means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from taskptq.core.levels import LEVELS
from taskptq.core.setting_error import SettingError, refuse, shown
from taskptq.recipes.folders import (
    find_scope,
    method_names,
    read_method,
)
from taskptq.recipes.merge import merge

# What a name without a method stands for, down to these bits of weights:
# with fewer, nearest roundings leave nothing of small models.
DEFAULT_METHOD, LEAST_WEIGHT_BITS = 'mixed', 7
FEW_BITS_METHOD = 'mixed-weighted'
MATCHED_METHOD = 'mixed-matched'
EQUALIZED_METHOD = 'mixed-equalized'
NETWORK_METHOD = 'mixed-network'
# The budget of the last three at less than 8 bits of activations.
MATCHED_BUDGET = {'macs_above': 0.1}
# Few codes: one that a symmetric grid wastes costs too much.
ASYMMETRIC_UP_TO = 3
# By point; 16-bit activations are a rung between 8 bits and float.
BITS = {
    'weight': range(2, 9),
    'activation': range(1, 17),
    'attention': range(1, 17),
}
PATTERN = re.compile(
    r'(?:(?P<scope>\w+)::)?'
    r'w(?P<weight>\d+(?:\.\d)?)a(?P<activation>\d+)(?:-(?P<attention>\d+))?'
    r'(?:_(?P<method>.+))?',
    re.ASCII | re.DOTALL,
)
# What people write who have not read how names are spelt.
LIKE_BITS = re.compile(
    r'w_?(?P<weight>[2-8])[_-]?a?_?(?P<activation>16|[2-8])?'
    r'|int_?(?P<both>[2-8])',
    re.ASCII,
)
# Weights on a few levels: by their bits, or by a word after bits.
LEVELS_BY_BITS = {k.bits_name: k for k in LEVELS.values() if k.bits_name}
LEVELS_BY_WORD = {k.suffix: k for k in LEVELS.values() if k.suffix}
LEVEL_WORD = re.compile(
    rf'(?P<rest>.+?)_(?P<word>{"|".join(LEVELS_BY_WORD)})(?P<more>_.+)?',
    re.ASCII | re.DOTALL,
)
# What first, last, depthwise and attention operands have at least then.
LEAST_ROLE_BITS = 8
LEVELS_METHOD = 'gptq-matched'
# Inputs of one bit: a sign with a learned threshold, whose gradient is that
# of Bi-Real Net.
ONE_BIT_INPUT: dict[str, Any] = {
    '_delete_': True,
    'type': 'LevelQuantizer',
    'num_bits': 1,
    'levels': 'shifted',
    'estimator': 'polynomial',
    'observer': {'type': 'MSEObserver'},
}
# Attention maps of one bit: 0 and a size (Bi-ViT).
ONE_BIT_MAP: dict[str, Any] = {
    '_delete_': True,
    'type': 'LevelQuantizer',
    'num_bits': 1,
    'levels': 'unsigned',
    'observer': {'type': 'MSEObserver'},
}
# A sparse model: zeros in percent and how they are shared out, or N:M
# written N-M.
SPARSE = re.compile(
    r'(?P<rest>(?:\w+::)?.*?)(?:^|(?<=::)|_)'
    r'sparse(?:(?P<percent>\d{1,2})(?:-(?P<allocation>[a-z]\w+))?'
    r'|(?P<kept>\d{1,2})-(?P<of>\d{1,2}))',
    re.ASCII | re.DOTALL,
)
SPARSE_METHOD = 'sparse'
# A file this many times smaller than in float32.
SIZE = re.compile(r'(?P<rest>.+)_size(?P<ratio>\d{1,3}(?:\.\d)?)x', re.ASCII)
SIZE_METHOD = 'size'
# What follows the progress of this package, not a publication.
RECOMMENDED = (
    DEFAULT_METHOD,
    FEW_BITS_METHOD,
    MATCHED_METHOD,
    EQUALIZED_METHOD,
    'auto',
)
# Of sparse models with float weights.
FLOAT_POINTS: dict[str, Any] = {
    'weight': {'type': 'FloatQuantizer'},
    'activation': False,
    'attention': False,
    'softmax': False,
    'products': False,
}
# Names without bits.
ALIASES = {'auto': 'w8a8_auto'}
EXAMPLES = 'w8a8, w4a8_gptq or w4a4-8_drd'


@dataclass(frozen=True, kw_only=True)
class RecipeName:
    """The parts of a name.

    Args:
        weight: Bits of weights; None leaves them float, and activations,
            as in ``sparse70``.
        activation: Bits of activations.
        attention: Bits inside of attention (queries, keys, values and the
            softmax); None is as the method has it, which mostly is
            ``activation``.
        method: Name of a method file; None stands for what is recommended
            at these bits.
        scope: Project whose method is meant first; None leaves it open.
        sparsity: Settings of ``qconfig.sparsity`` that the name says; None
            keeps all weights.
        ratio: How many times smaller than in float32 the file becomes; None
            is as the bits have it.
        levels: Kind of levels that weights have; None for equal steps.
    """

    weight: int | None
    activation: int | None
    attention: int | None = None
    method: str | None = None
    scope: str | None = None
    sparsity: dict[str, Any] | None = None
    ratio: float | None = None
    levels: str | None = None

    @property
    def method_file(self) -> str:
        """Name of the method file."""
        if self.method is not None:
            return self.method
        if self.sparsity is not None or self.weight is None:
            return SPARSE_METHOD
        if self.ratio is not None:
            return SIZE_METHOD
        if self.levels is not None:
            return LEVELS_METHOD
        enough = self.weight >= LEAST_WEIGHT_BITS
        return DEFAULT_METHOD if enough else FEW_BITS_METHOD

    def qconfig(self) -> dict[str, Any]:
        """Return the bits as settings of a ``qconfig``.

        A method is what was published and measured under its name: layers
        and attentions. What is recommended quantizes all other products,
        too.
        """
        sparse = {} if self.sparsity is None else {'sparsity': self.sparsity}
        if self.weight is None:
            return {**FLOAT_POINTS, **sparse}
        weight: dict[str, Any] = {'num_bits': self.weight}
        if self.ratio is not None:
            # Codes are made for a coder: one step, zero in the middle.
            weight |= {'per_channel': False, 'symmetric': True}
            sparse = {**sparse, 'size': {'ratio': self.ratio}}
        elif self.levels is not None:
            weight |= {
                'type': 'LevelQuantizer',
                'levels': self.levels,
                'symmetric': True,  # of layers that have more bits
            }
        elif self.weight <= ASYMMETRIC_UP_TO:
            weight['symmetric'] = False
        points: dict[str, Any] = {
            'weight': weight,
            'activation': {'num_bits': self.activation},
            **sparse,
        }
        if self.activation == 1:
            points['activation'] = dict(ONE_BIT_INPUT)
        if self.method_file not in RECOMMENDED:
            points['products'] = False
        attention = self.attention
        if self.levels is not None or self.activation == 1:
            points['depthwise_bits'] = LEAST_ROLE_BITS
            attention = attention or max(
                LEAST_ROLE_BITS, self.activation or LEAST_ROLE_BITS
            )
        if attention == 1:
            points['attention'] = dict(ONE_BIT_INPUT)
            points['softmax'] = dict(ONE_BIT_MAP)
        elif attention is not None:
            points['attention'] = {'num_bits': attention}
            points['softmax'] = {'num_bits': attention}
        return points


def parse(name: str) -> RecipeName:
    """Read a recipe's name; whether its method exists is not looked up.

    Args:
        name: Bits and method, e.g. ``w4a4-8_drd``.

    Raises:
        SettingError: If the name has another form.

    >>> parse('w4a4-8_drd')
    RecipeName(weight=4, activation=4, attention=8, method='drd', scope=None,
               sparsity=None, ratio=None, levels=None)
    """
    written = ALIASES.get(name, name) if isinstance(name, str) else ''
    sized = SIZE.fullmatch(written)
    if sized is not None:
        parts = parse(sized['rest'])
        if parts.weight is None or parts.ratio is not None:
            raise refuse('recipe', name, 'give bits, as in w8a8_size10x')
        if parts.levels is not None:
            raise refuse('recipe', name, 'give whole bits, as in w8a8_size10x')
        return replace(parts, ratio=float(sized['ratio']))
    worded = LEVEL_WORD.fullmatch(written)
    if worded is not None:
        return _on_levels(name, worded)
    sparse = SPARSE.fullmatch(written)
    sparsity = None if sparse is None else _sparsity(sparse)
    if sparse is not None and not re.match(r'(\w+::)?w\d', sparse['rest']):
        scope, _, method = sparse['rest'].rpartition('::')
        return RecipeName(
            weight=None,
            activation=None,
            method=method or None,
            scope=scope or None,
            sparsity=sparsity,
        )
    found = PATTERN.fullmatch(written if sparse is None else sparse['rest'])
    if found is None:
        raise refuse(
            'recipe',
            name,
            f'give bits and a method, as in {EXAMPLES}{_guess(name)}',
        )
    bits, levels = _bits(found, name)
    return RecipeName(
        **bits,
        method=found['method'],
        scope=found['scope'],
        sparsity=sparsity,
        levels=levels,
    )


def _bits(
    found: re.Match[str], name: str
) -> tuple[dict[str, int], str | None]:
    """Return the bits of each point that a name has, and its levels."""
    bits: dict[str, int] = {}
    levels: str | None = None
    for point, allowed in BITS.items():
        text = found[point]
        if text is None:
            continue
        if point == 'weight' and text in LEVELS_BY_BITS:
            bits[point] = LEVELS_BY_BITS[text]().num_bits
            levels = LEVELS_BY_BITS[text].name
            continue
        if text not in map(str, allowed):
            raise refuse(
                'recipe',
                name,
                f'the bits of {point} have to be {allowed[0]} to '
                f'{allowed[-1]}'
                + (f', or {", ".join(LEVELS_BY_BITS)}' * (point == 'weight')),
            )
        bits[point] = int(text)
    return bits, levels


def _on_levels(name: str, found: re.Match[str]) -> RecipeName:
    """Return what a name with a word for levels means."""
    parts = parse(found['rest'] + (found['more'] or ''))
    kind = LEVELS_BY_WORD[found['word']]
    bits = kind().num_bits
    if parts.weight != bits or parts.levels or parts.ratio or parts.sparsity:
        raise refuse(
            'recipe',
            name,
            f'give weights {bits} bits and no other form, as in '
            f'w{bits}a8_{found["word"]}',
        )
    return replace(parts, levels=kind.name)


def _sparsity(found: re.Match[str]) -> dict[str, Any]:
    """Return the settings that ``sparse70`` or ``sparse2-4`` stand for."""
    if found['percent'] is not None:
        shared = found['allocation']
        rest = {} if shared is None else {'allocation': shared}
        return {'rate': int(found['percent']) / 100, **rest}
    return {'pattern': f'{found["kept"]}:{found["of"]}'}


def _guess(name: Any) -> str:
    """Suggest a name where bits or the method are missing or misspelt."""
    text = str(name)[:100].lower()
    given = LIKE_BITS.match(text)
    bits = 'w4a4'
    if given is not None:
        weight = given['weight'] or given['both']
        bits = f'w{weight}a{given["activation"] or given["both"] or 8}'
    rest = text[given.end() if given else 0 :].strip('_- ')
    near = difflib.get_close_matches(rest, method_names(), n=1)
    if near:
        return f' (did you mean {bits}_{near[0]}?)'
    return f' (did you mean {bits}?)' if given and not rest else ''


def resolve(name: str) -> dict[str, Any]:
    """Return the settings of a recipe.

    Args:
        name: Bits and method, e.g. ``w4a4_qdrop``; the project's name and
            ``::`` before them where several have the method.

    Returns:
        ``qconfig`` and what else its method sets of ``KEYS``.

    Raises:
        SettingError: If there is no such recipe, naming the nearest.
    """
    parts = parse(name)
    try:
        scope = find_scope(parts.method_file, scope=parts.scope)
    except SettingError as error:
        raise SettingError(f'recipe={shown(name)}', error.problem) from error
    method = read_method(parts.method_file, scope=scope)
    weight = method.get('qconfig', {}).get('weight')
    own = weight.get('type') if isinstance(weight, dict) else None
    if own == 'LevelQuantizer' and parts.levels is None and parts.weight:
        raise refuse(
            'recipe',
            name,
            f'is {parts.weight} bits of equal steps, and this method is for '
            f'few levels: give w1.6a4_{parts.method_file} or w2a4_planes_'
            f'{parts.method_file}',
        )
    changes: dict[str, Any] = {'qconfig': parts.qconfig()}
    if parts.ratio is not None and method.get('reconstruction'):
        # The steps are chosen already.
        changes['reconstruction'] = {'output_ranges': False}
    activation = parts.activation or 8
    wide = (MATCHED_METHOD, EQUALIZED_METHOD, NETWORK_METHOD)
    if parts.method_file in wide and activation < 8:
        changes['mixed_precision'] = {'budget': MATCHED_BUDGET}
    return merge(method, changes)
