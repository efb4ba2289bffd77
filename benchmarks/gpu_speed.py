"The checks of gpu.py that measure the speed and memory of models."
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median

import timesformer_pytorch
import torch
import torch.nn.functional as F
from fastai.vision.all import TensorImage, resnet18, resnet34
from gpu_setup import model_families, n_classes
from harness import load_module
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import vidseq
from vidseq.data.clip import ImageTuple
from vidseq.models.attention import attention
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import to_channels_last
from vidseq.models.timesformer import TimeSformer
from vidseq.train.embed import embed

tutorial_size = dict(dim=128, image_size=128, num_frames=5, depth=12)
b16_size = dict(dim=768, image_size=224, num_frames=8, depth=12, heads=12)
tiny_size = dict(dim=32, image_size=32, num_frames=2, depth=1, heads=2, dim_head=16)
no_dropout = dict(patch_size=16, attn_dropout=0., ff_dropout=0.)


# Training steps

class Step:
    "Train a model on a batch: forward pass, backward pass and SGD update"
    def __init__(self, run, model, half=None):
        self.model = model.to(run.device).train()
        self.opt = torch.optim.SGD(self.model.parameters(), 1e-3)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=half == torch.float16)
        self.autocast = torch.autocast(run.device.type, half, enabled=half is not None)

    def __call__(self, clip, labels):
        with self.autocast: outputs = self.model(clip)
        self.scaler.scale(F.cross_entropy(outputs.float(), labels)).backward()
        self.scaler.step(self.opt)
        self.scaler.update()
        self.opt.zero_grad()


def dtype_name(half): return str(half or torch.float32).removeprefix('torch.')


def random_batch(run, bs, n_frames, size):
    "Return clips as loaders return them, T tensors B,C,H,W, and their labels on the device"
    shape = bs,3,size,size
    clip = ImageTuple(TensorImage(torch.randn(shape, device=run.device)) for _ in range(n_frames))
    return clip, torch.arange(bs, device=run.device)%n_classes


def time_steps(run, step, clip, labels):
    "Return the ms of a training step, and the share of it until the CPU has launched all kernels"
    n_warm,n = (1,1) if run.tiny else (3,10)
    times = [run.seconds_of(step, clip, labels) for _ in range(n_warm+n)][n_warm:]
    return 1000*median(total for _,total in times), median(launch/total for launch,total in times)


def measure_step(run, batch, half, make):
    "Return the speed and the memory of the training steps of a model"
    clip,labels = random_batch(run, *batch)
    ms,launch = time_steps(run, Step(run, make(), half), clip, labels)
    return {'ms a step': f'{ms:.2f}', 'clips a second': f'{1000*len(labels)/ms:.1f}',
            'peak MiB': run.peak_memory(), 'share of launch': f'{launch:.2f}'}


class PackageTimeSformer(timesformer_pytorch.TimeSformer):
    "Classify clips of T tensors B,C,H,W with the package, as the tutorials do"
    def forward(self, clip): return super().forward(torch.stack(clip, dim=1))


def channels_last(make): return to_channels_last(make())


def frame_candidates(run):
    "Return functions that create the models with an image encoder, the tutorials' among them, by name"
    arch = resnet18 if run.tiny else resnet34
    settings = dict(arch=arch, n_out=101, pretrained=False)
    simple = partial(SimpleModel, **settings)
    ours = {'SimpleModel': simple, 'SimpleModel, channels last': partial(channels_last, simple),
            'RNNModel': partial(RNNModel, **settings), 'ConvLSTMModel': partial(ConvLSTMModel, **settings),
            'Conv3dModel': Conv3dModel, 'Conv3dModel, channels last': partial(channels_last, Conv3dModel)}
    if not run.baseline: return ours
    tutorial = load_module(run.baseline)
    theirs = {f"the tutorials' {o}": partial(getattr(tutorial, o), arch) for o in ('SimpleModel', 'RNNModel')}
    return theirs | ours


def transformer_candidates(settings):
    "Return functions that create the package's and our TimeSformer with `settings`, by name"
    ours = partial(TimeSformer, 101, **settings, **no_dropout)
    return {'timesformer-pytorch': partial(PackageTimeSformer, num_classes=101, **settings, **no_dropout),
            'TimeSformer': ours, 'TimeSformer, checkpoint': partial(ours, checkpoint=True)}


def transformer_sizes(run):
    "Return the number of clips and the arguments of TimeSformer, by name"
    if run.tiny: return {'tiny': (2, tiny_size)}
    return {"tutorials'": (32, tutorial_size), 'B/16': (8, b16_size)}


def step_groups(run):
    "Yield the name of a size, the size of the batch, and the models of each group"
    yield "tutorials'", (2,3,32) if run.tiny else (32,5,64), frame_candidates(run)
    for name,(bs,settings) in transformer_sizes(run).items():
        batch = bs, settings['num_frames'], settings['image_size']
        yield name, batch, transformer_candidates(settings)


def train_steps(run):
    "Time training steps with 32 clips of 5 frames, as in the tutorials, and of TimeSformer also as ViT-B/16"
    for size,batch,makes in step_groups(run):
        for half in ([None] if run.tiny else [None, run.half]):
            named = {f'{o}, {size} size, {dtype_name(half)}': make for o,make in makes.items()}
            yield from run.rows(named, partial(measure_step, run, batch, half))


# Attention

def profile_step(run, case):
    "Count the operators of fused attention in a training step of a TimeSformer"
    (bs,settings),half = case
    step = Step(run, TimeSformer(101, **settings, **no_dropout), half)
    batch = random_batch(run, bs, settings['num_frames'], settings['image_size'])
    with profile(activities=[ProfilerActivity.CPU]) as prof: step(*batch)
    prefix = 'aten::_scaled_dot_product_'
    counts = {o.key.removeprefix(prefix): o.count for o in prof.key_averages() if o.key.startswith(prefix)}
    return dict(operators=', '.join(f'{n} {o}' for o,n in counts.items()) or 'explicit formula')


def attend_in_groups(run, n):
    "Compute attention over 4 tokens in `n` groups: a grid of CUDA has at most 65535 blocks in two dimensions"
    q = torch.randn(n, 1, 4, 16, device=run.device, dtype=run.half)
    return dict(ms=f'{1000*run.seconds_of(attention, q, q, q)[1]:.1f}')


def attention_kernels(run):
    "Name the kernels of attention that torch chooses for TimeSformer, and try many groups"
    cases = {f'{name} size, {dtype_name(half)}': (size,half)
             for name,size in transformer_sizes(run).items() for half in (None, run.half)}
    yield from run.rows(cases, partial(profile_step, run))
    yield from run.rows({f'{n} groups': n for n in (65535, 65536)}, partial(attend_in_groups, run))


# Copies from the host

def vidseq_frames():
    "Yield the module and the function of each frame of the stack that is in vidseq, innermost first"
    frame,root = sys._getframe(1),str(Path(vidseq.__file__).parent)
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(root): yield Path(code.co_filename).stem, code.co_name
        frame = frame.f_back


class CountCopies(TorchDispatchMode):
    "Count the tensors that are copied from the host to a device, by the function of vidseq that does it"
    def __init__(self):
        super().__init__()
        self.device,self.places,self.in_attention = None,Counter(),0

    def is_copy(self, func, args, out):
        "Return whether `func` copied a tensor of the CPU, or numbers of Python, to the device"
        if not isinstance(out, torch.Tensor) or out.device.type != self.device.type: return False
        name = func.overloadpacket.__name__
        if name == 'lift_fresh': return True # `torch.tensor` and `new_tensor`
        return name in ('_to_copy', 'copy_') and args[-1].device.type == 'cpu' != self.device.type

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if self.is_copy(func, [o for o in args if isinstance(o, torch.Tensor)], out):
            frames = [*vidseq_frames(), ('elsewhere', '')]
            self.places['.'.join(filter(None, frames[0]))] += 1
            self.in_attention += any('attend' in name for _,name in frames) or 'attention' in frames[0]
        return out


def count_copies(devices, size, make):
    "Count the copies from the host in a forward pass of a model"
    model,clip,count = make().train(),torch.randn(2, 4, 3, size, size),CountCopies()
    for count.device in devices:
        model,clip = model.to(count.device),clip.to(count.device)
        with count: model(clip)
    places = ', '.join(f'{k} {n}' for k,n in count.places.items())
    return {'copies': count.places.total(), 'in attention': count.in_attention, 'where': places}


def host_to_device_copies(run):
    "Count the copies from the host in a forward pass, which make the CPU wait"
    devices = [run.device]
    if not run.has_cuda: devices.append(torch.device('meta')) # for copies of tensors from the CPU
    size = 32 if run.tiny else 64
    yield from run.rows(model_families(run, size), partial(count_copies, devices, size))


# Compilation

def compile_model(run, size, make):
    "Compare the training steps of a model before and after `torch.compile`"
    clip,labels = random_batch(run, 2 if run.tiny else 16, 4, size)
    model = make()
    before,_ = time_steps(run, Step(run, model, run.half), clip, labels)
    torch._dynamo.reset()
    counters.clear()
    step = Step(run, torch.compile(model, backend='eager' if run.tiny else 'inductor'), run.half)
    _,seconds = run.seconds_of(step, clip, labels)
    after,_ = time_steps(run, step, clip, labels)
    breaks = counters['graph_break']
    reasons = dict.fromkeys(o.splitlines()[0] for o in breaks)
    return {'ms before': f'{before:.2f}', 'ms after': f'{after:.2f}', 'compile seconds': f'{seconds:.0f}',
            'graphs': counters['stats']['unique_graphs'], 'graph breaks': sum(breaks.values()),
            'reasons': '; '.join(reasons)}


def compiled_models(run):
    "Compile each model, and compare its training steps in half precision"
    size,needs = (32,0) if run.tiny else (64,60) # seconds
    yield from run.rows(model_families(run, size), partial(compile_model, run, size), needs)


# Embedding

def embed_clips(run, arch):
    "Embed clips with a frozen encoder of random weights and an empty cache"
    settings = dict(size=32, n_frames=4, n_workers=0) if run.tiny else {}
    def run_embed(clips, name): return embed(clips, arch, pretrained=False, cache=run.folder/name, **settings)
    name = f'features-{getattr(arch, "__name__", arch)}'
    run_embed(run.clips[:6], f'{name}-first') # starts the GPU
    start = time.perf_counter()
    features = run_embed(run.clips, name)
    seconds = time.perf_counter()-start
    shape = ', '.join(map(str, features[0].shape))
    return {'clips a second': f'{len(run.clips)/seconds:.1f}', 'peak MiB': run.peak_memory(),
            'features of a clip': shape}


def embedding(run):
    "Embed clips of 320x240 pixels and 6 seconds with a frozen encoder, read by workers on all cores"
    archs = [small_cnn] if run.tiny else ['efficientnet_lite0', resnet34]
    yield from run.rows({getattr(o, '__name__', o): o for o in archs}, partial(embed_clips, run))
