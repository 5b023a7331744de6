"""Parts of a recipe are checked by building them, before any work."""

import pytest

pytest.importorskip('mmengine')

from taskptq.core.settings import SettingError
from taskptq.engine.hook_settings import check_recipe, check_teacher

TEACHER = dict(config='a.py', checkpoint='a.pth')


@pytest.mark.parametrize(
    'parts',
    [
        {},
        dict(reconstruction=dict(steps=3), seed=2**32 - 1),
        dict(loss=dict(type='MSEReconLoss', normalize=False)),
        dict(rewrites=[dict(type='AttentionCentering')]),
        # Whether the teacher's files exist counts where it is used.
        dict(loss=dict(type='QueryDistillationLoss', teacher=TEACHER)),
    ],
)
def test_possible_parts_pass(parts):
    check_recipe(**parts)


@pytest.mark.parametrize(
    ('parts', 'name'),
    [
        (dict(seed=-1), 'seed=-1'),
        (dict(reconstruction=[1]), 'reconstruction='),
        (dict(loss=dict(type='NoSuchLoss')), 'loss'),
        (dict(loss=dict(normalize=True)), 'loss='),
        (
            dict(reconstruction=dict(loss=dict(type='MSEReconLoss', a=1))),
            r'reconstruction\.loss',
        ),
        (dict(rewrites=dict(type='AttentionCentering')), 'rewrites='),
        (
            dict(rewrites=[dict(type='AttentionCentering'), dict(type='No')]),
            r'rewrites\[1\]',
        ),
        (
            dict(
                loss=dict(
                    type='QueryDistillationLoss',
                    teacher=dict(TEACHER, trust_checkpoint='True'),
                )
            ),
            r'loss\.teacher\.trust_checkpoint',
        ),
    ],
)
def test_impossible_parts_are_named(parts, name):
    with pytest.raises(SettingError, match=f'^{name}') as caught:
        check_recipe(**parts)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'teacher',
    [
        dict(config='a.py'),
        dict(TEACHER, model='x'),
        dict(TEACHER, checkpoint=3),
        dict(TEACHER, config=''),
        'a.py',
    ],
)
def test_teachers_that_cannot_be(teacher):
    with pytest.raises(SettingError, match=r'^teacher'):
        check_teacher(teacher, name='teacher')
