import copy

from robustness_results import content
from scripts import load_script

collect = load_script('robustness', 'collect')


def test_claims_are_judged_by_numbers():
    results = content()
    assert [*collect.float_claims(results)] == []
    # A noise that no one calls harmless leaves nothing to chance.
    results['rows'][1]['kind'] = 'ceil_mode'
    assert collect.chance(results) == 0
    lines = list(collect.quantized_claims(results))
    by_claim = {line[0]: line[1:] for line in lines}
    assert by_claim['loses more than float under corruptions'] == [
        'q',
        'excess +1.30',
        'yes',
    ]
    # 30 of 40 against 28 of 36: float loses 10, the quantized model 8.
    assert by_claim['loses more than float under system noise'] == [
        'q',
        'excess -2.00',
        'no',
    ]
    assert by_claim['keeps more than float under attacks, 4/255'] == [
        'q',
        '27.8 % against 12.5 %',
        'yes',
    ]


def test_small_differences_are_within_chance():
    assert round(collect.chance(content()), 6) == 0.1
    lines = [line[-1] for line in collect.quantized_claims(content())]
    assert set(lines) == {'within chance'}
    assert collect.verdict(-0.2, least=0.1) == 'no'


def test_the_worst_resize_is_named():
    results = content()
    results['rows'][1]['kind'] = 'ceil_mode'
    for option, value in (('opencv-nearest', 0.2), ('pillow-box', 0.3)):
        row = copy.deepcopy(results['rows'][1])
        row |= {'noise': f'resize={option}', 'kind': 'resize'}
        row['results']['float']['metrics']['coco/bbox_mAP'] = value
        results['rows'].append(row)
    (line,) = collect.float_claims(results)
    assert line[2:] == ['opencv-nearest loses 20.00', 'yes']


def test_seeds_of_calibration_are_averaged():
    results = content()
    results['subjects'] = results['subjects'][:1]
    for mix, values in (('clean', (0.3, 0.32)), ('noisy', (0.4, 0.4))):
        for seed, value in enumerate(values):
            name = f'w4a4_mse_{mix}-{seed}'
            results['subjects'].append({'name': name})
            for row in results['rows']:
                row['results'][name] = {'metrics': {'coco/bbox_mAP': value}}
    table = collect.mix_table(results)
    assert '31.00 ± 1.41' in table
    assert '40.00 ± 0.00' in table
    assert collect.mix_table(content()) == ''


def test_the_overview_sets_losses_side_by_side():
    table = collect.overview({'net': content()})
    assert len(table.splitlines()) == 4
    line = table.splitlines()[-1]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells == [
        'net',
        'q',
        '36.00',
        '+4.00',
        '28.00 (78 %)',
        '+2.00',
        '23.70 (66 %)',
        '+5.30',
        '10.00 at 4/255',
    ]


def test_verdicts_are_counted():
    lines = [
        ['a', 'one', 'q', '1', 'yes'],
        ['b', 'one', 'q', '1', 'within chance'],
        ['b', 'one', 'p', '1', 'yes'],
        ['b', 'two', 'p', '1', 'no'],
    ]
    counts = collect.verdict_counts(lines).splitlines()[2:]
    assert [[c.strip() for c in row.split('|')[1:-1]] for row in counts] == [
        ['one', '2', '0', '1'],
        ['two', '0', '1', '0'],
    ]


def test_the_page_has_a_section_for_each_study():
    text = collect.page({'net': content()})
    assert '## Robustness of net' in text
    assert '### Corruptions' in text
    assert '| net' in text
