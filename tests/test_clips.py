"Test clips in fastai: batches, figures, predictions, MixUp, CutMix, exported learners and workers."
import multiprocessing
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (Callback, ClassificationInterpretation, CrossEntropyLossFlat, CutMix,
                               IndexSplitter, Learner, MixUp, ProgressCallback, RandomResizedCrop, Resize,
                               aug_transforms, imagenet_stats, set_seed)
from PIL import Image
from torch.nn import functional as F

from conftest import predict_exported, run_python
from vidseq.data.block import VideoDataLoaders
from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.loader import get_clips
from vidseq.data.samplers import first_frames, spread_frames, window_frames
from vidseq.deploy.predict import predict_video
from vidseq.models.conv3d import Conv3dModel
from vidseq.train.learner import video_learner
from vidseq.video.decode import extract_frames, get_videos, open_video, VideoError, write_video
from vidseq.video.extract import extract_videos

small = dict(seq_len=4, image_size=32, bs=8, num_workers=0, seed=0, device='cpu')
squished = small | dict(item_tfms=Resize(32, method='squish')) # no random crop in training


@pytest.fixture(scope='module')
def shapes(make_shapes, tmp_path_factory):
    "Generate videos of 15 frames and extract them; return the folder of videos and the folder of frames"
    path,frames = make_shapes((64,48)),tmp_path_factory.mktemp('clips')/'frames'
    extract_videos(get_videos(path), frames, n_workers=0)
    return path,frames

def new_learner(dls, path):
    set_seed(0)
    learn = video_learner(dls, Conv3dModel, path=path)
    learn.remove_cb(ProgressCallback)
    return learn

@pytest.fixture(scope='module')
def learn(shapes, tmp_path_factory):
    "Train a learner until some of its predictions are correct"
    set_seed(0)
    learn = new_learner(from_folder(shapes[1]), tmp_path_factory.mktemp('learn'))
    with learn.no_logging(): learn.fit(3, 1e-2)
    return learn

@pytest.fixture(scope='module')
def dls(learn): return learn.dls

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def stacked(x): return torch.stack(tuple(x), 1) # B,T,C,H,W

def same_batches(a, b):
    "Return whether both have the same clips, and the same labels if they have labels"
    a,b = list(a),list(b)
    return len(a) == len(b) > 0 and all(map(same_batch, a, b))

def same_batch(a, b):
    same_labels = len(a) == len(b) and all(map(torch.equal, a[1:], b[1:]))
    return same_labels and torch.equal(stacked(a[0]), stacked(b[0]))

@torch.no_grad()
def logits(learn, dl): return torch.cat([learn.model.eval()(b[0]) for b in dl]).as_subclass(torch.Tensor)

def probs(learn, dl): return logits(learn, dl).softmax(1)

def targets(dl): return torch.cat([y for _,y in dl]).as_subclass(torch.Tensor)

def labels(dl): return [dl.vocab[i] for i in targets(dl)]

def is_near(a, b, tol=1e-5): return a.shape == b.shape and torch.allclose(a, b, atol=tol, rtol=0)


def table(frames):
    "List the clips of a folder and their labels in a data frame"
    paths = get_clips(frames)
    clips,labels = [str(o.relative_to(frames)) for o in paths],[o.parent.name for o in paths]
    return pd.DataFrame(dict(clip=clips, action=labels))

def from_folder(frames): return VideoDataLoaders.from_folder(frames, **small)

def from_df(frames): return VideoDataLoaders.from_df(table(frames), frames, **small)

def from_lists(frames):
    clips,labels = (table(frames)[o].tolist() for o in ('clip','action'))
    return VideoDataLoaders.from_lists(frames, clips, labels, **small)

def like(learn, dls, path):
    "Return a learner with the same weights for `dls`"
    other = new_learner(dls, path)
    other.model.load_state_dict(learn.model.state_dict())
    return other


def test_batches_are_the_frames(dls):
    "Compare the middle frames of four parts of 15 frames with those that PIL reads, resizes and crops"
    expected = []
    for path in dls.valid.items:
        for i in (1,4,8,12):
            frame = Image.open(path/f'{i}.jpg').resize((42,32), Image.BILINEAR).crop((5,0,37,32))
            expected.append(np.asarray(frame)/255)
    expected = (np.stack(expected)-imagenet_stats[0])/imagenet_stats[1]
    got = torch.cat([stacked(x) for x,_ in dls.valid])
    got = got.flatten(0, 1).permute(0,2,3,1).numpy() # B,T,C,H,W -> B*T,H,W,C
    assert np.abs(got-expected).max() < .04 # 2 of 255
    assert labels(dls.valid) == [o.parent.name for o in dls.valid.items]


# Figures

def shown():
    "Return the words of the title, its color, and the pixels of each strip of frames in the current figure"
    axes = [ax for ax in plt.gcf().axes if ax.images]
    words = [re.findall(r'[\w.%]+', ax.get_title()) for ax in axes]
    colors = [ax.title.get_color() for ax in axes]
    strips = [np.asarray(ax.images[0].get_array()) for ax in axes]
    return list(zip(words, colors, strips))

def check_strips(strips, x):
    "Check that each strip shows frames 0, 2 and 3 of a clip without normalization, with pixels rounded down"
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    for strip,clip in zip(strips, stacked(x), strict=True):
        assert strip.shape == (32,3*32+2,3)
        frames = ((clip[[0,2,3]]*std+mean)*255).permute(0,2,3,1).numpy() # T,C,H,W -> T,H,W,C
        for i,frame in enumerate(frames): assert np.abs(strip[:,33*i:33*i+32]-frame).max() < 1.01

def test_show_batch(dls):
    x,y = b = dls.valid.one_batch()
    before = stacked(x).clone()
    dls.valid.show_batch(b, max_n=6)
    titles,_,strips = zip(*shown())
    assert list(titles) == [[dls.vocab[i]] for i in y[:6]]
    check_strips(strips, x[torch.arange(6)])
    assert torch.equal(stacked(x), before) # `show_batch` decodes a copy

def title(truth, pred, *more):
    "Return the words of a title and its color"
    if truth == pred: return [truth, *more], 'green'
    return [truth, 'predicted', pred, *more], 'red'

def test_show_results(learn, dls):
    x,y = dls.valid.one_batch()
    learn.show_results(shuffle=False)
    *titles,strips = zip(*shown())
    truths,preds = ([dls.vocab[i] for i in o] for o in (y, probs(learn, dls.valid)[:8].argmax(1)))
    assert list(zip(*titles)) == [title(*o) for o in zip(truths, preds)]
    assert set(titles[1]) == {'green','red'}
    check_strips(strips, x)

def count_confusions(targs, preds):
    "Return the confusion matrix of six classes, counted in a Python loop"
    counts = np.zeros((6,6), int)
    for t,p in zip(targs, preds): counts[t,p] += 1
    return counts

def check_most_confused(got, expected, vocab):
    pairs = [(t, p) for t in range(6) for p in range(6) if t != p and expected[t,p]]
    confused = {(vocab[t],vocab[p],expected[t,p]) for t,p in pairs}
    assert set(got) == confused and len(got) == len(confused)
    assert [n for *_,n in got] == sorted((n for *_,n in got), reverse=True)

def check_confusion_plot(interp, expected, vocab):
    interp.plot_confusion_matrix()
    ax = plt.gca()
    assert [o.get_text() for o in ax.texts] == [str(o) for o in expected.flat]
    assert [o.get_text() for o in ax.get_yticklabels()] == list(vocab)

def check_top_losses(interp, dls, outs, targs, losses):
    "Check the titles and strips of the five clips with the largest losses"
    interp.plot_top_losses(5)
    *titles,strips = zip(*shown())
    worst = losses.argsort(descending=True)[:5]
    truths,preds = ([dls.vocab[i] for i in o[worst]] for o in (targs, outs.argmax(1)))
    numbers = [('loss', f'{losses[i]:.2f}', f'{outs.softmax(1)[i].max():.0%}') for i in worst]
    assert list(zip(*titles)) == [title(t, p, *o) for t,p,o in zip(truths, preds, numbers, strict=True)]
    clips = ImageTuple(torch.cat(o) for o in zip(*(x for x,_ in dls.valid)))
    check_strips(strips, clips[worst])
    assert interp.top_losses(5)[1].tolist() == worst.tolist()
    return worst

@pytest.mark.parametrize('make', [from_folder, from_df, from_lists])
def test_interpretation(learn, shapes, tmp_path, make):
    "Compare the confusion matrix and losses with a Python loop, for items of all kinds"
    dls = make(shapes[1])
    outs,targs = logits(learn, dls.valid),targets(dls.valid)
    losses = F.cross_entropy(outs, targs, reduction='none')
    expected = count_confusions(targs, outs.argmax(1))

    interp = ClassificationInterpretation.from_learner(like(learn, dls, tmp_path))
    assert np.array_equal(interp.confusion_matrix(), expected) and expected.sum() == 12
    assert is_near(interp.losses, losses)
    check_most_confused(interp.most_confused(), expected, dls.vocab)
    check_confusion_plot(interp, expected, dls.vocab)
    worst = check_top_losses(interp, dls, outs, targs, losses)
    if make is from_folder:
        assert interp.top_losses(2, items=True)[2] == [dls.valid.items[i] for i in worst[:2]]


# Predictions

def predict(learn, item):
    with learn.no_bar(), learn.no_logging(): return learn.predict(item)

def clip_of(path): return ImageTupleTfm(4, size=32)(path) # reads frames at the size of the loaders

def test_predict_a_folder_or_its_clip(learn, dls):
    expected = probs(learn, dls.valid)
    for i in (0, 5, 11):
        path = dls.valid.items[i]
        for item in (path, clip_of(path)):
            name,idx,ps = predict(learn, item)
            assert is_near(ps, expected[i])
            assert (name, idx) == (dls.vocab[expected[i].argmax()], expected[i].argmax())

def test_predict_a_str(learn, dls):
    path = dls.valid.items[3]
    assert torch.equal(predict(learn, str(path))[2], predict(learn, path)[2])

@pytest.mark.parametrize('cls', [Path, str])
def test_predict_a_video(learn, shapes, cls):
    "Predict a video with a learner that was trained on jpgs"
    video = get_videos(shapes[0])[21]
    expected = predict(learn, clip_of(video))[2]
    assert is_near(predict(learn, cls(video))[2], expected)
    top = learn.predict_video(cls(video), k=6)
    assert dict(top) == pytest.approx(dict(zip(learn.dls.vocab, expected.tolist())), abs=1e-5)
    assert predict_video(learn, cls(video), k=6) == top # a function and a method

@pytest.mark.parametrize('kind', [Path, str, clip_of], ids=['path', 'str', 'clip'])
@pytest.mark.parametrize('make', [from_df, from_lists])
def test_predict_where_items_are_rows_or_pairs(shapes, learn, tmp_path, make, kind):
    "Predict with loaders whose items are rows of a table, or pairs of path and label"
    other = like(learn, make(shapes[1]), tmp_path)
    path = learn.dls.valid.items[7]
    assert is_near(predict(other, kind(path))[2], predict(learn, path)[2])

def test_test_dl(learn, dls):
    "Check that batches and predictions equal those of the validation set, with and without labels"
    items = dls.valid.items
    plain,labelled = dls.test_dl(items),dls.test_dl(items, with_labels=True)
    assert same_batches(plain, [(x,) for x,_ in dls.valid])
    assert same_batches(labelled, dls.valid)
    x = dls.valid.one_batch()[0]
    assert same_batches(dls.test_dl(items[3:5], bs=1), [(x[[3]],), (x[[4]],)])
    expected,targs = probs(learn, dls.valid),targets(dls.valid)
    for dl,want in ((plain, None), (labelled, targs), (None, targs)):
        with learn.no_bar(): ps,ys = learn.get_preds(dl=dl)
        assert is_near(ps, expected)
        assert ys is None if want is None else torch.equal(ys, want)
    assert [dls.vocab[i] for i in targs] == [o.parent.name for o in items]

def test_test_dl_of_a_table(dls, shapes):
    "Check that rows of a table give the same clips as a loader made from the folder"
    by_table,rows = from_df(shapes[1]),table(shapes[1])
    rows = rows.iloc[[get_clips(shapes[1]).index(o) for o in dls.valid.items]]
    assert same_batches(by_table.test_dl(rows), [(x,) for x,_ in dls.valid])
    assert same_batches(by_table.test_dl(rows, with_labels=True), dls.valid)

@pytest.mark.parametrize('kind', [Path, str, clip_of], ids=['path', 'str', 'clip'])
@pytest.mark.parametrize('make', [from_df, from_lists])
def test_test_dl_of_paths(dls, shapes, make, kind):
    "Check that loaders made from a table or lists accept paths, strings and clips"
    dl = make(shapes[1]).test_dl([kind(o) for o in dls.valid.items])
    assert same_batches(dl, [(x,) for x,_ in dls.valid])


def test_tta_without_draws(shapes, learn):
    "Check that test-time augmentation without random transforms equals plain predictions"
    dls = VideoDataLoaders.from_folder(shapes[1], sampler=first_frames, **squished)
    other = Learner(dls, learn.model, CrossEntropyLossFlat())
    with other.no_bar():
        (ps,ys),(preds,targs) = other.tta(n=3),other.get_preds()
    assert is_near(ps, preds, 1e-6) and torch.equal(ys, targs)

def last_frames(n_frames, seq_len, train): return list(range(n_frames-seq_len, n_frames))

def last_or_first_frames(n_frames, seq_len, train):
    "Sample the last frames in training and the first in validation"
    return last_frames(n_frames, seq_len, train) if train else list(range(seq_len))

def test_tta_weighs_training_clips_and_validation_clips(shapes, learn):
    "Check the weights of both with a sampler that takes the last frames in training and else the first"
    samplers = first_frames,last_frames,last_or_first_frames
    first,last,both = (VideoDataLoaders.from_folder(shapes[1], sampler=o, **squished) for o in samplers)
    other = Learner(both, learn.model, CrossEntropyLossFlat())
    plain,augmented = probs(learn, first.valid),probs(learn, last.valid)
    assert not is_near(plain, augmented, .01)
    with other.no_bar():
        assert is_near(other.tta(n=2)[0], .75*augmented+.25*plain)
        assert is_near(other.tta(n=2, use_max=True)[0], torch.maximum(augmented, plain))
        assert all(map(is_near, other.tta(n=2, beta=None)[0], (augmented, plain)))
        assert is_near(other.get_preds()[0], plain) # `tta` restores the loaders


def test_lr_find_leaves_the_weights(dls, tmp_path):
    learn = new_learner(dls, tmp_path)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=30, show_plot=False)
    assert 1e-7 < found.valley < 10
    after = learn.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k,v in before.items())
    assert list(tmp_path.rglob('*.pth')) == []


# MixUp and CutMix

class Keep(Callback):
    "Keep copies of the training batches and, of `mixer`, its factor lambda and the other labels"
    run_valid = False
    def __init__(self, order, mixer=None): self.order,self.mixer,self.seen = order,mixer,[]
    def before_batch(self):
        kept = [stacked(self.x), self.y]
        if self.mixer: kept += [self.mixer.lam, self.mixer.yb1[0]]
        self.seen.append([o.clone() for o in kept])

@pytest.fixture(scope='module')
def noise(tmp_path_factory):
    "Write clips of random pixels and return their loaders"
    tmp,rng = tmp_path_factory.mktemp('noise'),np.random.default_rng(0)
    for i in range(18):
        folder = tmp/'abc'[i%3]/f'{i}'
        folder.mkdir(parents=True)
        for t in range(3): Image.fromarray(rng.integers(0, 255, (16,16,3), np.uint8)).save(folder/f'{t}.png')
    kwargs = small | dict(seq_len=3, image_size=16)
    return VideoDataLoaders.from_folder(tmp, splitter=IndexSplitter([0,7]), **kwargs)

def mixed(noise, tmp_path, mixer):
    "Train with `mixer` and return the batches before and after it"
    learn,before,after = new_learner(noise, tmp_path),Keep(-1),Keep(1, mixer)
    with learn.no_logging(): learn.fit(3, cbs=[before, mixer, after])
    assert len(before.seen) == len(after.seen) == 6
    assert np.isfinite(learn.recorder.losses).all() and np.isfinite(learn.recorder.values).all()
    return zip(before.seen, after.seen)

def test_mixup_draws_once_for_a_clip(noise, tmp_path):
    "Check that all frames of a clip are mixed with one factor and with one other clip"
    factors,others = [],[]
    for (x,y),(got,_,lam,y1) in mixed(noise, tmp_path, MixUp()):
        for b in range(8):
            blends = [lam[b]*x[b]+(1-lam[b])*o for o in x]
            partners = [j for j in range(8) if is_near(got[b], blends[j]) and y[j] == y1[b]]
            assert partners, b
            others += [j for j in partners if j != b]
        factors += lam.tolist()
    assert min(factors) < .9 and len(set(factors)) > 40 and len(others) > 20

def bounding_box(changed):
    "Return slices of the rows and columns from the first to the last that changed"
    rows,cols = (np.flatnonzero(changed.any(i)) for i in (1, 0))
    return slice(rows[0], rows[-1]+1), slice(cols[0], cols[-1]+1)

def check_box(x, got, changed, box, b):
    "Check that all frames of clip `b` have the box of one clip and are else unchanged; return its index"
    rows,cols = box
    partner = next(j for j in range(8) if torch.equal(got[b][...,rows,cols], x[j][...,rows,cols]))
    for frame in changed[b]: assert not frame.any() if partner == b else bounding_box(frame) == box
    outside = torch.ones(16, 16, dtype=bool)
    outside[rows,cols] = False
    assert torch.equal(got[b][...,outside], x[b][...,outside])
    return partner

def test_cutmix_cuts_one_box_of_all_frames(noise, tmp_path):
    boxes = set()
    for (x,y),(got,_,lam,y1) in mixed(noise, tmp_path, CutMix()):
        changed = (got != x).any(2).numpy() # B,T,C,H,W -> B,T,H,W
        if not changed.any(): continue # an empty box, or each clip mixed with itself
        rows,cols = box = bounding_box(changed.any((0,1)))
        boxes.add((rows.start, rows.stop, cols.start, cols.stop))
        assert float(lam) == pytest.approx(1-(rows.stop-rows.start)*(cols.stop-cols.start)/256)
        for b in range(8): assert y1[b] == y[check_box(x, got, changed, box, b)]
    assert len(boxes) > 2


# Exported learners

def test_export_and_load_where_only_fastai_is_imported(shapes, tmp_path):
    tfms = dict(item_tfms=RandomResizedCrop(32), batch_tfms=aug_transforms())
    dls = VideoDataLoaders.from_folder(shapes[0], sampler=partial(window_frames, step=2), **tfms, **small)
    learn = new_learner(dls, tmp_path)
    with learn.no_logging(): learn.fit(1, 1e-2)
    with learn.no_bar(): expected = learn.get_preds()[0]
    learn.export()
    got = predict_exported(tmp_path/'export.pkl', dls.valid.items[:3])
    assert is_near(torch.tensor(got), expected[:3])


# Worker processes

start_methods = '''
import multiprocessing, sys
import torch
from vidseq.data.block import VideoDataLoaders

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    kwargs = dict(seq_len=4, image_size=32, bs=4, seed=0, device='cpu')
    for n in (0, 2):
        dls = VideoDataLoaders.from_folder(sys.argv[2], num_workers=n, **kwargs)
        for x,y in dls.valid: print('batch', n, float(torch.stack(tuple(x)).double().sum()), *y.tolist())
'''

@pytest.mark.parametrize('method', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_however_they_start(shapes, tmp_path, method):
    "Check that workers give the same validation batches as the main process"
    if method not in multiprocessing.get_all_start_methods(): pytest.skip('this platform has no fork')
    (tmp_path/'batches.py').write_text(start_methods)
    out = run_python('-W', 'ignore', tmp_path/'batches.py', method, shapes[0], cwd=tmp_path)
    got = [line.split()[1:] for line in out.splitlines() if line.startswith('batch')]
    here = VideoDataLoaders.from_folder(shapes[0], **small | dict(bs=4))
    expected = [[str(float(stacked(x).double().sum())), *map(str, y.tolist())] for x,y in here.valid]
    assert len(expected) == 3
    for n in '02': assert [o[1:] for o in got if o[0] == n] == expected


def color_of(i): return (i%18*14, i//18*14, 0) # distinct in spite of lossy compression

def number_of(rgb): return round(float(rgb[0])/14) + 18*round(float(rgb[1])/14)

def frame_numbers(x):
    "Read the frame numbers from the colors of a batch; return a tuple for each clip"
    return [tuple(number_of(o) for o in clip) for clip in stacked(x).mean((3,4))*255]

@pytest.fixture(scope='module')
def numbered(tmp_path_factory):
    "Write videos of 3, 60 and 300 frames that show their number as a color"
    tmp = tmp_path_factory.mktemp('numbered')
    for name,n in dict(a=60, b=60, c=60, d=60, short=3, long=300).items():
        frames = [np.full((32,32,3), color_of(i), np.uint8) for i in range(n)]
        path = write_video(tmp/f'{name}.avi', frames, quality=1)
        assert [number_of(np.asarray(o).mean((0,1))) for o in extract_frames(path)] == list(range(n))
    return tmp

def from_numbered(path, names, valid, **kwargs):
    "Load 6 frames of each video, with two labels; `valid` are the indices of the validation set"
    clips = [f'{o}.avi' for o in names]
    labels = ['even' if i%2 else 'odd' for i in range(len(names))]
    kwargs = small | dict(seq_len=6) | kwargs
    kwargs |= dict(splitter=IndexSplitter(valid), normalize=False)
    return VideoDataLoaders.from_lists(path, clips, labels, **kwargs)

def test_workers_draw_for_themselves(numbered):
    "Check that random frames differ in each worker and epoch, and that validation frames stay the same"
    dls = from_numbered(numbered, 'ab'*16+'cd', [32,33], bs=4, num_workers=2)
    set_seed(0)
    fixed = [tuple(range(4, 60, 10))]*2
    epochs = []
    for _ in range(2):
        epochs.append([frame_numbers(x) for x,_ in dls.train])
        assert [o for x,_ in dls.valid for o in frame_numbers(x)] == fixed
    drawn = [o for batches in epochs for batch in batches for o in batch]
    assert len(drawn) == 64 and len(set(drawn)) == 64 # of a million possible draws
    assert all(10*i <= o < 10*i+10 for clip in drawn for i,o in enumerate(clip))
    with dls.valid.dataset.set_split_idx(0):
        assert [o for x,_ in dls.valid for o in frame_numbers(x)] != fixed

def test_a_short_video_beside_a_long_one(numbered):
    "Check that every sampler repeats the frames of a short video evenly, in training and in validation"
    windows = window_frames,partial(window_frames, step=2),partial(window_frames, seconds=.08)
    for sampler in (first_frames, spread_frames, *windows):
        for bs in (2, 1): # both videos in one batch, and each in its own
            dls = from_numbered(numbered, ['long','short','a','b'], [2,3], sampler=sampler, bs=bs)
            for dl in (dls.train, dls.test_dl([numbered/'long.avi', numbered/'short.avi'])):
                clips = [o for x in dl for o in frame_numbers(x[0])]
                assert {len(o) for o in clips} == {6} and len(clips) == 2
                assert (0,0,1,1,2,2) in clips
    dls = from_numbered(numbered, ['a','b','long','short'], [2,3], bs=2)
    x,_ = dls.valid.one_batch()
    assert len(x) == 6 and frame_numbers(x) == [(24,74,124,174,224,274), (0,0,1,1,2,2)]


samplers = [
    first_frames, spread_frames, window_frames, partial(first_frames, step=2), partial(window_frames, step=3),
    partial(window_frames, seconds=.1), partial(window_frames, step=(1,3))]

def sampler_id(o): return f'{o.func.__name__} {o.keywords}' if isinstance(o, partial) else o.__name__

@pytest.mark.parametrize('sampler', samplers, ids=sampler_id)
def test_jpgs_and_videos_give_the_same_clips(shapes, sampler):
    "Compare both; they differ only by the compression of jpgs"
    kwargs = small | dict(sampler=sampler, fps=25, normalize=False)
    videos,jpgs = (VideoDataLoaders.from_folder(o, **kwargs) for o in shapes)
    assert [o.stem for o in videos.valid.items] == [o.name for o in jpgs.valid.items]
    for (vx,vy),(jx,jy) in zip(videos.valid, jpgs.valid, strict=True):
        assert torch.equal(vy, jy)
        diff = (stacked(vx)-stacked(jx)).abs().mean((2,3,4))*255
        assert 0 < diff.max() < 4 # in each frame


# Clips that become unreadable after the loaders are made

def cut_file(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])

def cut_jpgs(clip):
    for o in clip.iterdir(): cut_file(o)

def cut_video(clip): cut_file(clip) # in the header

def cut_first_frame(clip):
    with open_video(clip) as (container,stream): packet = next(container.demux(stream))
    clip.write_bytes(clip.read_bytes()[:packet.pos+packet.size//2])

damages = pytest.mark.parametrize('of_videos,damage', [
    pytest.param(False, cut_jpgs, id='cut jpgs'),
    pytest.param(False, shutil.rmtree, id='no folder'),
    pytest.param(True, cut_video, id='cut video'),
    pytest.param(True, cut_first_frame, id='cut first frame'),
    pytest.param(True, Path.unlink, id='no video')])

def damaged(shapes, tmp_path, of_videos, damage, **kwargs):
    "Make loaders of a copy, then damage a training clip; return the loaders and the clip"
    path = shutil.copytree(shapes[not of_videos], tmp_path/'copy')
    dls = VideoDataLoaders.from_folder(path, **small | dict(num_workers=2) | kwargs)
    # The last clip of a class: the next item has another label
    i = max(i for i,o in enumerate(dls.train.items) if o.parent.name == 'MoveRight')
    dls.train_ds[i] # fill the caches of this clip before the damage
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
    expected = Counter(o.parent.name for o in dls.train.items) # replacements have the same label
    assert Counter(labels(dls.train)) == expected
    assert capsys.readouterr().out == f'Replaced 1 unreadable clips by others with the same label: {bad}\n'
    assert list(dls.train.skipped) == [bad]
    assert labels(dls.valid) == [o.parent.name for o in dls.valid.items]
    assert (capsys.readouterr().out, list(dls.valid.skipped)) == ('', [])


# Memory and open files over many epochs

leaks = '''
import gc, multiprocessing, os, sys, time
from pathlib import Path
from fastai.vision.all import RandomResizedCrop
from vidseq.data.block import VideoDataLoaders
from vidseq.data.loader import get_clips

def used(pid):
    "Return the MB of memory and the number of open files of a process"
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')/2**20, len(os.listdir(f'/proc/{pid}/fd'))

def all_train(items): return list(range(len(items))), []

def loader(clips, n_workers):
    kwargs = dict(seq_len=4, bs=6, num_workers=n_workers, item_tfms=RandomResizedCrop(32), device='cpu')
    labels = [o.parent.name for o in clips]
    return VideoDataLoaders.from_lists('.', clips, labels, splitter=all_train, **kwargs).train

def epochs(dl):
    for _ in range(20):
        for _ in dl: pass
        gc.collect() # batches in reference cycles of fastai; each batch of a worker is an open file
        yield used(os.getpid())

def passes(clips):
    "Measure the worker of one epoch of twenty times the clips, because a worker ends after an epoch"
    all_used = []
    for _ in loader(clips*20, 1):
        time.sleep(.02) # until the worker waits, two batches ahead, with all videos closed
        all_used.append(used(multiprocessing.active_children()[0].pid))
    return all_used[::len(clips)//6] # at the first batch of each pass

if __name__ == '__main__':
    clips,measure = list(get_clips(sys.argv[1])),sys.argv[2]
    measured = passes(clips) if measure == 'worker' else epochs(loader(clips, int(measure == 'parent')))
    for o in measured: print('used', *o)
'''

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is read from /proc')
@pytest.mark.parametrize('measure', ['alone','parent','worker'])
@pytest.mark.parametrize('of_videos', [True, False], ids=['videos','jpgs'])
def test_twenty_epochs_leak_nothing(shapes, tmp_path, of_videos, measure):
    """Check that memory and the number of open files do not grow from the third epoch to the last.

    Measure a process without workers, the parent of a worker, and the worker."""
    (tmp_path/'leaks.py').write_text(leaks)
    out = run_python('-W', 'ignore', tmp_path/'leaks.py', shapes[not of_videos], measure, cwd=tmp_path)
    used = [[float(o) for o in line.split()[1:]] for line in out.splitlines() if line.startswith('used')]
    assert len(used) == 20
    (mb,files),(mb_last,files_last) = used[2],used[-1]
    assert mb_last-mb < 10
    assert files_last == files
