"Check layers over time: `TimeDistributed` against a loop, its memory, and other layers against formulas"
import io
import pickle
import warnings
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from fastai.vision.all import TensorImage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet18

from conftest import saved_for_backward
from vidseq.data.clip import ImageTuple
from vidseq.models.layers import AttentionPool, ConvLSTM, run_rnn, stack_frames, TimeDistributed

B, T = 2, 5
close = partial(torch.testing.assert_close, rtol=0, atol=1e-10) # tensors, and lists and dicts of tensors
same = partial(torch.testing.assert_close, rtol=0, atol=0)
Pair = namedtuple('Pair', 'first second')


@pytest.fixture(autouse=True)
def double(seeded):
    "Seed torch and use float64: 1e-10 is far above rounding errors and far below the effect of a mistake"
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

def named(o):
    "Return the test id of the options `o`"
    return ' '.join(f'{k}={v}' for k,v in o.items()) or 'folded'

def each_way(*ways): return pytest.mark.parametrize('way', ways, ids=named)

chunks = [dict(chunk=n) for n in (1,2,3,T,T+5)]
checkpoints = [dict(checkpoint=True), *(o | dict(checkpoint=True) for o in chunks)]
every_way = each_way({}, dict(low_mem=True), *chunks, *checkpoints, dict(low_mem=True, checkpoint=True))


class Own(dict):
    "Represent outputs as a subclass of dict, as other libraries do"

class Call(nn.Module):
    "Wrap a function as a module"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, *args, **kwargs): return self.f(*args, **kwargs)

class Count(nn.Module):
    "Count the calls in training, in a buffer that is changed in place or replaced"
    def __init__(self, replace):
        super().__init__()
        self.register_buffer('n', torch.zeros(()))
        self.replace = replace
    def forward(self, x):
        if self.training: self.n = self.n + 1 if self.replace else self.n.add_(1)
        return x/(1 + self.n)

def loop(module, *args, tdim=1, per_step=(), **kwargs):
    "Return the outputs of `module` for each step"
    def at(x, t): return x.select(tdim, t) if isinstance(x, Tensor) else x
    def run(t):
        steps = {k: at(x, t) for k,x in kwargs.items() if k in per_step}
        return module(*(at(x, t) for x in args), **(kwargs | steps))
    first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    return [run(t) for t in range(first.shape[tdim])]

def check_steps(out, steps, tdim=1, close=close):
    "Check that `out` holds the tensors of `steps` stacked, in the same tuples, lists and dicts"
    step = steps[0]
    if step is None: assert out is None
    elif isinstance(step, Tensor): close(out, torch.stack(steps, min(tdim, step.ndim)))
    else:
        assert type(out) is type(step) and len(out) == len(step)
        if isinstance(step, dict): assert list(out) == list(step)
        keys = step if isinstance(step, dict) else range(len(step))
        for k in keys: check_steps(out[k], [o[k] for o in steps], tdim, close)

def check(module, way, *args, tdim=1, per_step=(), close=close, **kwargs):
    "Check that `TimeDistributed` with the options `way` equals the loop"
    out = TimeDistributed(module, tdim=tdim, per_step=per_step, **way)(*args, **kwargs)
    check_steps(out, loop(module, *args, tdim=tdim, per_step=per_step, **kwargs), tdim, close)

def clip(*shape): return torch.randn(B, T, *(shape or (3,6,7)))

def buffers(module): return dict(module.named_buffers())

def spread(o):
    "Multiply each element by a different weight, so that a loss distinguishes them"
    return o*torch.linspace(-1, 2, o.numel()).view_as(o)


# TimeDistributed is a loop

outputs = dict(
    maps=lambda x: x*2,
    features=lambda x: x.mean((2,3)),
    numbers=lambda x: x.sum((1,2,3)),
    ints=lambda x: x.flatten(1).argmax(1),
    maxima=lambda x: x.flatten(1).max(1),
    tuple=lambda x: (x, x.sum(1)),
    one=lambda x: (x+1,),
    list=lambda x: [x, x.amax((1,2,3))],
    dict=lambda x: dict(a=x, b=x.flatten(1)),
    numbered=lambda x: {0: x, 1: x+1},
    ordered=lambda x: OrderedDict([('z',x), ('a',x+1)]),
    namedtuple=lambda x: Pair(x, x.mean(1)),
    nested=lambda x: dict(a=(x, [x+1, Pair(x+2, None)], {}), b=[dict(c=x.sum((1,2,3)))]),
    own=lambda x: Own(a=x, b=(x,)),
    default=lambda x: defaultdict(list, a=x, b=x+1),
    none=lambda x: None,
    nones=lambda x: (None, x, dict(a=None), [None]))

@every_way
@pytest.mark.parametrize('f', outputs.values(), ids=outputs)
def test_outputs_of_all_kinds(f, way): check(Call(f), way, clip())

def given_none(x, none, y):
    assert none is None
    return x - y

def given_others(x, flag, name, sizes, y=0, scale=1):
    assert (flag, name, sizes) == (True, 'both', [T,T])
    return (x + y)*scale

@every_way
def test_inputs_of_all_kinds(way):
    x, y, per_sample = clip(), clip(), clip()[:,:,0,0,0]
    ids = torch.randint(9, (B,T,6,7)) # another shape and dtype
    check(nn.Conv2d(3, 4, 3), way, x)
    check(nn.Bilinear(7, 7, 2), way, x, y)
    check(Call(given_none), way, x, None, y)
    check(Call(given_others), way, x, True, 'both', [T,T], scale=3)
    check(Call(lambda x, w, ids: x*w[:,None,None,None] + ids[:,None]), way, x, per_sample, ids)
    check(Call(lambda w, x: (w, x)), way, per_sample, x)

@every_way
def test_keywords(way):
    x, mask, bias = clip(), clip()[:,:,0,0,0], torch.randn(3,1,1)
    def f(x, mask=None, whole=None, scale=1., m=None):
        assert whole is None or whole is bias # passed unchanged
        x = x*scale if mask is None else x*mask[:,None,None,None]*scale
        return x if whole is None else x + whole
    check(Call(f), way, x, scale=3.)
    check(Call(f), way, x, whole=bias)
    for steps in (mask, None):
        check(Call(f), way, x, mask=steps, whole=bias, scale=2., per_step=['mask','other'])
    check(Call(f), way, x=x, mask=mask, per_step=('x','mask')) # only keyword arguments
    check(Call(f), way, x, mask=mask, m=torch.rand(T+1), per_step=('mask',))

@every_way
def test_one_name_of_a_keyword(way):
    "Check that `per_step='mask'` is one name, not a collection of letters"
    x, mask = clip(), clip()[:,:,0,0,0]
    def f(x, mask, a=None):
        assert a is None or a.shape == (3,1,1)
        return (x if a is None else x*a).sum((1,2,3))*mask
    check(Call(f), way, x, mask=mask, per_step='mask')
    check(Call(f), way, x=x, mask=mask, per_step=('x','mask'))
    check(Call(lambda mask: mask+1), way, mask=mask, per_step='mask')
    td = TimeDistributed(Call(f), per_step='mask', **way)
    close(td(x, mask=mask, a=torch.full((3,1,1), 2.)), 2*x.sum((2,3,4))*mask)
    with pytest.raises(ValueError, match=r'\[5, 4\]'): td(x, mask=mask[:,:-1])

torchs_names = ['debug', 'function', 'context_fn', 'determinism_check', 'preserve_rng_state', 'early_stop',
                'use_reentrant', 'args', 'kwargs'] # of arguments of functions that TimeDistributed calls

@each_way({}, dict(chunk=2), dict(checkpoint=True))
@pytest.mark.parametrize('name', torchs_names)
def test_keywords_are_the_modules(name, way):
    "Pass all keyword arguments to the module, also those with names of torch's own arguments"
    x = clip()
    def f(x, **kwargs):
        assert kwargs == {name: 3}
        return x*kwargs[name]
    close(TimeDistributed(Call(f), **way)(x, **{name: 3}), x*3)

@every_way
@pytest.mark.parametrize('tdim', [0,1,2,3,-1,-2,-4])
def test_any_dimension_of_time(tdim, way):
    x = torch.stack([torch.randn(B,3,6,7) for _ in range(T)], tdim)
    check(nn.Conv2d(3, 4, 3), way, x, tdim=tdim)
    check(Call(lambda x, y: (x, y, None)), way, x, x+1, tdim=tdim)
    # outputs with fewer dimensions have time last
    if tdim >= 0: check(Call(lambda x: [x.mean(1), x.flatten(1), x.sum((1,2,3))]), way, x, tdim=tdim)
    check(Call(lambda x, steps: x*steps), way, x, steps=x+1, tdim=tdim, per_step=['steps'])

layouts = dict(
    transposed=lambda: torch.randn(T,B,3,6,7).transpose(0, 1),
    expanded=lambda: torch.randn(B,1,3,6,7).expand(B,T,3,6,7),
    one=lambda: torch.randn(3,6,7).expand(B,T,3,6,7),
    every_other=lambda: torch.randn(B,2*T,3,6,7)[:,::2],
    cut=lambda: torch.randn(2*B,T,3,6,9)[::2,:,:,:,1:8],
    channels_last=lambda: torch.randn(B,T,6,7,3).permute(0,1,4,2,3),
    windows=lambda: torch.randn(B,3,6,7,T+4).unfold(4, T, 2)[...,1,:].movedim(-1, 1))

@every_way
@pytest.mark.parametrize('layout', layouts.values(), ids=layouts)
def test_any_layout(layout, way):
    x = layout()
    assert not x.is_contiguous()
    check(nn.Conv2d(3, 4, 3), way, x)
    check(nn.Flatten(), way, x)
    check(Call(lambda x, y: x + 2*y), way, clip(), x)

@every_way
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision(dtype, way):
    "Allow an error of one unit in the last place, and 8 in float32, which torch sums in another order"
    eps = torch.finfo(dtype).eps * (8 if dtype is torch.float32 else 1)
    near = partial(torch.testing.assert_close, rtol=eps, atol=eps)
    check(nn.Conv2d(3, 4, 3).to(dtype), way, clip().to(dtype), close=near)
    check(nn.Linear(7, 5).to(dtype), way, clip().to(dtype), close=near)
    check(nn.LayerNorm(7).to(dtype), way, clip().to(dtype), close=near)

norms = dict(
    layer=lambda: nn.LayerNorm((4,4,5)),
    group=lambda: nn.GroupNorm(2, 4),
    instance=lambda: nn.InstanceNorm2d(4, affine=True),
    dropout=lambda: nn.Dropout(0.),
    none=nn.Identity)

def net(norm, *more):
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), *more, nn.Flatten(), nn.Linear(80, 3))

@every_way
@pytest.mark.parametrize('training', [True,False], ids=['train','eval'])
@pytest.mark.parametrize('norm', norms.values(), ids=norms)
def test_training_and_evaluation(norm, training, way): check(net(norm()).train(training), way, clip())

@every_way
def test_evaluation_with_statistics(way):
    module = net(nn.BatchNorm2d(4), nn.Dropout(.5))
    for _ in range(3): module(torch.randn(9,3,6,7)*2+1)
    before = deepcopy(module)
    check(module.eval(), way, clip())
    same(buffers(module), buffers(before))

dims = st.integers(1, 4)

@settings(max_examples=60, deadline=None)
@given(st.tuples(dims, dims, dims, dims), st.integers(1, 7), st.integers(0, 3), st.permutations(range(5)),
       st.none()|st.integers(1, 9), st.booleans(), st.booleans())
def test_any_shape(shape, n_steps, tdim, order, chunk, low_mem, checkpoint):
    "Vary the shape of images, the number of steps, the time dimension and the order in memory"
    full = [*shape[:tdim], n_steps, *shape[tdim:]]
    x = torch.randn([full[i] for i in order]).permute([order.index(i) for i in range(5)])
    assert x.shape == torch.Size(full)
    way = dict(chunk=chunk, low_mem=low_mem, checkpoint=checkpoint)
    check(nn.Conv2d(shape[1], 2, 3, padding=1), way, x, tdim=tdim)
    check(Call(lambda x, y: (x*y, [x.sum(1), None, x.sum((1,2,3))])), way, x, x+1, tdim=tdim)
    if tdim < 2: check(Call(lambda x, y: x*y[:,None,None,None]), way, x, x[...,0,0,0], tdim=tdim)


# Gradients and statistics

def trained(module, *xs, n=1, kwargs=None, **way):
    "Return outputs, gradients and buffers after `n` steps of gradient descent over `xs`"
    def leaf(x): return x.detach().clone().requires_grad_()
    td = TimeDistributed(deepcopy(module), per_step=list(kwargs or ()), **way)
    xs = [leaf(x) for x in xs]
    kwargs = {k: leaf(x) for k,x in (kwargs or {}).items()}
    leaves = {f'input {i}': x for i,x in enumerate(xs)} | kwargs | dict(td.named_parameters())
    opt = torch.optim.SGD(leaves.values(), lr=.1)
    torch.manual_seed(42)
    for _ in range(n):
        opt.zero_grad()
        outs = [o for o in tree_leaves(td(*xs, **kwargs)) if o is not None]
        sum(spread(o).pow(2).mean() for o in outs).backward()
        opt.step()
    outs = {f'output {i}': o for i,o in enumerate(outs)}
    grads = {f'gradient of {k}': x.grad for k,x in leaves.items()}
    return outs | grads | {f'buffer {k}': b for k,b in td.named_buffers()}

class Gated(nn.Module):
    "Combine several inputs, outputs and kinds of parameters"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.lin = nn.Linear(80, 3)
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x, y, gate=None):
        x = self.norm(self.conv(x*y)).tanh()
        return dict(logits=(self.lin(x.flatten(1)), None), maps=[x*gate[:,None,None,None]*self.scale])

@every_way
def test_gradients_are_those_of_a_loop(way):
    module = Gated()
    x, y, gate = (o.requires_grad_() for o in (clip(), clip(), torch.rand(B,T)))
    steps = loop(module, x, y, gate=gate, per_step=['gate'])
    logits = torch.stack([o['logits'][0] for o in steps], 1)
    maps = torch.stack([o['maps'][0] for o in steps], 1)
    loss = sum(spread(o).pow(2).mean() for o in (logits, maps))
    grads = torch.autograd.grad(loss, [x, y, gate, *module.parameters()])
    results = trained(module, x, y, kwargs=dict(gate=gate), **way)
    close(list(results.values()), [logits, maps, *grads])

@each_way(*chunks, *checkpoints)
@pytest.mark.parametrize('tdim', [0,1,3])
def test_gradients_are_those_of_the_folded_pass(tdim, way):
    x = torch.stack([torch.randn(B,3,6,7) for _ in range(T)], tdim)
    module = net(nn.LayerNorm((4,4,5)))
    close(trained(module, x, tdim=tdim, n=3, **way), trained(module, x, tdim=tdim, n=3))

def spectral():
    conv = spectral_norm(nn.Conv2d(3, 4, 3))
    return nn.Sequential(conv, nn.Flatten(), spectral_norm(nn.Linear(80, 3), n_power_iterations=2))

def shared():
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(norm, nn.Conv2d(3, 3, 1), norm) # the same module twice

def tied():
    module = net(Count(False), Count(False))
    module[3].n = module[1].n # one tensor in two modules: both change and read it
    return module

counting = dict(
    batch=lambda: net(nn.BatchNorm2d(4)),
    cumulative=lambda: net(nn.BatchNorm2d(4, momentum=None)),
    instance=lambda: net(nn.InstanceNorm2d(4, track_running_stats=True)),
    spectral=spectral,
    weight=lambda: weight_norm(nn.Conv2d(3, 4, 3)),
    dropout=lambda: net(nn.BatchNorm2d(4), nn.Dropout(.5)),
    dropout2d=lambda: net(nn.Dropout2d(.3), nn.RReLU()),
    changed=lambda: net(Count(False)),
    replaced=lambda: net(Count(True)),
    shared=shared,
    tied=tied)

@pytest.mark.parametrize('n', [1,4])
@pytest.mark.parametrize('chunk', [None,1,3])
@pytest.mark.parametrize('module', counting.values(), ids=counting)
def test_each_batch_counts_once(module, chunk, n):
    "Compare outputs, gradients, dropout and (bit-identical) buffers with and without checkpointing"
    module, x = module(), clip()
    result = trained(module, x, n=n, chunk=chunk, checkpoint=True)
    want = trained(module, x, n=n, chunk=chunk)
    close(result, want)
    for k in want:
        if k.startswith('buffer'): assert torch.equal(result[k], want[k]), k

@pytest.mark.parametrize('module', counting.values(), ids=counting)
def test_buffers_stay_what_they_are(module):
    "Check that the backward pass does not replace buffers"
    td = TimeDistributed(module(), checkpoint=True)
    out = td(clip())
    before = buffers(td)
    out.sum().backward()
    assert all(b is before[k] for k,b in buffers(td).items())

@each_way(*checkpoints)
@pytest.mark.parametrize('name', ['dropout','spectral','instance'])
def test_a_second_backward(name, way):
    "Check that every backward pass through the same graph gives the same gradients"
    module, x = counting[name](), clip()
    def backwards(**way):
        td = TimeDistributed(deepcopy(module), **way)
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        loss = td(leaf).pow(2).sum()
        grads = []
        for again in (True, True, False):
            loss.backward(retain_graph=again)
            grads.append([o.grad.clone() for o in (leaf, *td.parameters())])
        return grads, buffers(td)
    grads, stats = backwards(**way)
    want, want_stats = backwards(chunk=1 if 'low_mem' in way else way.get('chunk'))
    close(grads, want)
    same(stats, want_stats)

def test_two_passes_before_the_backward():
    "Check that the backward pass recomputes each pass with its own buffers"
    a, b = clip(), clip()*3
    module = net(nn.BatchNorm2d(4), nn.Dropout(.5))
    def passes(**way):
        td = TimeDistributed(deepcopy(module), **way)
        torch.manual_seed(1)
        (td(a) * td(b)).sum().backward()
        return [p.grad for p in td.parameters()], buffers(td)
    grads, stats = passes(checkpoint=True)
    want, want_stats = passes()
    close(grads, want)
    same(stats, want_stats)
    assert stats['module.1.num_batches_tracked'] == 2

@each_way(*checkpoints)
def test_gradients_of_gradients(way):
    x = clip()
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh())
    def penalty(**way):
        leaf = x.clone().requires_grad_()
        loss = TimeDistributed(module, **way)(leaf).pow(2).sum()
        grad, = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), [leaf, *module.parameters()])
    close(penalty(**way), penalty())

@each_way(*chunks, dict(low_mem=True), *(o | dict(checkpoint=True) for o in chunks))
def test_statistics_of_chunks(way):
    "Check that BatchNorm in training sees one chunk after the other"
    module, x = net(nn.BatchNorm2d(4)), clip()
    td = TimeDistributed(deepcopy(module), **way)
    parts = x.split(way.get('chunk', 1), dim=1)
    out = td(x)
    want = torch.cat([module(o.flatten(0, 1)).unflatten(0, (B,-1)) for o in parts], dim=1)
    close(out, want)
    for o in (out, want): o.pow(2).sum().backward()
    close([p.grad for p in td.parameters()], [p.grad for p in module.parameters()])
    close(buffers(td.module), buffers(module))
    assert td.module[1].num_batches_tracked == len(parts)

@pytest.mark.parametrize('without', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('chunk', [None,2])
def test_checkpoint_is_nothing_without_gradients(chunk, without):
    module, x = net(nn.BatchNorm2d(4), nn.Dropout(.5)), clip()
    calls = []
    def out(**way):
        td = TimeDistributed(deepcopy(module), chunk=chunk, **way)
        td.module.register_forward_hook(lambda *args: calls.append(1))
        torch.manual_seed(1)
        with without(): return td(x), td.module
    o, m = out(checkpoint=True)
    want, folded = out()
    assert torch.equal(o, want) and not o.requires_grad
    same(buffers(m), buffers(folded))
    assert len(calls) == 2*(1 if chunk is None else 3)

def test_checkpoint_looks_twice():
    x = clip().requires_grad_()
    td = TimeDistributed(net(nn.Identity()), checkpoint=True)
    calls = []
    td.module.register_forward_pre_hook(lambda *args: calls.append(1))
    out = td(x).sum()
    assert len(calls) == 1
    out.backward()
    assert len(calls) == 2

@each_way(*checkpoints)
@pytest.mark.parametrize('input_grad', [True,False])
@pytest.mark.parametrize('frozen', ['all','first','none'])
def test_frozen_modules(frozen, input_grad, way):
    "Check that there is no warning, and that input, later layers and unfrozen layers get the same gradients"
    module, head, x = net(nn.GroupNorm(2, 4)), nn.Linear(3, 2), clip()
    module.requires_grad_(frozen == 'none')
    if frozen == 'first': module[-1].requires_grad_(True)
    def grads(**way):
        m, h = deepcopy(module), deepcopy(head)
        leaf = x.clone().requires_grad_(input_grad)
        h(TimeDistributed(m, **way)(leaf)).pow(2).sum().backward()
        return [o.grad for o in (leaf, *m.parameters(), *h.parameters())]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        results = grads(**way)
    close(results, grads())


# Memory

class Live(TorchDispatchMode):
    """Count the bytes of live tensors that were allocated in the block: `now`, and `peak`.

    Count storages, so that views add nothing. Ignore earlier tensors and temporary memory of kernels."""
    def __init__(self):
        super().__init__()
        self.known = set()
        self.now, self.peak = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.track((args, kwargs), new=False)
        out = func(*args, **(kwargs or {}))
        self.track(out)
        return out

    def track(self, tree, new=True):
        for x in (o.untyped_storage() for o in tree_leaves(tree) if isinstance(o, Tensor)):
            if x.data_ptr() in self.known: continue
            self.known.add(x.data_ptr())
            weakref.finalize(x, self.release, x.data_ptr(), x.nbytes()*new)
            self.now += x.nbytes()*new
        self.peak = max(self.peak, self.now)

    def release(self, ptr, n_bytes):
        self.known.discard(ptr)
        self.now -= n_bytes

def test_live():
    "Check `Live`, with which the other tests measure memory"
    a, n = torch.rand(1000), 8000
    with Live() as mem:
        b = a + 1
        assert (mem.now, mem.peak) == (n, n)
        c = b.view(10,100)[1:] # a view has no memory of its own
        del b
        assert mem.now == n
        c.mul_(2), a.mul_(2)
        assert mem.peak == n
        c = (c.sum(), a + a + 1)[1]
        assert (mem.now, mem.peak) == (n, 3*n + 8)
    x = torch.rand(10,100, requires_grad=True)
    layers = nn.Sequential(*(Call(torch.exp) for _ in range(3)))
    with Live() as mem:
        y = layers(x)
        assert mem.now == 3*n # each layer saves its output
        y.sum().backward()
        del y
    assert mem.now == n # the gradient
    with torch.no_grad(), Live() as mem: y = layers(x)
    assert (mem.now, mem.peak, len(y)) == (n, 2*n, 10)

def peak(f, *args):
    with torch.no_grad(), Live() as mem: f(*args)
    return mem.peak

@pytest.fixture(scope='module')
def resnet(): return resnet18().float()

@pytest.mark.parametrize('bs', [1,2])
def test_memory_of_inference(resnet, bs):
    "Check that one step at a time needs little more memory than a single step, outputs of all steps included"
    x = torch.rand(bs,16,3,64,64, dtype=torch.float32)
    resnet.eval()
    def peak_of(**way): return peak(TimeDistributed(resnet, **way), x)
    one, all_steps = peak(resnet, x[:,0]), peak_of()
    for way in (dict(chunk=1), dict(low_mem=True)): assert peak_of(**way) < 1.3*one, way
    assert peak_of(chunk=4) < 1.3*peak(resnet, x[:,:4].flatten(0, 1))
    assert peak_of(checkpoint=True) == all_steps > 12*one # checkpointing saves nothing in inference

def kept(td, x):
    "Return the bytes that autograd saves besides parameters and buffers, and those of all live tensors"
    with saved_for_backward(td) as sizes, Live() as mem: out = td(x)
    assert out.requires_grad
    return sum(sizes.values()), mem.now

def test_memory_between_the_passes(resnet):
    x = torch.rand(2,16,3,64,64, dtype=torch.float32)
    resnet.train()
    folded = kept(TimeDistributed(resnet), x)
    for chunk in (None,1,5):
        result = kept(TimeDistributed(resnet, checkpoint=True, chunk=chunk), x)
        for n,most in zip(result, folded, strict=True): assert n <= .05*most, chunk
    assert kept(TimeDistributed(resnet, chunk=1), x)[0] > .9*folded[0] # `chunk` alone saves nothing

@every_way
def test_memory_after_the_backward(way):
    "Check that only the output and gradients remain"
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    with Live() as mem:
        out = TimeDistributed(module, **way)(clip()*2) # no other reference to the input
        out.sum().backward()
    assert mem.now == out.nbytes + sum(p.grad.nbytes for p in module.parameters())

def test_memory_of_training(resnet):
    "Check the peak of a step: saved tensors, a chunk with its gradients, and gradients of the parameters"
    x = torch.rand(2,16,3,64,64, dtype=torch.float32)
    body = nn.Sequential(*list(resnet.children())[:6]).train() # most activations, few parameters
    def step(**way):
        body.zero_grad()
        with Live() as mem: TimeDistributed(body, **way)(x).mean().backward()
        return mem.peak
    folded = step()
    for chunk in (1,2): assert step(checkpoint=True, chunk=chunk) < .25*folded, chunk
    assert step(chunk=1) > .8*folded # `chunk` alone saves little


# Errors

def fails(error, match, module, *args, way=None, **kwargs):
    "Check that `TimeDistributed` raises `error` with a message that matches `match`"
    td = TimeDistributed(Call(module), **(way or {}))
    with pytest.raises(error, match=match): td(*args, **kwargs)

def first(x, *args, **kwargs): return x

def wrong_shapes(n):
    "Return functions with outputs that lack one result for each of the `n` inputs, and their shapes"
    return ((torch.sum, r'\(\)'),
            (lambda x: x[:1], r'\(1, 3, 6, 7\)'),
            (lambda x: torch.cat([x,x]), rf'\({2*n}, 3, 6, 7\)'),
            (lambda x: x.mean(0), r'\(3, 6, 7\)'))

wrong_types = ((lambda x: 1., 'float'),
               (lambda x: 'logits', 'str'),
               (lambda x: x.detach().numpy(), 'ndarray'),
               (lambda x: (x,[3]), 'int'),
               (lambda x: dict(a={1}), 'set'))

@every_way
def test_errors(way):
    x = clip()
    message = r'found \[5, 4\] steps in dimension 1 \(`tdim`\).*same number of steps in every tensor'
    fails(ValueError, message, first, x, x[:,:-1], way=way)
    # one step is not broadcast
    fails(ValueError, r'found \[5, 1\] steps.*same number of steps', first, x, x[:,:1], way=way)
    fails(ValueError, r'found \[5, 6\] steps.*same number of steps', first, x, mask=torch.rand(B,T+1),
          way=way | dict(per_step=['mask']))
    fails(ValueError, r'found \[3, 4\] steps in dimension 2', first, x, clip(4,6,7), way=way | dict(tdim=2))
    message = r'found \[\] steps.*at least one tensor'
    for args in ((), (None,), (3,'a',[x])): fails(ValueError, message, first, *args, way=way)
    fails(ValueError, message, lambda mask: mask, mask=clip(), way=way) # not named in `per_step`
    n = B*min(way.get('chunk') or (1 if 'low_mem' in way else T), T)
    for f,shape in wrong_shapes(n):
        message = rf'an output has shape {shape}.*one result for each of the {n} inputs'
        fails(ValueError, message, f, x, way=way)
        fails(ValueError, message, lambda x, f=f: (x, dict(a=f(x))), x, way=way)
    for f,kind in wrong_types:
        message = f'returned {kind}.*must return tensors, or tuples, lists or dicts of tensors'
        fails(TypeError, message, f, x, way=way)

@pytest.mark.parametrize('chunk', [0,-1])
def test_no_chunk(chunk):
    message = f'`chunk`: must be at least 1, not {chunk}'
    with pytest.raises(ValueError, match=message): TimeDistributed(nn.Identity(), chunk=chunk)


# stack_frames

@pytest.mark.parametrize('kind', [ImageTuple, tuple, list, iter])
@pytest.mark.parametrize('image', [TensorImage, Tensor])
def test_stack_frames(image, kind):
    frames = [torch.rand(B,3,6,7) for _ in range(T)]
    x = stack_frames(kind(o.as_subclass(image) for o in frames))
    assert type(x) is Tensor and torch.equal(x, torch.stack(frames, dim=1))

def test_stack_frames_of_tensors():
    x = clip()
    assert stack_frames(x) is x
    images = TensorImage(x)
    assert stack_frames(images) is images

def test_stack_frames_of_something_else():
    image = torch.rand(B,3,6,7)
    cases = ((image, r'\(2, 3, 6, 7\)'),
             (TensorImage(image), r'\(2, 3, 6, 7\)'),
             ([image[0]]*T, r'\(3, 5, 6, 7\)'),
             ((clip(),), r'\(2, 1, 5, 3, 6, 7\)'))
    for x,shape in cases:
        message = (f'x: has shape {shape} when stacked, '
                   '.*a tuple of T frames B,C,H,W, or one tensor B,T,C,H,W')
        with pytest.raises(ValueError, match=message): stack_frames(x)

@pytest.mark.parametrize('kind', [ImageTuple, list])
def test_stack_frames_has_gradients(kind):
    frames = [torch.rand(B,3,6,7).requires_grad_() for _ in range(T)]
    w = clip()
    (stack_frames(kind(o.as_subclass(TensorImage) for o in frames))*w).sum().backward()
    same([o.grad for o in frames], list(w.unbind(1)))
    assert {type(o.grad) for o in frames} == {Tensor}


# AttentionPool

def attention(pool, x, values):
    "Compute outputs and weights by equation 8 of arXiv 1802.04712, with numpy"
    (w1,b1),(w2,b2) = [[p.detach().numpy() for p in pool.score[i].parameters()] for i in (0, 2)]
    outs, weights = [], []
    for row,vals in zip(x.detach().numpy(), values.detach().numpy()):
        e = np.exp([float(w2[0] @ np.tanh(w1 @ o + b1) + b2[0]) for o in row])
        weights.append(e/e.sum())
        outs.append(sum(w*o for w,o in zip(weights[-1], vals)))
    return torch.tensor(np.array(outs)), torch.tensor(np.array(weights))[...,None]

@pytest.mark.parametrize('steps', [1,5,16])
@pytest.mark.parametrize('hidden', [1,128])
def test_attention(hidden, steps):
    pool = AttentionPool(7, hidden)
    x, values = torch.randn(3,steps,7)*2, torch.randn(3,steps,4)
    for out,v in ((pool(x), x), (pool(x, values), values), (pool(x, values=x), x)):
        want, weights = attention(pool, x, v)
        close(out, want)
        close(pool.weights(x), weights)
    close(pool.weights(x).sum(1), torch.ones(3,1))
    close(pool(x + 1e3, values).isfinite().all(), torch.tensor(True))

def test_attention_knows_no_order():
    pool = AttentionPool(7)
    x, values = clip(7), clip(4)
    order = torch.randperm(T)
    close(pool(x[:,order], values[:,order]), pool(x, values))

def test_attention_of_a_row_is_its_own():
    pool = AttentionPool(7)
    x = torch.randn(4,T,7, requires_grad=True)
    out = pool(x)
    close(out, torch.cat([pool(o[None]) for o in x]))
    grad, = torch.autograd.grad(out[1].sum(), x)
    assert grad[1].abs().min() > 0 and not grad[[0,2,3]].any()

def test_gradients_of_attention():
    pool = AttentionPool(3, 4)
    x, values = (torch.randn(2,3,n, requires_grad=True) for n in (3, 2))
    names, ps = zip(*pool.named_parameters())
    def f(x, values, *ps): return torch.func.functional_call(pool, dict(zip(names, ps)), (x, values))
    assert torch.autograd.gradcheck(f, (x, values, *ps))
    assert torch.autograd.gradcheck(pool, (x,))


# ConvLSTM and run_rnn

def conv_lstm(layers, x, h, c):
    """Compute a ConvLSTM by equation 3 of arXiv 1506.04214, without the peepholes.

    Convolve separately for each gate, step by step and layer by layer."""
    def conv(a, w): return F.conv2d(a, w, padding='same')
    last = []
    for layer,h_l,c_l in zip(layers, h, c):
        xi,xf,xg,xo = layer.inp.weight.chunk(4)
        hi,hf,hg,ho = layer.recur.weight.chunk(4)
        bi,bf,bg,bo = layer.inp.bias.chunk(4)
        outs = []
        for t in range(x.shape[1]):
            i = torch.sigmoid(conv(x[:,t], xi) + conv(h_l, hi) + bi[:,None,None])
            f = torch.sigmoid(conv(x[:,t], xf) + conv(h_l, hf) + bf[:,None,None])
            g = torch.tanh(conv(x[:,t], xg) + conv(h_l, hg) + bg[:,None,None])
            o = torch.sigmoid(conv(x[:,t], xo) + conv(h_l, ho) + bo[:,None,None])
            c_l = f*c_l + i*g
            h_l = o*torch.tanh(c_l)
            outs.append(h_l)
        x = torch.stack(outs, dim=1)
        last.append((h_l, c_l))
    return x, *(torch.stack(o) for o in zip(*last))

@pytest.mark.parametrize('given_state', [True,False])
@pytest.mark.parametrize('kernel', [1,3,5])
@pytest.mark.parametrize('layers', [1,2,3])
def test_conv_lstm(layers, kernel, given_state):
    m = ConvLSTM(3, 4, kernel, layers)
    x = clip().requires_grad_()
    make = torch.randn if given_state else torch.zeros
    state = [make(layers,B,4,6,7, requires_grad=given_state) for _ in range(2)]
    out, (h,c) = m(x, tuple(state) if given_state else None)
    wants = conv_lstm(m.layers, x, *state)
    leaves = [x, *(state if given_state else ()), *m.parameters()]
    assert len(list(m.parameters())) == 3*layers
    weights = [torch.randn_like(o) for o in wants]
    close((out,h,c), wants)
    def gradients(outs):
        loss = sum((o*w).sum() for o,w in zip(outs, weights))
        return torch.autograd.grad(loss, leaves)
    close(gradients((out,h,c)), gradients(wants))

def test_conv_lstm_begins_with_an_open_gate():
    for layer in ConvLSTM(3, 4, num_layers=2).layers:
        assert torch.equal(layer.inp.bias[4:8], torch.ones(4))
        assert layer.recur.bias is None

def test_conv_lstm_goes_on():
    m, x = ConvLSTM(3, 4, num_layers=2), clip()
    out, (h,c) = m(x)
    for t in range(1, T):
        a, state = m(x[:,:t])
        b, (h2,c2) = m(x[:,t:], state)
        close((torch.cat([a,b], 1), h2, c2), (out,h,c))
    close(m(x[1:])[0], out[1:]) # clips of a batch are independent

@pytest.mark.parametrize('kernel', [0,2,4])
def test_conv_lstm_has_odd_kernels(kernel):
    message = f'`kernel_size`: must be odd.*not {kernel}'
    with pytest.raises(ValueError, match=message): ConvLSTM(3, 4, kernel)

@torch.no_grad()
def copy_weights(m, lstm):
    "Copy the weights of a ConvLSTM with 1x1 kernels to an LSTM with a state of 4 numbers"
    for i,layer in enumerate(m.layers):
        weights = dict(weight_ih=layer.inp.weight.flatten(1), weight_hh=layer.recur.weight.flatten(1),
                       bias_ih=layer.inp.bias, bias_hh=torch.zeros(16))
        for name,p in weights.items(): getattr(lstm, f'{name}_l{i}').copy_(p)

@pytest.mark.parametrize('layers', [1,2])
def test_conv_lstm_of_places_is_an_lstm(layers):
    m = ConvLSTM(3, 4, kernel_size=1, num_layers=layers)
    lstm = nn.LSTM(3, 4, layers, batch_first=True)
    x = clip()
    copy_weights(m, lstm)
    h0, c0 = torch.randn(2,layers,B,4,6,7).unbind()
    places = x.permute(0,3,4,1,2).reshape(B*6*7, T, 3) # B,H,W are the batch
    def flat(o): return o.permute(0,1,3,4,2).reshape(layers, B*6*7, 4)
    for state,lstm_state in ((None, None), ((h0,c0), (flat(h0),flat(c0)))):
        (out,(h,c)), (want,(wh,wc)) = m(x, state), lstm(places, lstm_state)
        close(out.permute(0,3,4,1,2).reshape(B*6*7, T, 4), want)
        close(flat(h), wh)
        close(flat(c), wc)

class Run(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
    def forward(self, x): return run_rnn(self.rnn, x)

def make_rnn(kind, layers, both): return partial(kind, 7, 4, layers, batch_first=True, bidirectional=both)

def rnn_id(kind, layers, both):
    directions = 'both ways' if both else 'one way'
    return f'{kind.__name__.lower()} {layers} {directions}'

rnn_options = list(product((nn.LSTM, nn.GRU), (1,2), (False,True)))
rnns = pytest.mark.parametrize('rnn', [pytest.param(make_rnn(*o), id=rnn_id(*o)) for o in rnn_options])

@rnns
def test_run_rnn(rnn):
    rnn = rnn()
    for steps in (1,2,9):
        x = torch.randn(3,steps,7)
        outs, last = run_rnn(rnn, x)
        want, h = rnn(x)
        close(outs, want)
        hidden = h[0] if isinstance(rnn, nn.LSTM) else h
        close(last, torch.cat(list(hidden), dim=1))

def check_exported(module, x, others, any_length=False):
    "Check an exported program with other batch sizes, and if `any_length` with other numbers of steps"
    dims = {0: torch.export.Dim('batch')}
    if any_length: dims[1] = torch.export.Dim('time')
    with torch.no_grad():
        prog = torch.export.export(module, (x,), dynamic_shapes=(dims,)).module()
        for x in others: close(tree_leaves(prog(x)), tree_leaves(module(x)))

@pytest.mark.filterwarnings('ignore:The tensor attributes self.rnn._flat_weights')
@rnns
def test_run_rnn_exported(rnn):
    others = [torch.randn(n, 6, 7) for n in range(1, 21)]
    check_exported(Run(rnn()).eval(), torch.randn(3,6,7), others)

@pytest.mark.filterwarnings('ignore:The tensor attributes self.rnn._flat_weights')
def test_run_rnn_exported_without_bias():
    rnn = nn.GRU(7, 4, bias=False, batch_first=True)
    check_exported(Run(rnn).eval(), torch.randn(3,6,7), [torch.randn(2,6,7)])

class Recorder(nn.Module):
    "Record the precision in which a recurrent layer runs; return outputs like `nn.LSTM`"
    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7, dtype=torch.float32, device=device))
        self.found = []
    def forward(self, x):
        self.found.append((x.dtype, torch.is_autocast_enabled(x.device.type)))
        return x, (x[None,:,-1], x[None,:,-1])

@contextmanager
def cuda_autocast(dtype):
    "Turn on autocast for CUDA, which `torch.autocast` refuses without a GPU"
    before = torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', dtype)
    try: yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.set_autocast_dtype('cuda', before)

def test_run_rnn_without_float16_under_bfloat16():
    "Check that a recurrent layer runs in float32 under autocast with bfloat16 on CUDA, and only there"
    half, single = torch.bfloat16, torch.float32
    with FakeTensorMode():
        rnn, x = Recorder('cuda'), torch.empty(2,5,7, device='cuda', dtype=half)
        for dtype in (half, torch.float16):
            with cuda_autocast(dtype): outs, last = run_rnn(rnn, x)
        run_rnn(rnn, x)
        assert last.shape == (2,7) and outs.is_cuda
    assert rnn.found == [(single,False), (half,True), (half,False)]
    assert not torch.is_autocast_enabled('cuda')
    rnn = Recorder('cpu')
    with torch.autocast('cpu', half): run_rnn(rnn, torch.zeros(2,5,7, dtype=half))
    assert rnn.found == [(half,True)]

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('forget,limit', [(1.,3e-2), (5.,6e-2)])
def test_conv_lstm_in_half_precision(dtype, forget, limit):
    "Compare 64 steps under autocast with float64; with open forget gates, the state sums over all of them"
    m = ConvLSTM(8, 16)
    with torch.no_grad():
        m.layers[0].inp.bias[16:32] = forget
        x = torch.randn(2,64,8,6,6).to(dtype)
        want, (_,c) = m(x.double())
        m.float()
        with torch.autocast('cpu', dtype): got, (_,got_c) = m(x)
    assert got_c.dtype is torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=limit)
    torch.testing.assert_close(got_c.double(), c, rtol=0, atol=.01*float(c.abs().max()))

def test_conv_lstm_exported():
    others = [torch.randn(n, 6, 3,5,6) for n in range(1, 21)]
    check_exported(ConvLSTM(3, 4, num_layers=2).eval(), torch.randn(3,6,3,5,6), others)


# With the rest of PyTorch

class Classifier(nn.Module):
    "Classify clips with the smallest possible model"
    def __init__(self, **way):
        super().__init__()
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.body = TimeDistributed(body, **way)
        self.head = nn.Linear(80, 2)
    def forward(self, x): return self.head(self.body(stack_frames(x)).mean(dim=1))

@each_way({}, dict(checkpoint=True))
def test_classifier_exported(way):
    others = [torch.randn(1 + n%3, n, 3,6,7) for n in range(1, 21)]
    check_exported(Classifier(**way).eval(), torch.randn(3,6,3,6,7), others, any_length=True)

def check_compiled(model, backend, x, fullgraph):
    "Check that outputs, gradients and buffers of the compiled model equal those of `model`"
    torch.compiler.reset()
    compiled = torch.compile(deepcopy(model), backend=backend, fullgraph=fullgraph)
    results = []
    for m in (compiled, deepcopy(model)):
        out = m(x)
        out.pow(2).sum().backward()
        results.append([out, [p.grad for p in m.parameters()], list(m.buffers())])
    close(*results)

backends = pytest.mark.parametrize('backend', ['eager','aot_eager'])

@backends
@each_way({}, dict(chunk=3), dict(checkpoint=True))
def test_compiled(way, backend):
    fullgraph = 'checkpoint' not in way # the recomputation is outside the graph
    check_compiled(Classifier(**way), backend, clip(), fullgraph=fullgraph)

@pytest.mark.parametrize('f', [outputs['nested'], outputs['ordered']], ids=['nested','ordered'])
def test_compiled_outputs(f):
    torch.compiler.reset()
    td = TimeDistributed(Call(f), chunk=3)
    x = clip()
    check_steps(torch.compile(td, backend='eager', fullgraph=True)(x), loop(td.module, x))

@backends
@each_way({}, dict(checkpoint=True, chunk=3))
def test_compiled_for_images(way, backend):
    "Compile a model for clips of fastai's types, which are stacked outside the graph"
    x = ImageTuple(torch.randn(B,3,6,7).as_subclass(TensorImage) for _ in range(T))
    check_compiled(Classifier(**way), backend, x, fullgraph=False)

def unpickled(o): return pickle.loads(pickle.dumps(o))

def reloaded(o):
    "Save and load `o` with torch"
    f = io.BytesIO()
    torch.save(o, f)
    f.seek(0)
    return torch.load(f, weights_only=False)

@pytest.mark.parametrize('copied', [deepcopy, unpickled, reloaded], ids=['deepcopy','pickle','torch'])
@each_way({}, dict(low_mem=True), dict(chunk=2, checkpoint=True))
def test_copies(way, copied):
    td = TimeDistributed(Gated(), tdim=0, per_step=['gate'], **way)
    x = torch.randn(T,B,3,6,7)
    inputs = x, x+1
    copy = copied(td)
    assert repr(copy) == repr(td)
    options = dict(low_mem=False, chunk=None, checkpoint=False, tdim=0) | way
    for k,v in options.items(): assert getattr(copy, k) == v
    def maps(o): return o(*inputs, gate=torch.ones(T,B))['maps'][0]
    assert torch.equal(maps(copy), maps(td))
    with torch.no_grad(): copy.module.scale.mul_(2)
    assert torch.equal(maps(copy), 2*maps(td)) # the copy has its own weights

@each_way({}, dict(low_mem=True), dict(chunk=2, checkpoint=True))
def test_names_of_parameters(way):
    module = net(nn.BatchNorm2d(4))
    keys = [f'module.{k}' for k in module.state_dict()]
    assert list(TimeDistributed(module, **way).state_dict()) == keys
    td = TimeDistributed(net(nn.BatchNorm2d(4)), **way)
    td.load_state_dict({f'module.{k}': v for k,v in module.state_dict().items()})
    check(module.eval(), way, clip())
    close(td.eval()(clip()*0+1), TimeDistributed(module)(torch.ones(B,T,3,6,7)))
    assert td(clip()).shape == (B,T,3) and repr(td) == f'TimeDistributed({td.module})'

@every_way
def test_autocast(way):
    "Check that the backward pass recomputes in the precision of the forward pass"
    module, x = net(nn.GroupNorm(2, 4)).float(), clip().float()
    eps = torch.finfo(torch.bfloat16).eps
    near = partial(torch.testing.assert_close, rtol=eps, atol=eps)
    with torch.autocast('cpu', torch.bfloat16): check(module, way, x, close=near)
    def grads(**way):
        m = deepcopy(module)
        with torch.autocast('cpu', torch.bfloat16): out = TimeDistributed(m, **way)(x)
        assert out.dtype is torch.bfloat16
        out.float().pow(2).sum().backward()
        return [p.grad for p in m.parameters()]
    without = {k: v for k,v in way.items() if k != 'checkpoint'}
    torch.testing.assert_close(grads(**way), grads(**without))
