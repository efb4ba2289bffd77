"Test fastai's image transforms on clips: all frames get the same draw, and the transform has an effect."
import random

import numpy as np
import pytest
import torch
from fastai.vision.all import (Brightness, Contrast, CropPad, DeterministicDihedral, DeterministicFlip,
                               Dihedral, DihedralItem, Flip, FlipItem, Hue, IndexSplitter, IntToFloatTensor,
                               L, Normalize, OldRandomCrop, Pipeline, PILImage, RandomCrop, RandomErasing,
                               RandomResizedCrop, RandomResizedCropGPU, RatioResize, Resize, Rotate,
                               Saturation, TensorCategory, TensorImage, ToTensor, Warp, Zoom,
                               aug_transforms, imagenet_stats, parent_label, set_seed)

from vidseq.data.augment import OncePerClip
from vidseq.data.block import VideoDataLoaders
from vidseq.data.clip import ImageTuple
from vidseq.data.frame import Frame

noise = np.random.default_rng(0).integers(0, 255, (48,64,3), np.uint8)

def randomly_rolled(o): return PILImage.create(np.roll(np.asarray(o), random.randrange(40), 0))

def all_aug_transforms():
    return Pipeline(aug_transforms(do_flip=True, flip_vert=True, xtra_tfms=RandomErasing(p=1.)))

item_tfms = {
    'Resize': lambda: Resize(32),
    'Resize pad': lambda: Resize(40, method='pad', pad_mode='zeros'),
    'Resize squish': lambda: Resize(32, method='squish'),
    'CropPad': lambda: CropPad((30,60)),
    'RandomCrop': lambda: RandomCrop(24),
    'OldRandomCrop': lambda: OldRandomCrop(24),
    'RandomResizedCrop': lambda: RandomResizedCrop(24),
    'RatioResize': lambda: RatioResize(32),
    'FlipItem': lambda: FlipItem(p=.5),
    'DihedralItem': lambda: DihedralItem(p=.9),
    'ToTensor': ToTensor,
    'OncePerClip': lambda: OncePerClip(randomly_rolled)}

batch_tfms = {
    'Flip': lambda: Flip(p=.5),
    'Dihedral': lambda: Dihedral(p=.9),
    'Rotate': lambda: Rotate(p=.9),
    'Zoom': lambda: Zoom(p=.9),
    'Warp': lambda: Warp(p=.9),
    'Brightness': lambda: Brightness(p=.9),
    'Contrast': lambda: Contrast(p=.9),
    'Saturation': lambda: Saturation(p=.9),
    'Hue': lambda: Hue(p=.9),
    'RandomResizedCropGPU': lambda: RandomResizedCropGPU(24),
    'RandomErasing': lambda: RandomErasing(p=.9, max_count=3),
    'DeterministicFlip': DeterministicFlip,
    'DeterministicDihedral': DeterministicDihedral,
    'Normalize': lambda: Normalize.from_stats(*imagenet_stats, cuda=False),
    'aug_transforms': all_aug_transforms,
    'OncePerClip': lambda: OncePerClip(lambda o: o+torch.rand(1)/10, order=20)}


def images(x): return [np.asarray(o) for o in x]

def assert_still(clip, n):
    assert type(clip) is ImageTuple and len(clip) == n
    for frame in images(clip): np.testing.assert_array_equal(frame, images(clip)[0])

def changed(a, b): return a.shape != b.shape or not np.array_equal(a, b)


@pytest.mark.parametrize('name', item_tfms)
@pytest.mark.parametrize('cls', (Frame, PILImage))
def test_item_transforms_draw_once_per_clip(name, cls):
    tfm,before = item_tfms[name](),noise if name != 'ToTensor' else noise[:0]
    results = []
    for seed in range(8):
        set_seed(seed)
        clip = ImageTuple(cls.create(noise) for _ in range(5))
        clip2 = ImageTuple(cls.create(noise) for _ in range(5))
        alone = tfm(clip, split_idx=0) # as in the `tfms` of a Datasets
        with_y,y = tfm((clip2, TensorCategory(1)), split_idx=0) # as in after_item
        for clip in (alone, with_y): assert_still(clip, 5)
        assert y == TensorCategory(1)
        results += [images(alone)[0], images(with_y)[0]]
    assert any(changed(o, before) for o in results), 'the transform has no effect'
    fixed = name in ('Resize squish','CropPad','RatioResize','Resize pad')
    is_random = getattr(tfm, 'p', 0) != 0 and not fixed
    if is_random: assert any(changed(o, results[0]) for o in results), 'the transform is not random'


@pytest.mark.parametrize('name', batch_tfms)
def test_batch_transforms_draw_once_per_clip(name):
    tfm,img = batch_tfms[name](),torch.from_numpy(noise).permute(2,0,1)[:,:40,:40].float()/255
    if isinstance(tfm, Pipeline): tfm.split_idx = 0
    call = (lambda o: tfm(o)) if isinstance(tfm, Pipeline) else (lambda o: tfm(o, split_idx=0))
    results = []
    for seed in range(8):
        set_seed(seed)
        clip,clip2 = (ImageTuple(TensorImage(torch.stack([img]*3)) for _ in range(5)) for _ in range(2))
        alone = call(clip)
        with_y,y = call((clip2, TensorCategory([0,1,2])))
        for clip in (alone, with_y): assert_still(clip, 5)
        assert y.tolist() == [0,1,2] and alone[0].shape[:2] == (3,3)
        results += [images(alone)[0], images(with_y)[0]]
    before = images([torch.stack([img]*3)])[0]
    assert any(changed(o, before) for o in results), 'the transform has no effect'
    if name != 'Normalize': assert any(changed(o, results[0]) for o in results), 'the transform is not random'


def test_int_to_float_and_normalize_reach_the_frames():
    frames = ImageTuple(TensorImage(torch.from_numpy(noise).permute(2,0,1)[None]) for _ in range(3))
    floats = IntToFloatTensor()(frames)
    expected = torch.from_numpy(noise).permute(2,0,1)[None].float()/255 # H,W,C -> 1,C,H,W
    for o in floats: torch.testing.assert_close(torch.Tensor(o), expected)
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    for o in Normalize.from_stats(*imagenet_stats, cuda=False)(floats):
        torch.testing.assert_close(torch.Tensor(o), (expected-mean)/std)


@pytest.fixture(scope='module')
def still_clips(tmp_path_factory):
    "Create folders of equal frames"
    root = tmp_path_factory.mktemp('still')
    for i,label in enumerate('aabb'):
        folder = root/label/f'{i}'
        folder.mkdir(parents=True)
        for t in range(6): PILImage.create(np.roll(noise, 7*i, 1)).save(folder/f'{t}.jpg')
    return root


def loader_tfms(kind, key):
    if kind == 'item': return dict(item_tfms=[item_tfms[key](), Resize(32)])
    tfm = batch_tfms[key]()
    return dict(batch_tfms=L(tfm.fs if isinstance(tfm, Pipeline) else tfm))

def load_still_clips(path, **kwargs):
    kwargs = dict(splitter=IndexSplitter([1,3]), image_size=32, bs=2, num_workers=0) | kwargs
    return VideoDataLoaders.from_folder(path, **kwargs)

in_loaders = [*(('item', o) for o in item_tfms if o not in ('RatioResize','ToTensor')),
              *(('batch', o) for o in batch_tfms)]

@pytest.mark.parametrize('kind,key', in_loaders)
def test_through_data_loaders(still_clips, kind, key):
    "As item_tfms and batch_tfms; validation batches are deterministic"
    dls = load_still_clips(still_clips, seq_len=4, **loader_tfms(kind, key))
    batches = [dls.train.one_batch()[0] for _ in range(6)]
    for x in batches: assert_still(x, 4)
    assert sum(isinstance(o, Normalize) for o in dls.train.after_batch.fs) == 1 and batches[0][0].min() < -.5
    (x1,y1),(x2,y2) = dls.valid.one_batch(),dls.valid.one_batch()
    assert y1.tolist() == y2.tolist() == [0,1]
    for a,b in zip(x1, x2): torch.testing.assert_close(a, b)


def test_moving_clips_stay_moving():
    "Control: frames that differ still differ after the transforms"
    moving = ImageTuple(Frame.create(np.roll(noise, i, 1)) for i in range(4))
    for make in item_tfms.values():
        frames = images(make()(moving, split_idx=0))
        assert all(changed(a, b) for a,b in zip(frames, frames[1:]))


def test_ids_of_classes_are_kept(still_clips):
    "Item and batch transforms do not change labels"
    dls = load_still_clips(still_clips, seq_len=2, batch_tfms=aug_transforms())
    assert dls.valid.one_batch()[1].tolist() == [dls.vocab.o2i[parent_label(o)] for o in dls.valid.items]
