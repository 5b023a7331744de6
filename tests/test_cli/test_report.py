"""``taskptq report``: its options, and its page in a real browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import taskptq
from taskptq.analysis.page.agreement import compare
from taskptq.analysis.page.content import (
    file_entry,
    float_entry,
    page_content,
)
from taskptq.analysis.page.noise import LayerNoise, summarize
from taskptq.analysis.page.pictures import draw
from taskptq.analysis.page.predictions import Box, Prediction
from taskptq.analysis.page.render import write
from taskptq.analysis.page.tensors import TensorShape
from taskptq.cli import report
from taskptq.export.quantized_file import open_file
from taskptq.testing import tiny_batches, tiny_model

SCHEMES = ('light', 'dark')
WIDTHS = (1280, 400)
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    out = tmp_path_factory.mktemp('report') / 'q.pth'
    taskptq.quantize(
        tiny_model('conv').eval(),
        tiny_batches('conv'),
        recipe=['w4a8_mse', dict(qconfig=dict(keep_float=['layer2.*']))],
        out=out,
    )
    return out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['q.pth', '--out', 'r.txt'], 'must end in .html'),
        (['q.pth', '--float', 'f.pth'], '--float needs CONFIG'),
        (['q.pth', '--out', 'r.html', '--float', 'f.pth'], 'needs CONFIG'),
        (['q.pth', 'r.pth'], 'give --out PAGE.html'),
        (['c.py'], 'give a quantized file after c.py'),
        (['c.py', 'q.pth', '--json'], 'writes its JSON beside itself'),
        (['c.py', 'q.pth', '--images', '0'], 'whole number of at least 1'),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit):
        report.main(arguments)
    assert message in capsys.readouterr().err


def test_a_page_from_a_file_alone(file, tmp_path, capsys):
    out = tmp_path / 'report.html'
    report.main([str(file), '--out', str(out)])
    assert 'open it in a browser' in capsys.readouterr().out
    assert 'w4a8_mse' in out.read_text()
    assert out.with_suffix('.json').is_file()


def test_a_page_with_a_config(
    tiny_path, float_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    taskptq.quantize(
        str(tiny_path),
        float_checkpoint,
        recipe='w8a8_minmax',
        calibration=dict(num_images=8),
        out='q.pth',
    )
    arguments = [str(tiny_path), 'q.pth', '--float', str(float_checkpoint)]
    report.main([*arguments, '--images', '2', '--layer-images', '1'])
    assert 'report.html: ' in capsys.readouterr().out
    assert 'Signal to noise of each layer' in Path('report.html').read_text()


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 no zip', b'\x80\x02x'])
def test_a_damaged_file_is_one_sentence(content, tmp_path, capsys):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        report.main(
            [str(tmp_path / 'x.pth'), '--out', str(tmp_path / 'r.html')]
        )
    assert 'x.pth' in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'r.html').exists()


def test_an_exported_file_is_refused(capsys):
    with pytest.raises(SystemExit):
        report.main(['config.py', 'model.onnx'])
    error = capsys.readouterr().err
    assert 'model.onnx is an exported file: give the quantized file' in error


def box(x, label, score=0.9):
    return Box(corners=(x, 20, x + 60, 90), label=label, score=score)


def picture(titles):
    clean = Prediction(boxes=[box(10, 0), box(120, 1)])
    noisy = Prediction(boxes=[box(12, 0, 0.7), box(220, 1)])
    size, image = (200, 320), np.full((200, 320, 3), 90, np.uint8)
    one = compare(clean, noisy, score=0.3, size=size)
    drawn = draw(
        image,
        clean,
        dict.fromkeys(titles, noisy),
        dict.fromkeys(titles, one),
        classes=['cat', HOSTILE],
        score=0.3,
        size=size,
    )
    return {**drawn, 'name': HOSTILE, 'kind': 'worst'}


def tensor(name):
    return TensorShape(
        name=name,
        num_bits=4,
        quant_min=0,
        quant_max=15,
        scale=0.1,
        channels=1,
        counts=[float(i % 7) for i in range(128)],
        low=-4.5,
        high=19.5,
        least=0.0,
        greatest=40.0,
        clipped=0.01,
        db=20.0,
    ).to_dict()


def full_entry(file, title):
    entry = file_entry(
        file, title=title, metrics={'mAP': 0.28, 'coco/cat_precision': 0.2}
    )
    names = [layer['name'] for layer in entry['layers']]
    noises = [
        LayerNoise(
            name=name,
            kind='convolution',
            part=name,
            own_db=30.0 - 10 * (i % 2),
            output_db=20.0,
        )
        for i, name in enumerate(names)
    ]
    return {
        **entry,
        'noise': summarize(noises),
        'tensors': [tensor('a.input_quantizer'), tensor(HOSTILE)],
        'warnings': [f'{HOSTILE} is a warning with a cure'],
    }


@pytest.fixture(scope='module')
def page(file, tmp_path_factory):
    """A page with every section, on two files, with hostile names."""
    opened = open_file(file)
    titles = ['w4a8_mse', f'second {HOSTILE}']
    content = page_content(
        [full_entry(opened, title) for title in titles],
        float_model=float_entry(
            Path(HOSTILE), file=opened, metrics={'mAP': 0.3}
        ),
        pictures=[picture(titles), picture(titles)],
        settings={
            'num_images': 2,
            'score': 0.3,
            'compared': True,
            'commands': [],
        },
    )
    out = tmp_path_factory.mktemp('page') / 'report.html'
    write(content, out)
    return out


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which('chromium'),
            args=[
                '--no-sandbox',
                '--disable-gpu',
                '--disable-background-networking',
            ],
        )
        yield browser
        browser.close()


class Seen:
    """What a page did while it was open."""

    def __init__(self, context, path):
        self.complaints, self.requests = [], []
        self.page = context.new_page()
        self.page.on('console', self._hear)
        self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.page.on('request', lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state('networkidle')

    def _hear(self, message):
        self.complaints.append(message.text)

    def outside(self):
        return [u for u in self.requests if not u.startswith('data:')][1:]


@pytest.fixture(
    scope='module', params=[(s, w) for s in SCHEMES for w in WIDTHS], ids=str
)
def view(request, chromium, page):
    scheme, width = request.param
    context = chromium.new_context(
        color_scheme=scheme, viewport={'width': width, 'height': 800}
    )
    yield Seen(context, page)
    context.close()


@pytest.fixture
def tab(chromium, page):
    context = chromium.new_context()
    yield Seen(context, page).page
    context.close()


@pytest.mark.browser
def test_it_opens_quietly_and_asks_for_nothing(view):
    assert view.complaints == []
    assert view.outside() == []
    assert view.page.title().endswith('quantized')
    # Nothing is wider than the window: tables scroll inside their box.
    width = view.page.evaluate('document.documentElement.scrollWidth')
    assert width <= view.page.viewport_size['width']


@pytest.mark.browser
def test_text_is_readable_in_either_scheme(view):
    """The contrast of text to its ground is at least 4.5 (WCAG AA)."""
    found = view.page.evaluate(
        """() => {
        const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = (color) => {
          const [r, g, b] = rgb(color).map((value) => {
            const part = value / 255;
            return part <= .04045 ? part / 12.92
              : ((part + .055) / 1.055) ** 2.4;
          });
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const ground = getComputedStyle(document.body).backgroundColor;
        return [...document.querySelectorAll('p, td, th, figcaption b, h1, h2'
          + ', svg text:not(.caption)')].map((element) => {
          const style = getComputedStyle(element);
          const isText = element instanceof SVGElement;
          const pair = [light(isText ? style.fill : style.color),
            light(ground)].sort((a, b) => b - a);
          return (pair[0] + .05) / (pair[1] + .05);
        });
        }"""
    )
    assert len(found) > 50
    assert min(found) >= 4.5


@pytest.mark.browser
def test_pictures_load(tab):
    sizes = tab.evaluate(
        """async () => Promise.all([...document.querySelectorAll('image')].map(
        async (element) => {
          const image = new Image();
          image.src = element.getAttribute('href');
          await image.decode();
          return image.naturalWidth;
        }))"""
    )
    assert sizes
    assert all(size == 320 for size in sizes)
    # Each photograph is stored once and shown in every column.
    assert tab.locator('.picture svg use').count() == 6
    assert len(sizes) == 2
    boxes = tab.locator('.picture svg').first.bounding_box()
    assert boxes['width'] > 200


@pytest.mark.browser
def test_marks_of_disagreement_are_drawn(tab):
    for mark, count in (('lost', 4), ('new', 4), ('agreed', 4)):
        assert tab.locator(f'.picture .shape.{mark}').count() == count


@pytest.mark.browser
def test_tables_sort_both_ways(tab):
    tab.locator('details summary', has_text='the noisiest first').first.click()
    table = tab.locator('details[open] table').first
    head = table.locator('th', has_text='this layer alone')
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'ascending'
    assert column(table, 3) == sorted(column(table, 3))
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'descending'
    assert column(table, 3) == sorted(column(table, 3), reverse=True)
    assert len(set(column(table, 3))) > 1
    names = table.locator('th').first
    names.locator('button').press('Enter')
    assert names.get_attribute('aria-sort') == 'ascending'


def column(table, index):
    cells = table.locator('tbody tr').evaluate_all(
        f'rows => rows.map(row => row.cells[{index}].dataset.value)'
    )
    return [float(cell) for cell in cells]


@pytest.mark.browser
def test_it_reads_without_scripts(chromium, page):
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator('table tbody tr').count() > 10
    assert tab.locator('section').count() == 7
    assert tab.get_by_text('What stays float, and why').first.is_visible()
    assert tab.locator('th button').count() == 0
    context.close()


@pytest.mark.browser
def test_names_of_strangers_stay_text(tab):
    assert tab.locator('img').count() == 0
    assert tab.get_by_text(HOSTILE).count() > 5
    assert tab.title().endswith('quantized')


@pytest.mark.browser
def test_a_screenshot_is_not_blank(chromium, page, tmp_path):
    tab = chromium.new_page(viewport={'width': 800, 'height': 600})
    tab.goto(page.as_uri())
    tab.screenshot(path=tmp_path / 'page.png')
    pixels = np.asarray(Image.open(tmp_path / 'page.png').convert('L'))
    assert pixels.std() > 10
