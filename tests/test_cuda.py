"""Check on a CPU what differs on a GPU: memory that runs out, precision, devices, random states, files.

torch.cuda is replaced where needed, and the device 'meta' is used in place of a second device."""
import gc
import io
import itertools
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.vision.all import (AMPMode, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders,
                               GradientAccumulation, Learner, MixedPrecision, Normalize, Pipeline, TfmdDL, nn,
                               set_seed)

from vidseq.models.conv3d import Conv3dModel
from vidseq.train.amp import (DeviceMixedPrecision, amp_mode, to_amp, training_autocast, training_dtype)
from vidseq.train.learner import learner_device, video_learner
from vidseq.train.resume import ResumeTraining

n_clips = 12


def make_dls(device='cpu', n_classes=2):
    "Return loaders of random clips of four frames, in classes that differ in brightness"
    clips = [(torch.rand(4,3,16,16) + i%n_classes, torch.tensor(i%n_classes)) for i in range(n_clips)]
    loaders = [DataLoader(clips, bs=4, shuffle=o, num_workers=0) for o in (True,False)]
    res = DataLoaders(*loaders, device=device)
    res.c = n_classes
    return res


def make_learner(device='cpu', model=None, **kwargs):
    set_seed(0)
    dls = make_dls(device)
    return video_learner(dls, model or Conv3dModel(2, width=2), loss_func=CrossEntropyLossFlat(), **kwargs)


def fit(learn, n_epoch=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, 1e-2, **kwargs)
    return learn


# One callback of mixed precision

def callbacks(learn): return [o for o in learn.cbs if isinstance(o, MixedPrecision)]


ways = {
    'to_amp bf16': lambda o: o.to_amp('bf16'), 'to_amp fp16': lambda o: o.to_amp('fp16'),
    'to_fp16': lambda o: o.to_fp16(), 'to_bf16': lambda o: o.to_bf16(),
    'add_cb': lambda o: o.add_cb(MixedPrecision('bf16')),
    'add_cb of a class': lambda o: o.add_cb(MixedPrecision),
    'add_cbs': lambda o: o.add_cbs([MixedPrecision(), DeviceMixedPrecision('bf16')])}
kinds = {'to_amp bf16': (DeviceMixedPrecision, 'bf16'), 'to_amp fp16': (DeviceMixedPrecision, 'fp16'),
         'to_fp16': (MixedPrecision, 'fp16'), 'to_bf16': (MixedPrecision, 'bf16'),
         'add_cb': (MixedPrecision, 'bf16'), 'add_cb of a class': (MixedPrecision, 'fp16'),
         'add_cbs': (DeviceMixedPrecision, 'bf16')}


def kind(learn):
    "Return class and format of the only callback of mixed precision, which fastai's name finds"
    cb, = callbacks(learn)
    assert learn.mixed_precision is cb and cb.learn is learn
    return type(cb), cb.amp_mode.value


@pytest.mark.parametrize('first,second', list(product(ways, ways)))
def test_a_later_precision_replaces_the_earlier_one(first, second):
    learn = make_learner()
    assert ways[first](learn) is learn and kind(learn) == kinds[first]
    assert ways[second](learn) is learn and kind(learn) == kinds[second]
    assert learn.to_fp32() is learn and not callbacks(learn) and not hasattr(learn, 'mixed_precision')


def test_precision_given_to_a_learner():
    learn = make_learner(cbs=[MixedPrecision(), MixedPrecision('bf16')])
    assert kind(learn) == (MixedPrecision, 'bf16')
    assert kind(learn.to_amp('fp16')) == (DeviceMixedPrecision, 'fp16')
    assert not callbacks(learn.to_fp32())


def test_precision_given_to_one_fit():
    "Check that a fit uses its own callback, and that the learner's returns after it, also after an error"
    class Dtype(Callback):
        def after_pred(self): seen.append((kind(self.learn), training_dtype(self.learn)))
    seen,learn = [],make_learner(cbs=Dtype()).to_amp('bf16')
    own = learn.mixed_precision
    fit(learn, cbs=DeviceMixedPrecision('fp16'))
    assert set(seen) == {((DeviceMixedPrecision, 'fp16'), torch.float16)}
    assert callbacks(learn) == [own] and learn.mixed_precision is own
    class Fail(Callback):
        def after_pred(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[DeviceMixedPrecision('fp16'), Fail()])
    assert callbacks(learn) == [own] and learn.mixed_precision is own
    seen.clear()
    fit(learn)
    assert set(seen) == {((DeviceMixedPrecision, 'bf16'), torch.bfloat16)}
    learn.to_fp32()
    fit(learn, cbs=MixedPrecision)
    assert not callbacks(learn)


def test_an_exported_learner_is_loaded_in_full_precision(tmp_path):
    from fastai.vision.all import load_learner
    learn = fit(make_learner(path=tmp_path).to_amp('bf16'))
    learn.dls.loaders[0].new_empty = None
    learn.dls.new_empty = lambda: learn.dls
    learn.export()
    assert kind(learn) == (DeviceMixedPrecision, 'bf16')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    assert not callbacks(loaded) and not hasattr(loaded, 'mixed_precision')


def test_unknown_arguments_of_to_amp():
    with pytest.raises(TypeError, match='to_amp: unknown argument `init_scal` .did you mean'):
        make_learner().to_amp(init_scal=8.)
    with pytest.raises(TypeError, match='`chanels_last` .did you mean `channels_last`'):
        make_learner().to_amp(chanels_last=True)
    for o in (dict(device='cuda'), dict(enabled=False)): # chosen by the learner
        with pytest.raises(TypeError, match='to_amp: unknown argument'): make_learner().to_amp(**o)


# The precision of everything that calls the model

@pytest.fixture
def with_cuda(monkeypatch):
    "Report a GPU with bfloat16, which no operation uses"
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *args: (8,0))
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)


@pytest.mark.parametrize('device', ['cuda', 'cuda:1', torch.device('cuda', 0)], ids=str)
def test_precision_on_cuda(with_cuda, monkeypatch, device):
    "Check that fastai's methods and `to_amp` give the same autocast on CUDA, for a device of any form"
    learn = make_learner()
    learn.dls._device = device # as fastai keeps it
    assert amp_mode(device) == AMPMode.BF16
    for way,dtype in (('to_amp', torch.bfloat16), ('to_bf16', torch.bfloat16), ('to_fp16', torch.float16)):
        getattr(learn, way)()
        assert training_dtype(learn) == dtype
        context = training_autocast(learn)
        assert (context.device, context.fast_dtype) == ('cuda', dtype)
        learn.mixed_precision.before_fit()
        context = learn.mixed_precision.autocast
        assert (context.device, context.fast_dtype) == ('cuda', dtype), way
        assert learn.scaler.is_enabled() == (dtype == torch.float16)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *args: (7,5))
    assert training_dtype(learn.to_amp()) == torch.float16
    learn.to_fp32()
    assert training_dtype(learn) == torch.float32


def test_precision_without_cuda():
    for way in ('to_fp16','to_bf16'):
        learn = getattr(make_learner(), way)()
        assert training_dtype(learn) == torch.float32
        with warnings.catch_warnings(), training_autocast(learn):
            warnings.simplefilter('error')
            assert not any(map(torch.is_autocast_enabled, ('cpu','cuda')))
    learn = make_learner().to_amp('bf16')
    with training_autocast(learn): assert torch.is_autocast_enabled('cpu')


def test_a_model_without_a_device_of_the_loaders():
    learn = make_learner(device=None)
    assert learn.dls.device is None and learner_device(learn) == torch.device('cpu')
    learn.model.to('meta')
    assert learner_device(learn) == torch.device('meta')


@pytest.mark.parametrize('way', ['to_fp16','to_bf16','to_amp'])
def test_time_budgets_measure_in_the_precision_of_training(way, with_cuda, monkeypatch):
    "Record the autocast that surrounds the model while its steps are timed"
    from vidseq.report import compare
    learn,seen = make_learner(),[]
    learn.model.register_forward_hook(lambda *args: seen.append(torch.is_autocast_enabled('cuda')))
    learn.dls._device = 'cuda'
    getattr(learn, way)()
    monkeypatch.setattr(compare, 'learner_device', lambda o: torch.device('cpu')) # where its steps are timed
    assert compare.epochs_for(learn, 10.) >= 1
    assert seen and all(seen)
    seen.clear()
    assert compare.epochs_for(learn.to_fp32(), 10.) >= 1
    assert seen and not any(seen)


@pytest.fixture(scope='module')
def trained(make_shapes):
    "Return a learner that was trained on videos, and a video"
    from vidseq.data.block import VideoDataLoaders
    set_seed(0)
    dls = VideoDataLoaders.from_folder(make_shapes((32,32)), seq_len=4, image_size=32, bs=16, seed=0,
                                       num_workers=0)
    return fit(video_learner(dls, partial(Conv3dModel, width=4))), dls.valid.items[0]


def answers(learn, video, folder):
    "Return what each function of a trained learner says about a video or the validation set, as arrays"
    from vidseq.all import load_pretrained # all methods of learners
    with learn.no_bar(), learn.no_logging():
        timeline = learn.predict_timeline(video, window=.3, stride=.2, bs=2)
        saved = load_pretrained(learn.save_pretrained(folder))
        res = dict(predict=learn.predict(video)[2], evaluate=learn.evaluate().probs, timeline=timeline,
                   embed=learn.embed([video]), importance=learn.frame_importance(video),
                   activation=learn.class_activation(video), validate=list(learn.validate()))
    predicted = (sorted(o.predict_video(video, k=9)) for o in (learn, saved))
    res |= {k: [p for _,p in o] for k,o in zip(('predict_video','saved'), predicted)}
    def as_list(o): return o.tolist() if hasattr(o, 'tolist') else o
    return {k: torch.tensor(np.array(as_list(o), float)) for k,o in res.items()}


@pytest.mark.parametrize('way', ['to_amp bf16','to_amp fp16','to_fp16','to_bf16'])
def test_every_function_works_in_each_precision(trained, way, tmp_path):
    "Compare the answers of a learner with those in full precision"
    learn,video = trained
    want = answers(learn.to_fp32(), video, tmp_path/'float32')
    ways[way](learn)
    found = answers(learn, video, tmp_path/'half')
    assert not any(map(torch.is_autocast_enabled, ('cpu','cuda'))) and kind(learn) == kinds[way]
    is_half = training_dtype(learn) != torch.float32
    assert is_half == way.startswith('to_amp')
    for k,o in found.items():
        assert o.shape == want[k].shape and o.isfinite().all(), k
        if k == 'activation': continue # noisy: maps are scaled to 1
        torch.testing.assert_close(o, want[k], rtol=.05, atol=.02, msg=k)
    for k in ('predict','evaluate','timeline','embed','predict_video'): # those that follow the precision
        assert torch.equal(found[k], want[k]) != is_half, k
    assert torch.equal(found['saved'], want['saved']) # weights are in 32 bits
    learn.to_fp32()


@pytest.mark.parametrize('way', ['to_amp bf16','to_amp fp16','to_fp16','to_bf16'])
def test_training_by_the_clock_in_each_precision(way):
    "Follow a clock that counts its calls"
    from vidseq.report.compare import FollowClock
    learn,ticks = ways[way](make_learner()),itertools.count()
    clock = FollowClock(100, clock=lambda: next(ticks))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1000, 1e-3, cbs=clock)
    assert 1 < len(clock.times) < 100 and clock.times[-1] <= 110
    assert kind(learn) == kinds[way] and learn.scaler is None


# Channels last

def test_channels_last():
    learn,x = make_learner(),torch.rand(2,4,3,16,16)
    plain = learn.model.eval()(x)
    ids = [id(o) for o in learn.model.parameters()]
    assert learn.to_amp('bf16', channels_last=True) is learn
    assert ids == [id(o) for o in learn.model.parameters()]
    weights = [m.weight for m in learn.model.modules() if isinstance(m, nn.Conv3d)]
    assert weights and all(o.is_contiguous(memory_format=torch.channels_last_3d) for o in weights)
    torch.testing.assert_close(learn.model(x), plain, rtol=1e-5, atol=1e-5)
    fit(learn)
    assert all(o.is_contiguous(memory_format=torch.channels_last_3d) for o in weights) # also after steps


def test_channels_last_of_an_image_encoder():
    from fastai.vision.all import resnet18
    from vidseq.models.frame_models import SimpleModel
    learn = make_learner(model=SimpleModel(resnet18, 2, pretrained=False))
    x = torch.rand(2,4,3,32,32)
    plain = learn.model.eval()(x)
    learn.to_amp('bf16', channels_last=True)
    weights = [m.weight for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) == 20 and all(o.is_contiguous(memory_format=torch.channels_last) for o in weights)
    torch.testing.assert_close(learn.model(x), plain, rtol=1e-5, atol=1e-5)


# Resuming in another precision

scale = dict(init_scale=8., growth_interval=5)
precisions = {'float32': lambda o: o, 'bfloat16': partial(to_amp, mode='bf16'),
              'float16': partial(to_amp, mode='fp16', **scale)}


class Stop(Callback):
    "Interrupt training at the start of epoch `epoch` of fit number `n`"
    def __init__(self, n, epoch): self.n,self.at = n,epoch
    def before_fit(self):
        if self.opt is not None: self.n -= 1
    def before_epoch(self):
        if (self.n, self.epoch) == (0, self.at): raise KeyboardInterrupt


def train(fname, precision, *stop, seen=None):
    "Train two fits of two epochs; `stop` at an epoch of a fit; record the scale of each batch"
    class Scale(Callback):
        def after_batch(self):
            if self.training and seen is not None: seen.append(self.scaler.get_scale())
    learn = make_learner(cbs=[ResumeTraining(fname), Scale()] + ([Stop(*stop)] if stop else []))
    precisions[precision](learn)
    try:
        for _ in range(2): fit(learn, 2)
    except KeyboardInterrupt: return None
    return learn


def weights(learn): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])


stops = [(1,1), (2,0), (2,1)] # within a fit, and when a fit was complete


@pytest.mark.parametrize('stop', stops, ids=str)
@pytest.mark.parametrize('precision', precisions)
def test_resuming_in_the_same_precision(tmp_path, precision, stop):
    "Compare weights, and the scales of float16, with those of uninterrupted training; no warning"
    wanted,found = [],[]
    records = precision == 'float16'
    whole = train(tmp_path/'whole', precision, seen=wanted if records else None)
    assert train(tmp_path/'file', precision, *stop) is None
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        again = train(tmp_path/'file', precision, seen=found if records else None)
    assert torch.equal(weights(again), weights(whole))
    assert found == wanted[len(wanted)-len(found):]
    if records: assert len(set(wanted)) > 1 and found


@pytest.mark.parametrize('stop', stops, ids=str)
@pytest.mark.parametrize('saved,now', [o for o in product(precisions, precisions) if o[0] != o[1]])
def test_resuming_in_another_precision_works_with_a_warning(tmp_path, saved, now, stop):
    fname = tmp_path/'file'
    assert train(fname, saved, *stop) is None
    with pytest.warns(UserWarning, match=f'file: saved by training in {saved}, but this training uses {now}'):
        learn = train(fname, now)
    assert learn.recorder.values and weights(learn).isfinite().all()
    learn.resume_training.done()


def test_the_scaler_of_an_earlier_fit_is_not_saved(tmp_path):
    "Interrupt training in float16, which leaves its scaler, and train the same learner in float32"
    from vidseq.train.state import read_state, training_state
    learn = make_learner(cbs=ResumeTraining(tmp_path/'file'))
    learn.to_amp('fp16', **scale)
    class Leave(Callback):
        def after_epoch(self): left.append(self.scaler)
    left = []
    with pytest.raises(KeyboardInterrupt): fit(learn, 2, cbs=[Stop(1, 1), Leave()])
    assert read_state(tmp_path/'file')['scaler']['growth_interval'] == 5
    learn.scaler = left[0]
    assert training_state(learn)['scaler'] and not training_state(learn.to_fp32())['scaler']


@pytest.mark.parametrize('at', ['before_step', 'after_step', 'after_batch'])
@pytest.mark.parametrize('order', [5, 20]) # before and after the callback of mixed precision
def test_a_learner_is_exported_after_an_interrupted_step(tmp_path, at, order):
    "Interrupt between the step of the gradient scaler and its update, when it cannot be pickled"
    learn = make_learner(path=tmp_path).to_amp('fp16', **scale)
    def stop(self): raise KeyboardInterrupt
    interrupt = Callback(**{at: stop})
    interrupt.order = order
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=interrupt)
    assert learn.scaler is None and learn.mixed_precision.autocast is None
    learn.dls.new_empty = lambda: learn.dls
    learn.export()
    assert len(fit(learn).recorder.values) == 1


@pytest.mark.parametrize('change', [
    dict(scale=0.), dict(scale=-1.), dict(scale=float('nan')), dict(scale=float('inf')), dict(scale='text'),
    dict(other=1.), dict(_growth_tracker=-1)], ids=str)
def test_an_impossible_scale_is_refused(tmp_path, change):
    fname = tmp_path/'file'
    assert train(fname, 'float16', 1, 1) is None
    state = torch.load(io.BytesIO(fname.read_bytes()), weights_only=True)
    state['scaler'] |= change
    torch.save(state, fname)
    with pytest.raises(ValueError, match='file: .*elete it'): train(fname, 'float16')


# Random states of other GPUs

def test_resuming_on_another_device(tmp_path, monkeypatch):
    "Save as if the model were on cuda:3, and resume where it is on cuda:0, or on a CPU without CUDA"
    from vidseq.train import state as module
    assert train(tmp_path/'cpu', 'float32', 1, 1) is None
    set_on = []
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda device: torch.arange(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, 'set_rng_state', lambda state, device: set_on.append(str(device)))
    learn = make_learner()
    monkeypatch.setattr(module, '_model_device', lambda o: torch.device('cuda', 3))
    saved = module._rng_state(learn)
    assert torch.equal(saved[0]['cuda'], torch.arange(16, dtype=torch.uint8))
    for device,want in ((torch.device('cuda', 0), ['cuda:0']), (torch.device('cpu'), [])):
        monkeypatch.setattr(module, '_model_device', lambda o, device=device: device)
        module._load_rng_state(learn, saved)
        assert set_on == want
        set_on.clear()


# Memory that runs out

class OutOfMemory(torch.autograd.Function):
    "Return the input, and run out of memory in the backward pass"
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, grad): raise RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED')


class Hungry(Conv3dModel):
    "Run out of memory in the forward or backward pass; keep weak references to activations"
    fails,seen = 'forward',()
    def forward(self, x):
        self.seen = []
        hook = self.encoder[0].register_forward_hook(lambda m, args, out: self.seen.append(weakref.ref(out)))
        out = super().forward(x)
        hook.remove()
        activation = out*2 # a local variable of this call
        self.seen += [weakref.ref(activation)]
        if self.fails == 'forward': raise torch.OutOfMemoryError('CUDA out of memory. Tried 9 GB.')
        if self.fails == 'backward': return OutOfMemory.apply(activation)
        return activation


class FullLoss(nn.Module):
    def forward(self, *args): raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED')


@pytest.mark.parametrize('precision', [None,'bf16','fp16'])
@pytest.mark.parametrize('place', ['forward','backward','loss'])
def test_memory_is_free_after_it_ran_out(place, precision):
    "Keep the error, as a notebook does: activations and the batch are freed, and a second attempt trains"
    class Keep(Callback):
        def after_pred(self): batch.append(weakref.ref(self.xb[0]))
        def before_batch(self): batch.append(weakref.ref(self.xb[0]))
    batch = []
    learn = make_learner(model=Hungry(2, width=2), cbs=Keep())
    if precision: learn.to_amp(precision)
    learn.model.fails = place
    loss,learn.loss_func = learn.loss_func,FullLoss() if place == 'loss' else learn.loss_func
    gc.disable() # freed by counting references
    try:
        with pytest.raises(torch.OutOfMemoryError) as info: fit(learn)
        kept = info.value # with its traceback
        assert learn.model.seen and all(o() is None for o in learn.model.seen)
        assert batch and all(o() is None for o in batch)
    finally: gc.enable()
    assert 'Memory ran out with bs=4: 4 clips of 4 frames of 16x16 pixels.' in str(kept)
    assert isinstance(kept.__cause__, RuntimeError) and kept.__cause__.__traceback__ is not None
    assert all(o.grad is None for o in learn.model.parameters())
    learn.model.fails,learn.loss_func = None,loss
    assert len(fit(learn).recorder.values) == 1


def run_out(*args, **kwargs): raise torch.OutOfMemoryError('CUDA out of memory.')


@pytest.mark.parametrize('phase', ['training', 'validation', 'prediction'])
@pytest.mark.parametrize('place', ['moving a batch', 'a transform of the batch', 'fastai moves it again'])
def test_memory_that_runs_out_before_the_model(place, phase, monkeypatch):
    "Run out of memory where the batch is moved to the device or transformed there"
    from fastai.data import load
    learn = make_learner()
    if place == 'fastai moves it again': monkeypatch.setattr(Learner, '_set_device', run_out)
    elif place == 'moving a batch': monkeypatch.setattr(load, 'to_device', run_out)
    else:
        for dl in learn.dls.loaders: dl.after_batch = run_out
    run = dict(training=fit, validation=Learner.validate, prediction=Learner.get_preds)[phase]
    with pytest.raises(torch.OutOfMemoryError, match='Memory ran out with bs=4. Settings') as info:
        with learn.no_bar(): run(learn)
    assert 'a smaller bs (2)' in str(info.value) and 'chunk' not in str(info.value)
    assert ('GradientAccumulation(4)' in str(info.value)) == (phase == 'training')


def advice(learn, run=fit):
    with pytest.raises(torch.OutOfMemoryError) as info, learn.no_bar(): run(learn)
    return str(info.value)


def test_advice_leaves_out_what_is_in_use():
    full = partial(make_learner, model=Hungry(2, width=2))
    assert 'mixed precision' in advice(full())
    for way in ('to_fp16','to_bf16','to_amp'):
        learn = getattr(full(), way)('bf16') if way == 'to_amp' else getattr(full(), way)()
        assert 'mixed precision' not in advice(learn)
    assert 'with `GradientAccumulation(4)`' in advice(full())
    text = advice(full(cbs=GradientAccumulation(8)))
    assert 'a smaller bs (2);' in text and 'GradientAccumulation' not in text


def test_other_errors_pass_unchanged():
    learn = make_learner()
    def fail(*args): raise error
    error,learn.loss_func = RuntimeError('CUDA error: device-side assert triggered'),fail
    with pytest.raises(RuntimeError) as info: fit(learn)
    assert info.value is error and error.__cause__ is None


# Devices of processes

@pytest.fixture
def launched(monkeypatch):
    "Replace fastai's context of several processes by one that gives this process the device 'meta'"
    from vidseq.train import distributed
    if not distributed.DistributedDL: pytest.skip('needs accelerate')
    class Trainer(distributed.DistributedTrainer):
        name = 'distributed_trainer'
        def __init__(self): self.accelerator = SimpleNamespace(device=torch.device('meta'))
        before_fit = before_train = before_validate = after_fit = lambda self: None
    @contextmanager
    def distrib_ctx(learn, sync_bn, in_notebook, **kwargs):
        with learn.added_cbs(Trainer()): yield learn
    monkeypatch.setattr(distributed, '_fastai_distrib_ctx', distrib_ctx)


def test_loaders_follow_the_process(launched):
    "Create loaders on one device, with statistics there, and enter the context on another"
    clips = [(torch.rand(3,16,16), torch.tensor(i%2)) for i in range(8)]
    norm = Normalize.from_stats([.5]*3, [.5]*3, cuda=False)
    options = dict(bs=4, num_workers=0, after_batch=Pipeline(norm), do_setup=False)
    dls = DataLoaders(*(TfmdDL(clips, **options) for _ in range(2)), device='cpu')
    learn = Learner(dls, nn.Flatten(), loss_func=CrossEntropyLossFlat())
    assert learner_device(learn).type == norm.mean.device.type == 'cpu'
    with learn.distrib_ctx():
        assert learner_device(learn).type == norm.mean.device.type == 'meta'
        for dl in learn.dls.loaders: assert dl.device.type == dl.one_batch()[0].device.type == 'meta'
    assert learner_device(learn).type == 'meta' # each process goes on with its own GPU


def test_loaders_of_torch_in_several_processes(launched):
    "Check that loaders that cannot be moved are left as they are"
    clips = torch.utils.data.TensorDataset(torch.rand(8,3), torch.zeros(8))
    loaders = [torch.utils.data.DataLoader(clips, batch_size=4) for _ in range(2)]
    learn = Learner(DataLoaders(*loaders), nn.Flatten(), loss_func=CrossEntropyLossFlat())
    with learn.distrib_ctx() as o: assert o is learn
