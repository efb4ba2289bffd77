"Models as programs for other machines: torch.export's, and ONNX files run by onnxruntime, against the models themselves."
import subprocess
import sys
from copy import deepcopy
from functools import partial

import onnxruntime
import pytest
import torch
from fastai.vision.all import TensorImage, nn, resnet18
from torch.export import Dim
from torchvision.models import vit_b_16
from torchvision.models.video import mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t

from vidseq.all import AttentionPool, Conv3dModel, ConvLSTMModel, ImageTuple, RNNModel, SimpleModel, VideoModel, export_onnx, export_program

kw = dict(n_out=3, pretrained=False)
small = partial(RNNModel, resnet18, hidden_size=16, **kw)
video = partial(VideoModel, **kw)

# model, frames and size of the example, whether it takes any number of frames
fast = {
    'frame average': (partial(SimpleModel, resnet18, **kw), 4, 32, True),
    'bidirectional lstm of two layers': (partial(small, num_rnn_layers=2, bidirectional=True), 4, 32, True),
    'convlstm of two layers': (partial(ConvLSTMModel, resnet18, hidden_size=8, num_rnn_layers=2, **kw), 4, 64, True),
    'small 3d': (partial(Conv3dModel, 3), 16, 32, True),
    'mc3_18': (partial(video, mc3_18), 8, 32, True),
}
slow = {
    'bidirectional gru of two layers': (partial(small, num_rnn_layers=2, bidirectional=True, rnn=nn.GRU), 4, 32, True),
    'checkpoint': (partial(SimpleModel, resnet18, checkpoint=True, **kw), 4, 32, True),
    'attention': (partial(SimpleModel, resnet18, pool=AttentionPool, **kw), 4, 32, True),
    'lstm': (small, 4, 32, True),
    'lstm, per frame': (partial(small, per_frame=True), 4, 32, True),
    'lstm, attention, one gray channel': (partial(small, pool=AttentionPool, n_in=1), 4, 32, True),
    'chunks': (partial(SimpleModel, resnet18, chunk=3, **kw), 4, 32, False), # they are written down one by one
    'small 3d, per frame': (partial(Conv3dModel, 3, per_frame=True), 16, 32, True),
    'timm vit': (partial(SimpleModel, 'vit_tiny_patch16_224', **kw), 4, 64, True),
    'vit_b_16': (partial(RNNModel, vit_b_16, hidden_size=16, **kw), 4, 64, True),
    'r3d_18': (partial(video, r3d_18), 16, 64, True),
    'r3d_18, per frame': (partial(video, r3d_18, per_frame=True), 16, 64, True),
    'r2plus1d_18': (partial(video, r2plus1d_18), 16, 64, True),
    's3d': (partial(video, s3d), 24, 64, True),
    'mvit_v1_b': (partial(video, mvit_v1_b), 8, 64, False),
    'mvit_v2_s': (partial(video, mvit_v2_s), 8, 64, False),
    'swin3d_t': (partial(video, swin3d_t), 8, 64, False),
}
every = [pytest.param(*o, id=name) for name,o in fast.items()] + [pytest.param(*o, id=name, marks=pytest.mark.slow) for name,o in slow.items()]


def clips(bs, seq_len, size, n_in=3): return torch.randn(bs, seq_len, n_in, size, size)


def channels(make): return make.keywords.get('n_in', 3)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@torch.no_grad()
def close(got, model, x):
    "`got` is as near to the logits of `model` in float64 as those in float32 are, but for the last bits of the largest"
    want,exact = model(x),deepcopy(model).double()(x.double())
    rounding,largest = (want-exact).abs().max(),exact.abs().max()
    assert rounding < 1e-3*largest and (got-exact).abs().max() <= 1e-5*largest + 4*rounding
    return want


@torch.no_grad()
def calibrated(model, x):
    "`model` with the statistics of `x` in its BatchNorms: without them deep ones give all clips the same logits"
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m in norms: m.momentum = 1.
    if norms: model.train()(x)
    return model.eval()


@pytest.mark.parametrize(['make', 'seq_len', 'size', 'any_length'], every)
def test_programs_give_the_models_logits(make, seq_len, size, any_length, tmp_path):
    x = clips(2, seq_len, size, channels(make))
    model = calibrated(make(), x)
    program = export_program(model, x, any_length)
    torch.export.save(program, tmp_path/'model.pt2')
    run = torch.export.load(tmp_path/'model.pt2').module()
    fname = export_onnx(model, tmp_path/'model.onnx', x, any_length)
    session = onnxruntime.InferenceSession(fname, providers=['CPUExecutionProvider'])
    shapes = [(1,seq_len), (5,seq_len)] + ([(3,seq_len+5), (1,seq_len+9)] if any_length else [])
    for bs,t in shapes:
        y = clips(bs, t, size, channels(make))
        want = close(run(y), model, y)
        assert bs == 1 or want.std(dim=0).max() > 1e-6 # logits that tell clips apart
        close(torch.tensor(session.run(None, {'clip': y.numpy()})[0]), model, y)


@pytest.mark.parametrize('strict', [False, True])
def test_plain_torch_export_works_too(strict):
    model,x = small().eval(),clips(2, 5, 32)
    run = torch.export.export(model, (x,), dynamic_shapes=({0: Dim('batch'), 1: Dim('time')},), strict=strict).module()
    y = clips(4, 9, 32)
    close(run(y), model, y)


def test_examples_may_be_batches_and_the_model_stays_as_it_was():
    model = small().train()
    batch = ImageTuple(TensorImage(torch.randn(1, 3, 32, 32)) for _ in range(4))
    before = {k: v.clone() for k,v in model.state_dict().items()}
    program = export_program(model, batch)
    assert model.training and all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    x = clips(3, 4, 32)
    close(program.module()(x), model.eval(), x)


def test_what_is_fixed_says_so():
    x = clips(2, 4, 32)
    program = export_program(small(), x)
    with pytest.raises(Exception, match='(?i)size|shape|guard'): program.module()(clips(2, 5, 32))
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3)
        def forward(self, x): return self.lin(x.mean(dim=(2,3,4)))
    with pytest.raises(ValueError, match='Fixed cannot be exported for any number of frames'): export_program(Fixed(), x, any_length=True)
    export_program(small(), x, any_length=True) # what was traced for one length is not taken for another


def test_a_file_that_gives_other_logits_is_not_left(tmp_path, monkeypatch):
    from vidseq import export
    def differ(run, model, clip, what):
        if what == 'onnxruntime': raise RuntimeError('onnxruntime gives other logits')
    monkeypatch.setattr(export, '_same', differ)
    with pytest.raises(RuntimeError, match='other logits'): export_onnx(Conv3dModel(3), tmp_path/'model.onnx', clips(2, 4, 32))
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'pip install vidseq\[onnx\]'): export_onnx(Conv3dModel(3), tmp_path/'model.onnx', clips(2, 4, 32))


def test_a_program_runs_without_vidseq(tmp_path):
    model,x = small().eval(),clips(2, 4, 32)
    torch.export.save(export_program(model, x, any_length=True), tmp_path/'model.pt2')
    torch.save((x, model(x).detach()), tmp_path/'check.pt')
    code = '''import sys, torch
x,want = torch.load('check.pt')
torch.testing.assert_close(torch.export.load('model.pt2').module()(x), want)
assert not {'vidseq','fastai'} & set(sys.modules)'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, check=True)
