def test_precise_gates_run_in_integers(exported, depthwise):
    model, batches = depthwise
    few = exported(model, batches=batches, gate_limit=100).report
    assert not few.gates
    assert len(few.float_gates) == 2
    assert not any('Sigmoid' in name for name in few.added)


def test_the_limit_decides(exported, depthwise):
    model, batches = depthwise
    more = exported(model, batches=batches, gate_limit=0).report
    assert len(more.gates) == 2
    assert any('Sigmoid' in name for name in more.added)


def test_outputs_may_stay_float(exported):
    found = exported('transposed', output_grids=False)
    assert 'y' not in found.report.added
    assert any('head' in n for n in found.report.checks['float_layers'])
