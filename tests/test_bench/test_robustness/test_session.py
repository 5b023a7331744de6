import json

import pytest

from taskptq.apis import read_config
from taskptq.bench.robustness.evaluation import RobustnessEvaluation
from taskptq.bench.robustness.plan import plan_rows
from taskptq.bench.robustness.records import Records
from taskptq.bench.robustness.session import Session, describe
from taskptq.bench.robustness.subjects import load_subjects

ROWS = plan_rows(['systems', 'attacks'], severities=[3], epsilons=[4])


@pytest.fixture
def open_session(noisy_task):

    def start(folder):
        config = read_config(noisy_task.config)
        evaluation = RobustnessEvaluation(config, max_images=3)
        subjects = load_subjects(
            config,
            str(noisy_task.float),
            [str(noisy_task.quantized)],
            model=evaluation.model,
            device='cpu',
        )
        header = {
            'model': 'net',
            'config': 'net.py',
            'images': 3,
            'seed': 0,
            'float_sha256': subjects[0].sha256,
        }
        lines = []
        return Session(
            evaluation=evaluation,
            subjects=subjects,
            records=Records(folder, header),
            log=lines.append,
        )

    return start


def results(folder):
    content = json.loads((folder / 'robustness.json').read_text())
    return {row['noise']: row['results'] for row in content['rows']}


def test_two_sessions_give_the_bits_of_one(open_session, tmp_path):
    whole = open_session(tmp_path / 'one')
    whole.measure(ROWS)
    row = whole.combined(ROWS)
    assert {noise.kind for noise in row.noises} >= {
        'resize',
        'color',
        'ceil_mode',
        'upsample',
    }
    first = open_session(tmp_path / 'two')
    first.measure(ROWS[::-3])
    second = open_session(tmp_path / 'two')
    with second.records.lock(ROWS[1]):
        second.measure(ROWS)
        assert ROWS[1].name not in results(tmp_path / 'two')
    second.measure(ROWS)
    assert results(tmp_path / 'two') == results(tmp_path / 'one')
    before = len(second.log.__self__)
    second.measure(ROWS)
    assert len(second.log.__self__) == before


def test_a_line_on_each_row():
    from taskptq.bench.robustness.evaluation import Outcome

    assert describe(
        {'a': Outcome(reason='none'), 'b': Outcome(reason='none')}
    ) == ('not applicable: none')
    assert describe(
        {'a': Outcome(metrics={'mIoU': 6.5}), 'b': Outcome(reason='none')}
    ) == ('a 6.5, b not applicable: none')
    assert describe({'a': Outcome()}) == 'a 0'
