"""TimeSformer's training step and inference against the package's own attention, time and peak memory: at the tutorials' sizes, and at ViT-B/16's with 8 frames of 224 pixels.

One core (or `--device cuda`), in one run, the rounds interleaved, on random clips. Peak memory is that of a process of its own for each candidate, one training step; on CUDA what torch allocated.
"""
import argparse
import subprocess
import sys
from functools import partial

from harness import machine, measure, one_core, report, table

one_core() # before anything counts the cores

import timesformer_pytorch
import torch
import torch.nn.functional as F

from vidseq.timesformer import TimeSformer

try: import resource
except ImportError: resource = None # Windows: peak memory is not measured

sizes = {"the tutorials' sizes": (4, dict(dim=128, image_size=128, patch_size=16, num_frames=5, depth=12, heads=8, dim_head=64, attn_dropout=.1, ff_dropout=.1, num_classes=101)),
         'B/16, 8 frames of 224 px': (1, dict(dim=768, image_size=224, patch_size=16, num_frames=8, depth=12, heads=12, dim_head=64, num_classes=400))}
candidates = {'package': (timesformer_pytorch.TimeSformer, None), 'vidseq': (TimeSformer, None), 'vidseq, checkpoint=True': (partial(TimeSformer, checkpoint=True), None),
              'package, half precision': (timesformer_pytorch.TimeSformer, True), 'vidseq, half precision': (TimeSformer, True)} # bfloat16 on a CPU, float16 on CUDA
reference = 'package'


def steps(size, name, device, train, n=1):
    "Training steps, or inference, of a candidate at a size"
    bs,kw = sizes[size]
    make,half = candidates[name]
    torch.manual_seed(0)
    model = make(**(dict(attn_dropout=0., ff_dropout=0.) | kw)).to(device).train(train)
    opt,clip,labels = torch.optim.SGD(model.parameters(), lr=1e-4),torch.randn(bs, kw['num_frames'], 3, kw['image_size'], kw['image_size'], device=device),torch.arange(bs, device=device)
    scaler = torch.amp.GradScaler(device, enabled=bool(half) and device == 'cuda')
    def _inner():
        for _ in range(n):
            with torch.set_grad_enabled(train), torch.autocast(device, torch.float16 if device == 'cuda' else torch.bfloat16, enabled=bool(half)): logits = model(clip)
            if train:
                scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
        if device == 'cuda': torch.cuda.synchronize()
        return n*bs
    return _inner


def peak(size, name, device):
    "MiB at most, of one training step"
    f = steps(size, name, device, train=True)
    f()
    return torch.cuda.max_memory_allocated()/2**20 if device == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)


def peaks(size, device):
    "{candidate: peak memory and its ratio to the package's}, without what Python and its libraries take"
    def measured(name): return float(subprocess.run([sys.executable, '-W', 'ignore', __file__, '--device', device, '--peak', size, name], check=True, capture_output=True, text=True).stdout)
    if device != 'cuda' and resource is None: return {}
    empty = 0 if device == 'cuda' else measured('')
    found = {name: measured(name)-empty for name in candidates}
    return {name: f'{mb:.0f} MiB, {mb/found[reference]:.2f}' for name,mb in found.items()}


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--device', default='cpu')
    p.add_argument('--peak', nargs=2, metavar=('SIZE', 'CANDIDATE'), help='print the peak memory of one candidate')
    p.add_argument('--save', action='store_true', help='put the tables into README.md')
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        size,name = args.peak
        print(peak(size, name, args.device) if name else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10))
        sys.exit()
    memories = {size: peaks(size, args.device) for size in sizes} # first: what a process starts with counts as its own, and this one grows
    tables = [machine('torch', 'timesformer-pytorch')]
    for size,(bs,_) in sizes.items():
        tables.append(f'**{size}.** Training steps, {bs} clips.')
        tables.append(table(measure({name: steps(size, name, args.device, train=True) for name in candidates}, args.rounds), 'clip', extra={'peak memory, of the package\'s': memories[size]}))
        tables.append('Inference.')
        tables.append(table(measure({name: steps(size, name, args.device, train=False) for name in candidates if 'checkpoint' not in name}, args.rounds), 'clip'))
    report('timesformer', tables, args.save)
