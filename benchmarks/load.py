"""Compare loading of batches by vidseq and the tutorials' code, from full-size jpgs, small jpgs, and videos.

All candidates run on one core, in interleaved rounds, with all files in the page cache.
"""
import tempfile
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from harness import (
    add_folder_argument,
    create_parser,
    fast_folder,
    load_module,
    machine,
    measure,
    one_core,
    report,
    table,
)

one_core() # before any library counts the cores

import torch
from fastai.vision.all import (
    Categorize,
    CategoryBlock,
    DataBlock,
    Datasets,
    IntToFloatTensor,
    Normalize,
    PILImage,
    RandomSplitter,
    Resize,
    ToTensor,
    TransformBlock,
    imagenet_stats,
    parent_label,
)

from vidseq.data.block import VideoDataLoaders
from vidseq.data.loader import get_clips
from vidseq.data.samplers import spread_frames
from vidseq.datasets.shapes import moving_shapes
from vidseq.video.decode import get_videos
from vidseq.video.extract import extract_videos

batching = dict(bs=8, num_workers=0)
settings = dict(seq_len=16, **batching)


def load_batches(dl, n_clips):
    "Create a candidate that loads batches of `dl`, `n_clips` in total"
    n_batches = n_clips//dl.bs
    def _inner():
        for _ in islice((b for _ in cycle([0]) for b in dl), n_batches): pass
        return n_batches*dl.bs
    return _inner


def all_for_training(items): return range(len(items)),[0]


def cached_in_memory(dls):
    "Create `DataLoaders` with the decoded clips of `dls` in memory: only transforms and collation remain"
    clips = {o: clip for o,clip in zip(dls.train_ds.items, dls.train_ds.tls[0])}
    block = TransformBlock(clips.get, batch_tfms=IntToFloatTensor)
    dblock = DataBlock((block, CategoryBlock), get_y=parent_label, splitter=all_for_training,
                       item_tfms=Resize(dls.train.after_item[0].size),
                       batch_tfms=Normalize.from_stats(*imagenet_stats))
    return dblock.dataloaders(list(clips), **batching)


def from_videos_with_tutorial(tutorial, videos, px):
    "Create `DataLoaders` of 16 spread frames of each video, decoded with the tutorials' code"
    def load_clip(v):
        frames = list(tutorial.extract_frames(v))
        return tutorial.ImageTuple(PILImage(frames[i]) for i in spread_frames(len(frames), 16))
    ds = Datasets(videos, tfms=[[load_clip], [parent_label, Categorize]], splits=all_for_training(videos))
    return ds.dataloaders(after_item=[Resize(px), ToTensor],
                          after_batch=[IntToFloatTensor, Normalize.from_stats(*imagenet_stats)], **batching)


def decode_with_tutorial(tutorial, videos):
    "Create a candidate that decodes all frames of `videos` with the tutorials' code"
    def _inner():
        for v in videos:
            for _ in tutorial.extract_frames(v): pass
        return len(videos)
    return _inner


def copy_batch(batch):
    "Copy a batch, because `Normalize` changes it in place"
    return tuple(type(o)(f.clone() for f in o) if isinstance(o, tuple) else o for o in batch)


def stage_times(dls):
    "Return the ms per clip of each stage of loading, as text"
    dl,idxs = dls.train,range(dls.train.n//8*8)
    def read(idxs): return [dl.dataset[i] for i in idxs]
    clips = read(idxs[:8])
    samples = [dl.after_item(o) for o in clips]
    batch = dl.do_batch(samples)
    stages = {'read and decode': lambda: len(read(idxs)),
              'Resize, ToTensor': lambda: len([dl.after_item(o) for o in clips]),
              'collate': lambda: len(dl.do_batch(samples)[1]),
              'IntToFloatTensor, Normalize': lambda: len(dl.after_batch(copy_batch(batch))[1])}
    dl.before_iter()
    times = measure(stages, 3)
    return ', '.join(f'{name} {1000*median(cpu for cpu,_ in ts):.1f}' for name,ts in times.items())


def create_loaders(px, run):
    "Return the `DataLoaders` of vidseq to compare, by name, for frames of `px` pixels"
    small = run.tmp/f'{px}'
    if not small.exists(): extract_videos(run.videos, small, root=run.folder, size=px, n_workers=0)
    def ours(path):
        return VideoDataLoaders.from_folder(path, image_size=px, splitter=RandomSplitter(seed=0), **settings)
    return {'vidseq, the same jpgs': ours(run.tmp/'full'), f'vidseq, jpgs of {px} px': ours(small),
            'vidseq, from the videos': ours(run.folder)}


def compare(px, run):
    "Compare the loading of clips of `px` pixels"
    loaders,tutorial = create_loaders(px, run),run.tutorial
    if tutorial:
        files = get_clips(run.tmp/'full')
        theirs = tutorial.get_action_dataloaders(files, image_size=px, **settings)
        loaders = {"the tutorials', full-size jpgs": theirs} | loaders
    loaders['vidseq, decoded clips in memory'] = cached_in_memory(loaders[f'vidseq, jpgs of {px} px'])
    videos = loaders['vidseq, from the videos'].train_ds.items
    if tutorial:
        theirs = from_videos_with_tutorial(tutorial, videos, px)
        loaders["the tutorials' extract_frames, 16 frames into batches"] = theirs
    candidates = {name: load_batches(dls.train, run.n_clips) for name,dls in loaders.items()}
    if tutorial: candidates["the tutorials' extract_frames alone"] = decode_with_tutorial(tutorial, videos)
    times = measure(candidates, run.rounds)
    in_stages = (f'vidseq, jpgs of {px} px', 'vidseq, the same jpgs')
    stages = '; '.join(f'{name}: {stage_times(loaders[name])}' for name in in_stages)
    return f'**{px} px.**\n\n{table(times, "clip")}\n\nms per clip in each step: {stages}.'


if __name__ == '__main__':
    p = create_parser(__doc__, 'get_action_dataloaders and extract_frames')
    add_folder_argument(p)
    p.add_argument('--clips', type=int, default=72, help='clips in each round (default: 72)')
    args = p.parse_args()
    torch.set_num_threads(1)
    folder = args.dir or moving_shapes()
    run = SimpleNamespace(folder=folder, videos=get_videos(folder), rounds=args.rounds, n_clips=args.clips,
                          tutorial=args.baseline and load_module(args.baseline))
    with tempfile.TemporaryDirectory(dir=fast_folder()) as tmp:
        run.tmp = Path(tmp)
        extract_videos(run.videos, run.tmp/'full', root=folder, n_workers=0)
        tables = [compare(px, run) for px in (64, 112)]
    report('load', [machine('torch', 'fastai', 'av', 'pillow'), *tables], args.save)
