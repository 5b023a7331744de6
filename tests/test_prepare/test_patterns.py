"""Patterns mean what re and fnmatch mean by them, and always end."""

import re
import time
from fnmatch import fnmatchcase

import pytest

from taskptq.hosts import registry as mapping
from taskptq.prepare import patterns
from taskptq.prepare.patterns import check_all_used, check_patterns, matches

NAMES = [
    'backbone.layer4.0.conv1',
    'bbox_head.fc_cls',
    'bbox_head.rpn_cls',
    'rpn_head.rpn_reg',
    'head.conv_seg',
    'decode_head.conv_seg',
    'bbox_head.cls_branches.3',
    'cls_branches.x',
    'fc_reg.0',
    'fc_reg.0.1',
    'decoder.layers.2.self_attn.attn',
    'bbox_embed.layers',
    'linear_pred',
    'a.output_hypernetworks_mlps.1.layers',
    'reference_points_fc',
    '',
    'x\n',
    'decoder.ref_point_head.layers.10',
    'head.convs.0',
    'fc_cls\n',
]
CONFIGS = [
    r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
    r're:(?!(.*\.)?((rpn|retina|atss|gfl|conv|fc)_reg|reg_branches)).*',
    r're:(detector|sam\.image_encoder\.patch_embed)\..*',
    r're:head\.(reg_branches\..*|convs\..*|fc_(cls|reg)|\w+\.conv_reg)',
    r're:(?i)HEAD.*',
    r're:[^\]]+?',
    r're:[]x]*',
    r're:a{2}|b{,3}|c{1,}',
    r're:(?P<a>.)(?P=a).*',
    r're:(.).*\1',
    r're:\(\{x',
    're:',
]


def layer_patterns():
    tables = (
        mapping.OUTPUT_LAYERS,
        mapping.OUTPUT_SEQUENCES,
        mapping.POSITION_LAYERS,
    )
    found = [pattern for table in tables for pattern in table['']]
    assert len(found) >= 15
    return found


@pytest.mark.parametrize('pattern', [*layer_patterns(), *CONFIGS])
def test_regular_patterns_mean_what_re_means(pattern):
    expected = re.compile(pattern[3:])
    for name in NAMES:
        assert matches(name, pattern) == bool(expected.fullmatch(name)), name


@pytest.mark.parametrize(
    'pattern',
    [
        '*',
        'backbone.*',
        '*.conv1',
        '*cls*',
        'head.[cf]*',
        'bbox_head.???cls',
        '[!b]*',
        'backbone.layer4.0.conv1',
        '',
        '*.*.*.*',
        '[',
        'a[]b',
        '*_cls',
    ],
)
def test_shell_patterns_mean_what_fnmatch_means(pattern):
    for name in NAMES:
        assert matches(name, pattern) == fnmatchcase(name, pattern), name


@pytest.mark.parametrize(
    'pattern',
    [
        're:(a+)+b',
        're:(a*)*',
        're:(?:a{1,9}){1,9}',
        're:((a+)b?)+',
        're:(.*,)*x',
        're:(((a{1,99}){1,99}){1,99})',
        're:(?:' * 30 + 'a' + '){1,9}' * 30,
        're:(a|b*)*c',
        're:(?=(a+))+b',
        're:(x+x+)+y',
        're:([ab]+){2}',
    ],
)
def test_repeats_within_repeats_are_refused(pattern):
    with pytest.raises(ValueError, match=r'has a repeat|has more'):
        matches('a' * 30, pattern)


@pytest.mark.parametrize(
    'pattern',
    [
        're:(',
        're:)',
        're:[',
        're:a**',
        're:*',
        're:(?P<a>',
        're:a{1000}',
        're:(?x)a',
        're:\\',
        're:a{99999999999}',
        're:' + '(' * 60 + ')' * 60,
        're:(?R)',
        're:\\p{L}',
        're:(?|a|b)',
        're:' + 'a' * 500,
        '*' * 501,
        're:a\\',
        're:(?P<a>x)(?P<a>y)',
        3,
        None,
        ['a'],
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(pattern):
    kind = TypeError if isinstance(pattern, list) else ValueError
    with pytest.raises(kind) as error:
        check_patterns([pattern], argument='qconfig.keep_float')
    if kind is ValueError:
        assert str(error.value).startswith('qconfig.keep_float: pattern ')
        assert '\n' not in str(error.value)


SLOW = [
    're:' + '.*' * 30 + 'x',
    're:' + '(a|aa)*' * 3 + 'b',
    're:' + '(a|a)' * 60 + 'b',
    're:' + '(?:a|aa)?' * 40 + 'b',
    're:' + 'a*' * 3 + 'b',
    're:(a|a|aa)*b',
    're:' + '(?=(a*a*a*a*a*b))' * 5 + '.*',
    're:(.*)(.*)(.*)(.*)(.*)(.*)\\1\\2\\3\\4\\5\\6x',
    're:' + 'a?' * 60 + 'a' * 60 + 'b',
    're:(?i)' + '(ss|ß)*' * 4 + 'x',
]


def series(names, patterns_):
    """Match all; return what ended it, empty if nothing did."""
    try:
        return ''.join('' for p in patterns_ for n in names if matches(n, p))
    except ValueError as error:
        return str(error)


@pytest.fixture
def impatient(monkeypatch):
    """A tenth of the time that slow patterns have, for the same outcome."""
    for name in ('MATCH_SECONDS', 'SERIES_SECONDS'):
        seconds = getattr(patterns, name)
        assert seconds <= 5
        monkeypatch.setattr(patterns, name, seconds / 10)


@pytest.mark.parametrize('pattern', SLOW)
def test_slow_patterns_end(pattern, impatient):
    start = time.monotonic()
    names = ['a' * 200 + str(i) for i in range(2000)] + ['ss' * 80, 'ab' * 90]
    ended = series(names, [pattern])
    assert not ended or ('takes too long' in ended and repr(pattern) in ended)
    assert time.monotonic() - start < 5


def test_many_slow_patterns_end(impatient):
    start = time.monotonic()
    slow = [f're:(?=(a*a*a*a*b))?(.|{i})*' for i in range(500)]
    names = ['a' * 100 + str(i) for i in range(200)]
    assert 'takes too long' in series(names, slow)
    assert time.monotonic() - start < 10
    assert matches('a', 're:a')


def test_stars_of_the_shell_take_linear_time():
    start = time.monotonic()
    for count in (50, 240):
        assert not matches('a' * 5000, '*a' * count + 'b')
    assert time.monotonic() - start < 2


def test_number_of_patterns_is_bounded():
    with pytest.raises(ValueError, match='overrides has 1,001'):
        check_patterns(['*'] * 1001, argument='qconfig.overrides')


def test_patterns_that_match_nothing_are_named():
    check_all_used(['*.conv1', 're:.*seg'], NAMES, argument='keep_float')
    with pytest.raises(ValueError, match=r"keep_float: pattern '\*\.conf1'"):
        check_all_used(['*.conf1'], NAMES, argument='keep_float')
