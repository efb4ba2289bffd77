"Write saved models with forged settings or weights, with matching digests: shared by the tests of loading"
import copy
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from fastai.vision.all import L, Learner
from safetensors.torch import load, save

from vidseq.deploy.losses import loss_from_data
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.deploy.settings import dls_from_data
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import RNNModel, SimpleModel

resize = ['Resize', dict(size=[8,8], method='crop', pad_mode='zeros')]
normalize = ['NormalizeInPlace', dict(mean=[.5,.5,.5], std=[.25,.25,.25])]
sampler = dict(name='vidseq.data.samplers.window_frames', kwargs=dict(step=[1,3], seconds=None))
clips = dict(seq_len=2, sampler=sampler, size=None, fps=None, img_cls='PILImage', pattern=None)
labels = dict(kind='class', vocab=['run','jump'])
tfms = dict(item_tfms=[resize, ['ToTensor', {}]], batch_tfms=[['IntToFloatTensor', dict(div=255.)],
    normalize])
softmax_loss = dict(activation='softmax', decoded=False)


def tiny_learner(make, loss=softmax_loss, **settings):
    "Return a learner without data; `make` creates its model"
    torch.manual_seed(0)
    settings = dict(clips=clips, labels=labels, **tfms) | settings
    dls,n_out = dls_from_data(**copy.deepcopy(settings))
    model = make(n_out=n_out)
    return Learner(dls, model, loss_func=loss_from_data(loss, settings['labels']['kind'], model))


makers = dict(
    conv3d=lambda n_out: Conv3dModel(n_out, width=1),
    simple=lambda n_out: SimpleModel(small_cnn, n_out, pretrained=False),
    rnn=lambda n_out: RNNModel(small_cnn, n_out, pretrained=False, hidden_size=4))


@lru_cache
def saved_files(name):
    "Return the text of config.json and the bytes of the weights of a small saved model"
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        folder = save_pretrained(tiny_learner(makers[name]), Path(tmp)/'model')
        return (folder/'config.json').read_text(encoding='utf-8'), (folder/'model.safetensors').read_bytes()


def settings_of(name='conv3d'):
    "Return the settings of a saved model, without their digest"
    data = json.loads(saved_files(name)[0])
    del data['settings_sha256']
    return data


def weights_of(name='conv3d'):
    "Return the weights of a saved model, by name"
    return load(saved_files(name)[1])


def with_digest(settings):
    "Return settings as JSON text with their digest"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return json.dumps(settings | dict(settings_sha256=digest))


def write_model(folder, settings, weights=None, text=None):
    "Write a model with matching digests; `weights` are bytes or a dict, `text` replaces config.json"
    if weights is None: weights = saved_files('conv3d')[1]
    if isinstance(weights, dict): weights = save(weights)
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder/'model.safetensors').write_bytes(weights)
    if isinstance(settings,
    dict): settings = settings | dict(weights_sha256=hashlib.sha256(weights).hexdigest())
    (folder/'config.json').write_text(with_digest(settings) if text is None else text, encoding='utf-8')
    return folder


def changed(settings, path, value):
    "Return a copy of nested `settings` with another value at `path`; `KeyError` if there is no such place"
    settings = copy.deepcopy(settings)
    *parents,last = path
    part = settings
    for o in parents: part = part[o]
    if isinstance(part, list): part[last]
    part[last] = value
    return settings


def load_changed(path, value, name='conv3d'):
    "Return an action for the hostile suite: load a model with another value at `path`"
    def act(folder):
        write_model(folder, changed(settings_of(name), path, value), saved_files(name)[1])
        return load_pretrained(folder).dls.vocab
    return act


def answers(learn, videos):
    "Return the predictions of a learner for videos as nested lists, by all ways to ask for them"
    import vidseq.deploy.predict  # noqa: F401
    def plain(o):
        if isinstance(o, torch.Tensor): return o.float().tolist()
        return [plain(v) for v in o] if isinstance(o, (list,tuple,L)) else o if isinstance(o,
            float) else str(o)
    with learn.no_bar():
        decoded,_,outputs = learn.predict(videos[0])
        batch = learn.get_preds(dl=learn.dls.test_dl(list(videos), bs=2, num_workers=0))[0]
        video = learn.predict_video(videos[0])
    return [*map(plain, (decoded, outputs, batch, video)), plain(list(getattr(learn.dls, 'vocab', [])))]
