"The check of gpu.py that measures how fast clips are loaded, and whether loading keeps up with a model."
import time
from contextlib import closing
from functools import partial
from itertools import islice

import torch
from fastai.vision.all import defaults, parent_label, resnet34
from gpu_setup import n_classes
from gpu_speed import Step, random_batch, time_steps

from vidseq.data.block import VideoDataLoaders
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import SimpleModel
from vidseq.video.frame_memmap import FrameMemmap


def all_for_training(items): return list(range(len(items))),[]


def batch_size(run):
    "Return the number of clips, of frames and of pixels"
    return (4,4,32) if run.tiny else (32,16,112)


def clip_loaders(run, n_workers, **kwargs):
    "Create `DataLoaders` that load the clips many times in an epoch"
    bs,seq_len,size = batch_size(run)
    clips = run.clips*(3 if run.tiny else 50)
    return VideoDataLoaders.from_path_func(
        run.folder, clips, parent_label, splitter=all_for_training, bs=bs, seq_len=seq_len, image_size=size,
        num_workers=n_workers, device=run.device, **kwargs)


def memmap_loaders(run, n_workers):
    "Create loaders that read decoded frames from one memory-mapped file"
    size = batch_size(run)[2]
    return clip_loaders(run, n_workers, cache=FrameMemmap.fill(run.folder/'memmap', run.clips, size))


def clips_a_second(run, dl, n_workers, use=lambda clip,labels: None):
    "Load batches for a few seconds, without those that the workers load in advance, and call `use` on each"
    n,seconds = 0,.2 if run.tiny else 3.
    with closing(iter(dl)) as batches:
        for b in islice(batches, 2*n_workers+1): use(*b)
        run.synchronize()
        start = time.perf_counter()
        for clip,labels in batches:
            use(clip, labels)
            n += len(labels)
            if time.perf_counter() > start+seconds: break
        run.synchronize()
    return n/(time.perf_counter()-start)


def loader_sources(run):
    "Return functions that create loaders from each source, by name"
    jpgs = partial(clip_loaders, run, cache=run.folder/'jpgs')
    return {'videos': partial(clip_loaders, run), 'jpgs': jpgs, 'memory-mapped': partial(memmap_loaders, run),
            'jpgs, pinned': partial(jpgs, pin_memory=True)}


def measure_model(run, step, batch):
    "Train on one batch again and again"
    ms,_ = time_steps(run, step, *batch)
    return {'model alone, clips a second': f'{1000*len(batch[1])/ms:.1f}'}


def measure_loader(run, step, case):
    "Load clips alone, and load them while a model trains"
    create,n_workers = case
    dl = create(n_workers).train
    alone = clips_a_second(run, dl, n_workers)
    both = clips_a_second(run, dl, n_workers, step)
    clip,_ = dl.one_batch()
    return {'loader, clips a second': f'{alone:.1f}', 'with training': f'{both:.1f}',
            'batch': f'{type(clip).__name__} of {clip[0].dtype}'}


def copy_cases(run):
    "Return the tensors of a batch as they can be copied to the device, by name"
    bs,seq_len,size = batch_size(run)
    frames = [torch.zeros(bs, 3, size, size, dtype=torch.uint8) for _ in range(seq_len)]
    cases = {f'{seq_len} tensors': frames, 'one tensor': [torch.stack(frames, dim=1)]}
    pinned = {f'{k}, pinned': [t.pin_memory() for t in o] for k,o in cases.items()} if run.has_cuda else {}
    return {f'copy of a batch, {k}': o for k,o in (cases | pinned).items()}


def measure_copy(run, tensors):
    "Copy the tensors of a batch to the device 20 times"
    def copy():
        for _ in range(20):
            for o in tensors: o.to(run.device, non_blocking=True)
    copy()
    return {'ms': f'{1000*run.seconds_of(copy)[1]/20:.3f}'}


def loading(run):
    "Load batches of 32 clips of 16 frames of 112 px from videos of 6 seconds, and train on them"
    model = SimpleModel(small_cnn if run.tiny else resnet34, n_classes, pretrained=False)
    step = Step(run, model, run.half)
    yield from run.rows({'model': random_batch(run, *batch_size(run))}, partial(measure_model, run, step))
    workers = [0] if run.tiny else [o for o in (4,8,16) if o <= defaults.cpus] or [defaults.cpus]
    sources = loader_sources(run)
    cases = {f'{name}, {n} workers': (create,n) for name,create in sources.items()
             for n in (workers[-1:] if 'pinned' in name else workers)}
    yield from run.rows(cases, partial(measure_loader, run, step))
    yield from run.rows(copy_cases(run), partial(measure_copy, run))
