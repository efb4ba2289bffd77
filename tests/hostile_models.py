"Saved models and weights of strangers: forged settings, damaged files, sizes without limit"
import json
import os
import pickle
import zipfile

import numpy as np
import torch
from fastai.vision.all import nn

from hostile import gives, refuses
from saved_models import (changed, load_changed, makers, saved_files, settings_of, tiny_learner, weights_of,
                          with_digest, write_model)
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.models.weights import load_weights, read_weights

CONFIG,WEIGHTS = 'config.json','model.safetensors'
gives('model: unchanged files', load_changed(['labels','vocab'], ['run','jump']), ['run','jump'])
gives('model: whole numbers as classes', load_changed(['labels','vocab'], [7,0]), [7,0])
gives('model: a class that is not Unicode', load_changed(['labels','vocab'], ['caf\udce9','$x']),
    ['caf\udce9','$x'])
gives('model: any notes on the card', load_changed(['card'], dict(notes=[1,None,{'a': 'b'}])), ['run','jump'])


# Names: what a file can name is a short list

def kwarg(name, value): return ['model','kwargs',name],value


torchvision = 'torchvision.models.'
for name,path,value in (
        ('a shell command', ['model','name'], 'os.system'),
        ('a function that evaluates', ['model','name'], 'builtins.eval'),
        ('a module', ['model','name'], 'vidseq.models.conv3d'),
        ('a private name', ['model','name'], 'vidseq.models.conv3d._MeanPool'),
        ('a reader of files', ['model','name'], 'vidseq.models.weights.read_weights'),
        ('a loader of published weights', ['model','name'], 'vidseq.models.vit.load_timesformer'),
        ('a network instead of a model', ['model','name'], f'{torchvision}resnet18'),
        ('an attribute of a class', ['model','name'], 'vidseq.models.conv3d.Conv3dModel.forward'),
        ('a name with a colon', ['model','name'], 'vidseq.models.conv3d:Conv3dModel'),
        ('a name that is a number', ['model','name'], 7),
        ('a name that is a list', ['model','name'], ['os','system']),
        ('a model that is a list', ['model'], []),
        ('a model that is text', ['model'], 'Conv3dModel'),
        ('a sampler that deletes', ['clips','sampler'], 'shutil.rmtree'),
        ('a sampler that is a model', ['clips','sampler'], 'vidseq.models.conv3d.Conv3dModel'),
        ('a transform that runs code', ['item_tfms',0], ['exec', {}]),
        ('a transform of another package', ['item_tfms',0,0], 'albumentations.Compose'),
        ('a transform without settings', ['item_tfms',0], 'Resize'),
        ('an image class of another package', ['clips','img_cls'], 'PIL.Image'),
        ('a kind of labels', ['labels','kind'], 'eval'),
        ('a loss', ['loss'], dict(name='eval', settings={}, decoded=False)),
        ('an activation', ['loss','activation'], 'os.system')):
    refuses(f'model: {name}', load_changed(path, value), CONFIG, 'Save it again')

for name,value in (
        ('pretrained weights of timm', 'timm.hf-hub:somebody/something'),
        ('a local folder', 'timm.local-dir:/tmp'),
        ('a network that timm lacks', 'timm.no_such_network'), ('a path', '/etc/passwd'),
        ('an address', 'http://a.b/c'),
        ('a model in a model', 'vidseq.models.frame_models.SimpleModel'),
        ('a function of torch', 'torch.load'),
        ('a video network', f'{torchvision}video.r3d_18'), ('weights', f'{torchvision}ResNet18_Weights'),
        ('any network by name', f'{torchvision}get_model'),
        ('pretrained weights of torchvision', dict(name=f'{torchvision}resnet18',
        kwargs=dict(weights='DEFAULT'))),
        ('a keyword that shows progress', dict(name=f'{torchvision}resnet18', kwargs=dict(progress=True)))):
    refuses(f'encoder: {name}', load_changed(*kwarg('arch', value), 'simple'), CONFIG, 'arch')

for name,value in (('pretrained', True), ('pretrained', 'third.pt'), ('weights', 'DEFAULT'),
        ('checkpoint_path', 'a.pt'),
                   ('pretrained_cfg', dict(url='http://a.b')), ('forward', 'eval'), ('__class__', 'x')):
    refuses(f'argument {name}={value}', load_changed(*kwarg(name, value), 'simple'), CONFIG, name)
refuses('pool: a network', load_changed(*kwarg('pool', f'{torchvision}resnet18'), 'simple'), CONFIG,
    'SimpleModel.pool')
refuses('rnn: a model', load_changed(*kwarg('rnn', 'vidseq.models.frame_models.RNNModel'), 'rnn'), CONFIG,
    'RNNModel.rnn')


# Sizes: checked before memory is used

for name,path,value in (
        ('frames', ['clips','seq_len'], 300_000_000), ('no frames', ['clips','seq_len'], 0),
        ('negative frames', ['clips','seq_len'], -1), ('half a frame', ['clips','seq_len'], 2.5),
        ('true frames', ['clips','seq_len'], True), ('frames as text', ['clips','seq_len'], '16'),
        ('pixels when reading', ['clips','size'], 10**9), ('frames per second', ['clips','fps'], 1e300),
        ('pixels of a Resize', ['item_tfms',0,1,'size'], [30000,30000]),
        ('pixels of a clip', ['item_tfms',0,1,'size'], [8000,8000]),
        ('a Resize in one direction', ['item_tfms',0,1,'size'], [8]),
        ('a Resize of zero', ['item_tfms',0,1,'size'], [0,8]),
        ('transforms', ['item_tfms'], [['ToTensor', {}]]*1000),
        ('divide by zero', ['batch_tfms',0,1,'div'], 0),
        ('std of zero', ['batch_tfms',1,1,'std'], [1,0,1]),
        ('channels of a mean', ['batch_tfms',1,1,'mean'], [0.]*9),
        ('one mean for two stds', ['batch_tfms',1,1,'mean'], [0.]),
        ('a mean as text', ['batch_tfms',1,1,'mean'], 'x'),
        ('step', ['clips','sampler','kwargs','step'], -1),
        ('step of a million', ['clips','sampler','kwargs','step'], 1e9),
        ('range of steps', ['clips','sampler','kwargs','step'], [3,1]),
        ('pattern', ['clips','pattern'], '../*'),
        ('classes', ['labels','vocab'], []), ('equal classes', ['labels','vocab'], ['run','run']),
        ('true and one', ['labels','vocab'], [True,1]), ('three classes', ['labels','vocab'], ['a','b','c']),
        ('a class in a list', ['labels','vocab'], [['run'],'jump']),
        ('a missing class', ['labels','vocab'], ['run',None]),
        ('numbers instead of classes', ['labels'], dict(kind='numbers', n=3)),
        ('a million numbers', ['labels'], dict(kind='numbers', n=10**12)),
        ('outputs', ['model','kwargs','n_out'], 10**9), ('outputs as float', ['model','kwargs','n_out'], 2e6),
        ('other outputs', ['model','kwargs','n_out'], 3), ('channels', ['model','kwargs','n_in'], 10**6),
        ('no channels', ['model','kwargs','n_in'], 0), ('width', ['model','kwargs','width'], -5),
        ('dropout', ['model','kwargs','ps'], 1.5), ('per_frame', ['model','kwargs','per_frame'], 'yes')):
    refuses(f'size: {name}', load_changed(path, value), CONFIG, 'Save it again')
for name,kwargs in (('hidden_size', 16_000), ('hidden_size', 10**12), ('num_rnn_layers', 10**9),
        ('num_rnn_layers', 3),
                    ('grid', 30), ('grid', 10**6), ('n_in', 64), ('bidirectional', True)):
    refuses(f'recurrent: {name}={kwargs}', load_changed(*kwarg(name, kwargs), 'rnn'), ': ')
refuses('size: outputs that the weights lack', lambda p: load_pretrained(write_model(p, changed(
    changed(settings_of(), ['model','kwargs','n_out'], 10**6), ['labels'], dict(kind='numbers', n=10**6)))),
    WEIGHTS, 'head.2.weight (2, 4) instead of (1000000, 4)')
timesformer = dict(name='vidseq.models.timesformer.TimeSformer', kwargs=dict(n_out=2, depth=10**9))
refuses('size: layers', load_changed(['model'], timesformer), CONFIG, 'depth: 1000000000')
for name in ('width','dim','image_size'):
    kwargs = dict(n_out=2, depth=1) | ({name: 2**13} if name != 'width' else dict(heads=2**20,
        dim_head=2**20))
    refuses(f'size: TimeSformer {name}', load_changed(['model'], timesformer | dict(kwargs=kwargs)), WEIGHTS,
        'fit')


# Files

def config_text(text):
    def act(folder): load_pretrained(write_model(folder, {}, text=text))
    return act


good = saved_files('conv3d')[0]
for name,text in (
        ('empty', ''), ('cut', good[:-9]), ('deep', '['*100_000), ('deep but closed', '['*100 + ']'*100),
        ('deep dicts', '{"a":'*5000 + '1' + '}'*5000), ('repeated names', good.replace('{', '{"format": 1,',
        1)),
        ('NaN', good.replace('255.0', 'NaN')), ('infinity', good.replace('255.0', '1e999')),
        ('minus infinity', good.replace('255.0', '-Infinity')), ('a list', '[]'), ('null', 'null'),
        ('text', '"x"'),
        ('digits', '1'*10_000), ('of transformers', '{"architectures": ["Bert"]}'), ('large', ' '*2**24),
        ('an older format', good.replace('vidseq model 2', 'vidseq model 1')),
        ('a list as format', '{"format": []}')):
    refuses(f'config.json: {name}', config_text(text), CONFIG, 'save_pretrained')
refuses('config.json: changed', config_text(good.replace('jump', 'sit')), CONFIG, 'changed', 'again')
for key in ('model','loss','clips','labels','item_tfms','batch_tfms','card','weights_sha256'):
    def without(folder, key=key):
        write_model(folder, {}, text=with_digest({k: v for k,v in settings_of().items() if k != key}))
        load_pretrained(folder)
    refuses(f'config.json: no {key}', without, CONFIG, 'missing', key)
    def empty(folder, key=key): # None as `model` means a model of your own
        write_model(folder, {}, text=with_digest(settings_of() | {key: None}))
        load_pretrained(folder)
    refuses(f'config.json: {key} is null', empty,
        f'{CONFIG}: ' if key != 'weights_sha256' else f'{WEIGHTS}: ')


@lambda f: refuses('config.json: not UTF-8', f, CONFIG, 'save_pretrained')
def not_utf8(folder):
    write_model(folder, settings_of())
    (folder/CONFIG).write_bytes(b'\xff\xfe\x00"')
    load_pretrained(folder)


@lambda f: refuses('config.json: a pickle', f, CONFIG, 'save_pretrained')
def pickled(folder):
    write_model(folder, settings_of())
    (folder/CONFIG).write_bytes(pickle.dumps(print))
    load_pretrained(folder)


@lambda f: refuses('model.safetensors: a folder', f, WEIGHTS, 'no such file')
def weights_folder(folder):
    write_model(folder, settings_of())
    (folder/WEIGHTS).unlink()
    (folder/WEIGHTS).mkdir()
    load_pretrained(folder)


def header(data, rest=b'', n=None):
    "Return the bytes of a safetensors file"
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (len(data) if n is None else n).to_bytes(8, 'little') + data + rest


def spec(start, end, shape=(1,), dtype='F32'): return dict(dtype=dtype, shape=shape, data_offsets=[start,end])


tensors = weights_of()
first = 'encoder.0.0.weight'
for name,data in (
        ('empty', b''), ('cut', saved_files('conv3d')[1][:-1]), ('junk', b'junk'*9),
        ('a header without end', header(b'{}', n=2**60)),
        ('a header longer than the file', header(b'{}', n=100)), ('a header that is no JSON', header(b'x'*8)),
        ('a header that is a list', header([])),
        ('overlapping tensors', header(dict(a=spec(0,4), b=spec(0,4)), b'0000')),
        ('tensors outside the file', header(dict(a=spec(0,4000)))), ('a hole', header(dict(a=spec(8,12)),
        b'0'*12)),
        ('a shape that overflows', header(dict(a=spec(0,4,(2**62,2**62))), b'0000')),
        ('a negative shape', header(dict(a=spec(0,4,(-1,))), b'0000')),
        ('an unknown type', header(dict(a=spec(0,4,(1,),'X9')), b'0000')),
        ('bytes after the end', saved_files('conv3d')[1] + b'0'), ('a pickle', pickle.dumps(tensors[first])),
        ('deep nesting', header(b'['*10**6))):
    refuses(f'model.safetensors: {name}', lambda p,
        data=data: load_pretrained(write_model(p, settings_of(), data)),
            WEIGHTS, 'again')
for name,change in (
        ('no tensors', None), ('a missing tensor', {first: None}),
        ('another tensor', dict(more=torch.ones(1))),
        ('a flat tensor', {first: tensors[first].flatten()}), ('a huge tensor', {first: torch.zeros(10**6)}),
        ('an empty tensor', {first: torch.zeros(0)}), ('whole numbers', {first: tensors[first].int()}),
        ('true and false', {first: tensors[first] > 0}), ('complex numbers', {first: tensors[first] + 1j}),
        ('8 bits', {first: tensors[first].to(torch.float8_e5m2)}), ('NaN', {first: tensors[first]*np.nan}),
        ('one infinity', {first: tensors[first].clone().index_fill_(0, torch.tensor([0]), np.inf)})):
    state = {k: v for k,v in (tensors | change).items() if v is not None} if change else {}
    refuses(f'model.safetensors: {name}', lambda p,
        state=state: load_pretrained(write_model(p, settings_of(), state)), WEIGHTS)
gives('model.safetensors: half precision', lambda p: load_pretrained(write_model(p, settings_of(), {
    k: v.half() if v.is_floating_point() else v for k,v in tensors.items()})).dls.vocab, ['run','jump'])


# Files of weights for `pretrained=`

def weights_file(name, write):
    def act(folder):
        write(folder/name)
        return load_weights(nn.Linear(2, 1), folder/name)
    return act


state = nn.Linear(2, 1).state_dict()
class Trap:
    def __reduce__(self): return os.mkdir, ('trapped',)


for name,data in (('text', b'text'), ('empty', b''), ('a pickle', pickle.dumps(state)), ('a trap',
        pickle.dumps(Trap())), ('a zip', b'PK\3\4junk')):
    for suffix in ('.pth','.safetensors','.pt'):
        refuses(f'weights{suffix}: {name}', weights_file(f'w{suffix}', lambda p,
            data=data: p.write_bytes(data)), f'w{suffix}: ')
for name,o in (('a trap', dict(weight=Trap())), ('a module', nn.Linear(2, 1)), ('a list', [1]),
        ('numbers as names', {1: torch.ones(1)}),
               ('nothing', {}), ('a number', dict(weight=1, bias=2)), ('sparse', dict(state,
               weight=torch.ones(1,2).to_sparse())),
               ('NaN', dict(state, bias=torch.tensor([np.nan]))), ('whole numbers', dict(state,
               bias=torch.ones(1).int())),
               ('expanded', dict(state, weight=torch.ones(1).expand(10**6, 10**6))),
               ('no bias', dict(weight=state['weight'])),
               ('another shape', dict(state, weight=torch.ones(2,2))),
               ('nested', dict(model=dict(state_dict=1)))):
    refuses(f'weights: {name}', weights_file('w.pth', lambda p, o=o: torch.save(o, p)), 'w.pth: ')


@lambda f: refuses('weights: a compressed file', f, 'w.pth: not a file of weights')
def compressed(folder):
    torch.save(dict(state, weight=torch.zeros(1, 10**6)), folder/'large.pth')
    with zipfile.ZipFile(folder/'large.pth') as f: parts = {o: f.read(o) for o in f.namelist()}
    with zipfile.ZipFile(folder/'w.pth', 'w', zipfile.ZIP_DEFLATED) as f:
        for k,v in parts.items(): f.writestr(k, v)
    read_weights(folder/'w.pth')


gives('weights: of a training run', lambda p: (torch.save(dict(model=state, epoch=3), p/'a.pt'),
    sorted(read_weights(p/'a.pt')))[1], ['bias','weight'])
refuses('weights: a folder', lambda p: read_weights(p), 'no such file', 'Check the path')
refuses('weights: missing', lambda p: read_weights(p/'none.pt'), 'none.pt', 'Check the path')


# Saving refuses before it writes

def save_learner(change, **kwargs):
    def act(folder):
        learn = tiny_learner(makers['conv3d'])
        change(learn)
        try: save_pretrained(learn, folder/'model', **kwargs)
        finally: assert not (folder/'model').exists()
    return act


def replace_layer(learn): learn.model.head[2] = nn.Linear(4, 2, bias=False)
def replace_activation(learn): learn.model.encoder[0][2] = nn.GELU()
def diverge(learn): nn.init.constant_(learn.model.head[2].bias, np.nan)
class OwnLoss(nn.Module):
    def activation(self, x): return x


refuses('save: a replaced layer', save_learner(replace_layer), 'learn.model', 'own=True')
refuses('save: a replaced activation', save_learner(replace_activation), 'learn.model', 'own=True')
refuses('save: NaN', save_learner(diverge), 'learn.model', 'head.2.bias', 'learning rate')
refuses('save: a loss with code', save_learner(lambda l: setattr(l, 'loss_func', OwnLoss())), 'OwnLoss',
    'learn.export()')
refuses('save: a lambda as sampler',
    save_learner(lambda l: setattr(l.dls.valid.dataset.tls[0].tfms.fs[0], 'sampler', lambda *a: 0)), 'data')
refuses('save: a frame transform of your own', save_learner(
    lambda l: l.dls.valid.dataset.tls[0].tfms.fs.append(print)), 'learn.dls', 'learn.export()')
refuses('save: a card of objects', save_learner(lambda l: None, card=dict(a=object())), 'card.a', 'object')
refuses('save: a license that is a number', save_learner(lambda l: None, card=dict(license=3)),
    'card.license')
refuses('save: a card that is a list', save_learner(lambda l: None, card=[1]), 'card')


@lambda f: refuses('save: to a file', f, 'model', 'Give a folder')
def to_file(folder):
    (folder/'model').write_text('')
    save_pretrained(tiny_learner(makers['conv3d']), folder/'model')


@lambda f: gives('save: numbers of NumPy on the card', f, [1, .5, [1,2], None, 'x/y'])
def numpy_card(folder):
    from pathlib import PurePosixPath
    card = dict(a=np.int64(1), b=np.float32(.5), c=np.arange(1,3), d=np.nan, e=PurePosixPath('x/y'))
    save_pretrained(tiny_learner(makers['conv3d']), folder/'model', card=card)
    return [load_pretrained(folder/'model').card[k] for k in 'abcde']
