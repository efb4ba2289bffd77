"Saved models in a fresh process, without the data they were trained on; and files that are no models."
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from fastai.vision.all import Resize, aug_transforms, nn, resnet18
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer
from torchvision.models.video import mc3_18

from vidseq.all import (AttentionPool, Conv3dModel, ConvLSTMModel, RNNModel, SimpleModel, TimeSformer, TimeSformerViT, VideoDataLoaders, VideoModel, get_videos, load_model, load_timesformer,
                        moving_shapes, save_model, small_cnn, small_timesformer, video_learner, window_frames)
from vidseq.vit import JointBlock

vit = partial(VisionTransformer, 32, 8, 1, 2, 32, 64)
models = dict(
    simple=partial(SimpleModel, resnet18, pool=AttentionPool, pretrained=False), rnn=partial(RNNModel, small_cnn, pretrained=False, rnn=nn.GRU, num_rnn_layers=2, bidirectional=True, hidden_size=8, grid=2, moving=True),
    convlstm=partial(ConvLSTMModel, small_cnn, pretrained=False, hidden_size=8), conv3d=partial(Conv3dModel, width=4), video=partial(VideoModel, mc3_18, pretrained=False), timm=partial(SimpleModel, 'mobilenetv3_small_050', pretrained=False),
    timesformer=small_timesformer, package=partial(TimeSformer, dim=16, patch_size=8, depth=1, heads=2, dim_head=8, rotary_emb=False), vit=partial(TimeSformerViT, vit, pretrained=False),
    timm_vit=partial(TimeSformerViT, 'vit_tiny_patch16_224', pretrained=False, block=JointBlock))


@pytest.fixture(scope='module')
def path(tmp_path_factory): return moving_shapes(tmp_path_factory.mktemp('data')/'shapes', n_groups=3, n_clips=1, seconds=1, size=(64,48), n_workers=0)


def loaders(path): return VideoDataLoaders.from_folder(path, seq_len=4, bs=4, seed=0, num_workers=0, sampler=partial(window_frames, step=(1,3)), item_tfms=Resize(32, 'squish'), batch_tfms=aug_transforms(size=32))


@pytest.fixture(scope='module')
def saved(path, tmp_path_factory):
    "A folder with all models, a video, and what they say of it, computed in as many threads as later: sums are split by threads"
    folder = tmp_path_factory.mktemp('models')
    dls,video = loaders(path),shutil.copy(get_videos(path)[0], folder/'video.avi')
    answers = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name,model in models.items():
        learn = video_learner(dls, model)
        save_model(learn, folder/name)
        answers[name] = learn.predict_video(video, k=6)
    torch.set_num_threads(threads)
    (folder/'answers.json').write_text(json.dumps(answers))
    return folder


def test_a_fresh_process_without_the_data_says_the_same(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path/'elsewhere')
    code = '''import json
from pathlib import Path
import torch
from vidseq.ship import load_model
import vidseq.learner
torch.set_num_threads(1)
answers = json.loads(Path('answers.json').read_text())
for name,want in answers.items():
    assert [list(o) for o in load_model(name).predict_video('video.avi', k=6)] == want, name
print(len(answers), 'models')'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0 and f'{len(models)} models' in out.stdout, out.stderr


def test_weights_are_plain_safetensors(saved):
    "Which anything can read that knows the format"
    learn = load_model(saved/'conv3d')
    for k,v in load_file(saved/'conv3d.safetensors').items(): assert torch.equal(v, learn.model.state_dict()[k])


def test_published_weights_keep_their_way_with_other_sizes(path, tmp_path):
    "A `load_timesformer` model, saved and loaded, resizes its positions as its authors do"
    transformers = pytest.importorskip('transformers')
    config = transformers.TimesformerConfig(image_size=32, patch_size=8, num_frames=4, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, num_labels=6)
    state = transformers.TimesformerForVideoClassification(config).state_dict()
    for v in state.values(): v += torch.randn_like(v)*.1
    save_file(state, tmp_path/'published.safetensors')
    learn = video_learner(loaders(path), load_timesformer(tmp_path/'published.safetensors'))
    save_model(learn, tmp_path/'mine')
    x = torch.rand(2,6,3,48,40)
    with torch.no_grad(): assert torch.equal(load_model(tmp_path/'mine').model(x), learn.model.eval()(x))


def test_nothing_is_left_of_a_save_that_fails(path, tmp_path, monkeypatch):
    "What was there stays whole"
    learn = video_learner(loaders(path), partial(Conv3dModel, width=4))
    save_model(learn, tmp_path/'model')
    before = {o.name: o.read_bytes() for o in tmp_path.iterdir()}
    def full(self, data): raise OSError('No space left on device')
    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError): save_model(learn, tmp_path/'model')
    assert {o.name: o.read_bytes() for o in tmp_path.iterdir()} == before


def test_timm_is_asked_for_no_file_of_others(monkeypatch, saved, tmp_path):
    "A name that timm would fetch is refused before timm sees it"
    def never(*args, **kwargs): raise AssertionError('timm was asked')
    monkeypatch.setattr(timm, 'create_model', never)
    from vidseq.ship import _digest
    data = json.loads((saved/'timm.json').read_text(encoding='utf-8'))
    del data['settings_sha256']
    data['model']['kwargs']['arch'] = 'hf-hub:somebody/something'
    (tmp_path/'bad.json').write_text(json.dumps(data | dict(settings_sha256=_digest(data))))
    shutil.copy(saved/'timm.safetensors', tmp_path/'bad.safetensors')
    with pytest.raises(ValueError, match='bad.json.*hf-hub'): load_model(tmp_path/'bad')
