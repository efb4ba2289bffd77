"Compare exported models with the models: programs of torch.export, and ONNX files run by onnxruntime."
import sys
import warnings
from copy import deepcopy
from functools import partial

import onnxruntime
import pytest
import torch
from fastai.vision.all import TensorImage, nn, resnet18
from torch.export import Dim
from torchvision.models import vit_b_16
from torchvision.models.video import mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t

from conftest import calibrate_batchnorm, run_python
from vidseq.data.clip import ImageTuple
from vidseq.deploy.export import export_onnx, export_program
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import AttentionPool

pytestmark = pytest.mark.usefixtures('seeded')

kw = dict(n_out=3, pretrained=False)
small = partial(RNNModel, resnet18, hidden_size=16, **kw)
video = partial(VideoModel, **kw)

# model, frames and size of the example
fast = {
    'frame average': (partial(SimpleModel, resnet18, **kw), 4, 32),
    'bidirectional lstm of two layers': (partial(small, num_rnn_layers=2, bidirectional=True), 4, 32),
    'small 3d': (partial(Conv3dModel, 3), 16, 32),
}
slow = {
    'convlstm of two layers':
        (partial(ConvLSTMModel, resnet18, hidden_size=8, num_rnn_layers=2, **kw), 4, 64),
    'mc3_18': (partial(video, mc3_18), 8, 32),
    'bidirectional gru of two layers':
        (partial(small, num_rnn_layers=2, bidirectional=True, rnn=nn.GRU), 4, 32),
    'checkpoint': (partial(SimpleModel, resnet18, checkpoint=True, **kw), 4, 32),
    'attention': (partial(SimpleModel, resnet18, pool=AttentionPool, **kw), 4, 32),
    'lstm': (small, 4, 32),
    'lstm, per frame': (partial(small, per_frame=True), 4, 32),
    'lstm, attention, one gray channel': (partial(small, pool=AttentionPool, n_in=1), 4, 32),
    'chunks': (partial(SimpleModel, resnet18, chunk=3, **kw), 4, 32),
    'small 3d, per frame': (partial(Conv3dModel, 3, per_frame=True), 16, 32),
    'timm vit': (partial(SimpleModel, 'vit_tiny_patch16_224', **kw), 4, 64),
    'vit_b_16': (partial(RNNModel, vit_b_16, hidden_size=16, **kw), 4, 64),
    'r3d_18': (partial(video, r3d_18), 16, 64),
    'r3d_18, per frame': (partial(video, r3d_18, per_frame=True), 16, 64),
    'r2plus1d_18': (partial(video, r2plus1d_18), 16, 64),
    's3d': (partial(video, s3d), 24, 64),
    'mvit_v1_b': (partial(video, mvit_v1_b), 8, 64),
    'mvit_v2_s': (partial(video, mvit_v2_s), 8, 64),
    'swin3d_t': (partial(video, swin3d_t), 8, 64),
}
every = [*(pytest.param(*o, id=name) for name,o in fast.items()),
         *(pytest.param(*o, id=name, marks=pytest.mark.slow) for name,o in slow.items())]


def normal_clips(bs, seq_len, size, n_in=3): return torch.randn(bs, seq_len, n_in, size, size)


def channels(make): return make.keywords.get('n_in', 3)


@torch.no_grad()
def check_logits(got, model, x):
    "Check that `got` is as near to the logits of `model` in float64 as those in float32; return the latter"
    want = model(x)
    exact = deepcopy(model).double()(x.double())
    rounding,largest = (want-exact).abs().max(),exact.abs().max()
    assert rounding < 1e-3*largest
    assert (got-exact).abs().max() <= 1e-5*largest + 4*rounding
    return want


@pytest.mark.parametrize(['make', 'seq_len', 'size'], every)
def test_exports_give_the_models_logits(make, seq_len, size, tmp_path):
    x = normal_clips(2, seq_len, size, channels(make))
    model = calibrate_batchnorm(make(), x) # otherwise deep models give all clips the same logits
    torch.export.save(export_program(model, x), tmp_path/'model.pt2')
    run = torch.export.load(tmp_path/'model.pt2').module()
    fname = export_onnx(model, tmp_path/'model.onnx', x)
    session = onnxruntime.InferenceSession(fname, providers=['CPUExecutionProvider'])
    for bs in (1,5):
        y = normal_clips(bs, seq_len, size, channels(make))
        want = check_logits(run(y), model, y)
        assert bs == 1 or want.std(dim=0).max() > 1e-6 # logits that differ between clips
        check_logits(torch.tensor(session.run(None, {'clip': y.numpy()})[0]), model, y)


@pytest.mark.parametrize('strict', [False, True])
def test_plain_torch_export_works_too(strict):
    model,x = small().eval(),normal_clips(2, 5, 32)
    run = torch.export.export(model, (x,), dynamic_shapes=({0: Dim('batch')},), strict=strict).module()
    y = normal_clips(4, 5, 32)
    check_logits(run(y), model, y)


def test_examples_may_be_batches_and_the_model_stays_as_it_was():
    model = small().train()
    batch = ImageTuple(TensorImage(torch.randn(1, 3, 32, 32)) for _ in range(4))
    before = {k: v.clone() for k,v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*_flat_weights')
        program = export_program(model, batch)
    assert model.training and all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    x = normal_clips(3, 4, 32)
    check_logits(program.module()(x), model.eval(), x)


def test_other_numbers_of_frames_are_refused():
    program = export_program(small(), normal_clips(2, 4, 32))
    with pytest.raises(Exception, match='(?i)size|shape|guard'): program.module()(normal_clips(2, 5, 32))


def test_a_file_that_gives_other_logits_is_not_left(tmp_path, monkeypatch):
    from vidseq.deploy import export
    def differ(run, model, clip, runtime):
        if runtime == 'onnxruntime': raise RuntimeError('onnxruntime: the logits differ')
    monkeypatch.setattr(export, '_check_logits', differ)
    with pytest.raises(RuntimeError, match='the logits differ'):
        export_onnx(Conv3dModel(3), tmp_path/'model.onnx', normal_clips(2, 4, 32))
    assert not list(tmp_path.iterdir())


def test_a_missing_onnxruntime_is_an_error_with_the_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'pip install vidseq\[onnx\]'):
        export_onnx(Conv3dModel(3), tmp_path/'model.onnx', normal_clips(2, 4, 32))


def test_a_program_runs_without_vidseq(tmp_path):
    model,x = small().eval(),normal_clips(2, 4, 32)
    torch.export.save(export_program(model, x), tmp_path/'model.pt2')
    torch.save((x, model(x).detach()), tmp_path/'check.pt')
    code = '''import sys, torch
x,want = torch.load('check.pt')
torch.testing.assert_close(torch.export.load('model.pt2').module()(x), want)
assert not {'vidseq','fastai'} & set(sys.modules)'''
    run_python('-W', 'ignore', '-c', code, cwd=tmp_path)
