"Run benchmarks/gpu.py, tiny and on the CPU, so that it works where there is a GPU"
from pathlib import Path

import pytest

from conftest import run_python

benchmarks = Path(__file__).parent.parent/'benchmarks'


def run_gpu(*args):
    "Run benchmarks/gpu.py with `--tiny`; return name of check -> head and rows of its table"
    out = run_python(benchmarks/'gpu.py', '--tiny', '--seconds', '1e6', *args)
    assert out.startswith('### CPU: a tiny run')
    found = {}
    for text in out.split('\n\n**')[1:]:
        rows = [o[2:-2].split(' | ') for o in text.splitlines() if o.startswith('| ')]
        found[text.split('*')[0]] = rows
    return found


def errors(tables):
    "Return the names and the cells of the rows with an error, or that were skipped"
    found = {}
    for check,(head,*rows) in tables.items():
        if 'error' in head: found |= {f'{check}, {o[0]}': o for o in rows if o[head.index('error')]}
    return found


@pytest.mark.slow
def test_cheap_checks_run():
    readme = benchmarks/'README.md'
    before = readme.read_text(encoding='utf-8')
    names = ['environment', 'out_of_memory', 'embedding']
    found = run_gpu('--save', '--only', *names)
    assert list(found) == names and not errors(found)
    large,small = found['out_of_memory'][1:]
    assert 'cheapest first' in large[1] and small[1].startswith('trains')
    assert found['embedding'][1][-1] == '1, 3, 4, 32' # features of a clip: V,S,T,F
    assert readme.read_text(encoding='utf-8') == before # a tiny run is not saved


@pytest.fixture
def gpu(monkeypatch):
    "Import benchmarks/gpu.py"
    from fastai.vision.all import defaults
    monkeypatch.syspath_prepend(benchmarks)
    monkeypatch.setattr(defaults, 'use_cuda', defaults.use_cuda) # `Run` changes it
    import gpu
    return gpu


def good(run): yield from run.rows({'a': 1, 'b': 0}, lambda o: dict(ratio=1/o, ok=o > 0))


def bad(run):
    yield 'first', dict(ratio='1|2\n3')
    raise ValueError('no such kernel')


def test_an_error_is_a_row(gpu, tmp_path):
    run = gpu.Run(tmp_path, 1000, tiny=True)
    first,second = gpu.run_check(run, good)
    assert first == ('a', dict(ratio=1, ok=True))
    assert second[0] == 'b' and second[1]['error'].startswith('ZeroDivisionError: division by zero (')
    assert gpu.rows_table([first]) == '|  | ratio | ok |\n|---|---|---|\n| a | 1.0 | yes |'
    rows = gpu.run_check(run, bad)
    assert [name for name,_ in rows] == ['first', 'bad']
    assert 'ValueError: no such kernel (test_benchmarks.py, line' in rows[1][1]['error']
    assert '| first | 1/2 3 |  |' in gpu.rows_table(rows)


def test_checks_are_skipped_without_time(gpu, tmp_path):
    run = gpu.Run(tmp_path, 0, tiny=True)
    assert gpu.run_check(run, good) == [('good', gpu.skipped)]
    run = gpu.Run(tmp_path, 10, tiny=True)
    rows = list(run.rows({'a': 1}, lambda o: dict(ok=True), needs=100))
    assert rows == [('a', gpu.skipped)]


@pytest.mark.slow
def test_all_checks_run(gpu):
    found = run_gpu()
    assert list(found) == [o.__name__ for o in gpu.checks]
    wrong = {k: o for k,o in errors(found).items() if 'not available' not in o[-1]}
    assert not wrong
    for name in ('mixed_precision', 'interrupted_batch'):
        head,*rows = found[name]
        assert {o[head.index('autocast')] for o in rows} == {'off'}
    assert {o[-1] for o in found['outputs_and_gradients'][1:]} == {'yes'}
    assert {cell for o in found['resume'][1:] for cell in o[1:]} == {'none'} # no differences
