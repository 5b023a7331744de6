"""Options of taskptq quantize that change the recipe."""

import json

import pytest

from taskptq.engine.recipe_source import read_recipe


@pytest.fixture
def parse():
    from taskptq.cli.quantize import parse_args

    def read(*options):
        return parse_args(
            ['config.py', 'float.pth', '--out', 'q.pth', *options]
        )

    return read


def recipe_of(args):
    from taskptq.cli.quantize import chosen_recipe

    return chosen_recipe(args)


def test_without_options_the_name_stays(parse):
    assert recipe_of(parse('--recipe', 'w4a4_qdrop')) == ['w4a4_qdrop']
    assert recipe_of(parse()) == ['w8a8']


def test_a_budget_replaces_that_of_the_recipe(parse):
    args = parse(
        *('--recipe', 'w8a8_mixed', '--keep', '0.95'),
        *('--budget', 'bops=0.5', '--budget', 'bytes=1e5'),
    )
    mixed = read_recipe(recipe_of(args))['mixed_precision']
    assert mixed['keep'] == 0.95
    assert mixed['budget'] == {'bops': 0.5, 'bytes': 1e5}
    assert mixed['reconstruction']['rounding'] == 'gptq'


def test_a_budget_of_a_recipe_without_one(parse):
    args = parse('--recipe', 'auto', '--budget', 'bops=0.5')
    mixed = read_recipe(recipe_of(args))['mixed_precision']
    assert mixed['budget'] == {'bops': 0.5}


def test_a_latency_table_is_read(parse, tmp_path, capsys):
    table = dict(float_ms=2.0, layers=dict(conv={'8x8': 1.0}))
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(table))
    given = ('--recipe', 'auto', '--latency-table', str(path))
    args = parse(*given, '--budget', 'latency=0.5')
    mixed = read_recipe(recipe_of(args))['mixed_precision']
    assert mixed['latency_table'] == table
    assert mixed['budget'] == {'latency': 0.5}
    with pytest.raises(SystemExit):
        parse(*given, '--budget', 'bops=0.5')
    assert 'needs --budget latency' in capsys.readouterr().err


@pytest.mark.parametrize(
    'option', [('--keep', '1.5'), ('--budget', 'bops'), ('--keep', 'x')]
)
def test_what_cannot_be(parse, option, capsys):
    with pytest.raises(SystemExit):
        parse('--recipe', 'auto', *option)
    assert option[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ('out', 'words'),
    [
        ('float.pth', r'--out float.pth would replace float.pth, which'),
        (
            'config.pth',
            r'--out config.pth writes config.py as well and would replace '
            'config.py',
        ),
        ('cure.pth', 'cure.py as well and would replace cure.py'),
        ('mine.pth', 'mine.py as well, and that file is no config of a quant'),
        ('q.pth', None),
        ('new.pth', None),
    ],
)
def test_nothing_of_the_user_is_replaced(out, words, tmp_path, monkeypatch):
    from taskptq.cli.quantize import check_out, parse_args

    monkeypatch.chdir(tmp_path)
    for name in ('config.py', 'float.pth', 'cure.py', 'mine.py', 'q.pth'):
        (tmp_path / name).write_text('a = 1\n')
    (tmp_path / 'q.py').write_text("hook = dict(type='taskptq.PTQHook')\n")
    args = ['config.py', 'float.pth', '--recipe', 'w8a8']
    args = parse_args([*args, '--recipe', 'cure.py', '--out', out])
    if words is None:
        check_out(args)
        return
    with pytest.raises(ValueError, match=words):
        check_out(args)
