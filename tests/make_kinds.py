"Create tiny clips, loaders for every kind of label, and learners for every loss function"
import contextlib
import io
from functools import partial

import torch
import torch.nn.functional as F
from fastai.losses import (BaseLoss, BCELossFlat, BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLoss,
                           FocalLossFlat, L1LossFlat, LabelSmoothingCrossEntropy,
                           LabelSmoothingCrossEntropyFlat, MSELossFlat)
from fastai.vision.all import Learner, MultiCategoryBlock, nn
from PIL import Image

from vidseq.data.block import VideoDataLoaders
from vidseq.models.layers import stack_frames
from vidseq.train.learner import video_learner

classes = ['left', 'right', 'start'] # a class can have the name of a column of timelines
settings = dict(seq_len=4, image_size=16, bs=4, num_workers=0, seed=0, normalize=False)


def make_clips(folder, n=6):
    "Write `n` clips of 4 frames for each class: folders of frames, darker or brighter by class"
    for c,name in enumerate(classes):
        for k in range(n):
            clip = folder/name/f'p{k//2}_{name}{k}'
            clip.mkdir(parents=True)
            for t in range(4): Image.new('RGB', (16,16), (60*c+40, 8*k, 20*t)).save(clip/f'{t}.png')
    return sorted(o for o in folder.glob('*/*') if o.is_dir())


def create(folder, clips, labels, **kwargs):
    "Return `VideoDataLoaders` from lists, without their messages"
    with contextlib.redirect_stdout(io.StringIO()):
        return VideoDataLoaders.from_lists(folder, clips, labels, **settings | kwargs)


def make_loaders(folder, clips):
    "Return kind of loaders -> `DataLoaders`"
    names = [o.parent.name for o in clips]
    new = partial(create, folder, clips)
    codes = [classes.index(o) for o in names]
    encoded = [[float(o == c) for c in classes] for o in names]
    block = MultiCategoryBlock(encoded=True, vocab=classes)
    return {'class': new(names), 'integers': new(codes), 'classes': new([[o, 'all'] for o in names]),
            'encoded': new(encoded, y_block=block), 'number': new([i/10 for i in range(len(clips))]),
            'numbers': new([[i/10, -i/5] for i in range(len(clips))])}


class Tiny(nn.Module):
    "Predict from the mean color of a clip; `last` is the layer after the logits"
    def __init__(self, n_out, last=None):
        super().__init__()
        self.encoder,self.head,self.last = nn.Conv2d(3, 3, 1),nn.Linear(3, n_out),last or nn.Identity()
    def forward(self, x):
        x = stack_frames(x) # B,T,C,H,W
        maps = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.last(self.head(maps.mean((1,3,4))))


class Wrapped(nn.Module):
    "Contain a loss of PyTorch"
    def __init__(self, loss):
        super().__init__()
        self.inner = loss
    def forward(self, pred, targ): return 2*self.inner(pred, targ)


def own_cross_entropy(pred, targ): return F.cross_entropy(pred, targ)
def own_log_loss(pred, targ): return F.nll_loss(pred.log(), targ)
def own_bce(pred, targ): return F.binary_cross_entropy_with_logits(pred, targ.float())
def own_bce_of_probabilities(pred, targ): return F.binary_cross_entropy(pred, targ.float())
def own_error(pred, targ): return (pred-targ).abs().mean()


weights = torch.tensor([1.,2.,3.])
log_softmax,softmax = nn.LogSoftmax(dim=-1),nn.Softmax(dim=-1)
# kind of the labels -> losses and last layers whose predictions are the same function of the logits
losses = {
    'class': [(CrossEntropyLossFlat(), None), (nn.CrossEntropyLoss(), None),
              (nn.CrossEntropyLoss(label_smoothing=.1), None), (nn.CrossEntropyLoss(weight=weights), None),
              (CrossEntropyLossFlat(weight=weights), None), (F.cross_entropy, None),
              (partial(F.cross_entropy, label_smoothing=.1), None), (FocalLoss(), None),
              (FocalLossFlat(), None), (LabelSmoothingCrossEntropy(), None),
              (LabelSmoothingCrossEntropyFlat(), None), (BaseLoss(nn.CrossEntropyLoss), None),
              (Wrapped(nn.CrossEntropyLoss()), None), (own_cross_entropy, None),
              (nn.NLLLoss(), log_softmax), (F.nll_loss, log_softmax), (BaseLoss(nn.NLLLoss), log_softmax),
              (Wrapped(nn.NLLLoss()), log_softmax), (own_log_loss, softmax)],
    'classes': [(BCEWithLogitsLossFlat(), None), (nn.BCEWithLogitsLoss(), None),
                (BCEWithLogitsLossFlat(thresh=.2), None), (F.binary_cross_entropy_with_logits, None),
                (nn.MultiLabelSoftMarginLoss(), None), (Wrapped(nn.BCEWithLogitsLoss()), None),
                (own_bce, None), (nn.BCELoss(), nn.Sigmoid()), (BCELossFlat(), nn.Sigmoid()),
                (F.binary_cross_entropy, nn.Sigmoid()), (own_bce_of_probabilities, nn.Sigmoid())],
    'numbers': [(MSELossFlat(), None), (nn.MSELoss(), None), (L1LossFlat(), None), (nn.L1Loss(), None),
                (nn.SmoothL1Loss(), None), (nn.HuberLoss(), None), (F.mse_loss, None), (own_error, None)]}
kinds = dict(number='numbers', integers='class', encoded='classes') # loaders -> kind of labels, if different
activations = {'class': lambda x: x.softmax(-1), 'classes': torch.sigmoid, 'numbers': lambda x: x}


def loss_name(loss): return getattr(loss, '__name__', None) or type(getattr(loss, 'func', loss)).__name__


def table():
    "Yield name, kind of loaders, loss and last layer"
    for k in ('class','integers','classes','encoded','number','numbers'):
        for i,(loss,last) in enumerate(losses[kinds.get(k, k)]):
            yield f'{k}-{i}-{loss_name(loss)}', k, loss, last


def tiny_learner(dls, loss=None, last=None, plain=False, n_out=None):
    "Return a learner with random weights; `plain`: without `video_learner`"
    torch.manual_seed(0)
    model = Tiny(n_out or dls.c, last)
    create = partial(Learner, metrics=[]) if plain or n_out else video_learner # which checks `n_out` itself
    learn = create(dls, model, loss_func=loss)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn


def logits_of(learn, clip):
    "Return the outputs of the model before its last layer for one clip"
    x = learn.dls.test_dl([clip], num_workers=0).one_batch()[0]
    last,learn.model.last = learn.model.last,nn.Identity()
    with torch.no_grad(): out = learn.model.eval()(x)[0]
    learn.model.last = last
    return out
