"""Accuracy on groups never trained on: every model from scratch, on the same folds, for the same time; the tutorials' models with their first frames beside them.

A fold holds out whole groups (people, cameras, source videos), so that each clip is scored once, by models that have not seen its group. Intervals are those of drawing the groups anew.
"""
import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from fastai.vision.all import IndexSplitter, LabelSmoothingCrossEntropyFlat, RandomCrop, Resize, ResizeMethod, accuracy, parent_label, plt, set_seed
from harness import load_module, machine, report

from vidseq.all import VideoDataLoaders, aug_clips, epochs_for, evaluate, extract_videos, first_frames, frames_folder, get_clips, group_by, group_interval, small_timesformer, time_sensitivity, video_info, video_learner, window_frames
from vidseq.report import contenders

models = contenders | {'TimeSformer': (small_timesformer, 3e-3)} # from scratch: model and learning rate


def folds(groups, n):
    "Positions that each of `n` folds holds out: whole groups, every n-th of the sorted ones"
    order = sorted(set(groups))
    if len(order) < n: raise ValueError(f'{n} folds of {len(order)} groups: there must be a group for each.')
    return [[i for i,g in enumerate(groups) if g in order[k::n]] for k in range(n)]


def our_learner(model, lr, videos, valid, args):
    "The recipe: a random window of frames that are `step` apart, the whole clip moved, turned, scaled, lit and, if that is harmless, mirrored alike; smoothed labels; half precision where it pays"
    height,width = (args.size, args.size) if model is small_timesformer else (args.size, args.size*args.width//args.height//8*8)
    shift = args.size//8
    sampler = first_frames if 'window' in args.without else partial(window_frames, step=args.step)
    tfms = [] if 'augmentation' in args.without else aug_clips(args.flip)
    dls = VideoDataLoaders.from_path_func(args.dir, [frames_folder(v, args.frames/'small', args.dir) for v in videos], parent_label, splitter=IndexSplitter(valid), seq_len=args.seq_len, sampler=sampler, bs=args.bs,
        num_workers=0, item_tfms=[Resize((height+shift,width+shift), ResizeMethod.Squish), RandomCrop((height,width))], batch_tfms=tfms)
    learn = video_learner(dls, model, loss_func=None if 'smoothing' in args.without else LabelSmoothingCrossEntropyFlat(.1), wd=.05)
    return learn if 'half' in args.without else learn.to_amp(), lr, args.views


def tutorials_learner(tutorial, name, videos, valid, args):
    "A learner of the tutorials: the first 5 frames, 64 pixels, resnet34"
    from fastai.vision.all import Learner, resnet34
    dls = tutorial.get_action_dataloaders([frames_folder(v, args.frames/'whole', args.dir) for v in videos], bs=args.bs, image_size=64, seq_len=5, val_idxs=valid, num_workers=0)
    split = dict(SimpleModel=tutorial.simple_splitter, RNNModel=tutorial.rnnmodel_splitter)[name]
    return Learner(dls, getattr(tutorial, name)(resnet34, len(dls.vocab)), metrics=[accuracy], splitter=split), 1e-3, 1 # its clips have one view


def scored(learner, videos, valid, args):
    "Train for the time there is -> whether each held-out clip is then named rightly, by one clip in the middle and by several; accuracy on changed clips; epochs and seconds"
    set_seed(args.seed)
    learn,lr,n_views = learner(videos=videos, valid=valid, args=args)
    n,start = epochs_for(learn, args.seconds),time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(n, lr)
        took = time.perf_counter()-start
        preds,targs = learn.get_preds(dl=learn.dls.valid)
        several = evaluate(learn, n_views=n_views).right if n_views > 1 else None
    return (preds.argmax(1) == targs).numpy(), several, time_sensitivity(learn), n, took


def plot(rows, fname):
    "Accuracy of each model, its interval, and its folds as dots"
    fig,ax = plt.subplots(figsize=(8, .5*len(rows)+1))
    for y,(_,acc,(low,high),each,*_) in enumerate(rows):
        ax.plot([low,high], [y,y], color='tab:blue', lw=6, alpha=.3)
        ax.plot(each, [y]*len(each), 'o', color='gray', ms=4)
        ax.plot([acc], [y], 'D', color='tab:blue')
    ax.set(yticks=range(len(rows)), yticklabels=[o[0] for o in rows], xlim=(0,1.02), xlabel='accuracy on groups never trained on; interval over groups; a dot for each fold')
    ax.invert_yaxis()
    fig.savefig(fname, dpi=80, bbox_inches='tight')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('dir', type=Path, help='class folders of videos')
    p.add_argument('--group', default='^[^_]+', help='regular expression for the group in a file name (default: what stands before the first _)')
    p.add_argument('--baseline', type=Path, help="a Python file with the tutorials' own get_action_dataloaders, SimpleModel and RNNModel")
    p.add_argument('--models', nargs='*', help=f'some of: {", ".join(models)}')
    p.add_argument('--folds', type=int, default=3)
    p.add_argument('--seconds', type=float, default=120, help='training time for each model and fold')
    p.add_argument('--seq-len', type=int, default=12)
    p.add_argument('--step', type=int, default=2)
    p.add_argument('--size', type=int, default=64, help='height of frames, pixels')
    p.add_argument('--bs', type=int, default=8)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--flip', action='store_true', help='mirror clips in training: not where left and right are classes')
    p.add_argument('--views', type=int, default=5, help='clips of each video for the second score')
    p.add_argument('--without', nargs='*', default=[], choices=('augmentation','window','smoothing','half'), help='leave out a part of the recipe, to see what it brings')
    p.add_argument('--plot', type=Path, help='write a picture here')
    p.add_argument('--save', action='store_true', help='put the table into README.md')
    args = p.parse_args()
    videos = get_clips(args.dir)
    with tempfile.TemporaryDirectory() as tmp:
        args.frames = Path(tmp)
        extract_videos(videos, args.frames/'small', root=args.dir, size=args.size+args.size//8) # at the size of their use
        if args.baseline: extract_videos(videos, args.frames/'whole', root=args.dir)
        info = video_info(videos[0])
        args.height,args.width = info.height,info.width
        groups = np.array([group_by(args.group)(v) or '' for v in videos])
        learners = {name: partial(our_learner, *models[name]) for name in (models if args.models is None else args.models)}
        if args.baseline:
            tutorial = load_module(args.baseline)
            learners |= {f"the tutorials' {name}": partial(tutorials_learner, tutorial, name) for name in ('SimpleModel','RNNModel')}
        held,rows = folds(groups, args.folds),[]
        for name,learner in learners.items():
            right,more,each,changed,epochs = np.zeros(len(videos), bool),np.zeros(len(videos), bool),[],[],[]
            for valid in held:
                right[valid],several,time_,n,took = scored(learner, videos, valid, args)
                if several is not None: more[valid] = several
                each.append(right[valid].mean())
                changed.append(time_)
                epochs.append(n)
                print(f'{name}: {each[-1]:.3f} with one clip, {"-" if several is None else f"{several.mean():.3f}"} with {args.views}; {n} epochs in {took:.0f} s; {", ".join(f"{k} {v:.2f}" for k,v in time_.items())}', flush=True)
            rows.append((name, right.mean(), group_interval(right, groups), each, None if several is None else more.mean(), sum(changed)/len(changed), epochs))
    lines = [f'| {name} | {acc:.3f} | {low:.2f} to {high:.2f} | {" ".join(f"{o:.2f}" for o in each)} | {"" if more is None else f"{more:.3f}"} | {time_["reversed"]:.2f} {time_["shuffled"]:.2f} {time_["one frame"]:.2f} | {" ".join(map(str, epochs))} |'
             for name,acc,(low,high),each,more,time_,epochs in rows]
    text = '\n'.join([f'| model | accuracy | 95 % over groups | each fold | {args.views} clips of a video | reversed, shuffled, one frame | epochs |', '|---|---|---|---|---|---|---|', *lines])
    left_out = f' Without {", ".join(args.without)}.' if args.without else ''
    report('accuracy', [machine('torch', 'fastai'), f'{len(videos)} clips of {len(set(map(parent_label, videos)))} classes, {len(set(groups))} groups in {args.folds} folds; {args.seconds:.0f} s of training each.{left_out}', text], args.save)
    if args.plot: plot(rows, args.plot)
