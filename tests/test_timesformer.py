"Compare TimeSformer with its package, and TimeSformerViT with image models and with transformers."
from copy import deepcopy
from functools import partial

import pytest
import timesformer_pytorch
import torch
import torch.nn.functional as F
from fastai.vision.all import LabelSmoothingCrossEntropyFlat, params, set_seed
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, vit_b_16

from conftest import assert_near, saved_for_backward
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import window_frames
from vidseq.data.splits import leaked_groups
from vidseq.datasets.shapes import moving_shapes
from vidseq.deploy.export import export_onnx, export_program
from vidseq.models.attention import _max_groups, attention
from vidseq.models.frame_models import clip_splitter
from vidseq.models.timesformer import small_timesformer, TimeSformer
from vidseq.models.layer_groups import layer_splitter
from vidseq.models.vit import (DividedBlock, JointBlock, load_timesformer, PaperBlock,
                               SpaceBlock, TimeSformerViT)
from vidseq.report.compare import epochs_for
from vidseq.train.learner import video_learner

small = dict(dim=32, image_size=32, patch_size=8, num_frames=4, depth=2, heads=2, dim_head=16)
near = partial(assert_near, least=1.) # exact gradients may be zero


def uniform_clips(T=4, size=(32,32), bs=3, n_in=3, seed=0):
    "Return the same random clips B,T,C,H,W between 0 and 1 for the same `seed`"
    return torch.rand(bs, T, n_in, *size, generator=torch.Generator().manual_seed(seed))


def noisy(model, scale=.3, seed=0):
    "Add noise to every parameter, so that none keeps its initial value"
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p), alpha=scale)
    return model


# TimeSformer

mask = torch.tensor([[True,True,False,False], [True]*4, [True,False,True,True]])


# Rotary embeddings rotate only some of 10 features; the package cannot rotate an odd number
@pytest.mark.parametrize('dim_head,rotary_emb', [(16,True), (16,False), (10,True), (10,False), (7,False)])
@pytest.mark.parametrize('mask', [None, mask])
@pytest.mark.parametrize('shift_tokens', [False, True])
@pytest.mark.parametrize('checkpoint', [False, True])
def test_package(dim_head, rotary_emb, mask, shift_tokens, checkpoint, recompute=False):
    "Check that outputs and gradients equal the package's, and that either loads the other's state dict"
    kw = small | dict(dim_head=dim_head, rotary_emb=rotary_emb, shift_tokens=shift_tokens)
    theirs = noisy(timesformer_pytorch.TimeSformer(num_classes=6, **kw), .1).double()
    ours = TimeSformer(6, checkpoint=checkpoint, attn_dropout=0., ff_dropout=0., **kw).double()
    for m in ours.modules(): m.recompute = recompute
    ours.load_state_dict(theirs.state_dict())
    back = timesformer_pytorch.TimeSformer(num_classes=6, **kw).double()
    back.load_state_dict(ours.state_dict())
    x = uniform_clips().double().requires_grad_()
    outs,grads = [],[]
    for net in (theirs, ours, back):
        outs.append(net(x, mask=mask))
        grads.append(torch.autograd.grad(F.cross_entropy(outs[-1], torch.arange(3)), [x, *net.parameters()]))
    for out,gs in zip(outs[1:], grads[1:]):
        near(out, outs[0], 1e-8)
        for got,want in zip(gs, grads[0], strict=True): near(got, want, 1e-8)


@pytest.mark.parametrize('shift_tokens', [False, True])
def test_checkpoints_of_many_tokens(shift_tokens):
    "Compare logits and gradients where gradient checkpointing splits the tokens into several chunks"
    kw = small | dict(image_size=64, num_frames=5, attn_dropout=0., ff_dropout=0., shift_tokens=shift_tokens)
    plain,again = TimeSformer(6, **kw).double(),TimeSformer(6, checkpoint=True, **kw).double()
    again.load_state_dict(plain.state_dict())
    outs = [net(uniform_clips(5, (64,64)).double()) for net in (plain, again)]
    near(outs[1], outs[0], 1e-10)
    grads = [torch.autograd.grad(out.square().sum(), params(net)) for out,net in zip(outs, (plain, again))]
    for want,got in zip(*grads, strict=True): near(got, want, 1e-10)


def test_wide_models_equal_the_package():
    "Check that wide models recompute attention in the backward pass, with the same results"
    assert TimeSformer(**small | dict(dim=512)).layers[0][0].fn.recompute
    test_package(16, True, mask, True, checkpoint=False, recompute=True)


def test_dropout_as_the_package():
    "Check that the same random numbers drop the same features in training"
    kw = small | dict(attn_dropout=.3, ff_dropout=.2)
    theirs = timesformer_pytorch.TimeSformer(num_classes=6, **kw).double()
    ours = TimeSformer(6, **kw).double()
    ours.load_state_dict(theirs.state_dict())
    outs = []
    for net in (theirs, ours):
        torch.manual_seed(1)
        outs.append(net.train()(uniform_clips().double()))
    near(outs[1], outs[0], 1e-8)
    assert not torch.allclose(ours(uniform_clips().double()), outs[1])


def test_masked_frames_are_not_seen():
    model,x = noisy(TimeSformer(6, rotary_emb=False, **small), .1).eval(),uniform_clips()
    other = x.clone()
    other[0,2:] = 5.
    near(model(other, mask=mask)[0], model(x, mask=mask)[0], 1e-5)
    assert not torch.allclose(model(other)[0], model(x)[0], atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    "Compare logits under autocast and of a cast model with those of float32; gradients are finite"
    model = TimeSformer(6, attn_dropout=0., ff_dropout=0., **small)
    want = model(uniform_clips(), mask=mask)
    for m in (None, mask):
        with torch.autocast('cpu', dtype): out = model(uniform_clips(), mask=m)
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        got = deepcopy(model).to(dtype)(uniform_clips().to(dtype), mask=m)
        assert got.dtype == dtype and got.isfinite().all()
    near(out.float(), want, .05)
    near(got.float(), want, .05)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_as_the_package(dtype):
    "Check that the errors of logits under autocast are those of the package, up to 10% of chance"
    kw = dict(dim=128, image_size=32, patch_size=8, num_frames=4, depth=12, heads=4, dim_head=32)
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in range(4):
        torch.manual_seed(seed)
        theirs = timesformer_pytorch.TimeSformer(num_classes=101, **kw).eval()
        ours = TimeSformer(101, **kw).eval()
        ours.load_state_dict(theirs.state_dict())
        x = uniform_clips(seed=seed)
        want = deepcopy(theirs).double()(x.double())
        with torch.autocast('cpu', dtype): outs = ours(x),theirs(x)
        errors += torch.stack([(o.double()-want).norm() for o in outs])
    assert errors[0] <= 1.1*errors[1], errors


@pytest.fixture
def count_groups(monkeypatch):
    "Limit the groups of one call of torch's attention on a CPU, as on a GPU; return the counts of all calls"
    counts,fused = [],F.scaled_dot_product_attention
    def count(q, *args, **kwargs):
        counts.append(q.shape[:-2].numel())
        return fused(q, *args, **kwargs)
    def limit(n):
        monkeypatch.setitem(_max_groups, 'cpu', n)
        return counts
    monkeypatch.setattr(F, 'scaled_dot_product_attention', count)
    return limit


masks = {'none': None, 'keys': (1,20), 'all': (1,1,1,20), 'clips': (7,1,1,20), 'queries': (7,3,30,20)}


@pytest.mark.parametrize('shape', masks.values(), ids=masks)
@pytest.mark.parametrize('limit', [1, 5, 6, 20, 21, 100])
def test_attention_in_parts(limit, shape, count_groups):
    "Compare outputs and gradients of 7 clips of 3 groups with those of one call"
    torch.manual_seed(0)
    q,k,v = (torch.randn(7,3,n,8, dtype=torch.float64, requires_grad=True) for n in (30,20,20))
    mask = None if shape is None else torch.rand(shape) < .7
    if mask is not None: mask[...,0] = True
    def results():
        out = attention(q, k, v, mask)
        return [out, *torch.autograd.grad(out.square().sum(), (q,k,v))]
    want = results()
    counts = count_groups(limit)
    counts.clear()
    for got,o in zip(results(), want, strict=True): near(got, o, 1e-12)
    assert sum(counts) == 21 and max(counts) <= max(limit, 3) # the heads of a clip are never divided


@torch.no_grad()
@pytest.mark.parametrize('masked', [None, mask])
def test_models_with_attention_in_parts(masked, count_groups):
    nets = TimeSformer(6, **small),TimeSformerViT(patch8_vit, 6, pretrained=False)
    ours,vit = (noisy(o, .1).eval().double() for o in nets)
    x = uniform_clips().double()
    want = ours(x, mask=masked),vit(x)
    counts = count_groups(6) # of 3 clips, 4 frames, 16 patches, 2 heads
    counts.clear()
    near(ours(x, mask=masked), want[0], 1e-12)
    near(vit(x), want[1], 1e-12)
    assert max(counts) <= 3*4*2 and counts.count(6) > 50 # torchvision attends over space without a limit


@pytest.mark.parametrize(['kw', 'shape', 'message'], [
    ({}, (5,32), 'clips of 4 frames of 32x32, not 5 of 32x32'),
    ({}, (4,40), 'not 4 of 40x40'),
    (dict(image_size=33), None, '33x33 cannot be cut into patches of 8x8')])
def test_wrong_sizes(kw, shape, message):
    with pytest.raises(ValueError, match=message):
        TimeSformer(6, **small | kw)(torch.rand(1, shape[0], 3, shape[1], shape[1]))


def test_channels_and_motion():
    model = TimeSformer(6, channels=2, subtract_mean=True, **small).eval()
    x = uniform_clips(n_in=2)
    near(model(x+torch.rand(3,1,2,32,32)), model(x), 1e-4) # a static background has no effect


def test_timesformer_leaves(tmp_path):
    "Export a program and an ONNX file; each export compares its logits with the model's"
    model = noisy(TimeSformer(6, **small), .1).eval()
    export_program(model, uniform_clips())
    export_onnx(model, tmp_path/'model.onnx', uniform_clips())


def saved_bytes(model, x):
    "Run `model` on `x`; return the number of bytes saved for the backward pass"
    with saved_for_backward(model) as sizes: model(x)
    return sum(sizes.values())


def test_memory_kept_for_backward():
    "Compare with the package at the width of ViT-B and 8 frames of 14x14 patches, as of 224x224 pixels"
    kw = dict(dim=768, image_size=56, patch_size=4, num_frames=8, depth=1, heads=12, num_classes=6)
    x = uniform_clips(8, (56,56), bs=1)
    theirs = saved_bytes(timesformer_pytorch.TimeSformer(**kw), x)
    kw |= dict(attn_dropout=0., ff_dropout=0.)
    assert saved_bytes(TimeSformer(**kw), x) < .7*theirs
    assert saved_bytes(TimeSformer(checkpoint=True, **kw), x) < .2*theirs


@pytest.mark.slow
def test_motion_is_learned_from_scratch(tmp_path):
    """Train for four minutes on two cores and validate on groups that are not in the training set.

    No single frame shows the class, so chance is 1 in 6."""
    set_seed(0)
    path,sampler = moving_shapes(tmp_path/'shapes'),partial(window_frames, step=3)
    kwargs = dict(seq_len=8, image_size=32, bs=8, seed=42, num_workers=0)
    dls = VideoDataLoaders.from_folder(path, sampler=sampler, cache=tmp_path/'frames', **kwargs)
    learn = video_learner(dls, small_timesformer, loss_func=LabelSmoothingCrossEntropyFlat(), wd=.05)
    learn.fit_one_cycle(epochs_for(learn, 240), 3e-3)
    assert not leaked_groups(dls) and learn.validate()[1] >= .9


# TimeSformerViT

def patch8_vit(num_layers=3, **kwargs):
    "Create a small image transformer of torchvision for 32x32 pixels"
    return VisionTransformer(32, 8, num_layers, num_heads=2, hidden_dim=32, mlp_dim=64, **kwargs)


def small_timm(name='vit_tiny_patch16_224', **kwargs):
    "Create a small image transformer of timm for 32x32 pixels"
    timm = pytest.importorskip('timm')
    size = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    return timm.create_model(name, dynamic_img_size=True, **size, **kwargs)


timms = {
    'vit': small_timm,
    'average': partial(small_timm, global_pool='avg', class_token=False),
    'registers': partial(small_timm, reg_tokens=2, init_values=.1),
    'deit3': partial(small_timm, 'deit3_small_patch16_224'),
    'map': partial(small_timm, global_pool='map', class_token=False)}


@pytest.fixture(params=['torchvision', *timms])
def image_model(request, monkeypatch):
    "Return an image transformer with six classes, and the `arch` that creates it"
    make = timms.get(request.param, patch8_vit)
    net = noisy(make(num_classes=6), .1).eval()
    if make is patch8_vit: return net,lambda num_classes: deepcopy(net)
    monkeypatch.setattr('timm.create_model', lambda *args, **kw: deepcopy(net))
    return net,'vit_tiny_patch16_224' # any name that timm knows


@torch.no_grad()
@pytest.mark.parametrize('block', [SpaceBlock, DividedBlock])
def test_starts_as_the_mean_of_frames(image_model, block):
    net,arch = image_model
    model = TimeSformerViT(arch, 6, num_frames=4, pretrained=False, block=block).eval()
    for x in (uniform_clips(), uniform_clips(6, (48,40))):
        if not hasattr(net, 'patch_embed') and x.shape[3] != 32: continue # torchvision accepts one size
        want = torch.stack([net(o) for o in x.unbind(1)], dim=1)
        near(model(x), want.mean(1), 1e-5)
        model.per_frame = True
        near(model(x), want, 1e-5)
        model.per_frame = False
        near(model(tuple(x.unbind(1))), want.mean(1), 1e-5)


def test_time_branch_gets_gradients(image_model):
    "Check that attention over time gets gradients after one step and learns the direction of motion"
    model = TimeSformerViT(image_model[1], 6, num_frames=4, pretrained=False)
    right = torch.zeros(4,4,3,32,32) # a square moves by its width
    for i in range(4):
        for t in range(4): right[i,t,:,8*i:8*i+8,8*t:8*t+8] = 1.
    x,y = torch.cat([right, right.flip(1)]),torch.tensor([0]*4+[1]*4)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for i in range(120):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if i == 1:
            assert not [k for k,p in model.named_parameters() if '.time' in k and not p.grad.abs().sum() > 0]
        opt.step()
    assert loss < .3 # without the order of frames it stays above log(2)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).all()
        assert (model(x.flip(1)).argmax(1) == 1-y).all()


@pytest.mark.parametrize('block', [SpaceBlock, JointBlock, DividedBlock, PaperBlock])
def test_blocks(block):
    "Check any length and size, a clip alone as in its batch, and gradients with gradient checkpointing"
    kw = dict(num_frames=4, pretrained=False, n_in=2, block=block)
    model = noisy(TimeSformerViT(patch8_vit, 5, **kw), .1).double().eval()
    for x in (uniform_clips(n_in=2), uniform_clips(7, (48,32), n_in=2), uniform_clips(1, n_in=2)):
        out = model(x.double())
        assert out.shape == (3,5)
        near(model(x[1:2].double())[0], out[1], 1e-10)
    again = TimeSformerViT(patch8_vit, 5, checkpoint=True, **kw).double().eval()
    again.load_state_dict(model.state_dict())
    x = uniform_clips(n_in=2).double()
    grads = [torch.autograd.grad(net(x).square().sum(), params(net)) for net in (model, again)]
    for a,b in zip(*grads, strict=True): near(a, b, 1e-10)


slow_blocks = [pytest.param(o, marks=pytest.mark.slow) for o in (SpaceBlock, JointBlock, PaperBlock)]

@pytest.mark.parametrize('block', [DividedBlock, *slow_blocks])
def test_vits_leave(block, tmp_path):
    model = noisy(TimeSformerViT(patch8_vit, 5, num_frames=4, pretrained=False, block=block), .1).eval()
    export_program(model, uniform_clips())
    export_onnx(model, tmp_path/'model.onnx', uniform_clips())


def test_drop_path():
    model = TimeSformerViT(patch8_vit, 5, num_frames=4, pretrained=False, drop_path=.5)
    assert [b.drop_path.p for b in model.encoder.blocks] == [0., .25, .5]
    noisy(model, .1)
    assert not torch.equal(model.train()(uniform_clips()), model(uniform_clips()))
    assert torch.equal(model.eval()(uniform_clips()), model(uniform_clips()))


def test_groups(image_model):
    model = TimeSformerViT(image_model[1], 6, num_frames=4, pretrained=False)
    groups = layer_splitter(model)
    ids = [id(p) for g in groups for p in g]
    assert len(groups) == 5 and len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert [len(g) for g in clip_splitter(model)] == [len(ids)-2, 2] and len(groups[-1]) == 2


def test_weights_of_images(tmp_path):
    "Load a file, and its classifier if it has as many classes; an error names a file that does not fit"
    net = noisy(patch8_vit(num_classes=7), .1).eval()
    torch.save(net.state_dict(), tmp_path/'image.pth')
    x = uniform_clips()
    with torch.no_grad():
        model = TimeSformerViT(patch8_vit, 7, pretrained=tmp_path/'image.pth').eval()
        near(model(x), torch.stack([net(o) for o in x.unbind(1)]).mean(0), 1e-5)
        other = TimeSformerViT(patch8_vit, 5, pretrained=tmp_path/'image.pth').eval()
        near(other.encoder(x), model.encoder(x), 1e-5)
    with pytest.raises(ValueError, match='image.pth.*encoder_layer_3'):
        TimeSformerViT(partial(patch8_vit, 4), 7, pretrained=tmp_path/'image.pth')


@pytest.mark.slow
def test_vit_b_16():
    model = TimeSformerViT(vit_b_16, 5, pretrained=False)
    assert model(torch.rand(1,2,3,224,224)).shape == (1,5)


# Weights of video transformers

def transformers_model(**kwargs):
    transformers = pytest.importorskip('transformers')
    size = dict(image_size=32, patch_size=8, num_frames=4, hidden_size=128, intermediate_size=96)
    layers = dict(num_hidden_layers=3, num_attention_heads=2, num_labels=7)
    config = transformers.TimesformerConfig(**size | layers | kwargs)
    return noisy(transformers.TimesformerForVideoClassification(config), .05).eval()


# Names in transformers -> names of the authors, replaced in this order
official_names = {
    'timesformer.': '',
    'embeddings.cls_token': 'cls_token',
    'embeddings.position_embeddings': 'pos_embed',
    'embeddings.time_embeddings': 'time_embed',
    'embeddings.patch_embeddings.projection': 'patch_embed.proj',
    'encoder.layer': 'blocks',
    'temporal_attention.attention': 'temporal_attn',
    'temporal_attention.output.dense': 'temporal_attn.proj',
    'temporal_layernorm': 'temporal_norm1',
    'temporal_dense': 'temporal_fc',
    'attention.attention': 'attn',
    'attention.output.dense': 'attn.proj',
    'intermediate.dense': 'mlp.fc1',
    'output.dense': 'mlp.fc2',
    'layernorm_before': 'norm1',
    'layernorm_after': 'norm2',
    'layernorm': 'norm',
    'classifier': 'head'}


def official(state):
    "Rename the parameters of transformers as TimeSformer's authors do, in a checkpoint like theirs"
    def name(k):
        for old,new in official_names.items(): k = k.replace(old, new)
        return f'model.{k}'
    return {'epoch': 15, 'cfg': 'TRAIN: …', 'model_state': {name(k): v for k,v in state.items()}}


@torch.no_grad()
@pytest.mark.parametrize('kind', ['divided_space_time', 'joint_space_time'])
@pytest.mark.parametrize('channels', [3, 2])
def test_transformers(kind, channels, tmp_path):
    """Compare logits with transformers' TimeSformer, for its own size and length and for others.

    Weights are loaded from a file of transformers and from one with the names of the authors."""
    theirs = transformers_model(attention_type=kind, num_channels=channels)
    state = theirs.state_dict()
    save_file({k: v.contiguous() for k,v in state.items()}, tmp_path/'model.safetensors')
    torch.save(official(state), tmp_path/'official.pyth')
    shapes = [(4, (32,32)), (6, (32,32)), (3, (32,32)), (4, (48,48)), (8, (24,40))] # T, (H,W)
    for fname in ('model.safetensors', 'official.pyth'):
        ours = load_timesformer(tmp_path/fname).eval()
        assert ours.encoder.blocks[0].__class__ is (PaperBlock if 'divided' in kind else JointBlock)
        for T,size in shapes:
            x = uniform_clips(T, size, n_in=channels)
            theirs.config.num_frames,theirs.config.image_size = T,size[1] # its layers count tokens by these
            got,want = ours(x),theirs(x).logits
            near(got, want, 1e-4)
            assert want.std(dim=0).max() > 1e-3


@torch.no_grad()
def test_published_weights_for_other_classes(tmp_path):
    theirs = transformers_model()
    torch.save(theirs.state_dict(), tmp_path/'weights.pth')
    whole = load_timesformer(tmp_path/'weights.pth').eval()
    ours = load_timesformer(tmp_path/'weights.pth', n_out=3).eval()
    assert ours(uniform_clips()).shape == (3,3)
    near(ours.encoder(uniform_clips()), whole.encoder(uniform_clips()), 1e-6)


def state_without_a_norm():
    state = transformers_model().state_dict()
    del state['timesformer.encoder.layer.1.layernorm_before.bias']
    return state


other_states = {
    'space_only': lambda: transformers_model(attention_type='space_only').state_dict(),
    'missing': state_without_a_norm,
    'resnet': lambda: {'conv1.weight': torch.zeros(2)}}


@pytest.mark.parametrize('spoil', other_states)
def test_other_weights_are_refused(spoil, tmp_path):
    torch.save(other_states[spoil](), tmp_path/'weights.pth')
    problem = 'blocks.1.attn.0.bias' if spoil == 'missing' else 'not the weights of a TimeSformer'
    with pytest.raises(ValueError, match=f'weights.pth.*{problem}'):
        load_timesformer(tmp_path/'weights.pth')
