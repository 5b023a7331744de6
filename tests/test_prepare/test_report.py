"""The report: what was swapped, and after a trace what ran."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import nn

from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, SwapReport, prepare
from taskptq.prepare.products import ProductReport, trace_products
from taskptq.testing import tiny_batches, tiny_model


class Mixed(nn.Module):
    """Every fate that a module can have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.kept = nn.Linear(6, 6)
        self.read = nn.Linear(6, 6)
        self.rare = nn.Linear(6, 6)
        self.filters = Filters()
        self.auxiliary_head = nn.Linear(6, 2)

    def forward(self, x):
        rare = bool(x[0, 0] > 9)
        x = F.linear(self.kept(self.stem(x)), self.read.weight)
        x = self.rare(x) if rare else x
        return self.filters(x)


class Filters(nn.Module):
    """As DMNet: multiplies by what it makes of its input."""

    def forward(self, x):
        return x @ x.t()


def forward(model, batch):
    return model(batch)


def reported(model, batches, traced=None, **settings):
    model.eval()
    plain = {'edge_bits': None, 'products': False}
    report = prepare(model, QConfig.from_dict(plain | settings))
    found = calibrate(model, batches, forward=forward)
    products = trace_products(model, traced or batches, forward=forward)
    report.add_products(products, left_float=found.left_float)
    return report


def rows(report):
    return {row.name: row for row in report.rows}


def mixed_report():
    x = torch.rand(3, 6)
    return reported(Mixed(), [x, x + 9], [x], keep_float=['kept'])


def test_rows_say_what_ran():
    report = mixed_report()
    by_name = rows(report)
    assert {name: row.status for name, row in by_name.items()} == {
        'stem': 'quantized',
        'kept': 'float',
        'read': 'float',
        'rare': 'unreached',
        'auxiliary_head': 'float',
        'filters': 'float',
        '': 'float',
    }
    assert by_name['kept'].reason == "qconfig.keep_float 'kept'"
    assert 'reads its weight without calling it' in by_name['read'].reason
    assert 'none of the 1 traced batches' in by_name['rare'].reason
    assert by_name['auxiliary_head'].reason == 'only training runs it'
    assert 'product of two activations in Filters' in (
        by_name['filters'].reason
    )
    assert 'read.weight' in by_name[''].reason
    # 3 rows of 6 values times 6 x 6, and 3 x 6 times 6 x 3
    assert {name: row.macs for name, row in by_name.items()} == {
        'stem': 108,
        'kept': 108,
        'read': 0,
        'rare': 0,
        'auxiliary_head': 0,
        'filters': 54,
        '': 108,
    }
    assert by_name['stem'].macs_quantized == 108
    assert by_name['read'].weight_bits is None
    assert by_name['rare'].weight_bits == 8


def test_table_json_and_log_say_the_same(tmp_path):
    report = mixed_report()
    share = (
        '28.6 % of 378 multiply-accumulates run with both operands '
        'quantized (0.0 % one, 71.4 % none)'
    )
    counts = 'modules: 1 quantized, 5 float, 1 not reached'
    assert report.summary() == f'{share}; {counts}'
    lines = report.table().splitlines()
    assert lines[0] == report.summary()
    assert lines[1].split()[0] == 'module'
    assert len(lines) == 2 + len(report.rows)
    assert '14.3 %' in next(line for line in lines if 'Filters' in line)
    assert any(line.startswith('(model)') for line in lines)
    report.save(tmp_path / 'report.json')
    plain = json.loads((tmp_path / 'report.json').read_text())
    assert next(iter(plain)) == 'summary'
    assert plain['summary'] == report.summary()
    assert plain['products'] == report.products.to_dict()
    assert [
        plain[f'num_{key}']
        for key in ('quantized', 'partly', 'float', 'unreached')
    ] == [1, 0, 5, 1]
    reasons = {p['module']: p['reason'] for p in plain['products']['products']}
    assert reasons['kept'] == "qconfig.keep_float 'kept'"


def test_stored_products_give_the_same_rows():
    report = mixed_report()
    model = Mixed().eval()
    again = prepare(
        model, QConfig.from_dict({'edge_bits': None, 'keep_float': ['kept']})
    )
    stored = json.loads(json.dumps(report.products.to_dict()))
    again.add_products(ProductReport.from_dict(stored))
    assert again.rows == report.rows
    assert again.table() == report.table()


def test_float_operand_makes_a_module_partly_quantized():
    model = tiny_model('conv')
    report = reported(model, tiny_batches('conv'), activation=False)
    assert report.count('quantized') == 0
    assert report.count('partly') == len(report.rows)
    assert all('input is float' in row.reason for row in report.rows)
    assert '0.0 % of' in report.summary()
    assert '(100.0 % one, 0.0 % none)' in report.summary()


def test_tables_of_positions_are_named():
    report = reported(tiny_model('relative'), tiny_batches('relative'))
    row = rows(report)['attn']
    assert row.status == 'partly'
    assert 'second operand of einsum is float' in row.reason
    assert 0 < row.macs_quantized < row.macs


def test_weight_that_is_read_counts_where_it_is_quantized():
    """Without activations nothing is left float, and one operand is not."""
    x = torch.rand(3, 6)
    report = reported(Mixed(), [x], activation=False)
    row = rows(report)['read']
    assert row.status == 'partly'
    assert 'reads its weight past its forward' in row.reason
    assert report.products.one == 108 + 108 + 108


def test_before_a_trace_the_report_says_what_was_swapped():
    report = prepare(tiny_model('conv'), QConfig.from_dict({}))
    assert report.products is None
    assert report.to_dict()['products'] is None
    assert (
        report.summary() == f'modules: {len(report.rows)} quantized, 0 float'
    )
    assert report.table().splitlines()[0].startswith('module')
    assert SwapReport().count('quantized') == 0
