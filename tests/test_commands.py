"""Run commands on a data set with odd names: results on stdout, one line per message, nothing lost."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import child_env
from conftest import run_command as run
from vidseq.cli import main

posix = pytest.mark.skipif(os.name != 'posix', reason='uses file names and pipes of POSIX')
odd_names = ['$x^{2', '=1+1', 'a\nb\x1b[31m', os.fsdecode(b'caf\xe9')]
if sys.platform == 'darwin': odd_names.pop() # names must be valid UTF-8



@pytest.fixture(scope='module')
def odd(tmp_path_factory, make_shapes):
    "Return a folder of videos whose class folders have odd names, and an empty class folder"
    source,root = make_shapes((32,32)),tmp_path_factory.mktemp('odd')/'data'
    classes = sorted(o for o in source.iterdir() if o.is_dir() and not o.name.startswith('.'))
    for folder,name in zip(classes, odd_names): shutil.copytree(folder, root/name)
    (root/'empty').mkdir()
    return root

@pytest.fixture(scope='module')
def trained(odd, tmp_path_factory):
    "Return the folder of results of `vidseq train`, and what it printed"
    out = tmp_path_factory.mktemp('trained')/'out'
    return out,run('train', odd, '--scratch', '--out', out, '--seconds', .2, '--size', 32, '--frames', 4,
        '--bs', 8)


@posix
def test_train_with_odd_names(trained):
    out,(code,printed,err) = trained
    assert code == 0, err
    assert [o.name for o in sorted(out.glob('[!.]*')) if not o.name.startswith('frames')] == [
        'index.html', 'model', 'scores.json']
    assert len(printed.splitlines()) == 6 and printed.splitlines()[-1].startswith('Page: ')
    assert '\x1b' not in err and '\r' not in err
    assert sum(o.startswith('epoch 0, train_loss') for o in err.splitlines()) == 4
    scores = json.loads((out/'scores.json').read_text(encoding='utf-8'))
    assert set(scores['classes']) == set(odd_names)

@posix
def test_train_from_pretrained_weights(odd, tmp_path):
    "Check the results of the main command: heads on features of real weights, with unusual class names"
    out = tmp_path/'out'
    code,printed,err = run('train', odd, '--out', out, '--seconds', 20, '--size', 48, '--seq-len', 4)
    assert code == 0, err
    assert 'Starting from EfficientNet-Lite0, ImageNet weights (Apache-2.0).' in err
    assert 'Linear on motion' in printed and printed.splitlines()[-1].startswith('Page: ')
    scores = json.loads((out/'scores.json').read_text(encoding='utf-8'))
    assert scores['best'] in printed and scores['n_folds'] == 5
    card = json.loads((out/'model'/'config.json').read_text(encoding='utf-8'))['card']
    assert 'EfficientNet-Lite0' in card['started_from']
    code,printed,err = run('predict', out/'model', next((odd/odd_names[2]).glob('*.avi')))
    assert code == 0 and len(printed.splitlines()) >= 1, err

@posix
def test_train_without_weights_goes_on_from_scratch(odd, tmp_path, monkeypatch):
    "Check that the reason and the fix are printed, on one line, and are on the page"
    import vidseq.models.pretrained
    monkeypatch.setattr(vidseq.models.pretrained, '_packaged_file', lambda: None)
    monkeypatch.setattr(vidseq.models.pretrained, '_in_hub_cache', lambda hub_id: False)
    monkeypatch.setattr(vidseq.models.pretrained, '_hub_answers', lambda: False)
    out = tmp_path/'out'
    code,printed,err = run('train', odd, '--out', out, '--seconds', 1, '--size', 32, '--frames', 4, '--bs', 8)
    assert code == 0, err
    [line] = [o for o in err.splitlines() if 'No pretrained weights' in o]
    assert 'vidseq[offline]' in line and 'from scratch' in line
    assert 'No pretrained weights' in (out/'index.html').read_text(encoding='utf-8')

@posix
def test_evaluate_prints_json_only(trained, odd):
    code,printed,err = run('evaluate', trained[0]/'model', odd, '--json')
    assert code == 0, err
    data = json.loads(printed, parse_constant=pytest.fail)
    assert {o['label'] for o in data['classes']} == set(odd_names)
    assert 'empty' in err

@posix
def test_predict_and_timeline_print_names_on_one_line(trained, odd):
    video = next((odd/odd_names[2]).glob('*.avi'))
    code,printed,err = run('predict', trained[0]/'model', video, '--top', len(odd_names))
    assert (code, len(printed.splitlines())) == (0, 1+len(odd_names)), err
    assert r'a\nb\x1b[31m' in printed and '\x1b' not in printed
    code,printed,_ = run('predict', trained[0]/'model', video, '--json')
    assert (code, list(json.loads(printed))) == (0, [str(video)])
    code,printed,err = run('timeline', trained[0]/'model', video, '--threshold', 1)
    assert (code, printed) == (0, '') and 'No class reached the probability 1' in err
    code,printed,err = run('timeline', trained[0]/'model', video, '--threshold', 1, '--json')
    assert (code, json.loads(printed)) == (0, []) and 'No class reached' in err

@posix
def test_a_printed_split_is_a_table(odd, tmp_path):
    "Check that the printed table equals the written one, and has the names of classes unchanged"
    code,printed,err = run('split', odd, '--out', tmp_path/'split.csv')
    assert (code, printed) == (0, '') and 'Split by group' in err and 'empty' in err
    res = subprocess.run([sys.executable, '-m', 'vidseq.cli', 'split', odd], capture_output=True,
                         env=child_env() | dict(PYTHONIOENCODING='ascii'))
    assert res.returncode == 0 and res.stdout == (tmp_path/'split.csv').read_bytes()
    table = pd.read_csv(tmp_path/'split.csv', encoding_errors='surrogateescape')
    assert set(table.label) == set(odd_names)
    assert all((odd/o).is_file() for o in table['clip'])
    assert not [o for o in table['clip'] if o.startswith('=')]

@posix
def test_a_reader_that_ends_early(odd):
    "Check that `vidseq info DIR | head -1` prints one line and no error"
    command = [sys.executable, '-m', 'vidseq.cli', 'info', odd]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_env())
    p.stdout.close()
    assert (p.wait(), p.stderr.read()) == (141, b'')
    p.stderr.close()

@posix
def test_the_model_is_saved_before_the_page(trained, odd, tmp_path, monkeypatch):
    "Check that an error of the page leaves the model and the scores"
    import vidseq.report.page
    def fail(*args, **kwargs): raise RuntimeError('cannot draw')
    monkeypatch.setattr(vidseq.report.page, '_sections', fail)
    out = tmp_path/'out'
    code,printed,err = run('train', odd, '--scratch', '--out', out, '--seconds', .1, '--size', 32,
        '--frames', 4, '--bs', 8)
    assert (code, printed) == (1, '') and 'RuntimeError: cannot draw' in err.splitlines()[-1]
    assert (out/'model'/'model.safetensors').exists() and (out/'scores.json').exists()
    assert not (out/'index.html').exists()

@posix
def test_a_full_disk_does_not_cost_the_model(tmp_path, monkeypatch):
    from vidseq.report.page import save_somewhere
    saved = []
    def save(folder):
        if folder == tmp_path/'model': raise OSError(28, 'No space left on device', str(folder))
        saved.append(folder)
    with pytest.raises(OSError, match='saved to .*vidseq-model-') as e: save_somewhere(save,
        tmp_path/'model')
    assert str(saved[0]) in str(e.value)
    shutil.rmtree(saved[0])

def test_nothing_calls_the_method_that_tutorials_define(odd, tmp_path, monkeypatch):
    "Check that listing, extracting and splitting work where `Path.ls_sorted` and `Path.ls` are replaced"
    from fastcore.all import Path as FastPath
    from vidseq.data.loader import get_clips, get_instances
    from vidseq.video.extract import extract_videos
    def forbidden(*args, **kwargs): raise AssertionError('patched')
    for name in ('ls_sorted', 'ls', 'mk_write', 'readlines'): monkeypatch.setattr(FastPath, name, forbidden,
        raising=False)
    videos = get_clips(odd)
    extract_videos(videos, tmp_path/'frames', odd, n_workers=0)
    frames = get_instances(tmp_path/'frames')
    assert len(frames) == len(videos) == len(get_clips(tmp_path/'frames'))
    assert run('split', tmp_path/'frames', '--out', tmp_path/'split.csv')[0] == 0

def test_the_same_through_the_module():
    "Check that `python -m vidseq.cli` is the command"
    res = subprocess.run([sys.executable, '-m', 'vidseq.cli', 'predict', 'm', 'v', '--top', '-1'],
                         capture_output=True, text=True, env=child_env())
    assert (res.returncode, res.stdout) == (2, '')
    problem = "argument --top: '-1' is not a whole number of at least 1"
    assert res.stderr.splitlines()[-1] == f'vidseq predict: error: {problem}'
    assert 'Traceback' not in res.stderr

def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match='no such folder'): main(['--debug', 'train',
        str(Path(tmp_path)/'nowhere')])
