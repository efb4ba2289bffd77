"The checks of gpu.py that results are correct on a GPU, also after interruptions and a lack of memory."
import os
from functools import partial

import torch
import torch.nn.functional as F
from fastai.vision.all import Callback, Learner, noop, resnet18, set_seed
from gpu_setup import error_cells, model_families, n_classes, quiet
from torch import nn

from vidseq.data.samplers import first_frames
from vidseq.deploy.predict import predict_video
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.deploy.timeline import predict_timeline
from vidseq.evaluate.interpret import class_activation, frame_importance
from vidseq.evaluate.scores import evaluate
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import SimpleModel
from vidseq.train.amp import amp_mode, to_amp
from vidseq.train.learner import video_learner
from vidseq.train.resume import ResumeTraining

small_model = partial(SimpleModel, small_cnn, pretrained=False, grid=2)
precisions = {'float32': noop, 'to_amp': to_amp, "to_amp('bf16')": partial(to_amp, mode='bf16'),
              "to_amp('fp16')": partial(to_amp, mode='fp16', init_scale=1024.),
              'to_fp16': Learner.to_fp16, 'to_bf16': Learner.to_bf16}
halves = dict(float32=None, bf16=torch.bfloat16, fp16=torch.float16)
max_errors = dict(float32=.02, bf16=.2, fp16=.1) # of the gradient


def environment(run):
    "Name the card, the versions, and the precision that `to_amp` chooses"
    memory = torch.cuda.get_device_properties(run.device).total_memory if run.has_cuda else 0
    values = {'card': run.card, 'memory, MiB': memory//2**20, 'torch': torch.__version__,
              'CUDA': torch.version.cuda, 'cuDNN': torch.backends.cudnn.version(), 'cores': os.cpu_count(),
              'amp_mode': amp_mode(run.device)}
    for name,o in values.items(): yield name, dict(value=o)


# Outputs and gradients

def fill_zeros(model):
    "Fill the weights of layers that start at zero, which would hide the errors of other layers"
    for p in model.parameters():
        if p.ndim > 1 and not p.any(): nn.init.normal_(p, std=.02)
    return model


def model_results(model, clips, labels, device, dtype=torch.float32, half=None):
    "Return the outputs and the gradient of a model as vectors on the CPU"
    model.to(device, dtype).eval() # BatchNorm uses its statistics
    for o in model.modules():
        if isinstance(o, nn.RNNBase): o.train() # cuDNN computes no gradients of an RNN in evaluation mode
    scale = 1024. if half == torch.float16 else 1. # small gradients are zero in float16
    with torch.autocast(device.type, half, enabled=half is not None): outputs = model(clips.to(device, dtype))
    loss = F.cross_entropy(outputs.double(), labels.to(device))*scale
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    grads = [o.flatten().double().cpu() for o in grads if o is not None]
    return outputs.detach().flatten().double().cpu(), torch.cat(grads)/scale


def compare_results(run, size, make):
    "Return the relative errors of a model on the device, and whether those of its gradient are small"
    torch.manual_seed(0)
    model,clips,labels = fill_zeros(make()),torch.randn(4, 4, 3, size, size),torch.arange(4)
    reference = model_results(model, clips, labels, torch.device('cpu'), torch.float64)
    cells,is_ok = {},True
    for name,half in halves.items():
        results = model_results(model, clips, labels, run.device, half=half)
        errors = [float((o-ref).norm()/ref.norm()) for o,ref in zip(results, reference)]
        cells[name] = ', '.join(f'{o:.0e}' for o in errors)
        is_ok = is_ok and errors[1] < max_errors[name]
    return cells | dict(ok=is_ok)


def outputs_and_gradients(run):
    "Compare outputs and gradients with those in float64 on the CPU: relative errors of each"
    size = 32 if run.tiny else 64
    yield from run.rows(model_families(run, size), partial(compare_results, run, size))


# Interpretation

def explain_text(f, learn):
    "Return 'ok' if `f` returns finite values for each of 4 frames, otherwise the problem"
    try: found = torch.as_tensor(f(learn, learn.dls.valid_ds.items[0]))
    except Exception as e: return error_cells(e)['error']
    return 'ok' if len(found) == 4 and found.isfinite().all() else f'values {found}'[:80]


def explain_model(run, size, make):
    "Explain a clip by a learner that was never fitted, then by its model on the device"
    learn,cells = video_learner(run.loaders(image_size=size), make()),{}
    for where in ('never fitted', 'on the device'):
        for f in (frame_importance, class_activation):
            cells[f'{f.__name__}, {where}'] = explain_text(f, learn)
        learn.model.to(run.device)
    return cells


def interpretation(run):
    "Explain a clip by `frame_importance` and `class_activation`"
    size = 32 if run.tiny else 64
    yield from run.rows(model_families(run, size), partial(explain_model, run, size))


# Mixed precision

def autocast_text(run): return 'on' if torch.is_autocast_enabled(run.device.type) else 'off'


class RecordTypes(Callback):
    "Record the types of the outputs of the model, and of those that the loss gets"
    def __init__(self): self.types = {}
    def after_create(self): self.learn.model.register_forward_hook(self.record)
    def record(self, model, args, out): self.types['model returns'] = str(out.dtype)
    def after_loss(self): self.types['loss gets'] = str(self.pred.dtype)


def create_learner(run, precision, cbs=(), **kwargs):
    "Create a learner of a small model with a fixed seed"
    set_seed(0)
    learn = video_learner(run.loaders(**kwargs), small_model, cbs=list(cbs))
    precisions[precision](learn)
    return learn


def use_learner(run, learn):
    "Predict with a trained learner in several ways, and save and load it"
    clip = learn.dls.valid_ds.items[0]
    with quiet(learn):
        accuracy = evaluate(learn).accuracy
        windows = len(predict_timeline(learn, clip, window=.3, stride=.1))
        label,probability = predict_video(learn, clip, k=1)[0]
        loaded = load_pretrained(save_pretrained(learn, run.folder/'saved'))
    difference = abs(dict(predict_video(loaded, clip, k=n_classes))[label]-probability)
    return {'accuracy': f'{accuracy:.2f}', 'timeline windows': windows,
            'difference after loading': f'{difference:.0e}'}


def train_in_precision(run, precision):
    "Train with one of `precisions`, and use the learner"
    record = RecordTypes()
    learn = create_learner(run, precision, [record], bs=16)
    with quiet(learn):
        _,seconds = run.seconds_of(learn.fit_one_cycle, 2 if run.tiny else 6, 3e-3)
        loss = float(learn.recorder.losses[-1])
        preds,_ = learn.get_preds()
    types = record.types | {'predictions': str(preds.dtype)}
    cells = {k: o.removeprefix('torch.') for k,o in types.items()}
    cells |= {'last loss': f'{loss:.3f}', 'seconds': f'{seconds:.2f}'}
    return cells | use_learner(run, learn) | dict(autocast=autocast_text(run))


def mixed_precision(run):
    "Train the same steps in each precision, then predict, evaluate, save and load"
    yield from run.rows({o: o for o in precisions}, partial(train_in_precision, run))


class Raise(Callback):
    "Raise `error` in the first batch after the forward pass"
    order = 50
    def __init__(self, error): self.error = error
    def after_pred(self): raise self.error


def train_after_interruption(run, precision):
    "Interrupt a batch, then train with the same learner"
    learn = create_learner(run, precision)
    with quiet(learn):
        try: learn.fit(1, cbs=Raise(KeyboardInterrupt()))
        except KeyboardInterrupt: pass
        autocast = autocast_text(run)
        learn.fit(2 if run.tiny else 10, 3e-3)
    losses = list(map(float, learn.recorder.losses))
    return {'autocast': autocast, 'first loss': f'{losses[0]:.3f}', 'last loss': f'{losses[-1]:.3f}'}


def interrupted_batch(run):
    "Interrupt a batch after the forward pass: autocast must be off, and training must continue"
    yield from run.rows({o: o for o in precisions}, partial(train_after_interruption, run))


# Resume

class Interrupt(Callback):
    "Interrupt a program of several fits before an epoch of one of them"
    order = 90 # after `ResumeTraining`
    def __init__(self, fit, epoch): self.at,self.n_fits = (fit,epoch),0
    def before_fit(self): self.n_fits += 1
    def before_epoch(self):
        if (self.n_fits,self.epoch) == self.at: raise KeyboardInterrupt


def train_twice(run, precision, fname, *cbs):
    "Run a program of two fits that resumes from `fname`; return its weights, or None if it is interrupted"
    learn = create_learner(run, precision, [ResumeTraining(fname), *cbs])
    with quiet(learn), torch.backends.cudnn.flags(enabled=True, deterministic=True):
        try:
            for n in (1,2): learn.fit(n, 1e-3)
        except KeyboardInterrupt: return None
    return torch.cat([o.detach().float().flatten().cpu() for o in learn.model.parameters()])


def difference_text(a, b): return 'none' if torch.equal(a, b) else f'{float((a-b).abs().max()):.0e}'


def resume_in_precision(run, precision):
    "Compare the weights of interrupted and of uninterrupted training"
    folder = run.folder/'resume'/precision
    folder.mkdir(parents=True, exist_ok=True)
    whole = train_twice(run, precision, folder/'whole')
    cells = {'trained again': difference_text(train_twice(run, precision, folder/'again'), whole)}
    for name,epoch in (('interrupted between two fits', 0), ('interrupted in the second fit', 1)):
        train_twice(run, precision, folder/name, Interrupt(2, epoch))
        cells[name] = difference_text(train_twice(run, precision, folder/name), whole)
    return cells


def resume(run):
    "Resume interrupted training: the largest difference to the weights of uninterrupted training"
    modes = ('float32', "to_amp('bf16')", "to_amp('fp16')", 'to_fp16')
    yield from run.rows({o: o for o in modes}, partial(resume_in_precision, run))


# Lack of memory

def memory_limit(run):
    "Limit the memory of this process to 1 GiB; without CUDA, return a callback that simulates the error"
    if not run.has_cuda: return [Raise(torch.cuda.OutOfMemoryError('CUDA out of memory'))]
    total = torch.cuda.get_device_properties(run.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(2**30/total, 1.), run.device)
    return []


def train_large_batch(run, cbs):
    "Train on a batch that does not fit, and return the error"
    sizes = dict(seq_len=4, image_size=32, bs=8) if run.tiny else dict(seq_len=16, image_size=128, bs=32)
    model = partial(SimpleModel, small_cnn if run.tiny else resnet18, pretrained=False)
    learn = video_learner(run.loaders(**sizes, sampler=first_frames), model, cbs=cbs)
    with quiet(learn):
        try: learn.fit(1)
        except torch.cuda.OutOfMemoryError as e: return dict(result=str(e)) # its traceback holds tensors
    return dict(result='no error: it fits into memory')


def train_small_batch(run, _):
    "Train on small batches"
    learn = create_learner(run, 'to_amp')
    with quiet(learn): learn.fit(1)
    return dict(result=f'trains, autocast is {autocast_text(run)}')


def out_of_memory(run):
    "Show the advice for a batch that does not fit, with a limit of 1 GiB, and train on a smaller one"
    limit = 'in 1 GiB' if run.has_cuda else 'simulated without CUDA'
    tries = {f'large batch, {limit}': train_large_batch, 'smaller batch afterwards': train_small_batch}
    cbs = memory_limit(run)
    try: yield from run.rows(tries, lambda f: f(run, cbs))
    finally:
        if run.has_cuda: torch.cuda.set_per_process_memory_fraction(1., run.device)
