"""Loading: the same bytes with any number of workers and from any cache, and no growth over many epochs."""
import os
import random
import subprocess
import sys
from functools import partial
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from fastai.vision.all import FlipItem, Resize, set_seed

from vidseq.data.augment import aug_clips
from vidseq.data.batch import ClipBatch
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import first_frames, follow_frames, spread_frames, window_frames
from vidseq.data.workers import pack_batch
from vidseq.datasets.shapes import moving_shapes
from vidseq.video.decode import get_videos
from vidseq.video.frame_memmap import FrameMemmap


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('loader')
    return moving_shapes(folder/'shapes', n_groups=2, n_clips=2, seconds=.8, size=(48,36), n_workers=0)


@pytest.fixture(scope='module')
def memmap(videos, tmp_path_factory):
    return FrameMemmap.fill(tmp_path_factory.mktemp('memmap'), get_videos(videos), 24, n_workers=0)


def load(videos, **kwargs):
    options = dict(seq_len=4, image_size=24, bs=4, num_workers=0, seed=0, sampler=window_frames) | kwargs
    return VideoDataLoaders.from_folder(videos, **options)


def tensors(dl):
    "Return the clips of an epoch B,T,C,H,W and the labels"
    batches = [(torch.stack([o.as_subclass(torch.Tensor) for o in x], 1), y) for x,y in dl]
    return torch.cat([x for x,_ in batches]), torch.cat([y.as_subclass(torch.Tensor) for _,y in batches])


def assert_equal(a, b):
    for o,p in zip(a, b): assert torch.equal(o, p)


@pytest.mark.parametrize('kwargs', [{}, dict(persistent_workers=True), dict(prefetch=4)])
def test_validation_is_the_same_with_workers(videos, kwargs):
    alone,with_workers = load(videos).valid, load(videos, num_workers=2, **kwargs).valid
    for _ in range(2): assert_equal(tensors(alone), tensors(with_workers))


@pytest.mark.parametrize('persistent', [False, True])
def test_training_does_not_depend_on_the_number_of_workers(videos, persistent):
    epochs = []
    for n in (1, 3):
        set_seed(0)
        dl = load(videos, num_workers=n, persistent_workers=persistent).train
        set_seed(1)
        dl.rng = random.Random(2)
        epochs.append([tensors(dl) for _ in range(3)])
    for a,b in zip(*epochs): assert_equal(a, b)
    first,second,_ = epochs[0]
    assert not torch.equal(first[0], second[0])


def test_draws_differ_between_epochs(videos):
    "Without shuffling, the same clip gets another window in each epoch, also from persistent workers"
    dl = load(videos, num_workers=2, persistent_workers=True).train.new(shuffle=False)
    dl.dataset.tls[0].tfms.fs[-1].train = True
    first,second = tensors(dl),tensors(dl)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])


def test_workers_stay(videos):
    dl = load(videos, num_workers=2, persistent_workers=True).train
    def process_ids(): return {o.pid for o in dl._pool.loader._iterator._workers}
    tensors(dl)
    first = process_ids()
    tensors(dl)
    assert process_ids() == first
    for _ in dl: break # an epoch that is left early
    assert len(tensors(dl)[0]) == 4*len(dl)
    assert process_ids() == first
    assert dl.new()._pool is None


def test_options_reach_the_loader(videos):
    dls = load(videos, num_workers=20, prefetch=3)
    assert dls.train.fake_l.num_workers == dls.valid.fake_l.num_workers == 20
    assert dls.train.prefetch == dls.valid.prefetch == 3
    with pytest.raises(ValueError, match='prefetch'): load(videos, prefetch=0)


def test_one_file_in_shared_memory(videos, monkeypatch):
    "A batch that is sent to another process is one file, whatever the number of frames"
    dl = load(videos, seq_len=8).train
    batch = dl.do_batch([dl.do_item(i) for i in range(4)])
    assert isinstance(batch[0], ClipBatch)
    calls = []
    usual = torch.multiprocessing.reductions.reduce_storage
    def count(storage):
        calls.append(storage)
        return usual(storage)
    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.UntypedStorage, count)
    monkeypatch.setattr(torch.multiprocessing.reductions, 'reduce_storage', count)
    ForkingPickler.dumps(pack_batch(batch))
    assert len(calls) <= 1
    assert batch[0].is_shared()


samplers = dict(first=first_frames, spread=spread_frames, window=window_frames,
                step=partial(window_frames, step=2), seconds=partial(window_frames, seconds=.4),
                follow=partial(follow_frames, seconds=[.04], gaps=[1]))

@pytest.mark.parametrize('sampler', samplers.values(), ids=samplers)
@pytest.mark.parametrize('size', [24, (24,32), (24,20), 16])
def test_memmap_reads_as_the_video_does(videos, memmap, sampler, size):
    "Frames of the memmap, with and without images, with random crops, equal those of the video"
    item_tfms = Resize(size) if size != 24 else None
    options = dict(sampler=sampler, item_tfms=item_tfms, image_size=24)
    found = []
    for cache in (None, memmap):
        kwargs = options | (dict(cache=cache) if cache else {})
        dls = load(videos, **kwargs)
        if item_tfms is not None: # the size at which the memmap has been filled
            for dl in dls.loaders: dl.dataset.tls[0].tfms.fs[-1].size = 24
        set_seed(3)
        found.append([tensors(dls.train.new(shuffle=False)), tensors(dls.valid)])
    for a,b in zip(*found): assert_equal(a, b)


def test_memmap_with_other_transforms(videos, memmap):
    "Transforms of images are applied to clips of a memmap, not skipped"
    flip = [Resize(24, method='squish'), FlipItem(p=1.)]
    dls = [load(videos, item_tfms=flip, cache=o) for o in (None, memmap)]
    dls[0].train.dataset.tls[0].tfms.fs[-1].size = 24
    found = []
    for o in dls:
        set_seed(4)
        found.append(tensors(o.train.new(shuffle=False)))
    assert_equal(*found)
    plain = load(videos, item_tfms=flip[:1], cache=memmap).train.new(shuffle=False)
    set_seed(4)
    assert not torch.equal(tensors(plain)[0], found[0][0])


def test_memmap_lacks_a_video(videos, memmap, tmp_path):
    "A video that was not stored is read from its file, in the same batch"
    some = FrameMemmap.fill(tmp_path, get_videos(videos)[::2], 24, n_workers=0)
    assert_equal(tensors(load(videos, cache=some).valid), tensors(load(videos).valid))


def test_memmap_in_workers(videos, memmap):
    dl = load(videos, cache=memmap, num_workers=2, persistent_workers=True).valid
    assert_equal(tensors(dl), tensors(load(videos).valid))


def test_augmented_batches_are_those_of_fastai(videos):
    "Batch transforms after the first augmentation get frames; the results equal those for separate frames"
    found = []
    for whole in (True, False):
        dls = load(videos, batch_tfms=aug_clips())
        dl = dls.train.new(shuffle=False)
        if not whole: dl.create_batch = type(dl).__mro__[1].create_batch.__get__(dl)
        set_seed(5)
        found.append(tensors(dl))
    assert_equal(*found)


many_frames = '''
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import spread_frames
dls = VideoDataLoaders.from_folder(sys.argv[1], seq_len=64, image_size=16, bs=8, num_workers=2, prefetch=4,
                                   sampler=spread_frames, persistent_workers=True)
for _ in range(3): print(sum(len(y) for _,y in dls.train))
'''

@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='needs limits of POSIX')
def test_few_file_descriptors(videos):
    "64 frames a clip, in batches from two workers, with 256 open files"
    run = subprocess.run([sys.executable, '-c', many_frames, str(videos)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def n_descriptors(): return len(os.listdir('/proc/self/fd'))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('kwargs', [dict(num_workers=2), dict(num_workers=2, persistent_workers=True), {}])
@pytest.mark.parametrize('stored', [False, True])
def test_twenty_epochs_do_not_grow(videos, memmap, kwargs, stored):
    import psutil
    dl = load(videos, cache=memmap if stored else None, **kwargs).train
    sizes = []
    for _ in range(20):
        tensors(dl)
        sizes.append((psutil.Process().memory_info().rss, n_descriptors()))
    memory,descriptors = np.array(sizes).T
    # those of an ended epoch are closed in the next one, so that even and odd epochs differ
    assert max(descriptors[10:]) <= max(descriptors[2:10])+2
    assert memory[-5:].mean() <= memory[4:9].mean()+8*2**20
