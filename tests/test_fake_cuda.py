"""Run models on CUDA tensors without a GPU: torch's fake tensors have a device, a dtype and a shape only.

They show operations on two devices or dtypes and copies from the host, which no test on a CPU sees. They do
not show the choices of cuDNN: recurrent layers run as torch's formulas."""
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from all_models import frames_and_size, kinds
from vidseq.models.config import models
from vidseq.models.timesformer import small_timesformer


# A GPU without a GPU

def put_on_fake_gpu(model):
    "Replace the parameters and buffers of `model` by fake tensors on a GPU"
    def fake(o): return torch.empty_strided(o.size(), o.stride(), dtype=o.dtype, device='cuda')
    for m in model.modules():
        for k,p in list(m.named_parameters(recurse=False)): setattr(m, k, nn.Parameter(fake(p)))
        for k,o in list(m.named_buffers(recurse=False)): setattr(m, k, fake(o))
    return model


@contextmanager
def fake_gpu():
    "Create fake tensors; avoid what asks the driver of a GPU, and what torch refuses without one"
    with (patch('torch.cuda.amp.common.amp_definitely_not_available', lambda: False), # autocast
          patch('torch.cuda.is_bf16_supported', lambda: True),
          patch('torch._C._current_graph_task_id', lambda: 1), # gradient checkpointing recomputes once
          FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), # fused kernels ask for the kind of GPU
          enable_python_dispatcher()): # formulas for recurrent layers, whose kernels ask for cuDNN
        yield


aten = torch.ops.aten
copies = aten._to_copy, aten.copy_
products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward,
            aten._scaled_dot_product_attention_math)

def tensors(*args): return [o for o in tree_leaves(args) if isinstance(o, torch.Tensor)]


class Watch(TorchDispatchMode):
    """Collect the names of operations that copy from the host to a GPU; fail for products of two dtypes

    A number on the host is passed to a kernel without a copy. Fake products accept two dtypes, real ones do
    not."""
    def __init__(self):
        super().__init__()
        self.copies = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out,op = func(*args, **kwargs or {}),func.overloadpacket
        inputs = tensors(args, kwargs)
        from_host = any(o.device.type == 'cpu' and (o.ndim or op in copies) for o in inputs)
        if from_host and any(o.is_cuda for o in tensors(out)): self.copies.add(str(op))
        if op in products: assert len({o.dtype for o in inputs}) == 1, (op, [o.dtype for o in inputs])
        return out


# The backward pass in Python: torch's own asks the driver for the streams of a GPU

def sorted_nodes(root):
    "Return the nodes of an autograd graph, each after all nodes that pass gradients to it"
    order,seen,stack = [],{root},[(root, iter(root.next_functions))]
    while stack:
        node,rest = stack[-1]
        child = next((o for o,_ in rest if o is not None and o not in seen), None)
        if child is None: order.append(stack.pop()[0])
        else:
            seen.add(child)
            stack.append((child, iter(child.next_functions)))
    return order[::-1]


def as_torch_does(grad, metadata):
    "Return a gradient with the shape and dtype of its tensor; fail if it is on another device"
    if grad is None: return None
    assert grad.device.type == metadata.device.type
    return grad.sum_to_size(metadata.shape).to(metadata.dtype)


def pass_on(grads, node, outs):
    "Add the gradients that `node` returns to those of the nodes that follow"
    for out,(child,i) in zip(outs if isinstance(outs, tuple) else (outs,), node.next_functions, strict=True):
        if child is None or out is None: continue
        slots = grads.setdefault(child, {})
        slots[i] = slots[i]+out if i in slots else out


@torch.no_grad()
def backward(loss):
    "Compute the gradients of the parameters"
    grads = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in sorted_nodes(loss.grad_fn):
        if node not in grads: continue
        slots = grads.pop(node)
        inputs = [as_torch_does(slots.get(i), o) for i,o in enumerate(node._input_metadata)]
        pass_on(grads, node, node.apply(*inputs) if hasattr(node, 'apply') else node(*inputs))


def test_backward_is_that_of_torch():
    "Compare gradients with torch's on a CPU, with gradient checkpointing, broadcasting and several outputs"
    torch.manual_seed(0)
    model,x = small_timesformer(3, image_size=16, num_frames=4, checkpoint=True),torch.rand(2,4,3,16,16)
    def loss(): return model(x).square().mean()
    loss().backward()
    want = {k: p.grad for k,p in model.named_parameters()}
    model.zero_grad()
    with patch('torch._C._current_graph_task_id', lambda: 1): backward(loss())
    for k,p in model.named_parameters(): torch.testing.assert_close(p.grad, want[k])


def test_faults_are_found():
    "Check that a copy from the host, two devices and two dtypes are noticed"
    with fake_gpu(), Watch() as watch:
        x = torch.rand(2,3, device='cuda')
        x*2 + torch.ones((), device='cuda')
        assert not watch.copies
        x*x.new_tensor([1,2,3])
        assert watch.copies == {'aten._to_copy'}
        with pytest.raises(RuntimeError, match='cpu'): x+torch.rand(2,3)
        with pytest.raises(AssertionError, match='float16'): x.half()@x.T


# Models

# torchvision makes the table of relative positions of MViTv2 on the host
copies_of_torchvision = dict(mvit_v2_s={'aten.index','aten.index_put'})


def test_all_models_are_tested():
    def model_of(o): return getattr(o, 'func', o)
    assert {model_of(o).__name__ for o in kinds.values()} - {'small_timesformer'} == \
        {o.rpartition('.')[2] for o in models}


def run(name, dtype, masked=False):
    "Predict, and run a training step, of a model on a fake GPU; return the copies from the host"
    model = kinds[name](n_out=5)
    n_frames,size = frames_and_size(name)
    with fake_gpu(), Watch() as watch:
        put_on_fake_gpu(model)
        x = torch.rand(2,n_frames,3,size,size, device='cuda')
        kwargs = dict(mask=torch.ones(2,8, dtype=torch.bool, device='cuda')) if masked else {}
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            with torch.no_grad(): assert model.eval()(x, **kwargs).shape[0] == 2
            loss = model.train()(x, **kwargs).float().square().mean()
        backward(loss)
        grads = [p.grad for p in model.parameters()]
        assert all(o is not None and o.is_cuda and o.dtype == torch.float32 for o in grads)
    return watch.copies


precisions = pytest.mark.parametrize('dtype', [None, torch.float16, torch.bfloat16])


@pytest.mark.parametrize('name', ['small_timesformer','vit_DividedBlock','stream_attentive_2'])
def test_attention(name): assert not run(name, torch.bfloat16)


@pytest.mark.slow
@precisions
@pytest.mark.parametrize('name', kinds)
def test_models(name, dtype): assert run(name, dtype) == copies_of_torchvision.get(name, set())


@pytest.mark.slow
@precisions
def test_masked_frames(dtype):
    for name in ('timesformer','timesformer_checkpoint'): assert not run(name, dtype, masked=True)
