"""Training steps: each model's forward and backward pass and step of the optimizer, against the tutorials' models, and against itself with what PyTorch offers to go faster.

One core for all, in one run, the rounds interleaved, on random clips.
"""
import argparse
from functools import partial
from pathlib import Path

from harness import load_module, machine, measure, one_core, report, table

one_core() # before anything counts the cores

import torch
from fastai.vision.all import CrossEntropyLossFlat, TensorImage, resnet34
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18, s3d

from vidseq.all import AttentionPool, Conv3dModel, ConvLSTMModel, ImageTuple, RNNModel, SimpleModel, TimeSformer, VideoModel


def step(model, clip, labels, context=None):
    "A candidate: training steps of `model` on one batch"
    opt,loss_func = torch.optim.SGD(model.parameters(), lr=1e-4),CrossEntropyLossFlat()
    def _inner(n=2):
        model.train()
        for _ in range(n):
            with torch.autocast('cpu', torch.bfloat16, enabled=context == 'bf16'): loss = loss_func(model(clip), labels)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return n*len(labels)
    return _inner


def faster(name, make, clip, labels):
    "The ways of PyTorch to go faster, for one model"
    ways = {name: step(make(), clip, labels), f'{name}, channels_last': step(make().to(memory_format=torch.channels_last), clip, labels),
            f'{name}, bfloat16 autocast': step(make(), clip, labels, 'bf16'), f'{name}, channels_last and bfloat16': step(make().to(memory_format=torch.channels_last), clip, labels, 'bf16'),
            f'{name}, torch.compile': step(torch.compile(make()), clip, labels), f'{name}, checkpoint=True': step(make(checkpoint=True), clip, labels)}
    return ways


def against_tutorials(tutorial, kind, clip, labels, rounds):
    ours = dict(SimpleModel=SimpleModel, RNNModel=RNNModel)[kind](resnet34, 101, pretrained=False)
    return table(measure({f"the tutorials' {kind}": step(getattr(tutorial, kind)(resnet34, 101), clip, labels), f'vidseq {kind}': step(ours, clip, labels)}, rounds), 'clip')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--baseline', type=Path, help="a Python file with the tutorials' own SimpleModel and RNNModel")
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--bs', type=int, default=4)
    p.add_argument('--frames', type=int, default=8)
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--save', action='store_true', help='put the tables into README.md')
    args = p.parse_args()
    torch.set_num_threads(1)
    clip = ImageTuple(TensorImage(torch.randn(args.bs, 3, args.size, args.size)) for _ in range(args.frames))
    labels = torch.arange(args.bs)
    tables = [machine('torch', 'torchvision', 'fastai'), f'{args.bs} clips of {args.frames} frames of {args.size} px, resnet34 where there is an image encoder.']
    if args.baseline:
        tutorial = load_module(args.baseline)
        tables += [against_tutorials(tutorial, kind, clip, labels, args.rounds) for kind in ('SimpleModel', 'RNNModel')]
    kw = dict(n_out=101, pretrained=False)
    models = {'SimpleModel': SimpleModel(resnet34, **kw), 'SimpleModel, AttentionPool': SimpleModel(resnet34, pool=AttentionPool, **kw), 'RNNModel': RNNModel(resnet34, **kw),
              'ConvLSTMModel': ConvLSTMModel(resnet34, **kw), 'Conv3dModel': Conv3dModel(101), 'TimeSformer': TimeSformer(101, image_size=args.size, num_frames=args.frames),
              **{f'VideoModel, {arch.__name__}': VideoModel(arch, **kw) for arch in (r3d_18, mc3_18, r2plus1d_18, s3d)}}
    tables.append(table(measure({name: step(m, clip, labels) for name,m in models.items()}, args.rounds), 'clip'))
    tables += [table(measure(faster(name, make, clip, labels), args.rounds), 'clip') for name,make in
               (('SimpleModel', partial(SimpleModel, resnet34, **kw)), ('RNNModel', partial(RNNModel, resnet34, **kw)))]
    report('models', tables, args.save)
