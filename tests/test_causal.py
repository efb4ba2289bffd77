"Check that causal models give the same outputs for a stream as for the whole video, however it is divided"
import numpy as np
import pytest
import torch
from fastai.vision.all import resnet18
from torch import nn

from vidseq.models.causal import causal_step, initial_state
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.config import create_model
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.timeline_model import TimelineModel

kw = dict(n_out=5, pretrained=False, per_frame=True)
causal_models = dict(
    average=lambda: SimpleModel(small_cnn, **kw),
    shift=lambda: SimpleModel(small_cnn, shift=.25, causal=True, **kw),
    shift_resnet=lambda: SimpleModel(resnet18, shift=.125, causal=True, **kw),
    shift_vit=lambda: SimpleModel('vit_tiny_patch16_224', shift=.125, causal=True, **kw),
    shift_timm=lambda: SimpleModel('efficientnet_lite0', shift=.125, causal=True, **kw),
    lstm=lambda: RNNModel(small_cnn, hidden_size=8, **kw),
    lstm2=lambda: RNNModel(small_cnn, hidden_size=8, num_rnn_layers=2, **kw),
    gru=lambda: RNNModel(small_cnn, hidden_size=8, rnn=nn.GRU, num_rnn_layers=2, **kw),
    convlstm=lambda: ConvLSTMModel(small_cnn, hidden_size=8, num_rnn_layers=2, **kw),
    conv3d=lambda: Conv3dModel(5, width=8, per_frame=True, causal=True))
sizes = dict(shift_vit=224)
others = dict(
    both_shifts=lambda: SimpleModel(small_cnn, shift=.25, **kw),
    one_output=lambda: SimpleModel(small_cnn, 5, False),
    mean=lambda: SimpleModel(small_cnn, subtract_mean=True, **kw),
    both_directions=lambda: RNNModel(small_cnn, bidirectional=True, **kw),
    conv3d=lambda: Conv3dModel(5, per_frame=True),
    clip_conv3d=lambda: Conv3dModel(5, causal=True))


def randomized(model):
    "Return a model in eval mode, with statistics of BatchNorm that are not those of new layers"
    for o in model.modules():
        if isinstance(o, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(o.running_mean, -.2, .2)
            nn.init.uniform_(o.running_var, .5, 1.5)
    return model.eval()


@torch.no_grad()
def stream(model, x, n):
    "Return the outputs for parts of n frames"
    state,outs = None,[]
    for part in x.split(n, dim=1):
        out,state = causal_step(model, part, state)
        outs.append(out)
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize('name', causal_models)
def test_stream_equals_one_call(name):
    torch.manual_seed(0)
    model,size = randomized(causal_models[name]()),sizes.get(name, 32)
    x = torch.randn(2, 9, 3, size, size)
    with torch.no_grad(): whole = model(x)
    assert whole.shape == (2,9,5)
    assert whole.std(dim=1).max() > 1e-3 # frames differ
    for n in (1, 2, 7, 100):
        torch.testing.assert_close(stream(model, x, n), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', causal_models)
def test_outputs_do_not_depend_on_later_frames(name):
    torch.manual_seed(0)
    model,size = randomized(causal_models[name]()),sizes.get(name, 32)
    x = 3*torch.randn(1, 6, 3, size, size)
    y = x.clone()
    y[:,4:] = 3*torch.randn(1, 2, 3, size, size)
    with torch.no_grad(): a,b = model(x),model(y)
    torch.testing.assert_close(a[:,:4], b[:,:4], atol=1e-5, rtol=1e-4)
    assert (a[:,4:] - b[:,4:]).abs().max() > 1e-5


@pytest.mark.parametrize('name', [o for o in causal_models if o != 'average'])
def test_initial_state_is_the_start(name):
    torch.manual_seed(0)
    model,size = randomized(causal_models[name]()),sizes.get(name, 32)
    x = torch.randn(1, 3, 3, size, size)
    state = initial_state(model, x[:,:1])
    assert state and all(not o.any() for o in state)
    with torch.no_grad(): torch.testing.assert_close(causal_step(model, x, state)[0], model(x))


@pytest.mark.parametrize('name', others)
def test_other_models_are_refused(name):
    model = others[name]()
    with pytest.raises(ValueError, match='needs later frames'): causal_step(model, torch.zeros(1,2,3,32,32))


def test_training_keeps_nothing():
    "Check that a model in training does not continue from a stream, and that gradients flow"
    model = causal_models['gru']().train()
    model(torch.randn(2,3,3,32,32)).sum().backward()
    assert all(o.grad is not None for o in model.rnn.parameters())
    assert model.memory is None


def test_shift_moves_channels():
    "Check a shifted convolution against a loop over frames"
    torch.manual_seed(0)
    model = SimpleModel(small_cnn, shift=.25, **kw).eval()
    plain = SimpleModel(small_cnn, **kw).eval()
    plain.load_state_dict({k.replace('.layer.', '.'): o for k,o in model.state_dict().items()})
    x = torch.randn(1, 4, 3, 16, 16)
    blocks = list(plain.encoder.module[0])
    with torch.no_grad():
        frames = [blocks[0](x[:,t]) for t in range(4)]
        for block in blocks[1:]:
            n = frames[0].shape[1]//4
            zero = torch.zeros_like(frames[0])
            padded = [zero, *frames, zero]
            frames = [block(torch.cat([padded[t][:,:n], padded[t+2][:,n:2*n], padded[t+1][:,2*n:]], 1))
                      for t in range(4)]
        feats = torch.stack([plain.encoder.module[2](plain.encoder.module[1](o)) for o in frames], 1)
        torch.testing.assert_close(model(x), plain.head(feats))
    assert np.isclose(model.shifts[0].share, .25)


@pytest.mark.parametrize('heads', [['tcn'], ['recurrent'], ['attentive'], ['tcn','recurrent','attentive']])
def test_timeline_model(heads):
    "Check the stream of a model with three frames for each step, and a model that is created again"
    torch.manual_seed(0)
    model = randomized(TimelineModel(small_cnn, 5, heads, pretrained=False))
    x = torch.randn(1, 2*9, 3, 32, 32)
    with torch.no_grad(): whole = model(x)
    assert whole.shape == (1,9,5)
    for n in (1, 2, 7, 100): torch.testing.assert_close(stream(model, x, 2*n), whole, atol=1e-5, rtol=1e-4)
    again = create_model(model.config).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad(): torch.testing.assert_close(again(x), whole)
    assert not create_model(model.config | dict(kwargs=model.config['kwargs'] | dict(causal=False))).is_causal
