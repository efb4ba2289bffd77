"""Hostile files of interrupted training, and hostile arguments of learners and models."""
from functools import cache, partial
from itertools import product

import pandas as pd
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoader, DataLoaders, nn, resnet18, set_seed
from hostile import gives, refuses
from PIL import Image
from torchvision.models.video import r3d_18

from vidseq.data.block import ClipBlock, VideoDataLoaders, get_action_dataloaders
from vidseq.data.clip import ImageTupleTfm
from vidseq.data.loader import get_clips
from vidseq.data.samplers import spread_frames, window_frames
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.timesformer import TimeSformer
from vidseq.train.learner import video_learner
from vidseq.train.resume import ResumeTraining

# Training files


def make_dls(n_clips=4, bs=2):
    "Return loaders of random clips of two frames, in two classes"
    clips = [(torch.rand(2,3,8,8), torch.tensor(i%2)) for i in range(n_clips)]
    res = DataLoaders(*(DataLoader(clips, bs=bs, num_workers=0) for _ in range(2)), device='cpu')
    res.c = 2
    return res


def train(fname, width=1, n_epoch=2, dls=None, done=False, **kwargs):
    "Train with `ResumeTraining(fname)`; return its number of fits, and the weights"
    set_seed(0)
    learn = video_learner(dls or make_dls(), Conv3dModel(2, width=width), loss_func=CrossEntropyLossFlat(),
                          cbs=ResumeTraining(fname), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, 1e-2)
    if done: learn.resume_training.done()
    return learn.resume_training.phase, learn.model.head[-1].weight.tolist()


@cache
def saved_bytes():
    "Return the file of a training of two epochs"
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as folder:
        train(f'{folder}/file')
        return open(f'{folder}/file', 'rb').read()


def resume(folder, change=lambda o: o, **kwargs):
    "Resume from a file whose bytes `change` has changed"
    (folder/'kept.pt').write_bytes(change(saved_bytes()))
    return train(folder/'kept.pt', **kwargs)


def resume_state(folder, change, **kwargs):
    "Resume from a file whose state `change` has changed in place, written by `torch.save`"
    (folder/'kept.pt').write_bytes(saved_bytes())
    state = torch.load(folder/'kept.pt', weights_only=True)
    change(state)
    torch.save(state, folder/'kept.pt')
    return train(folder/'kept.pt', **kwargs)


def flip(data, share):
    i = int(len(data)*share)
    return data[:i] + bytes([data[i]^1]) + data[i+1:]


def kept(name, act, *words): refuses(f'training file: {name}', act, 'kept.pt', *words)


for share in (0, .001, .1, .25, .5, .75, .9, .99, .9999):
    kept(f'a bit flipped at {share}', partial(resume, change=partial(flip, share=share)), 'Delete it')
for name,change in {'empty': lambda o: b'', 'one byte': lambda o: o[:1],
                    'cut in half': lambda o: o[:len(o)//2], 'the end is missing': lambda o: o[:-1],
                    'a byte too many': lambda o: o + b'x',
                    'twice': lambda o: o + o, 'text': lambda o: b'weights', 'zeros': lambda o: bytes(len(o)),
                    'an empty archive': lambda o: b'PK\5\6' + bytes(18)}.items():
    kept(name, partial(resume, change=change), 'not a file of `ResumeTraining`', 'Delete it')
for part in ('progress','setup','model','optimizer','recorder','loaders','scaler','trackers',
             'averages','rng'):
    kept(f'no {part}', partial(resume_state, change=lambda o, part=part: o.pop(part)), f"'{part}' is missing")
    for value in (None, 3, 'text', [1,2,3]):
        def change(o, part=part, value=value): o[part] = value
        kept(f'{part} is {value}', partial(resume_state, change=change), 'elete')


def set_at(*path, value):
    def change(o):
        for k in path[:-1]: o = o[k]
        o[path[-1]] = value
    return change


nan = float('nan')
for name,path,value in (
        ('epoch 10**9', 'progress epoch', 10**9), ('epoch NaN', 'progress epoch', nan),
        ('epoch -1', 'progress epoch', -1), ('epoch True', 'progress epoch', True),
        ('epoch of text', 'progress epoch', '1'), ('fit 10**9', 'progress phase', 10**9),
        ('fit 0', 'progress phase', 0), ('other epochs', 'progress n_epoch', 3),
        ('many fits', 'progress fits', [2]*9), ('epochs 10**9', 'progress n_epoch', 10**9),
        ('learning rate NaN', 'optimizer hypers 0 lr', nan),
        ('learning rate inf', 'optimizer hypers 0 lr', float('inf')),
        ('learning rate of text', 'optimizer hypers 0 lr', 'fast'),
        ('no momentum', 'optimizer hypers 0', dict(lr=.1)),
        ('averages of another shape', 'optimizer state 0 grad_avg', torch.zeros(7)),
        ('averages NaN', 'optimizer state 0 grad_avg', torch.full((2,6,3,3,3), nan)),
        ('weights NaN', 'model head.2.weight', torch.full((2,4), nan)),
        ('weights of another shape', 'model head.2.weight', torch.zeros(3,4)),
        ('weights of text', 'model head.2.weight', 'text'),
        ('a foreign weight', 'model other', torch.zeros(1)),
        ('random states of two', 'rng', [1,2]), ('a random state of text', 'rng', ['text']),
        ('a random state of another length', 'rng 0 torch', torch.zeros(3, dtype=torch.uint8)),
        ('a gradient scaler', 'scaler', dict(scale=1.)), ('two trackers', 'trackers', [1,2]),
        ('one loader', 'loaders', [1]), ('losses of text', 'recorder smooth_loss val', 'text')):
    keys = [int(o) if o.isdigit() else o for o in path.split()]
    kept(name, partial(resume_state, change=set_at(*keys, value=value)))
kept('other clips', lambda p: resume(p, dls=make_dls(6)), 'other clips', 'Use them again')
kept('another batch size', lambda p: resume(p, dls=make_dls(bs=1)), 'other batch sizes')
kept('another model', lambda p: resume(p, width=2), 'other model parameters')
kept('another number of epochs', lambda p: resume(p, n_epoch=5), '2 epochs, but there are 5 now')
kept('a folder', lambda p: [(p/'kept.pt').mkdir(), train(p/'kept.pt')], 'a folder')
for name in ('', '.', '..', '/'):
    refuses(f'training file: named {name!r}', lambda p, name=name: ResumeTraining(name), 'is a folder')
for name in ('kept', 'kept.', '.kept', 'kept.tar.gz', 'ein Name mit Ü', 'new/folder/kept'):
    gives(f'training file: named {name}', lambda p, name=name: train(p/name) == train(p/name), True)
gives('training file: complete', lambda p: resume(p) == train(p/'other'), True)
gives('training file: deleted by `done`', lambda p: [train(p/'kept', done=True), list(p.iterdir())][1], [])

# Arguments of learners and models


def learner(model=Conv3dModel, *args, n_classes=2, **kwargs):
    dls = make_dls()
    dls.c = n_classes
    return video_learner(dls, model, *args, **(dict(loss_func=None) | kwargs))


def refuses_learner(name, *words, **kwargs):
    refuses(f'video_learner: {name}', lambda p: learner(**kwargs), *words)


with_loss = dict(loss_func=CrossEntropyLossFlat())
refuses_learner('an image encoder', 'resnet18 is an encoder', 'SimpleModel, arch=resnet18', model=resnet18)
refuses_learner('a video network', 'VideoModel, arch=r3d_18', model=r3d_18)
refuses_learner('a timm network', 'arch=resnet18', model=partial(resnet18, weights=None))
refuses_learner('small_cnn', 'SimpleModel, arch=small_cnn', model=small_cnn)
refuses_learner('a name', "arch='resnet18'", model='resnet18')
refuses_learner('a ready image network', 'has no `encoder`', 'SimpleModel', model=resnet18(num_classes=2))
for model in (18, None, [], {}): refuses_learner(f'model {model!r}', 'model:', 'Give the class', model=model)
refuses_learner('101 outputs', '101 outputs', 'n_out=2', model=Conv3dModel())
refuses_learner('outputs of a model without n_out', '101 outputs', model=lambda: Conv3dModel(width=2))
refuses_learner('one output of a frame model', '1 outputs', model=RNNModel(small_cnn, 1, pretrained=False))
refuses_learner('fewer outputs', '2 outputs', 'n_out=6', model=Conv3dModel(2), n_classes=6)
for n in (0, 1, 3, -1): refuses_learner(f'n_out={n}', 'n_out:', 'Use n_out=2', n_out=n)
refuses_learner('arch of a ready model', 'arch: the model is ready', model=Conv3dModel(2), arch=resnet18)
refuses_learner('arch of a model without', 'Conv3dModel does not accept `arch`', arch=resnet18)
refuses('video_learner: a path', lambda p: video_learner(p, Conv3dModel), 'dls:', 'VideoDataLoaders')
refuses('video_learner: None', lambda p: video_learner(None, Conv3dModel), 'dls:', 'VideoDataLoaders')
meant = dict(metric='metrics', callbacks='cbs', loss='loss_func', learning_rate='lr', encoder='arch',
             num_classes='n_out', pretraned='pretrained', spliter='splitter', optim_func='opt_func')
for wrong,right in meant.items():
    refuses_learner(f'{wrong}=', f'`{wrong}` (did you mean `{right}`?)', **{wrong: 3})
refuses_learner('an option of the model', '`hidden_size`', 'partial(RNNModel, hidden_size=…)', model=RNNModel,
                arch=small_cnn, pretrained=False, hidden_size=8)
gives('video_learner: 101 outputs for a loss of your own',
      lambda p: learner(Conv3dModel(), **with_loss).model.head[-1].out_features, 101)

frame_models = dict(SimpleModel=SimpleModel, RNNModel=RNNModel, ConvLSTMModel=ConvLSTMModel)
for name,model in frame_models.items():
    def refuses_arch(what, arch, *words, model=model, name=name, **kwargs):
        kwargs = dict(pretrained=False) | kwargs
        refuses(f'{name}: {what}', lambda p: model(arch, 2, **kwargs), *words)
    refuses_arch('a video network', r3d_18, 'r3d_18 is a video network', 'VideoModel')
    refuses_arch('a ready video network', r3d_18(), 'VideoResNet is a video network')
    refuses_arch('a model for clips', SimpleModel, 'SimpleModel is a model for clips')
    refuses_arch('a number', 18, '18 is not a network')
    refuses_arch('None', None, 'is not a network')
    refuses_arch('a layer for vectors', nn.Linear(2,2), 'Linear fails for an image of 3 channels')
    refuses_arch('a misspelled name', 'convnext_tny', "Did you mean 'convnext_tiny'?")
    refuses_arch('an unknown option', small_cnn, 'unknown argument `per_fame` (did you mean `per_frame`?)',
                 per_fame=True)
    refuses_arch('other channels', nn.Conv2d(4,8,3), 'Conv2d takes 4 channels, not 3')
for arch in ('r3d_18', 'R3D_18', 'mvit_v2s', 'swin3d_tiny', '', 18, None, r3d_18()):
    refuses(f'VideoModel: {type(arch).__name__} {str(arch)[:11]!r}',
            lambda p, arch=arch: VideoModel(arch, 2, pretrained=False),
            'is not a constructor', 'torchvision.models.video.')
refuses('VideoModel: an image encoder', lambda p: VideoModel(resnet18, 2, pretrained=False),
        'not a video network')
refuses('Conv3dModel: an unknown option', lambda p: Conv3dModel(2, n_inn=3), 'did you mean `n_in`?')
refuses('TimeSformer: an unknown option', lambda p: TimeSformer(2, dept=3), 'did you mean `depth`?')
for name,sampler,words in (
        ('partial', partial(window_frames, stp=3), 'did you mean `step`?'),
        ('text', 'spread', 'is not a function'), ('None', None, 'is not a function'),
        ('argument', partial(spread_frames, x=3), 'unknown argument `x`')):
    refuses(f'sampler: {name}', lambda p, o=sampler: ImageTupleTfm(4, o), words)

# Options of loaders


def loaders(create, **kwargs):
    "Return a function of a folder that creates loaders from four clips of two classes in it"
    def act(folder):
        for i,name in product(range(4), 'ab'):
            frames = folder/name/f'clip{i}'
            frames.mkdir(parents=True)
            Image.new('RGB', (8,8)).save(frames/'0.jpg')
        usual = dict(seq_len=1, image_size=8, bs=2, num_workers=0, seed=0)
        return len(create(folder, **usual | kwargs).train)
    return act


def from_table(folder, **kwargs):
    rows = [(f'{o}/clip{i}', o) for i,o in product(range(4), 'ab')]
    return VideoDataLoaders.from_df(pd.DataFrame(rows, columns=['file','class']), folder, **kwargs)


meant = dict(img_size='image_size', n_frames='seq_len', frames='seq_len', batch_size_='batch_size',
             n_workers='num_workers', sed='seed', smapler='sampler', val_pct='valid_pct',
             drop_lst='drop_last', batch_tfm='batch_tfms', skipbad='skip_bad', normalise='normalize',
             split='splitter')
for wrong,right in meant.items():
    refuses(f'loaders: {wrong}', loaders(VideoDataLoaders.from_folder, **{wrong: 3}),
            f'unknown argument `{wrong}` (did you mean `{right}`?)')
refuses('loaders: lable_col', loaders(from_table, lable_col=1), 'did you mean `label_col`?')
refuses('loaders: two unknown', loaders(VideoDataLoaders.from_folder, img_size=3, n_frames=4), '`image_size`',
        '`seq_len`')
refuses('loaders: an unlike name', loaders(VideoDataLoaders.from_folder, zzz=3), '`zzz`', 'Accepted:',
        'image_size')
refuses('loaders: n_frames of the tutorial',
        loaders(lambda p, **kwargs: get_action_dataloaders(get_clips(p), n_frames=4, **kwargs)), '`seq_len`')
for name in ('n_frames', 'img_size', 'kernel'):
    refuses(f'ClipBlock: {name}', lambda p, name=name: ClipBlock(**{name: 4}),
            f'ClipBlock: unknown argument `{name}`')
gives('loaders: options of fastai',
      loaders(VideoDataLoaders.from_folder, val_bs=1, shuffle=False, drop_last=True, pin_memory=False,
              after_iter=lambda: None, skip_bad=True, verbose=False, device='cpu'), 3)
