"Check frozen encoders, averages of the weights, and learning rates of layers"
from copy import deepcopy
from functools import partial

import pytest
import torch
from fastai.vision.all import (Adam, Callback, CancelBatchException, CancelEpochException,
                               CancelFitException, CancelStepException, CancelTrainException,
                               CancelValidException, CrossEntropyLossFlat, DataLoader, DataLoaders,
                               EarlyStoppingCallback, GradientAccumulation, OptimWrapper, SaveModelCallback,
                               nn, set_seed)
from torchvision import models as tv
from torchvision.models import video
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import ViTEncoder, small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel, clip_splitter
from vidseq.models.layer_groups import layer_groups, layer_splitter
from vidseq.models.timesformer import small_timesformer
from vidseq.models.vit import TimeSformerViT
from vidseq.train.amp import to_amp
from vidseq.train.ema import EMA, ema_decay
from vidseq.train.frozen import FrozenEncoder
from vidseq.train.learner import video_learner
from vidseq.train.rates import layer_lrs
from vidseq.train.resume import ResumeTraining

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


# Averages of the weights

def moving(module):
    "Return copies of the tensors of floating-point numbers of `module`"
    return {k: v.clone() for k,v in module.state_dict().items() if v.is_floating_point()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())


class Follow(Callback):
    "Average the weights with torch's `AveragedModel`, and compare when they are used"
    order = -4
    def __init__(self):
        self.n_steps,self.last,self.average = 0,None,None

    def before_fit(self):
        def update(average, now, n): get_ema_multi_avg_fn(ema_decay(int(n)))(average, now, n)
        self.average,self.last = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True),None

    def before_step(self): self.before = moving(self.model)

    def after_step(self):
        if same(self.before, moving(self.model)): return
        self.average.update_parameters(self.model)
        self.last,self.n_steps = moving(self.model),self.n_steps+1

    def before_batch(self):
        "Check that training continues with the last weights; statistics change also without a step"
        if not self.training or self.last is None: return
        now = moving(self.model)
        assert same(now, {k: now[k] if 'running' in k else v for k,v in self.last.items()})

    def check(self):
        if self.last is not None: assert same(moving(self.model), moving(self.average.module))

    before_validate = after_epoch = after_fit = check


def plain_loop(learn, n_epoch, lr, decay, warmup):
    "Train without callbacks; return the average and the losses of the validation set after each epoch"
    model,average,losses,n = learn.model,None,[],0
    opt = Adam([list(model.parameters())], lr=lr, wd=.01)
    no_decay = [p for m in model.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()]
    for p in [*no_decay, model.head[-1].bias]: opt.state[p]['do_wd'] = False
    for _ in range(n_epoch):
        model.train()
        for xb,yb in learn.dls.train:
            learn.loss_func(model(xb), yb).backward()
            opt.step()
            for p in model.parameters(): p.grad = None
            now = moving(model)
            d = min(decay, (1+n)/(10+n)) if warmup else decay
            average = {k: average[k].lerp(v, 1-d) for k,v in now.items()} if n else now
            n += 1
        last = moving(model)
        model.load_state_dict(average, strict=False)
        model.eval()
        with torch.no_grad(): found = [learn.loss_func(model(x), y).item() for x,y in learn.dls.valid]
        losses.append(sum(found)/len(found))
        model.load_state_dict(last, strict=False)
    return average,losses


@pytest.mark.parametrize('decay,warmup', [(.999,True), (.5,True), (.9,False), (0,False), (0,True)])
def test_the_average_equals_a_plain_loop(decay, warmup):
    learn,reference = make_learner(cbs=EMA(decay, warmup)),make_learner()
    set_seed(1)
    fit(learn, 3, wd=.01)
    set_seed(1)
    average,losses = plain_loop(reference, 3, 1e-2, decay, warmup)
    assert same(moving(learn.model), average)
    assert [o[1] for o in learn.recorder.values] == pytest.approx(losses, rel=1e-6)
    if decay == 0: assert same(average, moving(reference.model))


precisions = {'float32': lambda o: o, 'bfloat16': partial(to_amp, mode='bf16'),
              'float16': partial(to_amp, mode='fp16', init_scale=8., growth_interval=2),
              'skipped steps': partial(to_amp, mode='fp16', init_scale=2.**19),
              'fastai': lambda o: o.to_fp16()}


@pytest.mark.parametrize('precision', precisions)
@pytest.mark.parametrize('bs', [1, 8])
def test_the_average_equals_torchs(precision, bs):
    "Train two fits with gradient accumulation, or with all precisions; compare at each event"
    follow = Follow()
    learn = precisions[precision](make_learner(cbs=[EMA(), follow, GradientAccumulation(bs)]))
    for _ in range(2):
        fit(learn, 3)
        follow.check()
    n_batches = 2*3*3
    if precision == 'skipped steps': assert 0 < follow.n_steps < n_batches
    else: assert follow.n_steps == (n_batches if bs == 1 else 2*4)


def test_the_losses_of_training_are_those_without_an_average():
    losses = []
    for cbs in ([], [EMA()]):
        learn = make_learner(cbs=cbs)
        set_seed(1)
        fit(learn, 3)
        losses.append(learn.recorder.losses)
    assert losses[0] == losses[1]


class Raise(Callback):
    "Raise an exception at an event of batch or epoch number `n`"
    order = 20
    def __init__(self, at, error, n=4):
        self.at,self.error,self.n,self.seen = at,error,n,0
        setattr(self, at, self._count)

    def _count(self):
        self.seen += 1
        if self.seen == self.n: raise self.error


endings = [(at, e, n) for e in (KeyboardInterrupt, RuntimeError('a message'), CancelFitException)
           for at,n in (('before_batch',5), ('after_pred',5), ('before_step',5), ('after_step',5),
                        ('before_train',2), ('before_validate',2), ('after_validate',2), ('after_epoch',2))]
endings += [('after_pred', CancelBatchException, 5), ('before_step', CancelStepException, 5),
            ('after_step', CancelTrainException, 5), ('before_batch', CancelEpochException, 5),
            ('before_validate', CancelValidException, 1)]


@pytest.mark.parametrize('at,error,n', endings)
def test_an_interrupted_fit_ends_with_the_average(at, error, n):
    follow = Follow()
    ema = EMA()
    learn = make_learner(cbs=[ema, follow])
    try: fit(learn, 3, cbs=Raise(at, error, n))
    except (KeyboardInterrupt, RuntimeError): pass
    follow.check()
    assert (ema.n, ema.average, ema.raw) == (0, None, None)
    fit(learn, 1) # trains again
    follow.check()


def test_the_average_is_complete_however_often_ctrl_c_comes(monkeypatch):
    "Interrupt each time the callback writes weights, after half of the tensors"
    n_writes,n = [],0
    write = EMA._write
    while n < 8:
        seen = []
        def interrupted(self, values, n=n, seen=seen):
            seen.append(0)
            if len(seen)-1 != n: return write(self, values)
            with torch.no_grad():
                for o,v in list(zip(self._tensors(), values))[:9]: o.copy_(v)
            raise KeyboardInterrupt
        monkeypatch.setattr(EMA, '_write', interrupted)
        follow = Follow()
        learn = make_learner(cbs=[EMA(), follow])
        try: fit(learn, 3)
        except KeyboardInterrupt: n_writes.append(n)
        follow.check()
        n += 1
    assert n_writes == [0,1,2,3,4,5] # three epochs: write the average, and the last weights twice; the end


def test_early_stopping_and_the_best_model(tmp_path):
    "Save the model with the best loss: it is the average of that epoch"
    saved = {}
    class Keep(Callback):
        order = 90
        def after_epoch(self): saved[self.recorder.values[-1][1]] = moving(self.model)
    cbs = [EMA(), SaveModelCallback(with_opt=True), EarlyStoppingCallback(patience=1), Keep()]
    learn = make_learner(cbs=cbs, path=tmp_path)
    fit(learn, 6, lr=.3)
    assert 1 < len(saved) and same(moving(learn.model), saved[min(saved)])
    best = min(saved)
    with learn.no_bar(): assert learn.validate()[0] == best


def test_a_search_for_the_learning_rate_changes_nothing(tmp_path):
    learn = make_learner(cbs=[EMA(), Follow()], path=tmp_path)
    fit(learn)
    before = tensors(learn.model)
    learn.remove_cb(Follow)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=7, show_plot=False)
    assert not changed(learn.model, before)
    with learn.no_bar(): learn.get_preds()
    assert not changed(learn.model, before)


def test_fine_tuning_with_an_average():
    "Freeze and unfreeze: each fit has its own average and begins with the one before"
    follow = Follow()
    learn = make_learner(cbs=[EMA(), follow, FrozenEncoder()])
    encoder = moving(learn.model.encoder)
    ends = []
    class Ends(Callback):
        def before_fit(self): ends.append(moving(self.model))
        def after_fit(self): ends.append(moving(self.model))
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, 1e-2, cbs=Ends())
    assert len(ends) == 4 and same(ends[1], ends[2]) and not same(ends[2], ends[3])
    assert all(torch.equal(ends[1][f'encoder.{k}'], v) for k,v in encoder.items())


def test_an_average_without_validation_and_steps():
    learn = make_learner(cbs=[EMA(), Follow()])
    fit(learn, 2, cbs=Raise('before_validate', CancelValidException(), 1))
    before = tensors(learn.model)
    fit(learn, 0)
    assert not changed(learn.model, before)
    learn = make_learner(cbs=EMA())
    fit(learn, 2, cbs=Raise('before_train', CancelFitException, 1))


def resumable(fname, n, precision='float32', at='after_pred'):
    "Fine-tune with an average; stop in batch `n`"
    set_seed(0)
    learn = make_learner(cbs=[EMA(), ResumeTraining(fname)])
    precisions[precision](learn)
    try:
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(3, 1e-2, freeze_epochs=2, cbs=Raise(at, KeyboardInterrupt, n))
    except KeyboardInterrupt: return None
    return learn


@pytest.mark.parametrize('precision', ['float32','bfloat16','skipped steps'])
def test_resuming_continues_the_average(tmp_path, precision):
    "Interrupt in each epoch, and again when resumed; compare the weights and the validation losses"
    whole = resumable(tmp_path/'whole', 10**9, precision)
    for n in (3, 14, 26):
        fname = tmp_path/str(n)
        assert resumable(fname, n, precision) is None
        assert n < 14 or resumable(fname, 3, precision) is None # interrupt also after the restart
        again = resumable(fname, 10**9, precision)
        assert same(moving(again.model), moving(whole.model)), n
        assert again.recorder.values == whole.recorder.values and again.ema.raw is None


def test_resuming_after_the_last_epoch(tmp_path):
    whole = resumable(tmp_path/'file', 10**9)
    again = resumable(tmp_path/'file', 10**9)
    assert same(moving(again.model), moving(whole.model))
    with again.no_bar(), again.no_logging():
        assert again.validate() == whole.validate()
        again.resume_training.done()


@pytest.mark.parametrize('change', [
    lambda o: o.update(averages=[]), lambda o: o.update(averages=[1]), lambda o: o.update(averages=None),
    lambda o: o['averages'][0].update(raw=[]), lambda o: o['averages'][0].update(n='text'),
    lambda o: o['averages'][0]['raw'].pop(), lambda o: o['averages'][0].pop('n'),
    lambda o: o['averages'][0]['raw'][0].fill_(float('nan')),
    lambda o: o['averages'][0]['raw'].__setitem__(0, torch.zeros(1))])
def test_a_damaged_average_is_refused(tmp_path, change):
    fname = tmp_path/'file'
    assert resumable(fname, 20) is None
    state = torch.load(fname, weights_only=True)
    change(state)
    torch.save(state, fname)
    with pytest.raises(ValueError, match='file: .*elete'): resumable(fname, 10**9)


# Learning rates of layers

class OwnEncoder(nn.Module):
    "Share a layer between two blocks, and have a parameter and a norm of its own"
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.first,self.norm = nn.Linear(3, 8),nn.LayerNorm(8)
        shared = nn.Linear(8, 8)
        self.blocks = nn.Sequential(*(nn.Sequential(shared, nn.Linear(8, 8)) for _ in range(2)))

    def forward(self, x):
        return self.norm(self.blocks(self.first(x.mean(dim=(2,3))) + self.token))


def simple(arch): return partial(SimpleModel, arch, 2, pretrained=False)


def vit_encoder(): return ViTEncoder(tv.VisionTransformer(32, 8, 3, 2, 16, 32))


group_models = { # model, number of groups of the encoder
    'resnet18': (simple(tv.resnet18), 5), 'resnet50': (simple(tv.resnet50), 5),
    'convnext': (simple(tv.convnext_tiny), 5), 'swin': (simple(tv.swin_t), 5),
    'vit': (lambda: simple(vit_encoder())(), 4), 'vgg': (simple(tv.vgg11_bn), 8),
    'densenet': (simple(tv.densenet121), 5), 'mobilenet': (simple(tv.mobilenet_v3_small), 12),
    'efficientnet': (simple(tv.efficientnet_b0), 8), 'regnet': (simple(tv.regnet_x_400mf), 5),
    'squeezenet': (simple(tv.squeezenet1_1), 9),
    'small': (simple(small_cnn), 4), 'rnn': (partial(RNNModel, small_cnn, 2, pretrained=False), 4),
    'convlstm': (partial(ConvLSTMModel, tv.resnet18, 2, pretrained=False), 5),
    '3d': (partial(Conv3dModel, 2), 4), 'r3d': (partial(VideoModel, video.r3d_18, 2, pretrained=False), 5),
    's3d': (partial(VideoModel, video.s3d, 2, pretrained=False), None),
    'mvit': (partial(VideoModel, video.mvit_v2_s, 2, pretrained=False), 17),
    'swin3d': (partial(VideoModel, video.swin3d_t, 2, pretrained=False), 5),
    'timesformer_vit': (small_vit, 2), 'timesformer': (partial(small_timesformer, 2), 3),
    'own': (lambda: SimpleModel(OwnEncoder(), 2, pretrained=False), 3)}
timm_models = {
    'test_vit': None, 'test_convnext': None, 'test_resnet': None, 'test_efficientnet': None,
    'test_byobnet': None, 'resnet18': 5, 'vit_tiny_patch16_224': 13, 'convnext_atto': 5,
    'swin_tiny_patch4_window7_224': 5, 'efficientnet_lite0': None, 'mobilenetv3_small_050': None}


def check_groups(model, n):
    groups = layer_groups(model)
    ids = [id(p) for ps in groups.values() for p in ps]
    assert sorted(ids) == sorted(id(p) for p in model.parameters()) # each once
    first = next(model.encoder.parameters())
    assert list(groups)[-1] == 'head' and all(groups.values()) and len(groups) > 2
    assert any(first is p for ps in list(groups.values())[:1] for p in ps) or 'stem' in groups
    if n: assert len(groups) == n+1, list(groups)
    assert [id(p) for ps in layer_splitter(model) for p in ps] == ids
    assert {id(p) for p in groups['head']} <= {id(p) for p in clip_splitter(model)[1]}


@pytest.mark.parametrize('name', group_models)
def test_groups_of_layers(name):
    create,n = group_models[name]
    check_groups(create(), n)


@pytest.mark.parametrize('name', timm_models)
def test_groups_of_timm_networks(name):
    "Compare with timm's order of layers; maps for a ConvLSTM have their own wrapper"
    timm = pytest.importorskip('timm')
    from timm.models import group_parameters
    model = SimpleModel(name, 2, pretrained=False)
    check_groups(model, timm_models[name])
    net = model.encoder.module
    layers = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    own = {id(p): k for k,p in net.named_parameters()}
    groups = layer_splitter(model)[:-1]
    found = [{layers[own[id(p)]] for p in o} for o in groups]
    assert found[:-1] == [{i} for i in range(len(groups)-1)]
    assert found[-1] in ({len(groups)-1}, {len(groups)-1, len(groups)}) # with a final norm
    if name.startswith('test_resnet'): check_groups(ConvLSTMModel(name, 2, pretrained=False), None)
    assert timm.is_model(name)


@pytest.mark.parametrize('name', ['small','rnn','3d','timesformer_vit','timesformer','own'])
def test_training_with_groups_of_layers(name):
    "Freeze all but the head, unfreeze, fine-tune, and train with a learning rate per group"
    create = partial(small_timesformer, 2, image_size=size, num_frames=2) if name == 'timesformer' \
        else group_models[name][0]
    learn = make_learner(create, splitter=layer_splitter, cbs=FrozenEncoder())
    groups = layer_groups(learn.model)
    before = {k: [p.detach().clone() for p in ps] for k,ps in groups.items()}
    def moved(): return [k for k,ps in groups.items() if not all(map(torch.equal, ps, before[k]))]
    learn.freeze()
    fit(learn)
    assert moved() == ['head']
    learn.unfreeze()
    lrs = layer_lrs(learn, 1e-2, .5)
    assert list(lrs) == pytest.approx([1e-2*.5**i for i in reversed(range(len(groups)))])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lrs)
    assert moved() == list(groups)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)


def test_each_group_moves_by_its_rate():
    "Compare one step of SGD with the gradients times the learning rates"
    from fastai.vision.all import SGD
    learn = make_learner(splitter=layer_splitter, opt_func=SGD)
    lrs,seen = learn.layer_lrs(.1, .5),[]
    class Watch(Callback):
        def before_step(self):
            groups = layer_groups(self.model).values()
            seen.append([(p, p.detach() - lr*p.grad) for lr,ps in zip(lrs, groups, strict=True) for p in ps])
        def after_step(self):
            for p,want in seen.pop(): torch.testing.assert_close(p.detach(), want)
    fit(learn, lr=lrs, wd=0, cbs=Watch())


def test_a_model_without_encoder_is_one_group():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2*3*size*size, 2))
    model.forward = lambda x: model[1](torch.stack(tuple(x), 1).flatten(1))
    learn = make_learner(lambda: model, splitter=layer_splitter)
    learn.create_opt()
    assert len(learn.opt.param_lists) == 1 and list(learn.layer_lrs(1.)) == [1.]
