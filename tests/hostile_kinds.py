"Labels, losses, models and arguments that predictions, scores and explanations must answer or refuse"
import atexit
import json
import math
import shutil
import tempfile
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.vision.all import (CategoryBlock, DataBlock, DataLoaders, ImageBlock, L, Learner,
                               MultiCategoryBlock, RegressionBlock, Resize, nn)

import make_kinds
from hostile import gives, refuses
from vidseq.data.clip import ImageTuple
from vidseq.deploy.card import model_card
from vidseq.deploy.export import export_learner
from vidseq.deploy.predict import predict_video
from vidseq.data.events import find_events
from vidseq.deploy.timeline import plot_timeline, predict_timeline
from vidseq.evaluate.interpret import ClipInterpretation, class_activation, explain_gif, frame_importance
from vidseq.evaluate.kinds import LabelScores, NumberScores
from vidseq.evaluate.metrics import ClassScores
from vidseq.evaluate.scores import evaluate, time_sensitivity
from vidseq.report.compare import best_model
from vidseq.train.outputs import labels_of, loss_activation
from vidseq.video.decode import VideoError


@lru_cache
def folder():
    "Return a folder of tiny clips for all cases"
    path = Path(tempfile.mkdtemp(prefix='vidseq-kinds-'))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    make_kinds.make_clips(path)
    return path


@lru_cache
def clips(): return sorted(o for o in folder().glob('*/*') if o.is_dir())


@lru_cache
def loaders(): return make_kinds.make_loaders(folder(), clips())


def create(labels, **kwargs): return make_kinds.create(folder(), clips(), labels, **kwargs)


def learner(kind='class', *args, **kwargs): return make_kinds.tiny_learner(loaders()[kind], *args, **kwargs)


def first(): return clips()[0]


def predict(learn, **kwargs): return predict_video(learn, first(), **kwargs)


def strict(o): return json.loads(json.dumps(o, allow_nan=False))


def as_learner(model, kind='class'): return Learner(loaders()[kind], model, metrics=[])


class Returns(nn.Module):
    "Return `f` of the logits"
    def __init__(self, f, n=3):
        super().__init__()
        self.f,self.model = f,make_kinds.Tiny(n)
    def forward(self, x): return self.f(self.model(x))


# Models whose outputs do not fit the labels

for k,n in (('class',3), ('integers',3), ('classes',4), ('encoded',3)):
    for wrong in (1, n-1, n+1, 101):
        words = f'{wrong} outputs for each clip, but {n} classes', f'n_out={n}'
        refuses(f'{k}: {wrong} outputs', lambda _,k=k,w=wrong: predict(learner(k, n_out=w)), *words)
        refuses(f'{k}: {wrong} outputs scored', lambda _,k=k,w=wrong: evaluate(learner(k, n_out=w)), *words)
refuses('two outputs for a number', lambda _: predict(learner('number', n_out=2)), 'but 1 numbers')
refuses('one output for two numbers', lambda _: evaluate(learner('numbers', n_out=1)), 'but 2 numbers')
refuses('wrong outputs in a timeline',
        lambda _: predict_timeline(learner(n_out=5), first(), fps=1), 'n_out=3')
refuses('wrong outputs explained', lambda _: frame_importance(learner(n_out=2), first()), 'n_out=3')
refuses('wrong outputs in a heat map',
        lambda _: class_activation(learner(n_out=2), first(), 'left'), 'n_out=3')
odd = dict(tuple=lambda x: (x, x), list=lambda x: [x], dict=lambda x: dict(a=x))
for name,f in odd.items():
    refuses(f'a model that returns a {name}', lambda _,f=f: frame_importance(as_learner(Returns(f)), first()),
            'learn.model: returns a', 'Return one tensor')
refuses('outputs for each frame', lambda _: predict(as_learner(Returns(lambda x: x[:,None]))),
        '1x3 outputs for each clip')
for bad in (math.nan, math.inf):
    refuses(f'outputs that are {bad}', lambda _,b=bad: predict(as_learner(Returns(lambda x: x*b))),
            'learn.model', 'not finite', 'lower learning rate')
    refuses(f'numbers that are {bad}',
            lambda _,b=bad: evaluate(as_learner(Returns(lambda x: x*b, 1), 'number')),
            'not finite (NaN) for')
gives('one class with probability 0', lambda _: predict_video(
    as_learner(Returns(lambda x: x*0+torch.tensor([0,0,-math.inf]))), first())[-1], ('start', 0.))
gives('large logits', lambda _: predict_video(
    as_learner(Returns(lambda x: x*0+torch.tensor([0,1e30,-1e30]))), first())[0], ('right', 1.))
gives('a flat output for one number', lambda _: len(predict(as_learner(
    Returns(lambda x: x[:,0], 1), 'number'))), 1)
gives('half precision', lambda _: round(sum(p for _,p in predict(as_learner(
    Returns(lambda x: x.bfloat16())))), 4), 1.)


# Loaders without the parts that predictions need

def image_loaders(block, **kwargs):
    "Return loaders of single images"
    files = sorted(folder().glob('*/*/*.png'))
    data = DataBlock((ImageBlock, *L(block)), get_y=[lambda o: o.parent.parent.name]*len(L(block)),
                     item_tfms=Resize(16), **kwargs)
    return data.dataloaders(files, bs=4, num_workers=0)


class Unlabeled:
    "Loaders that are not fastai's"
    device = torch.device('cpu')
    loaders = [torch.utils.data.DataLoader([1,2]), torch.utils.data.DataLoader([3])]


def other_learner(dls): return Learner(dls, make_kinds.Tiny(3), loss_func=F.cross_entropy, opt_func=None)


class Stub:
    "Have the attributes of a learner that are checked first"
    def __init__(self, dls): self.dls,self.model,self.loss_func = dls,None,None


uses = dict(predict_video=predict, evaluate=evaluate, time_sensitivity=time_sensitivity,
            predict_timeline=lambda l: predict_timeline(l, first(), fps=1))
for name,use in uses.items():
    refuses(f'{name}: loaders of PyTorch',
            lambda _,use=use: use(Stub(Unlabeled())), 'learn.dls', 'no fastai `Datasets`')
    refuses(f'{name}: no loaders', lambda _,use=use: use(Stub(None)), 'learn.dls', 'VideoDataLoaders')
refuses('two labels for each clip',
        lambda _: labels_of(image_loaders([CategoryBlock, CategoryBlock], n_inp=1)),
        '2 labels for each clip')
refuses('images as labels',
        lambda _: labels_of(DataBlock((ImageBlock, ImageBlock), item_tfms=Resize(16)).dataloaders(
    sorted(folder().glob('*/*/*.png')), bs=4, num_workers=0)), 'neither classes nor numbers')
refuses('a timeline of images',
        lambda _: predict_timeline(Stub(image_loaders([CategoryBlock])), first(), fps=1),
        'ImageTupleTfm', 'ClipBlock')
refuses('scores of images', lambda _: evaluate(Stub(image_loaders([CategoryBlock]))), 'ImageTupleTfm')


def without_validation():
    dls = loaders()['class']
    return Stub(DataLoaders(dls.train))


refuses('no validation set', lambda _: evaluate(without_validation()), 'no validation set', 'dls.test_dl')
refuses('no validation set for time', lambda _: time_sensitivity(without_validation()), 'no validation set')


# Arguments

for k in (0, -1): refuses(f'predict k={k}', lambda _,k=k: predict(learner(), k=k), f'k={k}', 'at least 1')
for name,call in dict(predict=predict_video, importance=frame_importance, heat=class_activation,
                      gif=lambda l, p: explain_gif(l, p, folder()/'x.gif')).items():
    for kind in (str, Path):
        refuses(f'{name}: no such file ({kind.__name__})',
                lambda _,c=call,t=kind: c(learner(), t('nowhere.avi')),
                'nowhere.avi: no such file', error=VideoError)
refuses('n_views=0', lambda _: evaluate(learner(), n_views=0), 'n_views=0')
refuses('n_shuffles=0', lambda _: time_sensitivity(learner(), n_shuffles=0), 'n_shuffles=0')
refuses('crops=2', lambda _: evaluate(learner(), crops=2), 'crops=2')
refuses('a group that no name has',
        lambda _: evaluate(learner(), group='person([0-9])'), 'group', 'no group found')
refuses('a pattern that is not one', lambda _: evaluate(learner(), group='('), 'not a regular expression')
for kind,target,words in (
        ('class', 'lefd', ('no class lefd', 'Did you mean left?')), ('class', 3, ('no class 3', 'left')),
        ('class', -1, ('no class -1',)), ('class', 1.5, ('no class 1.5',)),
        ('integers', 7, ('no class 7', '0, 1, 2')),
        ('classes', 'al', ('Did you mean all?',)), ('encoded', 'up', ('Use one of left, right, start',)),
        ('number', 1, ('no number 1', 'value')), ('numbers', 2, ('no number 2', 'value')),
        ('numbers', 'value', ('no number value', 'Did you mean value'))):
    for name,call in dict(importance=frame_importance, heat=class_activation).items():
        refuses(f'{name} of {target!r} for {kind}',
                lambda _,c=call,k=kind,t=target: c(learner(k), first(), t),
                'target', *words)


def same_importance(kind, *targets):
    learn = learner(kind)
    values = [frame_importance(learn, first(), o).tolist() for o in targets]
    return all(o == values[0] for o in values)


gives('a class by name and index', lambda _: same_importance('class', 'right', 1), True)
gives('an integer class by name', lambda _: same_importance('integers', 2, '2'), True)
gives('a number by name and index', lambda _: same_importance('numbers', 'value 1', 1), True)
gives('the only number by default', lambda _: same_importance('number', None, 0, 'value'), True)
gives('the most probable of several classes', lambda _: same_importance(
    'classes', None, predict(learner('classes'))[0][0]), True)


# Labels that are given to `evaluate`

def given(kind, labels, n=3):
    learn = learner(kind)
    return evaluate(learn, learn.dls.test_dl(L(clips()[:n]).map(lambda o: [o]), num_workers=0), labels)


refuses('no labels', lambda _: given('class', None), 'no labels', 'parent_label')
refuses('too few labels', lambda _: given('class', ['left']), '1 labels for 3 clips')
refuses('an unknown class',
        lambda _: given('class', ['left','lift','left']), 'no class lift', 'Did you mean left?')
refuses('an unknown class of several', lambda _: given('classes', [['left'],['alle'],[]]), 'no class alle')
refuses('text for a number', lambda _: given('number', ['a','b','c']), "'a'", 'not a number')
refuses('NaN for a number', lambda _: given('number', [1,math.nan,2]), 'nan', 'not a number')
refuses('None for a number', lambda _: given('number', [1,None,2]), 'None', 'not a number')
refuses('one number for two', lambda _: given('numbers', [1,2,3]), 'a list of 2 numbers')
refuses('three numbers for two', lambda _: given('numbers', [[1,2,3]]*3), 'a list of 2 numbers')
refuses('no clip has a class', lambda _: given('classes', [[],[],[]]), 'none of the 3 clips has a class')
gives('integers as text', lambda _: given('integers', ['0','1','2']).targs.tolist(), [0,1,2])
gives('numbers as text', lambda _: given('number', ['0.5','1','2']).targs.tolist(), [[.5],[1.],[2.]])
gives('one class for several', lambda _: given('classes', ['left',['all'],[]]).targs.tolist(),
      [[0,1,0,0], [1,0,0,0], [0,0,0,0]])
gives('a function of a path', lambda _: given('class', lambda o: o.parent.name).targs.tolist(), [0,0,0])


# Small and one-sided sets

def scored(kind, labels):
    scores = given(kind, labels, len(labels))
    strict(scores.to_dict() | dict(rows=scores.per_class().to_dict('records')))
    return scores


gives('one video',
      lambda _: (scored('class', ['left']).interval(), len(scored('class', ['left']).per_class())), (None, 1))
gives('one video of several classes', lambda _: scored('classes', [['left','all']]).interval(), None)
gives('one number', lambda _: scored('number', [1.]).to_dict()['r2'], None)
gives('equal numbers',
      lambda _: (scored('number', [1.,1.,1.]).r2, scored('number', [1.,1.,1.]).interval('r2' and .95, 'r2')),
      (None, None))
gives('one of two numbers is constant',
      lambda _: scored('numbers', [[1,1],[2,1],[3,1]]).per_class().r2.isna().tolist(),
      [False,True])
gives('only one class in validation', lambda _: list(scored('class', ['left']*3).per_class().label), ['left'])
gives('a class that no video has',
      lambda _: list(scored('classes', [['left'],['left','all'],[]]).per_class().label),
      ['all','left'])
gives('no top-5 for three classes', lambda _: 'top5' in scored('class', ['left']*3).to_dict(), False)
gives('groups are unknown', lambda _: (scored('class', ['left']*3).to_dict()['groups'],
                                       'groups unknown' in repr(scored('class', ['left']*3))), (None, True))
gives('two groups',
      lambda _: evaluate(learner(), learner().dls.test_dl([[o] for o in clips()[:4]], num_workers=0),
                                       ['left']*4, group='^p[01]').to_dict()['groups'], 2)
gives('one group has no interval',
      lambda _: evaluate(learner(), learner().dls.test_dl([[o] for o in clips()[:2]], num_workers=0),
                                                      ['left']*2, group='^p0').interval(), None)
refuses('an interval of another score',
        lambda _: scored('class', ['left','right']).interval(metric='mae'), "metric='mae'")
refuses('confusion of several classes',
        lambda _: ClipInterpretation.from_learner(learner('classes')).confusion_matrix(),
        'one class per video', 'per_class()')


# Timelines

def table(**columns):
    n = len(next(iter(columns.values())))
    start = np.arange(n, dtype=float)
    return pd.concat([pd.DataFrame(dict(start=start, end=start+1)), pd.DataFrame(columns)], axis=1)


def segments_of(kind): return find_events(predict_timeline(learner(kind), first(), window=2, fps=1))


for k in ('number','numbers'): refuses(f'segments of {k}',
                                       lambda _,k=k: segments_of(k), 'timeline', 'not probabilities')
for bad in ([-1.,0,1], [0,1,1.5]):
    refuses(f'segments of a table of numbers {bad}',
            lambda _,b=bad: find_events(table(a=b)), 'not probabilities')
gives('a timeline has a column for each output',
      lambda _: [list(predict_timeline(learner(k), first(), fps=1))[2:] for k in
      ('class','integers','classes','number','numbers')], [
          ['left','right','start'], ['0','1','2'], ['all','left','right','start'],
                                                           ['value'], ['value 0','value 1']])
gives('classes named start and end',
      lambda _: find_events(table(start=[.9,.9,.1], end=[.1,.1,.8])).values.tolist(),
      [['start',0.,2.,.9], ['end',2.,3.,.8]])
gives('a plot of classes named start and $',
      lambda _: len(plot_timeline(table(**{'start': [.9,.1], '$a$': [0,1]})).get_lines()), 2)
gives('a figure of numbers has no limits', lambda _: plot_timeline(predict_timeline(
    learner('number'), first(), fps=1)).get_ylabel(), 'value')


# Losses

for name,loss,kind in (('a class of a loss', nn.CrossEntropyLoss, 'class'), ('a lambda',
     lambda a,b: a.sum(), 'class'),
                       ('a partial of a lambda', partial(lambda a,b,c: a.sum(), c=1), 'class')):
    gives(f'probabilities with {name}',
          lambda _,o=loss,k=kind: round(sum(p for _,p in predict(learner(k, o))), 4), 1.)
gives('no activation twice',
      lambda _: torch.equal(loss_activation(lambda a,b: 0, 'class')(torch.tensor([[.2,.8]])),
                                                   torch.tensor([[.2,.8]])), True)
gives('logits of sum 1 are not probabilities', lambda _: bool((loss_activation(
    lambda a,b: 0, 'class')(torch.tensor([[-1.,2.]])) < 0).any()), False)
gives('a number between 0 and 1 by a sigmoid', lambda _: 0 < predict_video(
    learner('number', nn.BCEWithLogitsLoss()), first())[0] < 1, True)
gives('counts by an exponential', lambda _: predict(learner('number', nn.PoissonNLLLoss()))[0] > 0, True)


# Best models, cards and exports

def contest(kind, a, b):
    "Return the better of two models with scores and losses `a` and `b`"
    def entry(score, loss):
        scores = kind(torch.zeros(1,1), torch.zeros(1,1).long(), ['x'], ['x'])
        scores.__class__ = type('Fixed', (kind,), {kind.metric: score})
        return type('Report', (), dict(report=dict(scores=scores, valid_loss=loss)))
    return best_model(dict(a=entry(*a), b=entry(*b)))


gives('the higher accuracy wins', lambda _: contest(ClassScores, (.5,1), (.6,2)), 'b')
gives('the higher precision wins', lambda _: contest(LabelScores, (.7,1), (.6,2)), 'a')
gives('the lower error wins', lambda _: contest(NumberScores, (.7,1), (.6,2)), 'b')
gives('of ties, the lower loss wins', lambda _: contest(NumberScores, (.6,2), (.6,1)), 'b')
gives('a loss that is NaN loses ties', lambda _: contest(ClassScores, (.6,math.nan), (.6,9)), 'b')
for k,metric in (('class','accuracy'), ('classes','accuracy_multi'), ('numbers','mae')):
    gives(f'the card of {k}',
          lambda _,k=k: sorted(strict(model_card(learner(k)))['scores']), sorted(['valid_loss', metric]))
gives('a card whose groups are unknown', lambda _: model_card(learner())['groups_on_both_sides'], None)
gives('a card whose groups are known',
      lambda _: model_card(learner(), group='^p[0-9]')['groups_on_both_sides'], ['p0','p1','p2'])
refuses('a card with a wrong pattern', lambda _: model_card(learner(), group='('), 'not a regular expression')
refuses('export to an unknown format', lambda f: export_learner(learner(), f/'m.xyz'), 'm.xyz', '.onnx')
exports = {'output: 3 logits, apply softmax': ('class',),
           'output: 3 log_probabilities, apply exp': ('class', nn.NLLLoss(), make_kinds.log_softmax),
           'output: 3 probabilities, ready': ('class', make_kinds.own_log_loss, make_kinds.softmax),
           'output: 4 logits, apply sigmoid': ('classes',),
           'output: 2 numbers, in the unit of the labels (value 0, value 1)': ('numbers',)}
for text,made in exports.items():
    gives(f'an export: {text}', lambda f,t=text,o=made: t in export_learner(learner(*o), f/'m.pt2'), True)
gives('a clip in memory', lambda _: len(frame_importance(learner(), ImageTuple.create(first()))), 4)
gives('a block with a vocabulary', lambda _: labels_of(create(
    [[1,0]]*9+[[0,1]]*9, y_block=MultiCategoryBlock(encoded=True, vocab=['b','a']))), ('classes', ['b','a']))
gives('a block for numbers', lambda _: labels_of(create(
    [float(i) for i in range(18)], y_block=RegressionBlock(n_out=1))), ('numbers', ['value']))
