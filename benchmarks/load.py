"""Clips into batches: vidseq against the tutorials' code, from full-size jpgs, from jpgs at the size of their use, and straight from the videos.

One core for all, in one run, the rounds interleaved, everything in the page cache.
"""
import os
import tempfile
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from harness import arguments, load_module, machine, measure, one_core, report, table

one_core() # before anything counts the cores

import torch
from fastai.vision.all import (Categorize, CategoryBlock, DataBlock, Datasets, IntToFloatTensor, Normalize, PILImage, RandomSplitter, Resize, ToTensor, TransformBlock, imagenet_stats,
                               parent_label)

from vidseq.all import VideoDataLoaders, extract_videos, get_clips, get_videos, moving_shapes, spread_frames

settings = dict(bs=8, seq_len=16, num_workers=0)


def batches(dl, n_clips):
    "A candidate: batches of `dl`, `n_clips` in all"
    def _inner():
        for _ in islice((b for _ in cycle([0]) for b in dl), n_clips//dl.bs): pass
        return n_clips//dl.bs*dl.bs
    return _inner


def in_memory(dls):
    "The clips of `dls`, decoded once: what a cache would leave to do"
    known = {o: clip for o,clip in zip(dls.train_ds.items, dls.train_ds.tls[0])}
    dblock = DataBlock((TransformBlock(lambda o: known[o], batch_tfms=IntToFloatTensor), CategoryBlock), get_y=parent_label, splitter=lambda items: (range(len(items)), [0]),
                       item_tfms=Resize(dls.train.after_item[0].size), batch_tfms=Normalize.from_stats(*imagenet_stats))
    return dblock.dataloaders(list(known), bs=8, num_workers=0)


def tutorial_videos(tutorial, videos, px):
    "Clips of 16 spread frames as the tutorials' code would get them straight from the videos, with their transforms"
    def clip(v):
        frames = list(tutorial.extract_frames(v))
        return tutorial.ImageTuple(PILImage(frames[i]) for i in spread_frames(len(frames), 16))
    ds = Datasets(videos, tfms=[[clip], [parent_label, Categorize]], splits=(range(len(videos)), [0]))
    return ds.dataloaders(bs=8, num_workers=0, after_item=[Resize(px), ToTensor], after_batch=[IntToFloatTensor, Normalize.from_stats(*imagenet_stats)])


def stages(dls, px):
    "What is left of the time: ms per clip in each step of a batch"
    dl,items = dls.train,range(dls.train.n//8*8)
    def samples(idxs): return [dl.dataset[i] for i in idxs]
    clips = samples(items[:8])
    done = [dl.after_item(o) for o in clips]
    batch = dl.do_batch(done)
    steps = {'read and decode': lambda: len(samples(items)), 'Resize, ToTensor': lambda: len([dl.after_item(o) for o in clips]), 'collate': lambda: len(dl.do_batch(done)[1]),
             'IntToFloatTensor, Normalize': lambda: len(dl.after_batch(tuple(type(o)(f.clone() for f in o) if isinstance(o, tuple) else o for o in batch))[1])}
    dl.before_iter()
    times = measure(steps, 3)
    return ', '.join(f'{name} {1000*median(c for c,_ in ts):.1f}' for name,ts in times.items())


def compare(px, videos, folder, where, tutorial, rounds, n_clips):
    at_size = where/f'{px}'
    if not at_size.exists(): extract_videos(videos, at_size, root=folder, size=px, n_workers=0)
    def ours(path): return VideoDataLoaders.from_folder(path, image_size=px, splitter=RandomSplitter(seed=0), **settings)
    loaders = {'vidseq, the same jpgs': ours(where/'full'), f'vidseq, jpgs of {px} px': ours(at_size), 'vidseq, from the videos': ours(folder)}
    if tutorial: loaders = {'the tutorials\', full-size jpgs': tutorial.get_action_dataloaders(get_clips(where/'full'), image_size=px, **settings)} | loaders
    loaders['vidseq, decoded clips in memory'] = in_memory(loaders[f'vidseq, jpgs of {px} px'])
    same = loaders['vidseq, from the videos'].train_ds.items
    if tutorial: loaders['the tutorials\' extract_frames, 16 frames into batches'] = tutorial_videos(tutorial, same, px)
    ways = {name: batches(dls.train, n_clips) for name,dls in loaders.items()}
    def decode_all():
        for v in same:
            for _ in tutorial.extract_frames(v): pass
        return len(same)
    if tutorial: ways['the tutorials\' extract_frames alone'] = decode_all
    times = measure(ways, rounds)
    left = '; '.join(f'{name}: {stages(loaders[name], px)}' for name in (f'vidseq, jpgs of {px} px', 'vidseq, the same jpgs'))
    return f'**{px} px.**\n\n{table(times, "clip")}\n\nms per clip in each step: {left}.'


if __name__ == '__main__':
    p = arguments(__doc__, 'get_action_dataloaders and extract_frames')
    p.add_argument('--clips', type=int, default=72, help='clips in a round')
    args = p.parse_args()
    torch.set_num_threads(1)
    folder = args.dir or moving_shapes()
    videos = get_videos(folder)
    tutorial = args.baseline and load_module(args.baseline)
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as tmp:
        extract_videos(videos, Path(tmp)/'full', root=folder, n_workers=0)
        tables = [machine('torch', 'fastai', 'av', 'pillow'), *(compare(px, videos, folder, Path(tmp), tutorial, args.rounds, args.clips) for px in (64, 112))]
    report('load', tables, args.save)
