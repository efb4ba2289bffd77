"""Compare the training steps of all models, of the tutorials' models, and of PyTorch's options for speed.

A step is a forward pass, a backward pass and an SGD update on random clips. All candidates run on one core,
in interleaved rounds.
"""
from functools import partial

from harness import create_parser, load_module, machine, measure, one_core, report, table

one_core() # before any library counts the cores

import torch
from fastai.vision.all import CrossEntropyLossFlat, TensorImage, resnet34
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18, s3d

from vidseq.data.clip import ImageTuple
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import AttentionPool
from vidseq.models.timesformer import TimeSformer

n_classes = 101
settings = dict(n_out=n_classes, pretrained=False)


def train_steps(model, clip, labels, bf16=False):
    "Create a candidate that trains `model` for 2 steps on one batch"
    opt,loss_func = torch.optim.SGD(model.parameters(), lr=1e-4),CrossEntropyLossFlat()
    def _inner(n=2):
        model.train()
        for _ in range(n):
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16): loss = loss_func(model(clip), labels)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return n*len(labels)
    return _inner


def speed_options(name, make, clip, labels):
    "Return candidates for one model: PyTorch's options for speed, and gradient checkpointing"
    def channels_last(): return make().to(memory_format=torch.channels_last)
    def step(model, **kwargs): return train_steps(model, clip, labels, **kwargs)
    return {name: step(make()),
            f'{name}, channels_last': step(channels_last()),
            f'{name}, bfloat16 autocast': step(make(), bf16=True),
            f'{name}, channels_last and bfloat16': step(channels_last(), bf16=True),
            f'{name}, torch.compile': step(torch.compile(make())),
            f'{name}, checkpoint=True': step(make(checkpoint=True))}


def tutorial_models(tutorial, name, clip, labels):
    "Return candidates: the tutorials' model `name` and vidseq's"
    ours = dict(SimpleModel=SimpleModel, RNNModel=RNNModel)[name](resnet34, n_classes, pretrained=False)
    theirs = getattr(tutorial, name)(resnet34, n_classes)
    return {f"the tutorials' {name}": train_steps(theirs, clip, labels),
            f'vidseq {name}': train_steps(ours, clip, labels)}


def all_models(n_frames, size):
    "Create all models of the library, by name"
    models = {'SimpleModel': SimpleModel(resnet34, **settings),
              'SimpleModel, AttentionPool': SimpleModel(resnet34, pool=AttentionPool, **settings),
              'RNNModel': RNNModel(resnet34, **settings),
              'ConvLSTMModel': ConvLSTMModel(resnet34, **settings),
              'Conv3dModel': Conv3dModel(n_classes),
              'TimeSformer': TimeSformer(n_classes, image_size=size, num_frames=n_frames)}
    for arch in (r3d_18, mc3_18, r2plus1d_18, s3d):
        models[f'VideoModel, {arch.__name__}'] = VideoModel(arch, **settings)
    return models


def candidate_groups(args, clip, labels):
    "Yield the candidates of each table"
    if args.baseline:
        tutorial = load_module(args.baseline)
        for name in ('SimpleModel', 'RNNModel'): yield tutorial_models(tutorial, name, clip, labels)
    yield {name: train_steps(m, clip, labels) for name,m in all_models(args.frames, args.size).items()}
    for model in (SimpleModel, RNNModel):
        yield speed_options(model.__name__, partial(model, resnet34, **settings), clip, labels)


if __name__ == '__main__':
    p = create_parser(__doc__, 'SimpleModel and RNNModel')
    p.add_argument('--bs', type=int, default=4, help='clips in a batch (default: 4)')
    p.add_argument('--frames', type=int, default=8, help='frames of each clip (default: 8)')
    p.add_argument('--size', type=int, default=64, help='height and width of frames, in pixels (default: 64)')
    args = p.parse_args()
    torch.set_num_threads(1)
    frame_shape = (args.bs, 3, args.size, args.size)
    clip = ImageTuple(TensorImage(torch.randn(frame_shape)) for _ in range(args.frames))
    labels = torch.arange(args.bs)
    tables = [table(measure(o, args.rounds), 'clip') for o in candidate_groups(args, clip, labels)]
    batch = f'{args.bs} clips of {args.frames} frames of {args.size} px'
    encoder = 'resnet34 where there is an image encoder'
    report('models', [machine('torch', 'torchvision', 'fastai'), f'{batch}, {encoder}.', *tables], args.save)
