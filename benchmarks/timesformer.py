"""Compare time and peak memory of vidseq's TimeSformer and the package timesformer-pytorch.

It measures training and inference at the tutorials' sizes and at those of ViT-B/16 (8 frames of 224 pixels).
All candidates run on one core (or with `--device cuda`), in interleaved rounds, on random clips. Peak memory
is that of one training step in a new process, or on CUDA the memory that torch allocated.
"""
import subprocess
import sys
from functools import partial

from harness import create_parser, machine, measure, one_core, report, table

one_core() # before any library counts the cores

import timesformer_pytorch
import torch
import torch.nn.functional as F

from vidseq.models.timesformer import TimeSformer

try: import resource
except ImportError: resource = None # Windows: peak memory is not measured

both = dict(patch_size=16, depth=12, dim_head=64)
dropout = dict(attn_dropout=.1, ff_dropout=.1)
tutorial_size = dict(dim=128, image_size=128, num_frames=5, heads=8, num_classes=101, **dropout)
b16_size = dict(dim=768, image_size=224, num_frames=8, heads=12, num_classes=400)
# name -> (batch size, model arguments)
sizes = {"the tutorials' sizes": (4, both | tutorial_size), 'B/16, 8 frames of 224 px': (1, both | b16_size)}
# name -> (model, half precision: bfloat16 on a CPU, float16 on CUDA)
candidates = {'package': (timesformer_pytorch.TimeSformer, False),
              'vidseq': (TimeSformer, False),
              'vidseq, checkpoint=True': (partial(TimeSformer, checkpoint=True), False),
              'package, half precision': (timesformer_pytorch.TimeSformer, True),
              'vidseq, half precision': (TimeSformer, True)}
reference = 'package'


def create_model(name, kwargs, device):
    "Create the model of a candidate, with the same random weights each time"
    torch.manual_seed(0)
    return candidates[name][0](**(dict(attn_dropout=0., ff_dropout=0.) | kwargs)).to(device)


def random_batch(bs, kwargs, device):
    "Return random clips and their labels"
    size = kwargs['image_size']
    clips = torch.randn(bs, kwargs['num_frames'], 3, size, size, device=device) # B,T,C,H,W
    return clips,torch.arange(bs, device=device)


def create_steps(size, name, device, train):
    "Create a function that runs one step of training or inference of a candidate at a size"
    bs,kwargs = sizes[size]
    half = candidates[name][1]
    model = create_model(name, kwargs, device).train(train)
    clips,labels = random_batch(bs, kwargs, device)
    opt = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device, enabled=half and device == 'cuda')
    autocast = torch.autocast(device, torch.float16 if device == 'cuda' else torch.bfloat16, enabled=half)
    def _inner():
        with torch.set_grad_enabled(train), autocast: logits = model(clips)
        if train:
            scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        if device == 'cuda': torch.cuda.synchronize()
        return bs
    return _inner


def process_memory():
    "Return the peak memory of this process in MiB"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)


def peak_memory(size, name, device):
    "Return the peak memory in MiB after one training step, or without it if `name` is empty"
    if name: create_steps(size, name, device, train=True)()
    return torch.cuda.max_memory_allocated()/2**20 if device == 'cuda' else process_memory()


def peak_in_process(size, name, device):
    "Return `peak_memory` of a new process"
    command = [sys.executable, '-W', 'ignore', __file__, '--device', device, '--peak', size, name]
    return float(subprocess.check_output(command, text=True))


def peak_column(size, device):
    "Return the peak memory of each candidate, without that of the libraries, and its ratio to the package's"
    if device != 'cuda' and resource is None: return {}
    libraries = 0 if device == 'cuda' else peak_in_process(size, '', device)
    peaks = {name: peak_in_process(size, name, device)-libraries for name in candidates}
    return {name: f'{mb:.0f} MiB, {mb/peaks[reference]:.2f}' for name,mb in peaks.items()}


def compare(size, device, rounds, peaks):
    "Yield titles and tables of training and inference at a size"
    def steps(names, train): return {o: create_steps(size, o, device, train) for o in names}
    yield f'**{size}.** Training steps, {sizes[size][0]} clips.'
    times = measure(steps(candidates, True), rounds)
    yield table(times, 'clip', extra={"peak memory, of the package's": peaks})
    yield 'Inference.'
    yield table(measure(steps([o for o in candidates if 'checkpoint' not in o], False), rounds), 'clip')


if __name__ == '__main__':
    p = create_parser(__doc__)
    p.add_argument('--device', default='cpu', help='cpu or cuda (default: cpu)')
    p.add_argument('--peak', nargs=2, metavar=('SIZE', 'CANDIDATE'), help='print peak memory only')
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak_memory(*args.peak, args.device))
        sys.exit()
    # measured first: a new process inherits the peak of this one
    peaks = {size: peak_column(size, args.device) for size in sizes}
    tables = [o for size in sizes for o in compare(size, args.device, args.rounds, peaks[size])]
    report('timesformer', [machine('torch', 'timesformer-pytorch'), *tables], args.save)
