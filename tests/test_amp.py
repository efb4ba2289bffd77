"Check mixed precision when a batch ends early: by Ctrl-C, an error, lack of memory or a cancelled batch"
import io
import warnings
from functools import partial
from itertools import product

import pytest
import torch
from fastai.vision.all import (Callback, CancelBackwardException, CancelBatchException, CancelEpochException,
                               CancelFitException, CancelStepException, CrossEntropyLossFlat, DataLoader,
                               DataLoaders, GradientAccumulation, Learner, MixedPrecision, set_seed)

from vidseq.models.conv3d import Conv3dModel
from vidseq.train.amp import to_amp
from vidseq.train.learner import video_learner
from vidseq.train.state import load_training_state, training_state

precisions = {'to_amp bf16': partial(to_amp, mode='bf16'),
              'to_amp fp16': partial(to_amp, mode='fp16', init_scale=8.),
              'to_fp16': Learner.to_fp16, 'to_bf16': Learner.to_bf16}
batch_events = ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward',
                'before_step', 'after_step']
n_clips = 12


def make_learner(precision=None, **kwargs):
    "Return a learner of 16 random clips of four frames, in four classes that differ in brightness"
    set_seed(0)
    clips = [(torch.rand(4,3,16,16) + i%4, torch.tensor(i%4)) for i in range(n_clips)]
    loaders = [DataLoader(clips, bs=4, shuffle=o, num_workers=0) for o in (True,False)]
    dls = DataLoaders(*loaders, device='cpu')
    dls.c = 4
    learn = video_learner(dls, Conv3dModel(4, width=4), loss_func=CrossEntropyLossFlat(), **kwargs)
    return precisions[precision](learn) if precision else learn


class Raise(Callback):
    "Raise an exception once, at an event of the batch `n` of a fit"
    def __init__(self, at, error, n=2, order=0):
        self.at,self.error,self.n,self.order,self.seen = at,error,n,order,0
        setattr(self, at, self._count)

    def _count(self):
        self.seen += 1
        if self.seen == self.n: raise self.error


def is_autocast_off():
    devices = ('cpu','cuda')
    return not any(map(torch.is_autocast_enabled, devices)) and torch.autocast_increment_nesting() == 1 \
        and torch.autocast_decrement_nesting() == 0


def losses(learn, n_epoch=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, 1e-2)
    return [float(o) for o in learn.recorder.losses] + [v for row in learn.recorder.values for v in row]


def interrupt(learn, *cbs):
    "Train until `cbs` interrupt; return whether the exception came out of `fit`"
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(1, 1e-1, cbs=list(cbs))
        except (KeyboardInterrupt, RuntimeError): return True
    return False


errors = {'Ctrl-C': KeyboardInterrupt, 'an error': RuntimeError('a message'),
          'out of memory': RuntimeError('DefaultCPUAllocator: can\'t allocate memory')}


@pytest.mark.parametrize('precision', precisions)
def test_an_interrupted_batch_leaves_no_trace(precision):
    "Train, interrupt a batch at each event, restore the state, train again: the losses are the same"
    learn = make_learner(precision)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2) # creates the optimizer's state
    learn.recorder.values = []
    f = io.BytesIO()
    torch.save(training_state(learn), f)
    def restored():
        f.seek(0)
        learn.scaler = None
        load_training_state(learn, torch.load(f, weights_only=True) | dict(scaler={}))
        return losses(learn)
    clean = restored()
    assert restored() == clean
    for at,order in product(batch_events, (0,20)): # before and after the callback of mixed precision
        assert interrupt(learn, Raise(at, KeyboardInterrupt, order=order)), at
        assert is_autocast_off(), (at, order)
        assert restored() == clean, (at, order)


@pytest.mark.parametrize('precision', precisions)
@pytest.mark.parametrize('error', errors.values(), ids=errors)
def test_an_error_in_the_forward_pass_or_the_loss(precision, error):
    def fail(*args): raise error
    for broken in ('model','loss_func'):
        learn = make_learner(precision)
        if broken == 'model': learn.model.encoder[-1].register_forward_hook(fail)
        else: learn.loss_func = fail
        assert interrupt(learn) and is_autocast_off()
        for f in (learn.validate, partial(learn.lr_find, num_it=3, show_plot=False), learn.get_preds):
            if (f, broken) == (learn.get_preds, 'loss_func'): continue # needs no loss
            with pytest.raises((KeyboardInterrupt, RuntimeError)), learn.no_bar(), learn.no_logging(): f()
            assert is_autocast_off(), (broken, f)


cancels = (CancelBatchException, CancelBackwardException, CancelStepException, CancelEpochException,
           CancelFitException)


@pytest.mark.parametrize('precision', precisions)
def test_a_cancelled_batch(precision):
    "Cancel the batch, the epoch or the fit at each event at which fastai allows it"
    for (i,at),cancel in product(enumerate(batch_events), cancels):
        kind = cancel.__name__.removeprefix('Cancel').removesuffix('Exception').lower()
        if kind in ('backward','step') and at != f'before_{kind}': continue
        if precision == 'to_amp fp16' and at.endswith('step'): continue # the scaler waits for `after_step`
        learn = make_learner(precision)
        assert not interrupt(learn, Raise(at, cancel, order=20*(i%2))), at
        assert is_autocast_off(), (at, cancel)


@pytest.mark.parametrize('precision', precisions)
def test_predictions_interrupted(precision):
    learn = make_learner(precision)
    losses(learn)
    with learn.no_bar(): want = learn.get_preds()[0]
    for at,f in product(batch_events[:3], (learn.get_preds, learn.validate)):
        with pytest.raises(KeyboardInterrupt), learn.no_bar(): f(cbs=Raise(at, KeyboardInterrupt))
        assert is_autocast_off()
        with learn.no_bar(): assert torch.equal(learn.get_preds()[0], want)


def test_autocast_surrounds_the_forward_pass_and_the_loss_only():
    "Record whether autocast is on: in the model, the loss, and callbacks of each event"
    on = {}
    def note(name): on[name] = on.get(name, False) | torch.is_autocast_enabled('cpu')
    class Watch(Callback):
        order = 20
    for at in batch_events: setattr(Watch, at, lambda self, at=at: note(at))
    learn = make_learner('to_amp bf16', cbs=Watch())
    learn.model.register_forward_hook(lambda *args: note('model'))
    loss_func = learn.loss_func
    def loss(*args):
        note('loss')
        assert args[0].dtype == torch.float32
        return loss_func(*args)
    learn.loss_func = loss
    losses(learn, 1)
    assert [k for k,v in on.items() if v] == ['model','after_pred','loss']


def test_as_in_fastai(monkeypatch):
    "Compare the losses of `to_amp` with those of fastai's callback on the same device, with accumulation"
    kwargs = dict(cbs=GradientAccumulation(8))
    ours = losses(make_learner('to_amp bf16', **kwargs))
    class Fastai(MixedPrecision):
        def before_fit(self):
            self.kwargs['enabled'] = False
            self.learn.scaler,self.scales = torch.amp.GradScaler('cpu', **self.kwargs),[]
        def before_batch(self):
            self.autocast = torch.autocast('cpu', torch.bfloat16)
            self.autocast.__enter__()
        def after_loss(self): self.autocast.__exit__(None, None, None)
    monkeypatch.setattr(Learner, '_do_one_batch', lambda self: _fastai_batch(self))
    from vidseq.train.amp import _fastai_batch
    learn = make_learner(**kwargs)
    assert losses(learn.add_cb(Fastai('bf16'))) == ours


@pytest.mark.parametrize('method', ['to_fp16','to_bf16'])
def test_fastais_methods_on_another_device_are_full_precision_without_a_warning(method):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*CUDA')
        mixed = losses(make_learner(method))
    if torch.cuda.is_available(): return
    assert losses(make_learner()) == mixed


def test_gradients_of_an_interrupted_batch_are_dropped():
    "Interrupt training in full precision after the backward pass, then train again"
    learn = make_learner()
    def has_gradients():
        return any(p.grad is not None and p.grad.any() for p in learn.model.parameters())
    assert interrupt(learn, Raise('after_backward', KeyboardInterrupt)) and has_gradients()
    seen = []
    class First(Callback):
        def before_batch(self): seen.append(has_gradients())
    assert not interrupt(learn, First())
    assert not any(seen)
