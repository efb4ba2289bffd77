"Run `vidseq demo`, which `make demo` runs; takes minutes"
import json
import re

import pytest
from vidseq.cli import main


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    assert main(['demo', '--out', str(tmp_path/'demo')]) == 0
    scores = json.loads((tmp_path/'demo'/'scores.json').read_text())
    models = scores['models']
    assert models['3D convolutions']['accuracy'] >= 0.95
    assert models['Frame average']['accuracy'] <= 0.60
    assert scores['best'] != 'Frame average'
    assert scores['train_clips'] + scores['valid_clips'] == 480
    page = (tmp_path/'demo'/'index.html').read_text(encoding='utf-8')
    assert 0 < page.count('<picture>') <= 15 and not re.search(r'(?:src|href)="(?!data:|#)', page)
    pretrained = json.loads((tmp_path/'demo'/'pretrained'/'scores.json').read_text())
    assert 'EfficientNet-Lite0' in str(pretrained)
    video = next((tmp_path/'fastai').rglob('*.avi'))
    assert main(['predict', str(tmp_path/'demo'/'model'), str(video)]) == 0


@pytest.mark.slow
def test_models_learn_motion_from_scratch_in_three_minutes(tmp_path):
    main(['demo', '--out', str(tmp_path/'demo'), '--seconds', '800'])
    models = json.loads((tmp_path/'demo'/'scores.json').read_text())['models']
    accuracy = {name: o['accuracy'] for name,o in models.items()}
    assert accuracy['Frame average'] <= 0.60, accuracy
    for name,least in {'3D convolutions': 0.97, 'ConvLSTM': 0.92, 'RNN': 0.85}.items():
        assert accuracy[name] >= least, accuracy
