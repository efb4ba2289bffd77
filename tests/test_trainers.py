"Check what trains beside the optimizer: frozen encoders"
from copy import deepcopy
from functools import partial

import pytest
import torch
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, OptimWrapper, nn,
                               set_seed)

from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import RNNModel, SimpleModel
from vidseq.models.timesformer import small_timesformer
from vidseq.models.vit import TimeSformerViT
from vidseq.train.frozen import FrozenEncoder
from vidseq.train.learner import video_learner

n_clips,size = 12,16


def make_dls(shuffle=True):
    "Return loaders of random clips of two frames, in two classes that differ in brightness"
    clips = [(torch.rand(2,3,size,size) + i%2, torch.tensor(i%2)) for i in range(n_clips)]
    loaders = [DataLoader(clips, bs=4, shuffle=o, num_workers=0) for o in (shuffle,False)]
    res = DataLoaders(*loaders, device='cpu')
    res.c = 2
    return res


def make_learner(model=None, shuffle=True, **kwargs):
    set_seed(0)
    dls = make_dls(shuffle)
    model = Conv3dModel(2, width=2) if model is None else model()
    return video_learner(dls, model, **dict(loss_func=CrossEntropyLossFlat()) | kwargs)


def fit(learn, n_epoch=1, lr=1e-2, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, lr, **kwargs)


def tensors(module): return deepcopy(module.state_dict())


def changed(module, before):
    "Return the names of tensors that differ from `before`"
    return [k for k,v in module.state_dict().items() if not torch.equal(v, before[k])]


# Frozen encoders

def small_vit(): # one block, with dropout
    from torchvision.models import VisionTransformer
    arch = partial(VisionTransformer, size, 8, 1, 2, 8, 16, dropout=.5)
    return TimeSformerViT(arch, n_out=2, pretrained=False, num_frames=2, drop_path=.5)


def timm_model(): return SimpleModel('test_efficientnet', 2, pretrained=False)


frozen_models = {
    'cnn': partial(SimpleModel, small_cnn, 2, pretrained=False), '3d': partial(Conv3dModel, 2, width=2),
    'rnn': partial(RNNModel, small_cnn, 2, pretrained=False), 'vit': small_vit, 'timm': timm_model,
    'timesformer': partial(small_timesformer, 2, image_size=size, num_frames=2, attn_dropout=.5)}


@pytest.mark.parametrize('name', frozen_models)
def test_a_frozen_encoder_is_constant(name):
    "Train with a frozen encoder, unfrozen and frozen again; compare all tensors of the encoder"
    if name == 'timm': pytest.importorskip('timm')
    learn = make_learner(frozen_models[name], cbs=FrozenEncoder())
    encoder,head = learn.model.encoder,learn.model.head
    for _ in range(2):
        learn.freeze()
        before,head_before = tensors(encoder),tensors(head)
        fit(learn, 2)
        assert not changed(encoder, before) and changed(head, head_before)
        learn.unfreeze()
        fit(learn)
        moving = [k for k in before if before[k].is_floating_point()]
        assert len(set(changed(encoder, before)) & set(moving)) > .8*len(moving)


class Cached(nn.Module):
    "Compute the features of each batch once, in eval mode"
    def __init__(self, encoder):
        super().__init__()
        self.known,self.compute = {},[encoder.eval()] # in a list, so that it is not a part of the model

    def forward(self, x):
        with torch.no_grad(): new = self.known.setdefault(x.numpy().tobytes(), self.compute[0](x))
        return new


@pytest.mark.parametrize('name', [o for o in frozen_models if o != 'timesformer']) # not one module
def test_a_head_trains_on_cached_features(name):
    "Compare the head with one that trains on features that were computed once"
    if name == 'timm': pytest.importorskip('timm')
    learn = make_learner(frozen_models[name], cbs=FrozenEncoder(), shuffle=False)
    cached = make_learner(lambda: deepcopy(learn.model), shuffle=False)
    cached.model.encoder = Cached(cached.model.encoder)
    cached.splitter = lambda m: [list(m.parameters())]
    learn.freeze()
    for o in (learn, cached):
        set_seed(1)
        fit(o, 2)
    assert learn.recorder.losses == cached.recorder.losses
    assert learn.recorder.values == cached.recorder.values
    ours,theirs = (dict(o.model.named_parameters()) for o in (learn, cached))
    assert all(torch.equal(ours[k], v) for k,v in theirs.items()) and len(cached.model.encoder.known) == 3


optimizers = {'SGD': torch.optim.SGD, 'AdamW': torch.optim.AdamW}


@pytest.mark.parametrize('opt', optimizers)
def test_a_frozen_encoder_with_an_optimizer_of_torch(opt):
    learn = make_learner(cbs=FrozenEncoder(), opt_func=partial(OptimWrapper, opt=optimizers[opt]))
    learn.freeze()
    before = tensors(learn.model.encoder)
    fit(learn, wd=.1)
    assert not changed(learn.model.encoder, before)
    learn.unfreeze()
    fit(learn)
    before = tensors(learn.model.encoder)
    learn.freeze()
    fit(learn, wd=.1)
    assert not changed(learn.model.encoder, before)


def test_a_new_optimizer_keeps_the_encoder_frozen():
    learn = make_learner(cbs=FrozenEncoder())
    learn.freeze()
    before = tensors(learn.model.encoder)
    fit(learn, reset_opt=True)
    assert not changed(learn.model.encoder, before)


def test_a_partly_frozen_encoder():
    "Freeze the first two of four blocks, and unfreeze them between two epochs"
    def splitter(m): return [*(list(o.parameters()) for o in m.encoder), list(m.head.parameters())]
    learn = make_learner(cbs=FrozenEncoder(), splitter=splitter)
    learn.freeze_to(2)
    before = tensors(learn.model.encoder)
    fit(learn)
    assert {k[0] for k in changed(learn.model.encoder, before)} == {'2','3'}
    class Unfreeze(Callback):
        def before_epoch(self): self.learn.freeze_to(2 - self.epoch)
    before = tensors(learn.model.encoder)
    fit(learn, 2, cbs=Unfreeze())
    assert {k[0] for k in changed(learn.model.encoder, before)} == {'1','2','3'}


def test_batchnorm_without_weights_is_frozen_with_its_layer():
    model = Conv3dModel(2, width=2)
    for block in model.encoder: block[1] = nn.BatchNorm3d(block[1].num_features, affine=False)
    learn = make_learner(lambda: model, cbs=FrozenEncoder())
    learn.freeze()
    before = tensors(model.encoder)
    fit(learn)
    assert not changed(model.encoder, before)
