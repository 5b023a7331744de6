from robustness_results import content

from taskptq.bench.robustness.markdown import render


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def test_the_page_has_every_family():
    text = render(content())
    headings = [line for line in text.splitlines() if line.startswith('#')]
    assert headings == [
        '# Robustness of net',
        '## System noise',
        '## Corruptions',
        '## Attacks',
    ]
    (line,) = lines_with(text, 'combined (')
    assert 'combined (crop=1, ceil_mode)' in line
    assert '20.00 (-20.00)' in line
    assert '10.00 (-26.00)' in line
    assert 'taskptq bench robustness net.py' in text


def test_the_page_says_how_long_it_took():
    results = content()
    assert lines_with(render(results), 'Took') == ['Took 1 s.']
    again = {'seconds': 90.4, 'processor_seconds': 160.2, 'processes': 2}
    results['runs'].append({**results['runs'][0], **again})
    assert lines_with(render(results), 'Took') == [
        'Took 1 s, 90 s with 2 processes (160 s of processors).'
    ]


def test_scores_and_reasons():
    text = render(content())
    (line,) = lines_with(text, '4.00 (fog=5)')
    assert line.startswith('| q ')
    for cell in ('23.70', '65.83 %', '+4.00', '+5.30', '+1.30'):
        assert cell in line
    assert '- precision=float16: it is quantized (q)' in text
    (least,) = lines_with(text, 'least at 4/255')
    assert 'clean' in least


def test_percentages_stay():
    results = content()
    for row in results['rows']:
        for found in row['results'].values():
            metrics = found.pop('metrics', None)
            if metrics is not None:
                found['metrics'] = {'mIoU': 100 * metrics['coco/bbox_mAP']}
    text = render(results)
    assert 'mIoU on 8 images' in text
    assert '20.00 (-20.00)' in text
