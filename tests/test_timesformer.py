"TimeSformer against its package, TimeSformerViT against image models and against transformers."
from copy import deepcopy
from functools import partial

import pytest
import timesformer_pytorch
import torch
import torch.nn.functional as F
from fastai.vision.all import LabelSmoothingCrossEntropyFlat, params, set_seed
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, vit_b_16
from vidseq.data import VideoDataLoaders, leaked_groups, window_frames
from vidseq.export import export_onnx, export_program
from vidseq.learner import epochs_for, video_learner
from vidseq.models import clip_splitter
from vidseq.shapes import moving_shapes
from vidseq.timesformer import TimeSformer, small_timesformer
from vidseq.vit import DividedBlock, JointBlock, PaperBlock, SpaceBlock, TimeSformerViT, layer_splitter, load_timesformer

small = dict(dim=32, image_size=32, patch_size=8, num_frames=4, depth=2, heads=2, dim_head=16)


def clips(T=4, size=(32,32), bs=3, n_in=3, seed=0): return torch.rand(bs, T, n_in, *size, generator=torch.Generator().manual_seed(seed))


def same(got, want, tol): torch.testing.assert_close(got, want, rtol=0, atol=tol*max(1, float(want.detach().abs().max())))


def noisy(model, scale=.3, seed=0):
    "Every parameter away from where it starts"
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p), alpha=scale)
    return model


# TimeSformer

mask = torch.tensor([[True,True,False,False], [True]*4, [True,False,True,True]])


@pytest.mark.parametrize('dim_head,rotary_emb', [(16,True), (16,False), (10,True), (10,False), (7,False)]) # of 10 features not all are turned; an odd number the package cannot turn
@pytest.mark.parametrize('mask', [None, mask])
@pytest.mark.parametrize('shift_tokens', [False, True])
@pytest.mark.parametrize('checkpoint', [False, True])
def test_package(dim_head, rotary_emb, mask, shift_tokens, checkpoint, recompute=False):
    "Outputs and gradients are the package's, and state dicts go both ways"
    kw = small | dict(dim_head=dim_head, rotary_emb=rotary_emb, shift_tokens=shift_tokens)
    theirs,ours = noisy(timesformer_pytorch.TimeSformer(num_classes=6, **kw), .1).double(),TimeSformer(6, checkpoint=checkpoint, attn_dropout=0., ff_dropout=0., **kw).double()
    for m in ours.modules(): m.recompute = recompute
    ours.load_state_dict(theirs.state_dict())
    back = timesformer_pytorch.TimeSformer(num_classes=6, **kw).double()
    back.load_state_dict(ours.state_dict())
    x = clips().double().requires_grad_()
    outs,grads = [],[]
    for net in (theirs, ours, back):
        outs.append(net(x, mask=mask))
        grads.append(torch.autograd.grad(F.cross_entropy(outs[-1], torch.arange(3)), [x, *net.parameters()]))
    for out,gs in zip(outs[1:], grads[1:]):
        same(out, outs[0], 1e-8)
        for got,want in zip(gs, grads[0], strict=True): same(got, want, 1e-8)


@pytest.mark.parametrize('shift_tokens', [False, True])
def test_checkpoints_of_many_tokens(shift_tokens):
    "More than are taken at a time: the same logits and gradients"
    kw = small | dict(image_size=64, num_frames=5, attn_dropout=0., ff_dropout=0., shift_tokens=shift_tokens)
    plain,again = TimeSformer(6, **kw).double(),TimeSformer(6, checkpoint=True, **kw).double()
    again.load_state_dict(plain.state_dict())
    outs = [net(clips(5, (64,64)).double()) for net in (plain, again)]
    same(outs[1], outs[0], 1e-10)
    for got,want in zip(*(torch.autograd.grad(out.square().sum(), params(net)) for out,net in zip(outs[::-1], (again, plain))), strict=True): same(got, want, 1e-10)


def test_wide_models_equal_the_package():
    "They compute attention again in the backward pass"
    assert TimeSformer(**small | dict(dim=512)).layers[0][0].fn.recompute
    test_package(16, True, mask, True, checkpoint=False, recompute=True)


def test_dropout_as_the_package():
    "The same random numbers drop the same features, in training"
    kw = small | dict(attn_dropout=.3, ff_dropout=.2)
    theirs,ours = timesformer_pytorch.TimeSformer(num_classes=6, **kw).double(),TimeSformer(6, **kw).double()
    ours.load_state_dict(theirs.state_dict())
    outs = []
    for net in (theirs, ours):
        torch.manual_seed(1)
        outs.append(net.train()(clips().double()))
    same(outs[1], outs[0], 1e-8)
    assert not torch.allclose(ours(clips().double()), outs[1])


def test_masked_frames_are_not_seen():
    model,x = noisy(TimeSformer(6, rotary_emb=False, **small), .1).eval(),clips()
    other = x.clone()
    other[0,2:] = 5.
    same(model(other, mask=mask)[0], model(x, mask=mask)[0], 1e-5)
    assert not torch.allclose(model(other)[0], model(x)[0], atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    "Cast, and under autocast: near to float32's logits, and gradients without infinities, masked too"
    model = TimeSformer(6, attn_dropout=0., ff_dropout=0., **small)
    want = model(clips(), mask=mask)
    for m in (None, mask):
        with torch.autocast('cpu', dtype): out = model(clips(), mask=m)
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        got = deepcopy(model).to(dtype)(clips().to(dtype), mask=m)
        assert got.dtype == dtype and got.isfinite().all()
    same(out.float(), want, .05)
    same(got.float(), want, .05)


@pytest.mark.parametrize(['kw', 'shape', 'message'], [({}, (5,32), 'clips of 4 frames of 32x32, not 5 of 32x32'), ({}, (4,40), 'not 4 of 40x40'), (dict(image_size=33), None, '33x33 cannot be cut into patches of 8x8')])
def test_wrong_sizes(kw, shape, message):
    with pytest.raises(ValueError, match=message): TimeSformer(6, **small | kw)(torch.rand(1, shape[0], 3, shape[1], shape[1]))


def test_channels_and_motion():
    model = TimeSformer(6, channels=2, moving=True, **small).eval()
    x = clips(n_in=2)
    same(model(x+torch.rand(3,1,2,32,32)), model(x), 1e-4) # what stands still is not seen


def test_timesformer_leaves(tmp_path):
    "As a program and as an ONNX file; both are compared with the model"
    model = noisy(TimeSformer(6, **small), .1).eval()
    export_program(model, clips())
    export_onnx(model, tmp_path/'model.onnx', clips())


def saved_bytes(model, x):
    "What is kept for the backward pass besides parameters"
    own,sizes = {p.untyped_storage().data_ptr() for p in model.parameters()},{}
    def pack(t):
        if t.untyped_storage().data_ptr() not in own: sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): model(x)
    return sum(sizes.values())


def test_memory_kept_for_backward():
    "At the width of ViT-B, and 8 frames of 14x14 patches, as 224 pixels have"
    kw = dict(dim=768, image_size=56, patch_size=4, num_frames=8, depth=1, heads=12, num_classes=6)
    x = clips(8, (56,56), bs=1)
    theirs = saved_bytes(timesformer_pytorch.TimeSformer(**kw), x)
    assert saved_bytes(TimeSformer(attn_dropout=0., ff_dropout=0., **kw), x) < .7*theirs
    assert saved_bytes(TimeSformer(attn_dropout=0., ff_dropout=0., checkpoint=True, **kw), x) < .2*theirs


@pytest.mark.slow
def test_motion_is_learned_from_nothing(tmp_path):
    "In four minutes on two cores, on groups that were never trained on; no single frame tells the class, and chance is 1 in 6"
    set_seed(0)
    dls = VideoDataLoaders.from_folder(moving_shapes(tmp_path/'shapes'), seq_len=8, image_size=32, bs=8, seed=42, num_workers=0, sampler=partial(window_frames, step=3), cache=tmp_path/'frames')
    learn = video_learner(dls, small_timesformer, loss_func=LabelSmoothingCrossEntropyFlat(), wd=.05)
    learn.fit_one_cycle(epochs_for(learn, 240), 3e-3)
    assert not leaked_groups(dls) and learn.validate()[1] >= .9


# TimeSformerViT

def small_vit(**kwargs): return VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, **kwargs)


def of_timm(name, **kw):
    timm = pytest.importorskip('timm')
    return timm.create_model(name, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, dynamic_img_size=True, **kw)


timms = {'vit': partial(of_timm, 'vit_tiny_patch16_224'), 'average': partial(of_timm, 'vit_tiny_patch16_224', global_pool='avg', class_token=False),
         'registers': partial(of_timm, 'vit_tiny_patch16_224', reg_tokens=2, init_values=.1), 'deit3': partial(of_timm, 'deit3_small_patch16_224'),
         'map': partial(of_timm, 'vit_tiny_patch16_224', global_pool='map', class_token=False)}


@pytest.fixture(params=['torchvision', *timms])
def image_model(request, monkeypatch):
    "An image transformer with six classes, and the `arch` that gives it"
    net = noisy(small_vit(num_classes=6) if request.param == 'torchvision' else timms[request.param](num_classes=6), .1).eval()
    if request.param == 'torchvision': return net,lambda num_classes: deepcopy(net)
    monkeypatch.setattr('timm.create_model', lambda *args, **kw: deepcopy(net))
    return net,request.param


@torch.no_grad()
@pytest.mark.parametrize('block', [SpaceBlock, DividedBlock])
def test_starts_as_the_mean_of_frames(image_model, block):
    net,arch = image_model
    model = TimeSformerViT(arch, 6, num_frames=4, pretrained=False, block=block).eval()
    for x in (clips(), clips(6, (48,40))):
        if not hasattr(net, 'patch_embed') and x.shape[3] != 32: continue # torchvision's takes one size
        want = torch.stack([net(o) for o in x.unbind(1)], dim=1)
        same(model(x), want.mean(1), 1e-5)
        model.per_frame = True
        same(model(x), want, 1e-5)
        model.per_frame = False
        same(model(tuple(x.unbind(1))), want.mean(1), 1e-5)


def test_time_branch_gets_gradients(image_model):
    "After one step every parameter of attention over time has one, and after some steps a clip reversed has other logits"
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
        if i == 1: assert not [k for k,p in model.named_parameters() if '.time' in k and not p.grad.abs().sum() > 0]
        opt.step()
    assert loss < .3 # without the order it stays above log(2)
    with torch.no_grad(): assert (model(x).argmax(1) == y).all() and (model(x.flip(1)).argmax(1) == 1-y).all()


@pytest.mark.parametrize('block', [SpaceBlock, JointBlock, DividedBlock, PaperBlock])
def test_blocks(block):
    "Any length and size; a row alone as in its batch; checkpoints change nothing; saved weights come back; programs and ONNX files"
    model = noisy(TimeSformerViT(small_vit, 5, num_frames=4, pretrained=False, n_in=2, block=block), .1).double().eval()
    for x in (clips(n_in=2), clips(7, (48,32), n_in=2), clips(1, n_in=2)):
        out = model(x.double())
        assert out.shape == (3,5)
        same(model(x[1:2].double())[0], out[1], 1e-10)
    again = TimeSformerViT(small_vit, 5, num_frames=4, pretrained=False, n_in=2, block=block, checkpoint=True).double().eval()
    again.load_state_dict(model.state_dict())
    grads = [torch.autograd.grad(net(clips(n_in=2).double()).square().sum(), params(net)) for net in (model, again)]
    for a,b in zip(*grads, strict=True): same(a, b, 1e-10)


@pytest.mark.parametrize('block', [SpaceBlock, JointBlock, DividedBlock, PaperBlock])
def test_vits_leave(block, tmp_path):
    model = noisy(TimeSformerViT(small_vit, 5, num_frames=4, pretrained=False, block=block), .1).eval()
    export_program(model, clips())
    export_onnx(model, tmp_path/'model.onnx', clips())


def test_drop_path():
    model = TimeSformerViT(small_vit, 5, num_frames=4, pretrained=False, drop_path=.5)
    assert [b.drop_path.p for b in model.encoder.blocks] == [0., .25, .5]
    noisy(model, .1)
    assert not torch.equal(model.train()(clips()), model(clips()))
    assert torch.equal(model.eval()(clips()), model(clips()))


def test_groups(image_model):
    model = TimeSformerViT(image_model[1], 6, num_frames=4, pretrained=False)
    groups = layer_splitter(model)
    ids = [id(p) for g in groups for p in g]
    assert len(groups) == 5 and len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert [len(g) for g in clip_splitter(model)] == [len(ids)-2, 2]


def test_weights_of_images(tmp_path):
    "From a file; its classifier too if it has as many classes; one that does not fit is named"
    net = noisy(small_vit(num_classes=7), .1).eval()
    torch.save(net.state_dict(), tmp_path/'image.pth')
    x = clips()
    with torch.no_grad():
        model = TimeSformerViT(small_vit, 7, pretrained=tmp_path/'image.pth').eval()
        same(model(x), torch.stack([net(o) for o in x.unbind(1)]).mean(0), 1e-5)
        other = TimeSformerViT(small_vit, 5, pretrained=tmp_path/'image.pth').eval()
        same(other.encoder(x), model.encoder(x), 1e-5)
    with pytest.raises(ValueError, match='image.pth.*encoder_layer_3'):
        TimeSformerViT(lambda **kw: VisionTransformer(image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, **kw), 7, pretrained=tmp_path/'image.pth')


@pytest.mark.slow
def test_vit_b_16():
    model = TimeSformerViT(vit_b_16, 5, pretrained=False)
    assert model(torch.rand(1,2,3,224,224)).shape == (1,5)


# weights of video transformers

def transformers_model(**kwargs):
    transformers = pytest.importorskip('transformers')
    config = transformers.TimesformerConfig(**dict(image_size=32, patch_size=8, num_frames=4, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, num_labels=7) | kwargs)
    return noisy(transformers.TimesformerForVideoClassification(config), .05).eval()


def official(state):
    "The names of TimeSformer's authors for the parameters of transformers"
    names = [('timesformer.', ''), ('embeddings.cls_token', 'cls_token'), ('embeddings.position_embeddings', 'pos_embed'), ('embeddings.time_embeddings', 'time_embed'), ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
             ('encoder.layer', 'blocks'), ('temporal_attention.attention', 'temporal_attn'), ('temporal_attention.output.dense', 'temporal_attn.proj'), ('temporal_layernorm', 'temporal_norm1'), ('temporal_dense', 'temporal_fc'),
             ('attention.attention', 'attn'), ('attention.output.dense', 'attn.proj'), ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2'), ('layernorm_before', 'norm1'), ('layernorm_after', 'norm2'), ('layernorm', 'norm'), ('classifier', 'head')]
    def name(k):
        for old,new in names: k = k.replace(old, new)
        return f'model.{k}'
    return {'epoch': 15, 'cfg': 'TRAIN: …', 'model_state': {name(k): v for k,v in state.items()}}


@torch.no_grad()
@pytest.mark.parametrize('kind', ['divided_space_time', 'joint_space_time'])
@pytest.mark.parametrize('channels', [3, 2])
def test_transformers(kind, channels, tmp_path):
    "Logits are those of transformers' TimeSformer, for the size and length it was made for and for others, from its file and from one named as the authors do"
    theirs = transformers_model(attention_type=kind, num_channels=channels)
    save_file({k: v.contiguous() for k,v in theirs.state_dict().items()}, tmp_path/'model.safetensors')
    torch.save(official(theirs.state_dict()), tmp_path/'official.pyth')
    for fname in ('model.safetensors', 'official.pyth'):
        ours = load_timesformer(tmp_path/fname).eval()
        assert ours.encoder.blocks[0].__class__ is (PaperBlock if 'divided' in kind else JointBlock)
        for x in (clips(n_in=channels), clips(6, n_in=channels), clips(3, n_in=channels), clips(4, (48,48), n_in=channels), clips(8, (24,40), n_in=channels)):
            theirs.config.num_frames,theirs.config.image_size = x.shape[1],x.shape[4] # its layers count tokens by these
            got,want = ours(x),theirs(x).logits
            same(got, want, 1e-4)
            assert want.std(dim=0).max() > 1e-3


@torch.no_grad()
def test_published_weights_for_other_classes(tmp_path):
    theirs = transformers_model()
    torch.save(theirs.state_dict(), tmp_path/'weights.pth')
    whole,ours = load_timesformer(tmp_path/'weights.pth').eval(),load_timesformer(tmp_path/'weights.pth', n_out=3).eval()
    assert ours(clips()).shape == (3,3)
    same(ours.encoder(clips()), whole.encoder(clips()), 1e-6)


@pytest.mark.parametrize('spoil', ['space_only', 'missing', 'resnet'])
def test_other_weights_are_refused(spoil, tmp_path):
    state = transformers_model(attention_type='space_only').state_dict() if spoil == 'space_only' else {'conv1.weight': torch.zeros(2)} if spoil == 'resnet' else transformers_model().state_dict()
    if spoil == 'missing': del state['timesformer.encoder.layer.1.layernorm_before.bias']
    torch.save(state, tmp_path/'weights.pth')
    with pytest.raises(ValueError, match='weights.pth.*blocks.1.attn.0.bias' if spoil == 'missing' else 'weights.pth.*not the weights of a TimeSformer'): load_timesformer(tmp_path/'weights.pth')
