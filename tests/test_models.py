"Check models of clips against loops and torchvision, from files, trained by fastai, compiled, in bfloat16"
import io
import os
import pickle
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from fastai.vision.all import (SGD, BnFreeze, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner,
                               ProgressCallback, TensorCategory, TensorImage, accuracy, bn_types, resnet18,
                               resnet34, resnet50, vision_learner)
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, convnext_tiny, densenet121, efficientnet_b0, vit_b_16
from torchvision.models.video import (MViT, S3D, mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d,
                                      swin3d_b, swin3d_s, swin3d_t)

from conftest import assert_near, calibrate_batchnorm
from vidseq.data.clip import ImageTuple
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import create_encoder, resize_positions
from vidseq.models.frame_models import (ConvLSTMModel, RNNModel, SimpleModel, clip_splitter,
                                        rnnmodel_splitter, simple_splitter)
from vidseq.models.layers import AttentionPool, ConvLSTM, to_channels_last
from vidseq.train.learner import video_learner

slow = pytest.mark.slow


def clips(T=8, size=(32,40), n_in=3, bs=3, seed=0):
    "Return random clips B,T,C,H,W of coarse patches, which differ after pooling too"
    coarse = torch.randn(bs*T, n_in, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size).unflatten(0, (bs,T))

def as_batch(x):
    "Return the tensor `x` as an `ImageTuple`, like the batches of a `DataLoader`"
    return ImageTuple(TensorImage(o) for o in x.unbind(1))

@torch.no_grad()
def lively(make, seed=0, on=None, **kwargs):
    """Return `make(**kwargs)` in eval mode, with weights from `seed` and BatchNorm statistics of `on`.

    Constant weights, like zeros and ones, would hide mistakes: add noise to them."""
    torch.manual_seed(seed)
    model = make(**kwargs)
    for o in model.state_dict().values():
        if o.is_floating_point() and (o == o.flatten()[0]).all(): o.add_(torch.randn_like(o), alpha=.1)
    if on is not None: calibrate_batchnorm(model, on)
    return model.eval()

def differ(a, b): return (a-b).abs().max() > 1e-3*b.abs().max()

def names(model, which): return {k for k,p in model.named_parameters() if which(p)}

def last_layer(net):
    "Return the last linear layer or 3D convolution"
    return [m for m in net.modules() if isinstance(m, (nn.Linear,nn.Conv3d))][-1]

def changed(model, before):
    "Return the names of the entries of the state dict that differ from `before`"
    return {k for k,v in model.state_dict().items() if not torch.equal(v, before[k])}

def no_grads(model): return names(model, lambda p: p.grad is None or not p.grad.any())

def tiny():
    "Make an encoder with BatchNorm that outputs maps of a quarter of the image size"
    conv = nn.Conv2d(3, 8, 5, stride=4, padding=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))

def ours(model, arch=tiny, **kwargs): return partial(model, arch, pretrained=False, **kwargs)

lstm2,gru2 = (dict(rnn=o, num_rnn_layers=2, bidirectional=True, hidden_size=10) for o in (nn.LSTM, nn.GRU))
rnns = dict(
    lstm={},
    lstm2=lstm2,
    gru2=gru2,
    lstm_pool=dict(pool=AttentionPool),
    gru2_pool=gru2 | dict(pool=AttentionPool),
    lstm2_dropout=lstm2 | dict(dropout=.5))
convlstms = dict(
    convlstm={},
    convlstm2=dict(num_rnn_layers=2),
    convlstm_pool=dict(pool=AttentionPool),
    convlstm_kernel5=dict(kernel_size=5),
    convlstm_dropout=dict(dropout=.5))
fast_video_archs = [r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v1_b, mvit_v2_s, swin3d_t]
slow_video_archs = [swin3d_s, swin3d_b]
video_archs = [*fast_video_archs, *(pytest.param(o, marks=slow) for o in slow_video_archs)]
kinds = dict(
    simple=ours(SimpleModel, resnet18),
    simple_pool=ours(SimpleModel, pool=AttentionPool),
    lstm=ours(RNNModel, resnet18, hidden_size=24),
    convlstm=ours(ConvLSTMModel, resnet18, hidden_size=16),
    conv3d=partial(Conv3dModel, ps=0.))
kinds |= {k: ours(RNNModel, **v) for k,v in rnns.items() if k != 'lstm'}
kinds |= {k: ours(ConvLSTMModel, hidden_size=16, **v) for k,v in convlstms.items() if k != 'convlstm'}
kinds |= {o.__name__: ours(VideoModel, o) for o in fast_video_archs + slow_video_archs}
with_pool = {k for k,v in kinds.items() if 'pool' in v.keywords}

def case(name, *args, per_frame=False):
    "Return the parameters of a test of the model `name`, with an id and the mark of slow models"
    make = partial(kinds[name], per_frame=True) if per_frame else kinds[name]
    test_id = '-'.join([name, *map(str, args)] + ['per_frame']*per_frame)
    return pytest.param(make, *args, id=test_id, marks=[slow]*(name in ('swin3d_s','swin3d_b')))


# What holds for every model

model_cases = [case(k) for k in kinds] + [case(k, per_frame=True) for k in kinds if k not in with_pool]

@pytest.fixture(scope='module', params=model_cases)
def make(request): return request.param

@pytest.fixture(scope='module')
def model(make): return lively(make, on=clips(), n_out=5)

def is_per_frame(make): return make.keywords.get('per_frame', False)

def shape(make, bs, T, n_out): return (bs,T,n_out) if is_per_frame(make) else (bs,n_out)

@torch.no_grad()
def test_rows_alone(make, model):
    """Check that the logits of a clip are the same in any batch, for several lengths and sizes.

    Use float64, because the batch size changes the order of sums."""
    model = deepcopy(model).double()
    shortest = 5 if s3d in make.args else 1
    for T,size in ((shortest,(32,32)), (8,(49,33))):
        x = clips(T, size, bs=2).double()
        out = model(x)
        assert out.shape == shape(make, 2, T, 5)
        for i in range(2): assert_near(model(x[i:i+1]), out[i:i+1], tol=1e-10)
        assert differ(out[0], out[1]) # so that mixed-up clips would be noticed

@torch.no_grad()
def test_kinds_of_clips(model):
    x = clips(5, bs=1)
    out = model(x)
    for clip in (as_batch(x), tuple(x.unbind(1)), list(x.unbind(1))):
        got = model(clip)
        assert type(got) is torch.Tensor and torch.equal(got, out)

@torch.no_grad()
def test_layout_of_convolutions(make, model):
    "Check that each convolution gets the layout of its dimensions, other parameters none, with equal logits"
    model = deepcopy(model)
    x = clips(5, bs=1)
    want = model(x)
    params = dict(model.named_parameters())
    others = {k: p.stride() for k,p in params.items()}
    assert to_channels_last(model) is model
    for name,m in model.named_modules():
        if not isinstance(m, (nn.Conv2d, nn.Conv3d)): continue
        layout = torch.channels_last if isinstance(m, nn.Conv2d) else torch.channels_last_3d
        assert m.weight.is_contiguous(memory_format=layout) and m.weight is params[f'{name}.weight']
        others.pop(f'{name}.weight')
    assert all(params[k].stride() == o for k,o in others.items())
    assert_near(model(x), want)

channel_cases = [case(k, *o, per_frame=o == (2,7) and k not in with_pool) for k in kinds
                 for o in ((1,3), (2,7), (4,2))]

@pytest.mark.parametrize('make,n_in,n_out', channel_cases)
def test_channels_and_classes(make, n_in, n_out):
    "Check the number of logits, and that each input channel affects them"
    model = make(n_out=n_out, n_in=n_in).eval().requires_grad_(False)
    x = clips(5, n_in=n_in).requires_grad_()
    out = model(x)
    assert out.shape == shape(make, 3, 5, n_out)
    out[...,-1].sum().backward()
    assert all(x.grad[:,:,c].any() for c in range(n_in))

def loss_of(out):
    "Return the cross-entropy with the index of a clip as its label, or as the label of its frames"
    n_labels = out[0].numel()//out.shape[-1] # per clip
    labels = torch.arange(len(out)).repeat_interleave(n_labels)
    return F.cross_entropy(out.flatten(0, -2), labels)

@pytest.fixture(scope='module')
def trained(model):
    "Return a copy of `model` after two steps, and its parameters without gradient in the first step"
    model = deepcopy(model).train()
    # with 5 to 7 frames, oneDNN 3.13 gives wrong gradients, or crashes, in S3D's first temporal convolution
    x = clips(8, (32,32))
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for i in range(2):
        opt.zero_grad()
        loss_of(model(x)).backward()
        if i == 0: without = no_grads(model)
        opt.step()
    return model.eval(), without

def smaller(net, T, size):
    """Return a copy of torchvision's MViT for clips of `T` frames of this `size`.

    MViTv1 has position tables, resized here by PIL and numpy; MViTv2 needs only the size."""
    net = deepcopy(net)
    p = net.pos_encoding
    p.temporal_size,p.spatial_size = T//2,tuple(n//4 for n in size)
    if p.spatial_pos is None: return net
    p.spatial_pos = nn.Parameter(resized_by_pil(p.spatial_pos, p.spatial_size))
    p.temporal_pos = nn.Parameter(stretched(p.temporal_pos, T//2))
    return net

def resized_by_pil(pos, size):
    "Resize positions N,F of a square grid, as F pictures -> rows*columns,F"
    n = round(len(pos)**.5)
    pictures = pos.detach().t().reshape(-1, n, n).numpy()
    resized = [Image.fromarray(o).resize(size[::-1], Image.BICUBIC) for o in pictures]
    return torch.from_numpy(np.stack([np.asarray(o).flatten() for o in resized], 1))

def stretched(steps, n):
    "Interpolate steps t,F linearly at the centers of `n` equal intervals, with numpy -> n,F"
    t = len(steps)
    centers = (np.arange(n)+.5)*t/n - .5
    features = [np.interp(centers, np.arange(t), o) for o in steps.detach().numpy().T]
    return torch.from_numpy(np.stack(features, 1)).float()

def without_gradient_in_torchvision(arch):
    net = smaller(lively(arch, num_classes=5), 8, (32,32)).train()
    loss_of(net(clips(8, (32,32)).transpose(1,2))).backward()
    return {f'encoder.{k}' for k in no_grads(net)}

def test_every_parameter_learns(make, trained):
    """Check that every parameter gets a gradient, except where this is impossible.

    Softmax cancels a constant. The last class token of MViTv2 has no position, so the relative positions of
    its block are not used."""
    unused = mvit_v2_s in make.args and not is_per_frame(make)
    expected = without_gradient_in_torchvision(mvit_v2_s) if unused else set()
    assert trained[1] - {'pool.score.2.bias'} == expected

@torch.no_grad()
def test_trained_weights_from_a_file(make, model, trained, tmp_path):
    "Check that the state dict holds all that training changes, and loads with `weights_only=True`"
    x = clips(5, bs=1)
    new = make(n_out=5).eval()
    want = trained[0](x)
    assert not torch.equal(want, new(x)) and changed(trained[0], model.state_dict())
    torch.save(trained[0].state_dict(), tmp_path/'model.pth')
    new.load_state_dict(torch.load(tmp_path/'model.pth', weights_only=True))
    assert torch.equal(new(x), want)


# Frame by frame

def each_frame(model, x):
    "Return the features of the encoder for each frame"
    return torch.stack([model.encoder.module(o) for o in x.unbind(1)], 1)

@torch.no_grad()
def test_simple_is_the_mean_over_frames():
    model = lively(ours(SimpleModel), n_out=5)
    x = clips()
    frames = [model.head.module(o) for o in each_frame(model, x).unbind(1)]
    assert_near(model(x), sum(frames)/8)
    assert_near(model(x.flip(1)), model(x)) # the order of frames has no effect
    model.per_frame = True
    assert_near(model(x), torch.stack(frames, 1))

@torch.no_grad()
def test_simple_weighs_frames():
    "Check the weighted mean with weights computed by numpy"
    model = lively(ours(SimpleModel, pool=AttentionPool), n_out=5)
    x = clips()
    feats = each_frame(model, x)
    model.pool.score[2].weight *= 20 # so that the weights differ
    w1,b1,w2,b2 = (p.numpy() for p in model.pool.parameters())
    w = np.exp(np.tanh(feats.numpy()@w1.T + b1)@w2.T + b2)
    w = torch.from_numpy(w/w.sum(1, keepdims=True))
    assert w.std(1).min() > .01
    assert_near(model.pool.weights(feats), w)
    assert_near(model(x), sum(w[:,t]*model.head.module(feats[:,t]) for t in range(8)))


# Step by step

def steps_of(cell, xs):
    "Return all states of one direction; the hidden states of an LSTM"
    state = None
    outs = []
    for x in xs:
        state = cell(x, state)
        outs.append(state[0] if isinstance(state, tuple) else state)
    return outs

def by_cells(rnn, x):
    """Run torch's cells over features B,T,F with the weights of `rnn`.

    Return the outputs B,T,H of the last layer, and the last states of layer 0 forward, layer 0 backward,
    layer 1 forward, …"""
    cell_type = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[type(rnn)]
    weights = rnn.state_dict()
    last = []
    for layer in range(rnn.num_layers):
        ways = []
        for way in ('','_reverse')[:1+rnn.bidirectional]:
            cell = cell_type(x.shape[2], rnn.hidden_size)
            cell.load_state_dict({k: weights[f'{k}_l{layer}{way}'] for k in cell.state_dict()})
            outs = steps_of(cell, (x.flip(1) if way else x).unbind(1))
            last.append(outs[-1])
            ways.append(torch.stack(outs[::-1] if way else outs, 1))
        x = torch.cat(ways, 2)
    return x, last

@torch.no_grad()
@pytest.mark.parametrize('kwargs', [pytest.param(v, id=k) for k,v in rnns.items()])
def test_rnn_step_by_step(kwargs):
    model = lively(ours(RNNModel, **kwargs), n_out=5)
    x = clips()
    outs,last = by_cells(model.rnn, each_frame(model, x))
    h = model.rnn(each_frame(model, x))[1]
    assert_near(torch.stack(last), h[0] if isinstance(h, tuple) else h) # in torch's order
    pooled = model.pool(outs) if model.pool else torch.cat(last, 1)
    assert_near(model(x), model.head(pooled))
    if model.pool: return
    labels = lively(ours(RNNModel, per_frame=True, **kwargs), n_out=5)
    outs,_ = by_cells(labels.rnn, each_frame(labels, x))
    assert_near(labels(x), torch.stack([labels.head.module(o) for o in outs.unbind(1)], 1))

def test_sizes_of_rnns():
    "Check sizes, directions, dropout between layers and before the classifier, and the default hidden size"
    model = ours(RNNModel, **rnns['lstm2_dropout'])(n_out=5)
    rnn = model.rnn
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers) == (12,10,2)
    assert (rnn.bidirectional, rnn.dropout) == (True,.5)
    assert [m.p for m in model.head.modules() if isinstance(m, nn.Dropout)] == [.5]
    assert model.head[-1].weight.shape == (5,40)
    rnn = ours(RNNModel)(n_out=5).rnn
    assert (rnn.hidden_size, rnn.num_layers, rnn.bidirectional, rnn.dropout) == (12,1,False,0)

def conv_lstm(rnn, maps):
    """Compute the states of a ConvLSTM by arXiv 1506.04214 without peepholes.

    One convolution over the concatenated input and last state gives the four gates."""
    for layer in rnn.layers:
        h = c = torch.zeros(len(maps[0]), rnn.hidden_size, *maps[0].shape[2:])
        weight = torch.cat([layer.inp.weight, layer.recur.weight], 1)
        outs = []
        for x in maps:
            gates = F.conv2d(torch.cat([x,h], 1), weight, layer.inp.bias, padding=weight.shape[-1]//2)
            i,f,g,o = gates.split(rnn.hidden_size, 1)
            c = torch.sigmoid(f)*c + torch.sigmoid(i)*torch.tanh(g)
            h = torch.sigmoid(o)*torch.tanh(c)
            outs.append(h)
        maps = outs
    return maps

def pooled_states(model, x):
    "Return the maximum and mean over space of each state of `conv_lstm`, concatenated"
    states = conv_lstm(model.rnn, each_frame(model, x).unbind(1))
    return [torch.cat([o.amax((2,3)), o.mean((2,3))], 1) for o in states]

@torch.no_grad()
@pytest.mark.parametrize('kwargs', [pytest.param(v, id=k) for k,v in convlstms.items()])
def test_convlstm_step_by_step(kwargs):
    model = lively(ours(ConvLSTMModel, hidden_size=16, **kwargs), n_out=5)
    x = clips()
    states = pooled_states(model, x)
    pooled = model.pool(torch.stack(states, 1)) if model.pool else states[-1]
    assert_near(model(x), model.head(pooled))
    if model.pool: return
    labels = lively(ours(ConvLSTMModel, hidden_size=16, per_frame=True, **kwargs), n_out=5)
    logits = [labels.head.module(o) for o in pooled_states(labels, x)]
    assert_near(labels(x), torch.stack(logits, 1))

@torch.no_grad()
def test_convlstm_of_one_pixel_is_an_lstm():
    rnn = nn.LSTM(6, 7, num_layers=2, batch_first=True)
    conv = ConvLSTM(6, 7, kernel_size=1, num_layers=2)
    x = torch.randn(3,5,6)
    for i,layer in enumerate(conv.layers):
        keys = 'weight_ih','weight_hh','bias_ih','bias_hh'
        w_in,w_rec,b_in,b_rec = (getattr(rnn, f'{k}_l{i}') for k in keys)
        layer.inp.weight[:],layer.recur.weight[:] = w_in[...,None,None],w_rec[...,None,None]
        layer.inp.bias[:] = b_in+b_rec
    out,(h,c) = conv(x[...,None,None])
    want,(wh,wc) = rnn(x)
    for got,o in zip((out,h,c), (want,wh,wc), strict=True): assert_near(got[...,0,0], o)


# torchvision's video networks

@pytest.fixture(scope='module', params=video_archs)
def original(request, tmp_path_factory):
    "Return torchvision's network, and ours with its weights from a file"
    arch = request.param
    fname = tmp_path_factory.mktemp('weights')/'net.pth'
    # S3D's initial weights are so small that the features vanish without calibrated statistics
    on = clips(16, (224,224), bs=1).transpose(1,2) if arch is s3d else None
    net = lively(arch, on=on, num_classes=5)
    torch.save(net.state_dict(), fname)
    model = VideoModel(arch, 5, pretrained=fname).eval()
    return SimpleNamespace(arch=arch, net=net, fname=fname, model=model)

def torchvisions(net, x):
    "Return logits of torchvision's network, also for sizes that it does not accept itself"
    T,*size = x.shape[1],*x.shape[3:]
    if isinstance(net, MViT): net = smaller(net, T, size)
    if not isinstance(net, S3D) or (T,*size) == (16,224,224): return net(x.transpose(1,2))
    maps = net.features(x.transpose(1,2)) # S3D averages over 2 steps and 7x7 places; here are fewer
    kernel = [min(*o) for o in zip((2,7,7), maps.shape[2:])]
    return net.classifier(F.avg_pool3d(maps, kernel, stride=1)).mean((2,3,4))

sizes = {
    s3d: [(16,224,224), (16,64,96), (8,64,64), (16,256,40)],
    mvit_v1_b: [(8,64,96), (4,96,32)],
    mvit_v2_s: [(8,64,96), (4,96,32)]}

@torch.no_grad()
def test_logits_are_torchvisions(original):
    "Compare logits at the sizes that torchvision uses, and at others"
    for T,*size in sizes.get(original.arch, [(16,112,112), (5,40,56), (1,33,64)]):
        x = clips(T, size, bs=1)
        assert_near(original.model(x), torchvisions(original.net, x))

large_clips = [(mvit_v1_b,16,224), (mvit_v2_s,16,224), (s3d,32,256),
               (swin3d_t,32,224), (swin3d_s,32,224), (swin3d_b,32,224)]

@slow
@torch.no_grad()
@pytest.mark.parametrize('original,T,px', large_clips, indirect=['original'])
def test_logits_of_large_clips(original, T, px):
    x = clips(T, (px,px), bs=1)
    assert_near(original.model(x), original.net(x.transpose(1,2)))

@pytest.mark.parametrize('size', [(14,14), (4,6), (20,31), (1,1)])
def test_positions_are_resized_as_pictures(size):
    pos = torch.randn(1,196,5)
    assert_near(resize_positions(pos, size)[0], resized_by_pil(pos[0], size))

def steps_before_pooling(net, x):
    "Return features B,t,F of torchvision's network, averaged over space"
    if isinstance(net, S3D): return net.features(x.transpose(1,2)).mean((3,4)).transpose(1,2)
    seen = []
    last = net.norm if hasattr(net, 'norm') else net.layer4
    with last.register_forward_hook(lambda m, args, out: seen.append(out)): net(x.transpose(1,2))
    out, = seen
    if out.ndim == 3: # MViT: B,1+t*h*w,F with a class token
        n_places = x.shape[3]//32*(x.shape[4]//32)
        return out[:,1:].unflatten(1, (-1,n_places)).mean(2)
    if hasattr(net, 'norm'): return out.mean((2,3)) # Swin: B,t,h,w,F
    return out.mean((3,4)).transpose(1,2)

@torch.no_grad()
def test_labels_of_each_frame_of_video_networks(original):
    "Apply the classifier to torchvision's features of each step, and interpolate to the frames by numpy"
    x = clips(16, (64,32), bs=2)
    net = original.net
    if isinstance(net, MViT): net = smaller(net, 16, (64,32))
    steps = steps_before_pooling(net, x)
    last = last_layer(net)
    assert 1 < steps.shape[1] <= 16 and differ(steps[:,0], steps[:,1])
    want = [stretched(o, 16) for o in F.linear(steps, last.weight.flatten(1), last.bias)]
    labels = VideoModel(original.arch, 5, pretrained=original.fname, per_frame=True).eval()
    assert_near(labels(x), torch.stack(want))

@torch.no_grad()
def test_another_classifier_and_gray(original):
    "Check that all weights but the classifier come from the file, with the dropout of the network"
    x = clips(5, n_in=1, bs=2)
    gray = VideoModel(original.arch, 7, pretrained=original.fname, n_in=1).eval()
    want = original.model.encoder(in_colors(x, dim=2).transpose(1,2))
    assert_near(gray.encoder(x.transpose(1,2)), want)
    assert gray.head[0].p == {s3d: .2, mvit_v1_b: .5, mvit_v2_s: .5}.get(original.arch, 0)
    assert gray.head[1].weight.shape == (7,last_layer(original.net).weight.shape[1])

@torch.no_grad()
@pytest.mark.parametrize('n_in', [2,4])
def test_channels_of_pretrained_video_networks(n_in, tmp_path):
    net = lively(mc3_18, num_classes=5)
    x = clips(5, n_in=n_in)
    torch.save(net.state_dict(), tmp_path/'net.pth')
    model = VideoModel(mc3_18, 5, pretrained=tmp_path/'net.pth', n_in=n_in, ps=.3).eval()
    assert_near(model(x), net(in_colors(x, dim=2).transpose(1,2)))
    assert model.head[0].p == .3

def with_difference(x):
    "Concatenate each frame with its difference from the mean over time -> B,2*C,T,H,W"
    mean = sum(x.unbind(1))/x.shape[1]
    return torch.stack([torch.cat([o, o-mean], 1) for o in x.unbind(1)], 2)

@torch.no_grad()
def test_conv3d_sees_what_moves():
    "Run the layers one by one over frames and their differences from the mean over time"
    model,labels = lively(Conv3dModel, n_out=5),lively(Conv3dModel, n_out=5, per_frame=True)
    x = clips(size=(64,48))
    out = with_difference(x)
    for layer in model.encoder: out = layer(out)
    assert_near(model(x), F.linear(out.mean((2,3,4)), *model.head[-1].parameters()))
    feats = labels.encoder(with_difference(x)).mean((3,4)).transpose(1,2) # B,F,t,H,W -> B,t,F
    steps = F.linear(feats, *labels.head[-1].parameters())
    assert steps.shape == (3,2,5)
    assert_near(labels(x), torch.stack([stretched(o, 8) for o in steps]))


# Weights from files

def in_colors(x, dim=1):
    """Convert `x` to the three channels that have the same effect on the original network.

    Repeat a gray channel; scale two channels by 3/2 and add zeros; drop channels after the third."""
    n = x.shape[dim]
    if n == 1: return torch.cat([x]*3, dim)
    if n == 2: return torch.cat([x*1.5, torch.zeros_like(x.narrow(dim, 0, 1))], dim)
    return x.narrow(dim, 0, 3)

def before_classifier(net, x):
    "Return the input of the last layer of `net`"
    seen = []
    with last_layer(net).register_forward_pre_hook(lambda m, args: seen.append(args[0])): net(x)
    return seen[0]

def of_timm(name): return partial(timm.create_model, name, pretrained=False)

def small_vit(weights=None, image_size=64, num_classes=1000):
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    return VisionTransformer(image_size, 16, num_classes=num_classes, **sizes)

sources = dict( # encoder, function that makes the original, image size
    resnet18=(resnet18, resnet18, 64),
    densenet121=(densenet121, densenet121, 64),
    vit_b_16=(vit_b_16, vit_b_16, 224),
    small_vit=(small_vit, small_vit, 64),
    timm_resnet18=('resnet18', of_timm('resnet18'), 64),
    timm_vit=('vit_tiny_patch16_224', of_timm('vit_tiny_patch16_224'), 224))

@pytest.fixture(scope='module', params=[pytest.param(k, marks=[slow]*(k == 'vit_b_16')) for k in sources])
def source(request, tmp_path_factory):
    "Return a network with 7 classes, its weights in two files, and the argument for `create_encoder`"
    arch,make,size = sources[request.param]
    folder = tmp_path_factory.mktemp('source')
    pth,safetensors = folder/'net.pth',folder/'net.safetensors'
    net = lively(make, num_classes=7)
    torch.save(net.state_dict(), pth)
    save_file(net.state_dict(), safetensors)
    return SimpleNamespace(arch=arch, net=net, size=(size,size), pth=pth, safetensors=safetensors)

@torch.no_grad()
@pytest.mark.parametrize('kind,n_in', [('pth',3), ('safetensors',3), ('pth',1), ('pth',2), ('safetensors',4)])
def test_features_are_the_originals(source, kind, n_in):
    x = clips(1, source.size, n_in)[:,0]
    feats = create_encoder(source.arch, str(getattr(source, kind)), n_in=n_in).eval()(x)
    assert_near(feats, before_classifier(source.net, in_colors(x)))
    assert differ(feats[0], feats[1])

families = ('convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s mobilenet_v2 mobilenet_v3_small '
            'regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 '
            'squeezenet1_1 swin_t swin_v2_t')
large = 'alexnet vgg11_bn wide_resnet50_2'
networks = families.split() + [pytest.param(o, marks=slow) for o in large.split()]

@torch.no_grad()
@pytest.mark.parametrize('name', networks)
def test_maps_are_the_input_of_the_classifier(name, tmp_path):
    "Compare with what the classifier of torchvision's network gets, for each kind of network"
    x,seen = clips(1, (64,64), bs=2)[:,0],[]
    net = lively(partial(getattr(torchvision.models, name), weights=None), on=x)
    torch.save(net.state_dict(), tmp_path/'net.pth')
    head = list(net.children())[-1]
    with head.register_forward_pre_hook(lambda m, args: seen.append(args[0])): net(x)
    maps = create_encoder(getattr(torchvision.models, name), tmp_path/'net.pth', grid=0).eval()(x)
    side = round((seen[0].numel()/maps[:,:,0,0].numel())**.5) # of the maps after pooling
    assert_near(F.adaptive_avg_pool2d(maps, side).flatten(1), seen[0].flatten(1))
    assert differ(maps[0], maps[1])

@torch.no_grad()
@pytest.mark.parametrize('source', ['resnet18', 'timm_resnet18', 'small_vit'], indirect=True)
def test_maps_are_the_originals(source):
    x = clips(1, source.size)[:,0]
    seen = []
    last = source.net.layer4 if hasattr(source.net, 'layer4') else source.net.encoder
    with last.register_forward_hook(lambda m, args, out: seen.append(out)): source.net(x)
    maps, = seen
    if maps.ndim == 3: maps = maps[:,1:].transpose(1,2).unflatten(2, (4,4)) # B,1+h*w,F -> B,F,h,w
    assert_near(create_encoder(source.arch, source.pth, grid=0).eval()(x), maps)

vit_cases = [(small_vit,96,6), (small_vit,48,3), pytest.param(vit_b_16,80,5, marks=slow)]

@torch.no_grad()
@pytest.mark.parametrize('arch,size,n', vit_cases)
def test_vit_of_other_sizes(arch, size, n, tmp_path):
    "Compare with torchvision's network for images of that size, with positions resized by PIL"
    state = lively(arch, num_classes=7).state_dict()
    other = arch(image_size=size, num_classes=7).eval()
    pos = state['encoder.pos_embedding'][0]
    resized = torch.cat([pos[:1], resized_by_pil(pos[1:], (n,n))])
    other.load_state_dict(state | {'encoder.pos_embedding': resized[None]})
    torch.save(state, tmp_path/'vit.pth')
    x = clips(1, (size,size))[:,0]
    encoder = create_encoder(arch, tmp_path/'vit.pth').eval()
    assert_near(encoder(x), before_classifier(other, x))

def refused(fname, make):
    "Check that `make` raises a `ValueError` that names the file; return its message"
    with pytest.raises(ValueError) as e: make(pretrained=fname)
    assert fname.name in str(e.value)
    return str(e.value)

of_resnet = pytest.param(partial(create_encoder, resnet18), resnet18, id='resnet18')
of_timm_resnet = pytest.param(partial(create_encoder, 'resnet18'), of_timm('resnet18'), id='timm_resnet18')
of_timm_maps = pytest.param(partial(create_encoder, 'resnet18', grid=0), of_timm('resnet18'),
                            id='timm_resnet18_maps')
of_timm_vit = pytest.param(partial(create_encoder, 'vit_tiny_patch16_224'), of_timm('vit_tiny_patch16_224'),
                           id='timm_vit')
of_mc3 = pytest.param(partial(VideoModel, mc3_18, 5), mc3_18, id='mc3_18')

def other_arch(state, key): return resnet34(num_classes=7).state_dict()
def one_missing(state, key): return {k:v for k,v in state.items() if k != key}
def one_unknown(state, key): return state | {'stray.weight': torch.zeros(2)}
def another_shape(state, key): return state | {key: torch.zeros(2)}

@pytest.mark.parametrize('change', [other_arch, one_missing, one_unknown, another_shape])
@pytest.mark.parametrize('make,net', [of_resnet, of_timm_resnet, of_timm_maps, of_timm_vit, of_mc3])
def test_weights_that_do_not_fit(make, net, change, tmp_path):
    state = net(num_classes=7).state_dict()
    other = change(state, [k for k in state if k.endswith('weight')][5])
    def differs(k): return k not in state or k not in other or state[k].shape != other[k].shape
    wrong = {k for k in state | other if differs(k)} # one name, several for `other_arch`
    torch.save(other, tmp_path/'other.pth')
    message = refused(tmp_path/'other.pth', make)
    assert any(k in message for k in wrong)

def saved(o, zipped=True):
    "Return the bytes of a file with `o` saved by torch"
    buffer = io.BytesIO()
    torch.save(o, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()

linear = nn.Linear(9, 9).state_dict()
linear_pth,linear_old = saved(linear),saved(linear, zipped=False)
no_weights = {
    'empty.pth': b'',
    'text.pth': b'<html>Not found</html>',
    'letter.pth': b'a',
    'half.pth': linear_pth[:700],
    'start.pth': saved({'a': torch.zeros(10**5)})[:5000],
    'old.pth': linear_old[:70],
    'list.pth': saved([1,2]),
    'tensors.pth': saved([torch.zeros(2)]),
    'numbers.pth': saved({'a': 1}),
    'text.safetensors': b'text',
    'half.safetensors': save(linear)[:150]}

@pytest.mark.parametrize('name', no_weights)
@pytest.mark.parametrize('make,net', [of_resnet, of_timm_resnet, of_mc3])
def test_files_of_something_else(make, net, name, tmp_path):
    (tmp_path/name).write_bytes(no_weights[name])
    refused(tmp_path/name, make)

@pytest.mark.parametrize('make,net', [of_resnet, of_timm_resnet, of_mc3])
def test_files_that_are_none(make, net, tmp_path):
    assert 'no such file' in refused(tmp_path/'none.pth', make)
    assert 'no such file' in refused(tmp_path, make)

class Trap:
    "Create a folder when unpickled"
    def __init__(self, folder): self.folder = folder
    def __reduce__(self): return os.mkdir,(str(self.folder),)

wraps = dict(
    pickle=pickle.dumps,
    zip=saved,
    old=partial(saved, zipped=False),
    state_dict=lambda o: saved({'state_dict': o}),
    value=lambda o: saved({'fc.weight': o}))

@pytest.mark.parametrize('wrap', wraps.values(), ids=wraps)
@pytest.mark.parametrize('make,net', [of_resnet, of_timm_resnet, of_mc3])
def test_no_code_is_run(make, net, wrap, tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path/'sprung')))
    assert (tmp_path/'sprung').is_dir() # unpickling does create the folder
    for name in ('trap.pth','trap.safetensors'):
        (tmp_path/name).write_bytes(wrap(Trap(tmp_path/'trapped')))
        try: refused(tmp_path/name, make)
        finally: assert not (tmp_path/'trapped').exists()


# Every encoder

archs = [resnet18, resnet34, resnet50, densenet121, efficientnet_b0, convnext_tiny,
         'mobilenetv3_small_050', 'vit_tiny_patch16_224', 'convnextv2_atto']
large = [vit_b_16, 'swin_tiny_patch4_window7_224']
with_encoders = [
    partial(SimpleModel, pool=AttentionPool),
    partial(RNNModel, hidden_size=16),
    partial(ConvLSTMModel, hidden_size=8)]
encoder_cases = [(a,m) for a in archs for m in with_encoders]
encoder_cases += [pytest.param(a, m, marks=[slow]*(m is not with_encoders[0]))
                  for a in large for m in with_encoders]

def encoder_id(o):
    "Return the name of a model, network or architecture for a test id"
    return o.func.__name__ if isinstance(o, partial) else getattr(o, '__name__', o)

@pytest.mark.parametrize('arch,model', encoder_cases, ids=encoder_id)
def test_every_encoder(arch, model):
    model = model(arch, n_out=5, pretrained=False)
    x = clips(2, (64,64), bs=2)
    encoder = model.encoder.module
    with torch.no_grad(): out = encoder.eval()(x[:,0])
    assert out.shape == (2,encoder.n_features,*out.shape[2:])
    assert out.ndim == (4 if isinstance(model, ConvLSTMModel) else 2)
    loss_of(model.train()(x)).backward()
    assert no_grads(model) <= {'pool.score.2.bias'}
    splits(model)

def splits(model):
    "Check that `clip_splitter` separates the encoder from the rest, with each parameter once"
    first,rest = ([id(p) for p in group] for group in clip_splitter(model))
    assert first == [id(p) for p in model.encoder.parameters()] and first and rest
    assert sorted(first + rest) == sorted(id(p) for p in model.parameters())

@torch.no_grad()
@pytest.mark.parametrize('grid', [1,2,4])
def test_grid(grid):
    "Average over the parts of a grid; the features of a channel are adjacent"
    net = lively(tiny)
    x = clips(1, (32,64))[:,0]
    encoder = create_encoder(net, grid=grid)
    rows = net(x).chunk(grid, 2)
    parts = [part.mean((2,3)) for row in rows for part in row.chunk(grid, 3)]
    assert_near(encoder(x), torch.stack(parts, 2).flatten(1))
    assert encoder.n_features == len(parts)*12

@torch.no_grad()
@pytest.mark.parametrize('model', [SimpleModel, RNNModel, ConvLSTMModel])
def test_subtract_mean(model):
    "Compare with the same weights applied to frames without their mean"
    kwargs = {} if model is ConvLSTMModel else dict(grid=2)
    moving = lively(ours(model, subtract_mean=True, **kwargs), n_out=5)
    x = clips()
    want = moving(x)
    mean = sum(x.unbind(1))/8
    moving.subtract_mean = False
    assert_near(want, moving(torch.stack([o-mean for o in x.unbind(1)], 1)))
    assert differ(want, moving(x))

def test_encoders_of_ones_own():
    "Pass a function that makes a module, or a module, that outputs maps or vectors"
    net = tiny()
    vectors = nn.Sequential(tiny(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    assert create_encoder(net, grid=0) is net and net.n_features == 12
    assert create_encoder(vectors) is vectors and vectors.n_features == 48
    x = clips(1)[:,0]
    assert_near(create_encoder(net).eval()(x), net(x).mean((2,3)))
    for message,arch,kwargs in (('pretrained=False', tiny, {}),
                                ('maps', vectors, dict(grid=0)),
                                (r'\(\d+,\)', nn.Flatten(0), {})):
        with pytest.raises(ValueError, match=message): create_encoder(arch, **kwargs)


# Trained by fastai

learned = dict(
    simple=ours(SimpleModel),
    lstm=ours(RNNModel),
    convlstm=ours(ConvLSTMModel, hidden_size=8),
    conv3d=partial(Conv3dModel, width=4),
    mc3_18=ours(VideoModel, mc3_18))
learners = pytest.mark.parametrize('make', learned.values(), ids=learned)

def loaders(items, bs=4):
    "Return loaders for 3 classes with the same `items` for training and validation"
    dl = DataLoader(items, bs=bs, device='cpu')
    dls = DataLoaders(dl, dl, device='cpu')
    dls.c = 3
    return dls

def clip_loaders(x, y, **kwargs):
    "Return loaders of the clips `x` with the labels `y`"
    tuples = [ImageTuple(o.as_subclass(TensorImage) for o in clip) for clip in x]
    labels = [TensorCategory(o) for o in y]
    return loaders(list(zip(tuples, labels, strict=True)), **kwargs)

def eight_clips(): return clip_loaders(clips(4, bs=8), torch.arange(8)%3)

def quiet(learn):
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda o: None
    return learn

def learner(model, dls=None, lr=1e-2, **kwargs):
    loss_func = CrossEntropyLossFlat()
    return quiet(Learner(dls or eight_clips(), model, loss_func, lr=lr, splitter=clip_splitter, **kwargs))

def clip_learner(dls, model, **kwargs):
    return video_learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)

def fitted(learn, **kwargs):
    "Return the names of the parameters and statistics that an epoch changes"
    before = deepcopy(learn.model.state_dict())
    learn.fit(1, **kwargs)
    return changed(learn.model, before)

def encoders_own(model, also=lambda m: True):
    "Return the names in the state dict of the encoder's layers for which `also` is true"
    layers = {n: m for n,m in model.encoder.named_modules() if not list(m.children()) and also(m)}
    return {f'encoder.{n}.{k}' for n,m in layers.items() for k in m.state_dict()}

def batchnorms(model): return encoders_own(model, lambda m: isinstance(m, bn_types))

def statistics(model):
    "Return the names of the statistics of the encoder's BatchNorm layers"
    ends = 'running_mean','running_var','num_batches_tracked'
    return {k for k in batchnorms(model) if k.endswith(ends)}

def others(model): return {k for k in model.state_dict() if not k.startswith('encoder.')}

@learners
def test_rates_reach_their_groups(make):
    "Check that a step of SGD changes the encoder by 1e-5 times the gradient and the rest by 1e-3 times"
    model = lively(make, n_out=3).double()
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    dls = clip_loaders(clips(4, (16,16), bs=4).double(), torch.arange(4)%3)
    learn = learner(model, dls, opt_func=SGD)
    copy = deepcopy(model).train()
    x,y = learn.dls.one_batch()
    learn.loss_func(copy(x), y).backward() # fastai's loss computes in float32
    learn.fit(1, slice(1e-5,1e-3))
    splits(model)
    assert [len(o) for o in learn.opt.param_lists] == [len(o) for o in clip_splitter(model)]
    for (k,new),old in zip(model.named_parameters(), copy.parameters(), strict=True):
        rate = 1e-5 if k.startswith('encoder.') else 1e-3
        assert_near(new.detach(), old.detach() - rate*old.grad, tol=1e-12)

@learners
def test_a_frozen_encoder_keeps_all_but_batchnorm(make):
    learn = learner(lively(make, n_out=3))
    learn.freeze()
    trained = names(learn.model, lambda p: p.requires_grad)
    assert trained & encoders_own(learn.model) == batchnorms(learn.model) - statistics(learn.model)
    assert fitted(learn) == batchnorms(learn.model) | others(learn.model)
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    assert fitted(learn) == set(learn.model.state_dict())

@learners
def test_a_frozen_encoder_keeps_batchnorm_too(make):
    "Freeze BatchNorm's weights by `train_bn=False`, and its statistics by fastai's `BnFreeze`"
    learn = learner(lively(make, n_out=3), train_bn=False)
    learn.freeze()
    assert fitted(learn) == statistics(learn.model) | others(learn.model)
    assert fitted(learn, cbs=BnFreeze()) == others(learn.model)

def test_frozen_as_in_a_vision_learner():
    "Check that freezing affects the same parts of a resnet as in a `vision_learner`"
    images = [(TensorImage(o), TensorCategory(i%3)) for i,o in enumerate(clips(1, bs=8)[:,0])]
    vision = quiet(vision_learner(loaders(images), resnet18, n_out=3, pretrained=False,
                                  loss_func=CrossEntropyLossFlat()))
    video = quiet(clip_learner(eight_clips(), ours(SimpleModel, resnet18)))
    body = []
    for learn,prefix in ((vision,'0.'), (video,'encoder.module.0.')):
        learn.freeze()
        trained = names(learn.model, lambda p: p.requires_grad)
        sets = trained,fitted(learn),learn.model.state_dict()
        body.append([{k.removeprefix(prefix) for k in o if k.startswith(prefix)} for o in sets])
    assert body[0] == body[1]
    assert 0 < len(body[0][0]) < len(body[0][1]) < len(body[0][2])

@learners
def test_fine_tune(make):
    learn = learner(lively(make, n_out=3))
    before = deepcopy(learn.model.state_dict())
    learn.fine_tune(2, 1e-3)
    assert learn.opt.frozen_idx == 0 and changed(learn.model, before) == set(before)
    assert len(learn.recorder.values) == 2 and np.isfinite(learn.recorder.values).all()

def test_save_and_load_by_fastai(tmp_path):
    models = [lively(ours(RNNModel), seed, n_out=3) for seed in (0,1)]
    learn,other = (learner(o, path=tmp_path) for o in models)
    learn.fit(1)
    learn.save('model')
    want = learn.get_preds()[0]
    assert not torch.equal(other.get_preds()[0], want)
    assert torch.equal(other.load('model').get_preds()[0], want)

def test_names_of_the_splitter(): assert simple_splitter is rnnmodel_splitter is clip_splitter

@pytest.fixture(scope='module')
def dls(): return eight_clips()

def test_video_learner(dls):
    "Check sizes, splitter and metric, and that all weights of an untrained encoder are trained"
    learn = clip_learner(dls, partial(RNNModel, hidden_size=7), arch=tiny, pretrained=False)
    model = learn.model
    assert model.encoder.module.n_features == 12
    assert (model.rnn.hidden_size, model.head[-1].out_features) == (7,3)
    assert learn.splitter is clip_splitter and learn.metrics[0].func is accuracy
    assert fitted(quiet(learn)) == set(learn.model.state_dict())
    assert clip_learner(dls, Conv3dModel, n_out=9).model.head[-1].out_features == 9

pretrained_cases = [
    pytest.param(SimpleModel, resnet18, id='simple'),
    pytest.param(partial(RNNModel, hidden_size=8), 'resnet18', id='timm_rnn'),
    pytest.param(VideoModel, mc3_18, id='video')]

@pytest.mark.parametrize('model,arch', pretrained_cases)
def test_video_learner_from_a_file(dls, model, arch, tmp_path):
    "Check that pretrained weights are loaded from a file and frozen until `unfreeze`"
    net = lively(of_timm(arch) if isinstance(arch, str) else arch, num_classes=7)
    torch.save(net.state_dict(), tmp_path/'net.pth')
    learn = quiet(clip_learner(dls, model, arch=arch, pretrained=tmp_path/'net.pth'))
    assert learn.model(clips()).shape == (3,3)
    assert fitted(learn) == batchnorms(learn.model) | others(learn.model)
    kinds = nn.Conv2d,nn.Conv3d
    convs = [[m.weight for m in o.modules() if isinstance(m, kinds)] for o in (learn.model.encoder, net)]
    for a,b in zip(*convs, strict=True): assert torch.equal(a, b)

def test_video_learner_says_what_it_cannot(dls, tmp_path):
    no_file = dict(arch=resnet18, pretrained=tmp_path/'none.pth')
    cases = ((Conv3dModel, dict(arch=resnet18), 'Conv3dModel does not accept `arch`'),
             (ours(SimpleModel), dict(arch=resnet18), 'has one already'),
             (SimpleModel, dict(arch=tiny), 'no pretrained weights for tiny'),
             (VideoModel, dict(arch=resnet18, pretrained=False), 'ResNet is not a video network'),
             (RNNModel, no_file, 'none.pth: no such file'))
    for model,kwargs,message in cases:
        with pytest.raises(ValueError, match=message): clip_learner(dls, model, **kwargs)


# Memory

frame_models = {k: learned[k] for k in ('simple','lstm','convlstm')}
framewise = pytest.mark.parametrize('make', frame_models.values(), ids=frame_models)

def grads_of(make, frozen_bn, **kwargs):
    "Return logits, gradients and statistics after a step, and the batch sizes of the encoder's calls"
    model = lively(make, n_out=5, **kwargs).double()
    evaluated = (nn.Dropout, *bn_types) if frozen_bn else nn.Dropout
    for m in model.modules():
        if not isinstance(m, evaluated): m.training = True
    calls = []
    model.encoder.module.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    out = model(clips(T=5).double())
    out.pow(2).sum().backward()
    grads = {k: p.grad for k,p in model.named_parameters()}
    statistics = {k: b.double() for k,b in model.named_buffers()}
    return {'out': out.detach()} | grads | statistics, calls

memory_options = [
    pytest.param(dict(low_mem=True), True, [3]*5, id='low_mem'),
    pytest.param(dict(chunk=2), True, [6,6,3], id='chunk'),
    pytest.param(dict(checkpoint=True), True, [15,15], id='checkpoint'),
    pytest.param(dict(checkpoint=True), False, [15,15], id='checkpoint_bn'),
    pytest.param(dict(checkpoint=True, chunk=2), True, [6,6,3]*2, id='checkpoint_chunk')]

@framewise
@pytest.mark.parametrize('kwargs,frozen_bn,calls', memory_options)
def test_memory_options(make, kwargs, frozen_bn, calls):
    "Check that logits and gradients do not depend on the number of images per call"
    want,n = grads_of(make, frozen_bn)
    got,m = grads_of(make, frozen_bn, **kwargs)
    assert (n, sorted(m)) == ([15], sorted(calls))
    assert got.keys() == want.keys()
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=1e-9, atol=1e-12)


# Labels for each frame

@pytest.mark.parametrize('model', [SimpleModel, RNNModel, ConvLSTMModel])
def test_pool_or_per_frame(model):
    make = ours(model, pool=AttentionPool, per_frame=True)
    with pytest.raises(ValueError, match='only one of the two'): make()

def halves(n, T=6):
    "Return clips of noise, brighter in the left or right half of each frame, with labels: 0 left, 1 right"
    x = torch.rand(n,T,3,16,16)
    y = torch.randint(2, (n,T))
    for c,t in np.ndindex(n, T): x[c,t,:,:,8*y[c,t]:8*y[c,t]+8] += .5
    return x, y

class HalfMeans(nn.Module):
    "Encode images of 16x16 pixels with a small network without pooling"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16),
                                 nn.ReLU())
    def forward(self, x): return self.net(F.interpolate(x, (16,16)))

half_models = dict(
    simple=ours(SimpleModel, HalfMeans),
    lstm=ours(RNNModel, HalfMeans),
    both_ways=ours(RNNModel, HalfMeans, bidirectional=True))

@pytest.mark.parametrize('make', half_models.values(), ids=half_models)
def test_labels_of_frames_are_learned(make):
    torch.manual_seed(0)
    train,valid = (clip_loaders(*halves(n), bs=16).train for n in (128, 32))
    dls = DataLoaders(train, valid, device='cpu')
    learn = learner(make(n_out=2, per_frame=True), dls, metrics=accuracy)
    learn.fit_one_cycle(8, 1e-2)
    assert learn.recorder.values[-1][2] > .9

@learners
def test_labels_of_frames_train(make):
    "Check that fastai's loss and metric accept logits B,T,C with labels B,T"
    model = lively(make, n_out=3, per_frame=True)
    x = clips(4, bs=8)
    y = torch.arange(32).view(8,4)%3
    learn = learner(model, clip_loaders(x, y), metrics=accuracy)
    with torch.no_grad():
        logits = model(x)
        want = F.cross_entropy(logits.reshape(32, 3), y.flatten())
    share = (logits.argmax(-1) == y).float().mean()
    assert_near(torch.tensor(learn.validate()), torch.stack([want, share]))
    assert fitted(learn) == set(model.state_dict())


# Compilation, memory formats and precision

ran = pytest.mark.parametrize('machine', learned.values(), ids=learned, indirect=True)

@pytest.fixture(scope='module')
def machine(request): return lively(request.param, n_out=5)

@torch.no_grad()
@ran
def test_compiled(machine):
    torch._dynamo.reset()
    compiled = torch.compile(machine, backend='eager')
    x = clips(5)
    want = machine(x)
    for clip in (x, as_batch(x)): assert_near(compiled(clip), want, tol=1e-5)

@torch.no_grad()
@ran
def test_channels_last(machine):
    x = clips()
    want = machine(x)
    for dim,form in ((4,torch.channels_last), (5,torch.channels_last_3d)):
        if not any(p.ndim == dim for p in machine.parameters()): continue
        model = deepcopy(machine).to(memory_format=form)
        weights = [p for p in model.parameters() if p.ndim == dim]
        assert any(p.is_contiguous(memory_format=form) and not p.is_contiguous() for p in weights)
        for clip in (x, as_batch(x)): assert_near(model(clip), want)

in_bfloat16 = [pytest.param(o, id=k, marks=[pytest.mark.slow]*(k == 'mc3_18')) for k,o in learned.items()]

@pytest.mark.parametrize('machine', in_bfloat16, indirect=True)
def test_bfloat16(machine):
    "Check that logits are finite and near those in float32, and that a step changes all weights"
    model = deepcopy(machine)
    x = clips()
    with torch.no_grad():
        want = model(x)
        with torch.autocast('cpu', torch.bfloat16): out = model(x)
    assert out.isfinite().all()
    assert_near(out.float(), want, tol=.05)
    opt = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    before = deepcopy(model.state_dict())
    with torch.autocast('cpu', torch.bfloat16): loss = loss_of(model(x))
    loss.backward()
    opt.step()
    assert loss.isfinite() and changed(model, before) == set(before)
    assert all(v.isfinite().all() for v in model.state_dict().values())
