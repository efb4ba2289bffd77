"""Cross-validate models on held-out groups of clips: heads on pretrained features, and from scratch.

`--encoder` names the image network of the features, without which no head is trained. The other models
train from scratch, each for the same time. Each fold holds out whole groups (people, cameras, source videos),
so every clip is scored once, by a model that was not trained on its group. The 95 % confidence interval is a
bootstrap over groups. `--baseline` adds the tutorials' models, which use the first 5 frames of each clip.
"""
import tempfile
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
from fastai.vision.all import (
    IndexSplitter,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    RandomCrop,
    Resize,
    ResizeMethod,
    accuracy,
    create_head,
    parent_label,
    plt,
    resnet34,
    set_seed,
)
from harness import create_parser, load_module, machine, markdown_table, report

from vidseq.data.augment import aug_clips
from vidseq.data.block import VideoDataLoaders
from vidseq.data.folds import find_groups, group_folds
from vidseq.data.loader import get_clips
from vidseq.data.samplers import first_frames, window_frames
from vidseq.evaluate.intervals import group_interval
from vidseq.evaluate.probe import probe
from vidseq.evaluate.scores import evaluate, time_sensitivity
from vidseq.models.timesformer import small_timesformer
from vidseq.report.compare import default_models, epochs_for
from vidseq.train.embed import embed
from vidseq.train.learner import video_learner
from vidseq.video.extract import extract_videos
from vidseq.video.frame_folder import frames_folder
from vidseq.video.info import video_info

models = default_models | {'TimeSformer': (small_timesformer, 3e-3)} # name -> (model, learning rate)
heads = ('Linear on frames', 'Linear on motion + short_motion', # of `probe`, in the table
         'Temporal convolutions on motion + short_motion',
         'Temporal convolutions on frames + motion + short_motion')
parts = ('augmentation', 'window', 'smoothing', 'half') # of the recipe, which `--without` can omit

Fold = namedtuple('Fold', 'right right_views sensitivity epochs seconds') # Scores of one model on one fold
Result = namedtuple('Result', 'name right right_views interval folds') # Scores of one model on all clips


def frame_size(model, args):
    "Return the height and width of frames for `model`: square for TimeSformer, else as in the videos"
    if model is small_timesformer: return args.size,args.size
    return args.size,args.size*args.width//args.height//8*8


def create_dls(model, videos, valid, args):
    "Create the `DataLoaders` of the recipe: random window, random crop and clip augmentation in training"
    height,width = frame_size(model, args)
    margin = args.size//8
    folders = [frames_folder(v, args.frames/'small', args.dir) for v in videos]
    sampler = first_frames if 'window' in args.without else partial(window_frames, step=args.step)
    resize = Resize((height+margin, width+margin), ResizeMethod.Squish)
    return VideoDataLoaders.from_path_func(
        args.dir, folders, parent_label, splitter=IndexSplitter(valid), seq_len=args.seq_len, sampler=sampler,
        bs=args.bs, num_workers=0, item_tfms=[resize, RandomCrop((height, width))],
        batch_tfms=[] if 'augmentation' in args.without else aug_clips(args.flip))


def recipe_learner(model, lr, videos, valid, args):
    "Create a learner of vidseq with the recipe, and return it with its learning rate and number of views"
    loss_func = None if 'smoothing' in args.without else LabelSmoothingCrossEntropyFlat(.1)
    learn = video_learner(create_dls(model, videos, valid, args), model, loss_func=loss_func, wd=.05)
    return learn if 'half' in args.without else learn.to_amp(), lr, args.views


def tutorial_learner(tutorial, name, videos, valid, args):
    "Create a learner of the tutorials (first 5 frames, 64 pixels, resnet34), with learning rate and 1 view"
    folders = [frames_folder(v, args.frames/'whole', args.dir) for v in videos]
    dls = tutorial.get_action_dataloaders(folders, bs=args.bs, image_size=64, seq_len=5, val_idxs=valid,
                                          num_workers=0)
    splitter = dict(SimpleModel=tutorial.simple_splitter, RNNModel=tutorial.rnnmodel_splitter)[name]
    model = getattr(tutorial, name)(resnet34, len(dls.vocab))
    if name == 'SimpleModel': # its head has 101 outputs for every data set
        model.head = tutorial.TimeDistributed(create_head(512, len(dls.vocab)))
    return Learner(dls, model, metrics=[accuracy], splitter=splitter), 1e-3, 1


def train_and_score(create_learner, videos, valid, args):
    "Train a learner for about `args.seconds` and return its scores on the clips `valid` as a `Fold`"
    set_seed(args.seed)
    learn,lr,n_views = create_learner(videos=videos, valid=valid, args=args)
    n_epochs,start = epochs_for(learn, args.seconds),time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(n_epochs, lr)
        seconds = time.perf_counter()-start
        preds,targs = learn.get_preds(dl=learn.dls.valid)
        right_views = evaluate(learn, n_views=n_views).right if n_views > 1 else None
        right = (preds.argmax(1) == targs).numpy()
        return Fold(right, right_views, time_sensitivity(learn), n_epochs, seconds)


def print_fold(name, fold, n_views):
    "Print the scores of a model on one fold"
    views = '' if fold.right_views is None else f', {fold.right_views.mean():.3f} with {n_views}'
    order = ', '.join(f'{k} {v:.2f}' for k,v in fold.sensitivity.items())
    training = f'{fold.epochs} epochs in {fold.seconds:.0f} s' if fold.epochs else f'{fold.seconds:.1f} s'
    print(f'{name}: {fold.right.mean():.3f} with one clip{views}; {training}; {order}', flush=True)


def probe_results(videos, groups, folds, args):
    "Cross-validate heads on features of a pretrained network, and return a `Result` for each of `heads`"
    start = time.perf_counter()
    features = embed(videos, args.encoder, group=args.group, cache=args.frames/'features')
    embedded = time.perf_counter()
    found = probe(features, folds=folds)
    print(f'{features}; {embedded-start:.0f} s for features, {time.perf_counter()-embedded:.0f} s for heads')
    return [probe_result(found, name, groups) for name in heads]


def probe_result(found, name, groups):
    "Return the scores of one of the heads of a `Probe`"
    right,sensitivity,seconds = found.scores[name].right,found.time_sensitivity(name),found.seconds(name)
    seconds /= len(found.folds)+1 # the last heads are trained on all clips
    folds = [Fold(right[list(valid)], None, sensitivity, None, seconds) for _,valid in found.folds]
    for o in folds: print_fold(name, o, 0)
    return Result(f'{name}, pretrained', right.mean(), None, group_interval(right, groups), folds)


def cross_validate(name, create_learner, videos, groups, folds, args):
    "Train and score a model on each fold, and return its scores on all clips as a `Result`"
    right,right_views,results = np.zeros(len(videos), bool),np.zeros(len(videos), bool),[]
    for valid in (list(o) for _,o in folds):
        fold = train_and_score(create_learner, videos, valid, args)
        right[valid] = fold.right
        if fold.right_views is not None: right_views[valid] = fold.right_views
        print_fold(name, fold, args.views)
        results.append(fold)
    mean_views = None if results[0].right_views is None else right_views.mean()
    return Result(name, right.mean(), mean_views, group_interval(right, groups), results)


def table_row(res):
    "Format a `Result` as the cells of a row"
    low,high = res.interval
    sensitivity = sum(o.sensitivity for o in res.folds)/len(res.folds)
    return [res.name, f'{res.right:.3f}', f'{low:.2f} to {high:.2f}',
            ' '.join(f'{o.right.mean():.2f}' for o in res.folds),
            '' if res.right_views is None else f'{res.right_views:.3f}',
            ' '.join(f'{sensitivity[o]:.2f}' for o in ('reversed', 'shuffled', 'one frame')),
            ' '.join(str(o.epochs) for o in res.folds if o.epochs)]


def results_table(results, n_views):
    "Format results as a Markdown table"
    head = ['model', 'accuracy', '95 % over groups', 'each fold', f'{n_views} clips of a video',
            'reversed, shuffled, one frame', 'epochs']
    return markdown_table(head, *map(table_row, results))


def plot_results(results, fname):
    "Plot the accuracy of each model, its confidence interval, and its folds as dots, to the file `fname`"
    fig,ax = plt.subplots(figsize=(8, .5*len(results)+1))
    for y,res in enumerate(results):
        ax.plot(res.interval, [y, y], color='tab:blue', lw=6, alpha=.3)
        ax.plot([o.right.mean() for o in res.folds], [y]*len(res.folds), 'o', color='gray', ms=4)
        ax.plot([res.right], [y], 'D', color='tab:blue')
    ax.set(yticks=range(len(results)), yticklabels=[o.name for o in results], xlim=(0, 1.02),
           xlabel='accuracy on held-out groups, with 95 % confidence interval over groups; dots: folds')
    ax.invert_yaxis()
    fig.savefig(fname, dpi=80, bbox_inches='tight')


def learners(args):
    "Return the functions that create the learners to compare, by name"
    names = models if args.models is None else args.models
    found = {name: partial(recipe_learner, *models[name]) for name in names}
    if not args.baseline: return found
    tutorial = load_module(args.baseline)
    theirs = ('SimpleModel', 'RNNModel')
    return found | {f"the tutorials' {o}": partial(tutorial_learner, tutorial, o) for o in theirs}


def extract_all(videos, args):
    "Extract the frames at the size that training uses and, for the tutorials' models, at full size"
    extract_videos(videos, args.frames/'small', root=args.dir, size=args.size+args.size//8)
    if args.baseline: extract_videos(videos, args.frames/'whole', root=args.dir)
    info = video_info(videos[0])
    args.height,args.width = info.height,info.width


def setting(videos, groups, args):
    "Describe data, folds and training time in one line"
    n_classes = len(set(map(parent_label, videos)))
    data = f'{len(videos)} clips of {n_classes} classes, {len(set(groups))} groups in {args.folds} folds'
    trained = f'; {args.seconds:.0f} s of training each from scratch' if learners(args) else ''
    omitted = f' Without {", ".join(args.without)}.' if args.without else ''
    features = f' Pretrained: heads on features of {args.encoder}.' if args.encoder else ''
    return f'{data}{trained}.{omitted}{features}'


def parse_args():
    "Parse the command line"
    p = create_parser(__doc__, 'get_action_dataloaders, SimpleModel and RNNModel', rounds=False)
    p.add_argument('dir', type=Path, help='class folders of videos')
    def add(name, default, text):
        p.add_argument(name, default=default, type=type(default), help=f'{text} (default: {default})')
    add('--group', '^[^_]+', 'regular expression for the group in a file name')
    add('--folds', 3, 'folds of the cross-validation')
    add('--seconds', 120., 'training time per model and fold')
    add('--seq-len', 12, 'frames of each clip')
    add('--step', 2, 'distance between frames, in frames')
    add('--size', 64, 'height of frames, in pixels')
    add('--bs', 8, 'clips in a batch')
    add('--seed', 0, 'random seed of each training')
    add('--views', 5, 'clips of each video for the second score')
    add('--encoder', 'efficientnet_lite0', "pretrained network of the features; '' for none")
    p.add_argument('--models', nargs='*', choices=models, metavar='NAME', help=f'any of: {", ".join(models)}')
    p.add_argument('--flip', action='store_true', help='train with horizontal flip, p=0.5')
    p.add_argument('--without', nargs='*', default=[], choices=parts, help='parts of the recipe to omit')
    p.add_argument('--plot', type=Path, help='write a plot to this image file')
    return p.parse_args()


if __name__ == '__main__':
    args = parse_args()
    videos = get_clips(args.dir)
    groups = find_groups(videos, args.group)
    folds = group_folds(videos, [parent_label(v) for v in videos], args.group, args.folds, args.seed)
    with tempfile.TemporaryDirectory() as tmp:
        args.frames = Path(tmp)
        extract_all(videos, args)
        results = probe_results(videos, groups, folds, args) if args.encoder else []
        results += [cross_validate(name, o, videos, groups, folds, args) for name,o in learners(args).items()]
    tables = [setting(videos, groups, args), results_table(results, args.views)]
    report('accuracy', [machine('torch', 'fastai'), *tables], args.save)
    if args.plot: plot_results(results, args.plot)
