"""Recipes as users write them: through both hooks, the API and the tool."""

import importlib
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from taskptq import apis
from taskptq.core.settings import SettingError
from taskptq.engine import config_quantization
from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.ptq_hook import PTQHook
from taskptq.engine.recipe_source import read_recipe, with_recipe
from taskptq.export import load
from taskptq.qat.hook import QATHook
from taskptq.recipes import register_folder, resolve
from tests.helpers.method_kinds import LEVEL_METHODS, STEP_METHODS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {
    'taskptq': ROOT / 'taskptq/recipes',
    **{
        name: ROOT / f'projects/{name}/{name}/recipes'
        for name in ('lane_detection', 'sam_detector')
    },
}
# Methods that train: PTQHook would drop their distillation.
TRAINED = [
    name
    for name in STEP_METHODS
    if resolve(f'w4a4_{name}').get('distillation')
]
# A few bits of each scope; test_digests.py has those of its tables.
BITS = {
    'taskptq': ('w2a4-8', 'w8a8'),
    'lane_detection': ('w3a3',),
    'sam_detector': ('w4a4',),
}
NAMES = [
    f'{scope}::{bits}_{path.stem}'
    for scope in BITS
    for path in sorted(RECIPES[scope].glob('[!_]*.py'))
    for bits in BITS[scope]
    if scope != 'taskptq'
    or (path.stem in STEP_METHODS and path.stem not in TRAINED)
]
CALIBRATION = dict(num_images=8)


@pytest.fixture(scope='module', autouse=True)
def _projects():
    """What importing the projects does."""
    for name, folder in RECIPES.items():
        register_folder(folder, scope=name)


def test_a_name_a_dict_a_file_and_a_list(tmp_path):
    named = read_recipe('w4a4_drd')
    assert named == resolve('w4a4_drd')
    assert read_recipe(dict(qconfig={})) == {'qconfig': {}}
    path = tmp_path / 'mine.py'
    Config(named).dump(path)
    for one in (path, str(path)):
        assert read_recipe(one) == named
    assert read_recipe(['w4a4_drd']) == named


def test_a_file_of_plain_data(tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text('{"qconfig": {"edge_bits": 4}}')
    merged = read_recipe(['w8a8_mse', str(path)])
    assert merged['qconfig']['edge_bits'] == 4
    path.write_text('{"qconfig": [4]}')
    with pytest.raises(SettingError, match=r'mine.json: qconfig=\[4\]: give'):
        read_recipe(['w8a8_mse', str(path)])


def test_names_that_train_are_no_methods_of_ptq(monkeypatch):
    said = []
    monkeypatch.setattr(
        'taskptq.engine.recipe_source.print_log',
        lambda text, **_: said.append(text),
    )
    for owner in ('QATHook', 'PTQHook'):
        with_recipe(['w4a4_lsq-qat'], owner=owner, qconfig=None)
    (text,) = said
    assert "recipe='w4a4_lsq-qat' is for training" in text


def test_a_list_is_merged_in_order(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "custom_imports = dict(imports=['json'])\n"
        "reconstruction = dict(loss=dict(type='MSEReconLoss'))\n"
    )
    merged = read_recipe(
        [
            'w4a4_qdrop',
            dict(reconstruction=dict(steps=7, drop_prob=0.1)),
            path,
            ConfigDict(reconstruction=dict(drop_prob=0.2)),
        ]
    )
    plain = resolve('w4a4_qdrop')
    assert merged == {
        **plain,
        'reconstruction': {
            **plain['reconstruction'],
            'steps': 7,
            'drop_prob': 0.2,
            'loss': {'type': 'MSEReconLoss'},
        },
    }
    deleted = read_recipe(
        [
            'w4a4_qdrop',
            dict(reconstruction=dict(_delete_=True, rounding='gptq')),
        ]
    )
    assert deleted['reconstruction'] == {'rounding': 'gptq'}
    # A method without reconstruction has None there.
    added = read_recipe(
        ['w4a4_mse', dict(reconstruction=dict(rounding='gptq'))]
    )
    assert added['reconstruction'] == {'rounding': 'gptq'}


@pytest.mark.parametrize(
    ('recipe', 'error', 'message'),
    [
        (3, SettingError, 'recipe=3: give a name such as'),
        ([], SettingError, 'recipe sets no qconfig'),
        ([3], SettingError, 'recipe=3'),
        (dict(reconstruction={}), SettingError, 'recipe sets no qconfig'),
        (dict(qconf={}), SettingError, "did you mean 'qconfig'"),
        ('w4a4_qdorp', SettingError, 'the nearest are qdrop'),
        (
            'no/such/file.py',
            FileNotFoundError,
            'no config file no/such/file.py',
        ),
        ('w4a4_qdrop.py', FileNotFoundError, 'no config file w4a4_qdrop.py'),
        (
            ROOT / 'configs/_base_/runtime/mmdet.py',
            SettingError,
            r"mmdet\.py has unknown key 'default_scope'",
        ),
    ],
)
def test_what_is_no_recipe(recipe, error, message):
    with pytest.raises(error, match=message):
        read_recipe(recipe)


def test_what_is_given_replaces():
    given = with_recipe(
        'w4a4_qdrop',
        owner='test',
        qconfig=None,
        reconstruction={'steps': 3},
        loss=None,
    )
    assert given == {
        'qconfig': resolve('w4a4_qdrop')['qconfig'],
        'reconstruction': {'steps': 3},
        'loss': None,
    }
    assert with_recipe(None, owner='test', qconfig=None) == {'qconfig': None}


@pytest.mark.parametrize('name', TRAINED)
def test_only_qat_hook_takes_what_trains(name):
    with pytest.raises(
        SettingError,
        match='recipe sets distillation, which '
        'PTQHook has no use for: use QATHook',
    ):
        PTQHook(recipe=f'w4a4_{name}')


@pytest.mark.parametrize(
    ('name', 'part'),
    [('qdrop', 'reconstruction'), ('mse-centering', 'rewrites')],
)
def test_qat_hook_drops_nothing(name, part):
    with pytest.raises(
        SettingError,
        match=f'recipe sets {part}, which QATHook has no use for: use PTQHook',
    ):
        QATHook(recipe=f'w4a4_{name}')


@pytest.mark.parametrize('name', [*TRAINED, 'lsq-qat', 'mse'])
def test_qat_hook_is_the_same_by_name(name):
    parts = resolve(f'w4a4_{name}')
    named = QATHook(recipe=f'w4a4_{name}', calibration=CALIBRATION)
    given = QATHook(
        parts['qconfig'],
        distillation=parts.get('distillation'),
        calibration=CALIBRATION,
    )
    assert named.recipe == given.recipe
    assert (named.distillation is None) == (name not in TRAINED)
    assert QATHook().qconfig is None


@pytest.mark.parametrize('name', LEVEL_METHODS)
def test_qat_hook_has_the_levels_of_a_name(name):
    parts = resolve(f'w1a4_{name}')
    named = QATHook(recipe=f'w1a4_{name}', calibration=CALIBRATION)
    given = QATHook(
        parts['qconfig'],
        distillation=parts.get('distillation'),
        calibration=CALIBRATION,
    )
    assert named.recipe == given.recipe
    with pytest.raises(SettingError, match='is 4 bits of equal steps'):
        QATHook(recipe=f'w4a4_{name}')


def test_parts_beside_a_recipe():
    hook = PTQHook(
        dict(edge_bits=None),
        recipe='w4a4_mse-centering',
        reconstruction=dict(rounding='gptq'),
    )
    assert hook.recipe.to_dict()['qconfig']['edge_bits'] is None
    assert hook.recipe.reconstruction['rounding'] == 'gptq'
    assert hook.recipe.rewrites == resolve('w4a4_mse-centering')['rewrites']
    hook = QATHook(recipe='w4a4_drd-qat', distillation=dict(weight=1.5))
    assert hook.distillation.weight == 1.5


@pytest.fixture
def made(monkeypatch):
    """Recipes that reach the work, which is left out."""
    seen = []

    def remember(model, batches, *, recipe, **kwargs):
        seen.append(recipe)
        if kwargs.get('out') is not None:
            Path(kwargs['out']).write_bytes(b'')
        return {'file_bytes': 0}

    for name in (
        'read_checkpoint',
        'build_model',
        'load_float_weights',
        'refuse_misfit',
    ):
        monkeypatch.setattr(
            config_quantization, name, lambda *args, **kwargs: Anything()
        )
    for name in ('evaluation_source', 'build_calibration'):
        monkeypatch.setattr(
            config_quantization, name, lambda *args, **kwargs: Anything()
        )
    monkeypatch.setattr(config_quantization, 'local_file', lambda path: path)
    monkeypatch.setattr(config_quantization, 'quantize_model', remember)
    return seen


class Anything:
    """Stands for a model, its data and its file."""

    dataset = None


@pytest.fixture(scope='module')
def tool():
    module = importlib.import_module('taskptq.cli.quantize')
    return module


@pytest.fixture
def run_tool(tool, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmengine'\n")

    def run(*options):
        """Return the hook of the config that the tool writes."""
        out = tmp_path / 'q.pth'
        tool.main([str(config), 'float.pth', *options, '--out', str(out)])
        hooks = Config.fromfile(out.with_suffix('.py')).custom_hooks
        settings = {k: v for k, v in hooks[-1].items() if k != 'type'}
        return PTQHook(**settings)

    return run


@pytest.mark.parametrize('name', NAMES)
def test_hook_api_and_tool_make_the_same_recipe(
    name, made, run_tool, tmp_path
):
    hook = PTQHook(recipe=name)
    apis.quantize(Config(), 'float.pth', recipe=name, work_dir=tmp_path)
    written = run_tool('--recipe', name)
    assert len(made) == 2
    check_one_recipe([hook.recipe, *made, written.recipe], parts=resolve(name))


def check_one_recipe(recipes, *, parts):
    """Recipes are the same, and nothing of what was asked for is lost."""
    (_,) = {recipe.digest() for recipe in recipes}
    settings = dict(parts['reconstruction'] or {})
    loss = settings.pop('loss', None) or parts.get('loss')
    expected = build_qconfig(parts['qconfig']).to_dict()
    for recipe in recipes:
        content = recipe.to_dict()
        assert content['qconfig'] == to_plain(expected)
        assert content['rewrites'] == parts.get('rewrites', [])
        assert content['loss'] == loss
        if parts['reconstruction'] is None:
            assert content['reconstruction'] is None
        else:
            assert settings.items() <= content['reconstruction'].items()


# Recipes that need more than a name; a dict reaches the tool as a file.
WRITTEN = {
    'list': ['w4a4_qdrop', dict(reconstruction=dict(steps=10))],
    'dict': dict(
        qconfig=dict(weight=dict(num_bits=3)),
        reconstruction=dict(rounding='gptq'),
        rewrites=[dict(type='CrossLayerEqualization')],
    ),
    'rewrites in a list': [
        'w4a4-8_drd-centering',
        dict(rewrites=[dict(type='CrossLayerEqualization')]),
        dict(loss=dict(type='MSEReconLoss')),
    ],
    'project': ['sam_detector::w4a4_ptq4sam-l', dict(qconfig=dict(edges=[]))],
}


@pytest.mark.parametrize('case', WRITTEN)
def test_parts_and_files_make_the_same_recipe(case, made, run_tool, tmp_path):
    recipe = WRITTEN[case]
    given = recipe if isinstance(recipe, list) else [recipe]
    words = []
    for number, part in enumerate(given):
        if isinstance(part, dict):
            path = tmp_path / f'part_{number}.py'
            Config(part).dump(path)
            part = str(path)
        words.append(part)
    hook = PTQHook(recipe=recipe)
    from_files = PTQHook(recipe=words)
    apis.quantize(Config(), 'float.pth', recipe=recipe, work_dir=tmp_path)
    options = [word for part in words for word in ('--recipe', part)]
    written = run_tool(*options)
    assert len(made) == 2
    parts = read_recipe(recipe)
    parts = {**parts, 'reconstruction': parts.get('reconstruction')}
    if 'loss' in parts:
        # Given apart, it counts before the reconstruction's own.
        parts['reconstruction'] = {
            k: v for k, v in parts['reconstruction'].items() if k != 'loss'
        }
    check_one_recipe(
        [hook.recipe, from_files.recipe, *made, written.recipe], parts=parts
    )


def test_the_tool_keeps_the_rewrites_of_a_file(made, run_tool, tmp_path):
    path = tmp_path / 'mine.py'
    Config(resolve('w4a4-8_mse-centering')).dump(path)
    written = run_tool('--recipe', str(path))
    assert written.recipe.rewrites
    assert (
        written.recipe.digest()
        == made[0].digest()
        == PTQHook(recipe='w4a4-8_mse-centering').recipe.digest()
    )


def test_the_tool_merges_recipes(made, run_tool, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('reconstruction = dict(steps=7)\n')
    run_tool('--recipe', 'w4a4_qdrop', '--recipe', str(path))
    assert made[0].reconstruction['steps'] == 7
    assert made[0].reconstruction['drop_prob'] == 0.5


def test_the_tool_says_what_it_does_not_know(run_tool):
    with pytest.raises(SystemExit, match='the nearest are qdrop'):
        run_tool('--recipe', 'w4a4_qdorp')


def test_the_api_needs_one_of_both(tmp_path):
    with pytest.raises(SettingError, match='give one, such as w4a4_qdrop'):
        apis.quantize(Config(), 'float.pth', work_dir=tmp_path)


def test_a_config_needs_only_the_name(make_runner, float_checkpoint):
    runner = make_runner(
        float_checkpoint,
        hook=dict(
            recipe=['w4a4_mse', dict(qconfig=dict(edge_bits=6))],
            calibration=CALIBRATION,
        ),
    )
    runner.test()
    payload = load(Path(runner.work_dir) / 'quantized.pth')
    written = payload['recipe']
    assert written['qconfig']['edge_bits'] == 6
    assert written['qconfig']['weight']['num_bits'] == 4
    assert {**written, 'calibration': {}} == {
        **PTQHook(
            recipe='w4a4_mse',
            qconfig={**resolve('w4a4_mse')['qconfig'], 'edge_bits': 6},
        ).recipe.to_dict(),
        'calibration': {},
    }
