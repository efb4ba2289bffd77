"Clips in fastai: what is shown, predicted, mixed, exported and loaded is what it should be, in one process and in several."
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (Callback, ClassificationInterpretation, CrossEntropyLossFlat, CutMix, IndexSplitter, Learner, MixUp, ProgressCallback,
                               RandomResizedCrop, Resize, aug_transforms, imagenet_stats, set_seed)
from PIL import Image
from torch.nn import functional as F

from vidseq.data.block import VideoDataLoaders
from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.loader import get_clips
from vidseq.data.samplers import first_frames, spread_frames, window_frames
from vidseq.datasets.shapes import moving_shapes
from vidseq.deploy.predict import predict_video
from vidseq.models.conv3d import Conv3dModel
from vidseq.train.learner import video_learner
from vidseq.video.decode import extract_frames, get_videos, open_video, VideoError, write_video
from vidseq.video.extract import extract_videos

matplotlib.use('Agg')
small = dict(seq_len=4, image_size=32, bs=8, num_workers=0, seed=0, device='cpu')
squished = small | dict(item_tfms=Resize(32, method='squish')) # no draw of a corner to crop in training


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    "Videos of 15 frames, and a folder of jpgs for each"
    tmp = tmp_path_factory.mktemp('clips')
    path = moving_shapes(tmp/'shapes', n_groups=5, n_clips=2, seconds=.6, size=(64,48), n_workers=0)
    extract_videos(get_videos(path), tmp/'frames', n_workers=0)
    return path, tmp/'frames'

def new_learner(dls, path):
    set_seed(0)
    learn = video_learner(dls, Conv3dModel, path=path)
    learn.remove_cb(ProgressCallback)
    return learn

@pytest.fixture(scope='module')
def learn(shapes, tmp_path_factory):
    "A learner that is sometimes right"
    set_seed(0)
    learn = new_learner(from_folder(shapes[1]), tmp_path_factory.mktemp('learn'))
    with learn.no_logging(): learn.fit(3, 1e-2)
    return learn

@pytest.fixture(scope='module')
def dls(learn): return learn.dls

@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close('all')

def stacked(x): return torch.stack(tuple(x), 1) # B,T,C,H,W

def same_batches(a, b):
    "Both have the same clips, and labels if there are any"
    a,b = list(a),list(b)
    return len(a) == len(b) > 0 and all(len(p) == len(q) and torch.equal(stacked(p[0]), stacked(q[0])) and all(map(torch.equal, p[1:], q[1:])) for p,q in zip(a, b))

@torch.no_grad()
def logits(learn, dl): return torch.cat([learn.model.eval()(b[0]) for b in dl]).as_subclass(torch.Tensor)

def probs(learn, dl): return logits(learn, dl).softmax(1)

def targets(dl): return torch.cat([y for _,y in dl]).as_subclass(torch.Tensor)

def labels(dl): return [dl.vocab[i] for i in targets(dl)]

def close(a, b, tol=1e-5): return a.shape == b.shape and torch.allclose(a, b, atol=tol, rtol=0)


def table(frames):
    paths = get_clips(frames)
    return pd.DataFrame(dict(clip=[str(o.relative_to(frames)) for o in paths], action=[o.parent.name for o in paths]))

def from_folder(frames): return VideoDataLoaders.from_folder(frames, **small)

def from_df(frames): return VideoDataLoaders.from_df(table(frames), frames, **small)

def from_lists(frames): return VideoDataLoaders.from_lists(frames, table(frames)['clip'].tolist(), table(frames)['action'].tolist(), **small)

def like(learn, dls, path):
    "A learner of the same weights for `dls`"
    other = new_learner(dls, path)
    other.model.load_state_dict(learn.model.state_dict())
    return other


def test_batches_are_the_frames(dls):
    "The middle ones of four parts of 15, as PIL reads, scales and crops them, but for the last bits"
    expected = []
    for path in dls.valid.items:
        for i in (1,4,8,12): expected.append(np.asarray(Image.open(path/f'{i}.jpg').resize((42,32), Image.BILINEAR).crop((5,0,37,32)))/255)
    expected = (np.stack(expected)-imagenet_stats[0])/imagenet_stats[1]
    got = torch.cat([stacked(x) for x,_ in dls.valid]).flatten(0, 1).permute(0,2,3,1).numpy()
    assert np.abs(got-expected).max() < .04 # 2 of 255
    assert labels(dls.valid) == [o.parent.name for o in dls.valid.items]


# Pictures

def shown():
    "Words of the title, however they are set, its colour, and the picture of each strip in the figure"
    return [(re.findall(r'[\w.%]+', ax.get_title()), ax.title.get_color(), np.asarray(ax.images[0].get_array())) for ax in plt.gcf().axes if ax.images]

def same_pictures(strips, x):
    "The first, the third and the fourth of four frames of each clip, as they were before normalisation; pixels are rounded down"
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    for arr,clip in zip(strips, stacked(x), strict=True):
        assert arr.shape == (32,3*32+2,3)
        for i,frame in enumerate(((clip[[0,2,3]]*std+mean)*255).numpy()): assert np.abs(arr[:,33*i:33*i+32]-frame.transpose(1,2,0)).max() < 1.01

def test_show_batch(dls):
    x,y = b = dls.valid.one_batch()
    before = stacked(x).clone()
    dls.valid.show_batch(b, max_n=6)
    titles,_,strips = zip(*shown())
    assert list(titles) == [[dls.vocab[i]] for i in y[:6]]
    same_pictures(strips, x[torch.arange(6)])
    assert torch.equal(stacked(x), before) # what is shown is decoded elsewhere

def title(truth, pred, *more):
    correct = truth == pred
    return [truth, *([] if correct else ['predicted',pred]), *more], 'green' if correct else 'red'

def test_show_results(learn, dls):
    x,y = dls.valid.one_batch()
    learn.show_results(shuffle=False)
    *titles,strips = zip(*shown())
    truths,preds = ([dls.vocab[i] for i in o] for o in (y, probs(learn, dls.valid)[:8].argmax(1)))
    assert list(zip(*titles)) == [title(*o) for o in zip(truths, preds)]
    assert set(titles[1]) == {'green','red'}
    same_pictures(strips, x)

@pytest.mark.parametrize('make', [from_folder, from_df, from_lists])
def test_interpretation(learn, shapes, tmp_path, make):
    "Confusion matrix and losses agree with a Python loop, whatever the items are"
    dls = make(shapes[1])
    outs = logits(learn, dls.valid)
    targs = targets(dls.valid)
    preds,losses = outs.argmax(1),F.cross_entropy(outs, targs, reduction='none')
    expected = np.zeros((6,6), int)
    for t,p in zip(targs, preds): expected[t,p] += 1

    interp = ClassificationInterpretation.from_learner(like(learn, dls, tmp_path))
    assert np.array_equal(interp.confusion_matrix(), expected) and expected.sum() == 12
    assert close(interp.losses, losses)
    confused = {(dls.vocab[t],dls.vocab[p],expected[t,p]) for t in range(6) for p in range(6) if t != p and expected[t,p]}
    got = interp.most_confused()
    assert set(got) == confused and len(got) == len(confused) and [n for *_,n in got] == sorted((n for *_,n in got), reverse=True)

    interp.plot_confusion_matrix()
    ax = plt.gca()
    assert [o.get_text() for o in ax.texts] == [str(o) for o in expected.flat]
    assert [o.get_text() for o in ax.get_yticklabels()] == list(dls.vocab)

    interp.plot_top_losses(5)
    *titles,strips = zip(*shown())
    worst = losses.argsort(descending=True)[:5]
    ps = outs.softmax(1)
    assert list(zip(*titles)) == [title(dls.vocab[targs[i]], dls.vocab[preds[i]], 'loss', f'{losses[i]:.2f}', f'{ps[i].max():.0%}') for i in worst]
    same_pictures(strips, ImageTuple(torch.cat(o) for o in zip(*(x for x,_ in dls.valid)))[worst])
    assert interp.top_losses(5)[1].tolist() == worst.tolist()
    if make is from_folder: assert interp.top_losses(2, items=True)[2] == [dls.valid.items[i] for i in worst[:2]]


# Predictions

def predict(learn, item):
    with learn.no_bar(), learn.no_logging(): return learn.predict(item)

def clip_of(path): return ImageTupleTfm(4, size=32)(path) # read at the size of its use, as the loaders do

def test_predict_a_folder_or_its_clip(learn, dls):
    expected = probs(learn, dls.valid)
    for i in (0, 5, 11):
        path = dls.valid.items[i]
        for item in (path, clip_of(path)):
            name,idx,ps = predict(learn, item)
            assert close(ps, expected[i])
            assert (name, idx) == (dls.vocab[expected[i].argmax()], expected[i].argmax())

def test_predict_a_str(learn, dls):
    path = dls.valid.items[3]
    assert torch.equal(predict(learn, str(path))[2], predict(learn, path)[2])

@pytest.mark.parametrize('cls', [Path, str])
def test_predict_a_video(learn, shapes, cls):
    "With a learner that was trained on jpgs"
    video = get_videos(shapes[0])[21]
    expected = predict(learn, clip_of(video))[2]
    assert close(predict(learn, cls(video))[2], expected)
    top = learn.predict_video(cls(video), k=6)
    assert dict(top) == pytest.approx(dict(zip(learn.dls.vocab, expected.tolist())), abs=1e-5)
    assert predict_video(learn, cls(video), k=6) == top # also a function

@pytest.mark.parametrize('kind', [Path, str, clip_of], ids=['path', 'str', 'clip'])
@pytest.mark.parametrize('make', [from_df, from_lists])
def test_predict_where_items_are_no_paths(shapes, learn, tmp_path, make, kind):
    "Rows of a table, or pairs of path and label"
    other = like(learn, make(shapes[1]), tmp_path)
    path = learn.dls.valid.items[7]
    assert close(predict(other, kind(path))[2], predict(learn, path)[2])

def test_test_dl(learn, dls):
    "The valid batches again, without labels and with them; and what the model says of them"
    items = dls.valid.items
    plain,labelled = dls.test_dl(items),dls.test_dl(items, with_labels=True)
    assert same_batches(plain, [(x,) for x,_ in dls.valid])
    assert same_batches(labelled, dls.valid)
    assert same_batches(dls.test_dl(items[3:5], bs=1), [(x[[i]],) for i in (3,4) for x in [dls.valid.one_batch()[0]]])
    expected = probs(learn, dls.valid)
    for dl,targs in ((plain, None), (labelled, targets(dls.valid)), (None, targets(dls.valid))):
        with learn.no_bar(): ps,ys = learn.get_preds(dl=dl)
        assert close(ps, expected) and (ys is None if targs is None else torch.equal(ys, targs))
    assert [dls.vocab[i] for i in targs] == [o.parent.name for o in items]

def test_test_dl_of_a_table(dls, shapes):
    "Rows: the same clips as those of a loader made from the folder"
    by_table,rows = from_df(shapes[1]),table(shapes[1])
    rows = rows.iloc[[get_clips(shapes[1]).index(o) for o in dls.valid.items]]
    assert same_batches(by_table.test_dl(rows), [(x,) for x,_ in dls.valid])
    assert same_batches(by_table.test_dl(rows, with_labels=True), dls.valid)

@pytest.mark.parametrize('kind', [Path, str, clip_of], ids=['path', 'str', 'clip'])
@pytest.mark.parametrize('make', [from_df, from_lists])
def test_test_dl_of_paths(dls, shapes, make, kind):
    "What the loader was made from makes no difference"
    assert same_batches(make(shapes[1]).test_dl([kind(o) for o in dls.valid.items]), [(x,) for x,_ in dls.valid])


def test_tta_without_draws(shapes, learn):
    "Where nothing is drawn, all looks are one"
    other = Learner(VideoDataLoaders.from_folder(shapes[1], sampler=first_frames, **squished), learn.model, CrossEntropyLossFlat())
    with other.no_bar():
        (ps,ys),(preds,targs) = other.tta(n=3),other.get_preds()
    assert close(ps, preds, 1e-6) and torch.equal(ys, targs)

def _ends(n_frames, seq_len, train): return list(range(n_frames-seq_len, n_frames) if train else range(seq_len))
def _last(n_frames, seq_len, train): return _ends(n_frames, seq_len, True)

def test_tta_weighs_training_clips_and_validation_clips(shapes, learn):
    "A sampler that takes the last frames in training, and else the first, tells one from the other"
    first,last,both = (VideoDataLoaders.from_folder(shapes[1], sampler=o, **squished) for o in (first_frames, _last, _ends))
    other = Learner(both, learn.model, CrossEntropyLossFlat())
    plain,augmented = probs(learn, first.valid),probs(learn, last.valid)
    assert not close(plain, augmented, .01)
    with other.no_bar():
        assert close(other.tta(n=2)[0], .75*augmented+.25*plain)
        assert close(other.tta(n=2, use_max=True)[0], torch.maximum(augmented, plain))
        assert all(map(close, other.tta(n=2, beta=None)[0], (augmented, plain)))
        assert close(other.get_preds()[0], plain) # it leaves nothing behind


def test_lr_find_leaves_the_weights(dls, tmp_path):
    learn = new_learner(dls, tmp_path)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=30, show_plot=False)
    assert 1e-7 < found.valley < 10
    after = learn.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k,v in before.items())
    assert list(tmp_path.rglob('*.pth')) == []


# MixUp and CutMix

class Keep(Callback):
    "Copies of the training batches, before or after callbacks of order 0; of `mixer`, its share and the other labels"
    run_valid = False
    def __init__(self, order, mixer=None): self.order,self.mixer,self.seen = order,mixer,[]
    def before_batch(self):
        kept = stacked(self.x).clone(), self.y.clone()
        self.seen.append(kept + ((self.mixer.lam.clone(), self.mixer.yb1[0].clone()) if self.mixer else ()))

@pytest.fixture(scope='module')
def noise(tmp_path_factory):
    "Clips that are equal in no pixel"
    tmp,rng = tmp_path_factory.mktemp('noise'),np.random.default_rng(0)
    for i in range(18):
        folder = tmp/'abc'[i%3]/f'{i}'
        folder.mkdir(parents=True)
        for t in range(3): Image.fromarray(rng.integers(0, 255, (16,16,3), np.uint8)).save(folder/f'{t}.png')
    return VideoDataLoaders.from_folder(tmp, splitter=IndexSplitter([0,7]), **small | dict(seq_len=3, image_size=16))

def mixed(noise, tmp_path, mixer):
    "Batches before and after `mixer`, of a learner that trained with it"
    learn,before,after = new_learner(noise, tmp_path),Keep(-1),Keep(1, mixer)
    with learn.no_logging(): learn.fit(3, cbs=[before, mixer, after])
    assert len(before.seen) == len(after.seen) == 6 and np.isfinite(learn.recorder.losses).all() and np.isfinite(learn.recorder.values).all()
    return zip(before.seen, after.seen)

def test_mixup_draws_once_for_a_clip(noise, tmp_path):
    shares,others = [],[]
    for (x,y),(got,_,lam,y1) in mixed(noise, tmp_path, MixUp()):
        for b in range(8):
            partners = [j for j in range(8) if close(got[b], lam[b]*x[b]+(1-lam[b])*x[j]) and y[j] == y1[b]] # all frames with one share and one partner
            assert partners, b
            others += [j for j in partners if j != b]
        shares += lam.tolist()
    assert min(shares) < .9 and len(set(shares)) > 40 and len(others) > 20

def hull(changed):
    "The rows and columns from the first to the last that changed"
    rows,cols = (np.flatnonzero(changed.any(i)) for i in (1, 0))
    return slice(rows[0], rows[-1]+1), slice(cols[0], cols[-1]+1)

def test_cutmix_cuts_one_box_of_all_frames(noise, tmp_path):
    boxes = set()
    for (x,y),(got,_,lam,y1) in mixed(noise, tmp_path, CutMix()):
        changed = (got != x).any(2).numpy() # B,T,H,W
        if not changed.any(): continue # all of it, from itself, or a box of no size
        rows,cols = hull(changed.any((0,1)))
        boxes.add((rows.start, rows.stop, cols.start, cols.stop))
        assert float(lam) == pytest.approx(1-(rows.stop-rows.start)*(cols.stop-cols.start)/256)
        for b in range(8):
            partner = next(j for j in range(8) if torch.equal(got[b][...,rows,cols], x[j][...,rows,cols])) # in each frame the same one
            assert y1[b] == y[partner]
            for frame in changed[b]: assert not frame.any() if partner == b else hull(frame) == (rows,cols)
            outside = torch.ones(16, 16, dtype=bool)
            outside[rows,cols] = False
            assert torch.equal(got[b][...,outside], x[b][...,outside])
    assert len(boxes) > 2


# Exported

def test_export_and_load_where_only_fastai_is_imported(shapes, tmp_path):
    dls = VideoDataLoaders.from_folder(shapes[0], sampler=partial(window_frames, step=2), item_tfms=RandomResizedCrop(32), batch_tfms=aug_transforms(), **small)
    learn = new_learner(dls, tmp_path)
    with learn.no_logging(): learn.fit(1, 1e-2)
    with learn.no_bar(): expected = learn.get_preds()[0]
    learn.export()
    code = f'''
import warnings; warnings.simplefilter('ignore')
from fastai.vision.all import load_learner, Path
learn = load_learner({str(tmp_path/"export.pkl")!r})
with learn.no_bar():
    for o in {[str(o) for o in dls.valid.items[:3]]!r}: print(*learn.predict(Path(o))[2].tolist())'''
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    got = torch.tensor([[float(o) for o in line.split()] for line in res.stdout.splitlines()])
    assert close(got, expected[:3])


# Workers

start_methods = '''
import multiprocessing, sys
import torch
from vidseq.data.block import VideoDataLoaders

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    for n in (0, 2):
        dls = VideoDataLoaders.from_folder(sys.argv[2], seq_len=4, image_size=32, bs=4, num_workers=n, seed=0, device='cpu')
        for x,y in dls.valid: print('batch', n, float(torch.stack(tuple(x)).double().sum()), *y.tolist())
'''

@pytest.mark.parametrize('method', ['fork','spawn'])
def test_workers_however_they_start(shapes, tmp_path, method):
    "The same validation batches as without any"
    if method not in multiprocessing.get_all_start_methods(): pytest.skip('this platform has no fork')
    (tmp_path/'batches.py').write_text(start_methods)
    res = subprocess.run([sys.executable, '-W', 'ignore', tmp_path/'batches.py', method, shapes[0]], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    got = [line.split()[1:] for line in res.stdout.splitlines() if line.startswith('batch')]
    here = VideoDataLoaders.from_folder(shapes[0], **small | dict(bs=4))
    expected = [[str(float(torch.stack(tuple(x)).double().sum())), *map(str, y.tolist())] for x,y in here.valid]
    assert len(expected) == 3
    for n in '02': assert [o[1:] for o in got if o[0] == n] == expected


def colour(i): return (i%18*14, i//18*14, 0) # far enough from each other for mpeg4

def number(rgb): return round(float(rgb[0])/14) + 18*round(float(rgb[1])/14)

def numbers(x):
    "The frame numbers that are written in the pixels of a batch, a tuple for each clip"
    return [tuple(number(o) for o in clip) for clip in stacked(x).mean((3,4))*255]

@pytest.fixture(scope='module')
def numbered(tmp_path_factory):
    "Videos of 3, 60 and 300 frames that show their number as a colour"
    tmp = tmp_path_factory.mktemp('numbered')
    for name,n in dict(a=60, b=60, c=60, d=60, short=3, long=300).items():
        path = write_video(tmp/f'{name}.avi', [np.full((32,32,3), colour(i), np.uint8) for i in range(n)], quality=1)
        assert [number(np.asarray(o).mean((0,1))) for o in extract_frames(path)] == list(range(n))
    return tmp

def from_numbered(path, names, valid, **kwargs):
    return VideoDataLoaders.from_lists(path, [f'{o}.avi' for o in names], ['even' if i%2 else 'odd' for i in range(len(names))], splitter=IndexSplitter(valid), normalize=False, **small | dict(seq_len=6) | kwargs)

def test_workers_draw_for_themselves(numbered):
    "The same videos over and over: other frames at each place, in each worker and in each epoch; in validation always the same"
    dls = from_numbered(numbered, 'ab'*16+'cd', [32,33], bs=4, num_workers=2)
    set_seed(0)
    fixed = [tuple(range(4, 60, 10))]*2
    epochs = []
    for _ in range(2):
        epochs.append([numbers(x) for x,_ in dls.train])
        assert [o for x,_ in dls.valid for o in numbers(x)] == fixed
    drawn = [o for batches in epochs for batch in batches for o in batch]
    assert len(drawn) == 64 and len(set(drawn)) == 64 # of a million
    assert all(10*i <= o < 10*i+10 for clip in drawn for i,o in enumerate(clip))
    with dls.valid.dataset.set_split_idx(0): assert [o for x,_ in dls.valid for o in numbers(x)] != fixed

def test_a_short_video_beside_a_long_one(numbered):
    "Slowed down evenly, in training and in validation, whatever the sampler"
    for sampler in (first_frames, spread_frames, window_frames, partial(window_frames, step=2), partial(window_frames, seconds=.08)):
        for bs in (2, 1): # side by side, and the short one by itself
            dls = from_numbered(numbered, ['long','short','a','b'], [2,3], sampler=sampler, bs=bs)
            for dl in (dls.train, dls.test_dl([numbered/'long.avi', numbered/'short.avi'])):
                clips = [o for x in dl for o in numbers(x[0])]
                assert {len(o) for o in clips} == {6} and len(clips) == 2
                assert (0,0,1,1,2,2) in clips
    dls = from_numbered(numbered, ['a','b','long','short'], [2,3], bs=2)
    x,_ = dls.valid.one_batch()
    assert len(x) == 6 and numbers(x) == [(24,74,124,174,224,274), (0,0,1,1,2,2)]


@pytest.mark.parametrize('sampler', [first_frames, spread_frames, window_frames, partial(first_frames, step=2), partial(window_frames, step=3), partial(window_frames, seconds=.1), partial(window_frames, step=(1,3))], ids=str)
def test_jpgs_and_videos_give_the_same_clips(shapes, sampler):
    "But for what jpg loses"
    videos,jpgs = (VideoDataLoaders.from_folder(o, sampler=sampler, fps=25, normalize=False, **small) for o in shapes)
    assert [o.stem for o in videos.valid.items] == [o.name for o in jpgs.valid.items]
    for (vx,vy),(jx,jy) in zip(videos.valid, jpgs.valid, strict=True):
        assert torch.equal(vy, jy)
        diff = (stacked(vx)-stacked(jx)).abs().mean((2,3,4))*255
        assert 0 < diff.max() < 4 # in each frame


# Clips that go bad when training has begun

def cut_jpgs(clip):
    for o in clip.iterdir(): o.write_bytes(o.read_bytes()[:o.stat().st_size//2])

def cut_video(clip): clip.write_bytes(clip.read_bytes()[:clip.stat().st_size//2]) # in the header

def cut_first_frame(clip):
    with open_video(clip) as (container,stream): packet = next(container.demux(stream))
    clip.write_bytes(clip.read_bytes()[:packet.pos+packet.size//2])

damages = pytest.mark.parametrize('of_videos,damage', [(False, cut_jpgs), (False, shutil.rmtree), (True, cut_video), (True, cut_first_frame), (True, Path.unlink)],
                                  ids=['cut jpgs', 'no folder', 'cut video', 'cut first frame', 'no video'])

def damaged(shapes, tmp_path, of_videos, damage, **kwargs):
    "Loaders of a copy, and a clip of it that is damaged after they were made"
    path = shutil.copytree(shapes[not of_videos], tmp_path/'copy')
    dls = VideoDataLoaders.from_folder(path, **small | dict(num_workers=2) | kwargs)
    i = max(i for i,o in enumerate(dls.train.items) if o.parent.name == 'MoveRight') # the next is of another class
    dls.train_ds[i] # what is known of it will be out of date
    bad = dls.train.items[i]
    damage(bad)
    return dls, bad

@damages
def test_a_bad_clip_is_an_error_that_names_it(shapes, tmp_path, of_videos, damage):
    dls,bad = damaged(shapes, tmp_path, of_videos, damage)
    with pytest.raises(VideoError, match=re.escape(str(bad))): list(dls.train)
    assert len(list(dls.valid)) == 2

@damages
def test_a_bad_clip_is_replaced_and_named(shapes, tmp_path, capsys, of_videos, damage):
    dls,bad = damaged(shapes, tmp_path, of_videos, damage, skip_bad=True)
    assert list(dls.train.skipped) == []
    capsys.readouterr()
    assert Counter(labels(dls.train)) == Counter(o.parent.name for o in dls.train.items) # of each class as many as before
    assert capsys.readouterr().out == f'Replaced 1 unreadable clips by others with the same label: {bad}\n'
    assert list(dls.train.skipped) == [bad]
    assert labels(dls.valid) == [o.parent.name for o in dls.valid.items]
    assert (capsys.readouterr().out, list(dls.valid.skipped)) == ('', [])


# For long

leaks = '''
import gc, multiprocessing, os, sys, time
from pathlib import Path
from fastai.vision.all import RandomResizedCrop
from vidseq.data.block import VideoDataLoaders
from vidseq.data.loader import get_clips

def used(pid):
    "Megabytes of memory, and open files"
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20, len(os.listdir(f'/proc/{pid}/fd'))

def loader(clips, n_workers):
    return VideoDataLoaders.from_lists('.', clips, [o.parent.name for o in clips], splitter=lambda items: (list(range(len(items))), []), seq_len=4, bs=6, num_workers=n_workers, item_tfms=RandomResizedCrop(32), device='cpu').train

def epochs(dl):
    for _ in range(20):
        for _ in dl: pass
        gc.collect() # fastai leaves batches to it, and each of a worker's is an open file
        yield used(os.getpid())

def passes(clips):
    "A worker lives for an epoch: one of twenty times as many clips"
    all_used = []
    for _ in loader(clips*20, 1):
        time.sleep(.02) # till it waits: two batches ahead, and no video open
        all_used.append(used(multiprocessing.active_children()[0].pid))
    return all_used[::len(clips)//6] # at the first batch of each pass

if __name__ == '__main__':
    clips,measure = list(get_clips(sys.argv[1])),sys.argv[2]
    for o in passes(clips) if measure == 'worker' else epochs(loader(clips, int(measure == 'parent'))): print('used', *o)
'''

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is read from /proc')
@pytest.mark.parametrize('measure', ['alone','parent','worker'])
@pytest.mark.parametrize('of_videos', [True, False], ids=['videos','jpgs'])
def test_twenty_epochs_leak_nothing(shapes, tmp_path, of_videos, measure):
    "From the third to the last no more memory and no more open files: without workers, in a process that has one, and in that one"
    (tmp_path/'leaks.py').write_text(leaks)
    res = subprocess.run([sys.executable, '-W', 'ignore', tmp_path/'leaks.py', shapes[not of_videos], measure], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    used = [[float(o) for o in line.split()[1:]] for line in res.stdout.splitlines() if line.startswith('used')]
    assert len(used) == 20
    (mb,files),(mb_last,files_last) = used[2],used[-1]
    assert mb_last-mb < 10
    assert files_last == files
