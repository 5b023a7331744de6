"""Markdown tables: aligned cells, most bits first."""

from taskptq.bench.markdown import (
    groups,
    render_benchmarks,
    render_results,
    render_summary,
    to_markdown,
)


def row(value, *, method='mse', bits='w4a4', seed=0, **fields):
    return dict(method=method, bits=bits, seed=seed, value=value, **fields)


RESULTS = dict(
    model='net',
    dataset='drawn',
    metric='coco/AP',
    float=dict(value=0.5, metrics={'coco/AP75': 0.4}),
    rows=[
        row(0.25, file_bytes=2048, metrics={'coco/AP75': 0.2}),
        row(0.35, seed=1, metrics={'coco/AP75': 0.2}),
        row(0.5, bits='w8a8', method='minmax'),
    ],
)


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_lines_are_equally_long():
    lines = to_markdown(['a', 'long'], [['1', ''], ['333', '4']]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cells(line) for line in lines[2:]] == [['1', ''], ['333', '4']]


def test_most_bits_come_first():
    found = [(bits, method) for bits, method, _ in groups(RESULTS)]
    assert found == [('w8a8', 'minmax'), ('w4a4', 'mse')]


def test_results_of_a_model():
    columns = {'AP': 'coco/AP', 'AP75': 'coco/AP75'}
    lines = render_results(RESULTS, columns=columns).splitlines()
    assert cells(lines[0])[2:5] == ['AP', 'of float', 'AP75']
    table = [cells(line) for line in lines[2:]]
    assert table[0][:5] == ['32', 'float', '0.500', '100.0%', '0.400']
    assert table[1][:4] == ['w8a8', 'minmax', '0.500', '100.0%']
    assert table[2][:3] == ['w4a4', 'mse', '0.300 ± 0.050 (2)']
    assert table[2][3:5] == ['60.0%', '0.200']
    assert table[2][-1] == '2'
    assert render_results(dict(RESULTS, float=None)) == 'Not measured yet.'


def test_a_row_links_to_its_file():
    place = 'configs/net/quantized/net.pth'
    named = row(0.3, file_bytes=1024, checkpoint=place)
    results = dict(RESULTS, rows=[named, row(0.4, seed=1, file_bytes=1024)])

    def size(**options):
        return cells(render_results(results, **options).splitlines()[-1])[-1]

    assert size(links=True) == f'[1](/{place})'
    assert size() == '1'
    named['checkpoint'] = None
    assert size(links=True) == '1'


def test_summary_leaves_out_what_is_not_measured():
    text = render_summary(
        [RESULTS, dict(RESULTS, float=None)], [('w4a4', 'mse'), ('w2a2', 'x')]
    )
    (line,) = text.splitlines()[2:]
    assert cells(line)[:4] == ['net', 'drawn', 'AP', '0.500']
    assert cells(line)[4:] == ['0.300 ± 0.050 (2)', '']


def test_summary_takes_the_first_measured_method_and_names_it():
    text = render_summary(
        [RESULTS], [('w4a4', 'x|mse|qdrop'), ('w2a2', 'x|y')]
    )
    head, _, line = text.splitlines()
    assert cells(head)[4:] == ['w4a4', 'w2a2']
    assert cells(line)[4:] == ['0.300 ± 0.050 (2), mse', '']


def test_benchmarks_say_what_was_missed():
    record = dict(ratio=0.9, target=1.2, commit='a' * 40)
    text = render_benchmarks(
        [
            dict(record, benchmark='reconstruction speed', reached=False),
            dict(record, benchmark='evaluation speed', reached=True),
        ]
    )
    missed, reached = (cells(line) for line in text.splitlines()[2:])
    assert missed[2:4] == ['≥ 1.2', 'missed: at least 1.2']
    assert reached[2:4] == ['≤ 1.2', 'reached']
    assert reached[-1] == 'a' * 9
