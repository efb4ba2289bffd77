"Test features of clips: equal to what an assembled learner computes, and stored whatever happens."
import json
import time

import pytest
import torch
from conftest import run_python
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, nn, noop, resnet18

from vidseq.data.loader import get_clips
import vidseq.deploy.saving # noqa: F401 (`Learner.save_pretrained`)
from vidseq.models.encoders import small_cnn
from vidseq.models.heads import create_head_for
from vidseq.models.frame_models import clip_splitter
from vidseq.models.streams import StreamHead
from vidseq.train.embed import embed
from vidseq.train.fit_heads import features_learner
from vidseq.train.frozen import FrozenEncoder

head_names = ['linear', 'stats', 'attentive', 'recurrent', 'conv']


def some_clips(folder, n=5):
    "Return the paths of `n` videos of a folder, of several classes"
    clips = get_clips(folder)
    return clips[::len(clips)//n][:n]


def random_state(name, shape, n_out, seed):
    "Return the state of a head with random weights and random statistics of its norms"
    torch.manual_seed(seed)
    head = create_head_for(name, shape, n_out)
    for k,v in head.state_dict().items():
        if 'running' in k: v.uniform_(.05, .25)
        elif v.is_floating_point(): v.normal_(std=.2)
    return head.state_dict()


def expected_logits(features, members, states):
    "Return the weighted mean of the logits of heads on cached features"
    logits = 0
    for o,state in zip(members, states, strict=True):
        head = create_head_for(o['head'], features.shape[4:], len(features.vocab)).eval()
        head.load_state_dict(state)
        with torch.no_grad(): out = head(torch.tensor(features.stream(o['stream'])))
        logits = logits + o.get('weight', 1)*out
    return logits/sum(o.get('weight', 1) for o in members)


load_and_predict = '''
import json, sys
from fastai.vision.all import *
from vidseq.all import *
def probs(folder, clips):
    learn = load_pretrained(folder)
    with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(clips))[0].tolist()
print(json.dumps([probs(o, sys.argv[2:]) for o in Path(sys.argv[1]).ls_sorted()]))
'''

encoders = [
    (small_cnn, dict(grid=2)), ('vit_tiny_patch16_224', dict(size=32)),
    ('efficientnet_lite0', dict(pretrained=True))]
more_encoders = [
    (resnet18, {}), ('efficientnet_lite0', dict(pretrained=True, grid=2, streams=('motion','foreground')))]


def check_assembled(clips, folder, cache, encoder, options):
    "Compare assembled learners with heads on cached features, save one of them, and return its probabilities"
    options = dict(size=48, n_frames=3, pretrained=False, streams=('frames','motion','foreground')) | options
    torch.manual_seed(1)
    features = embed(clips, encoder, cache=cache, n_workers=0, **options)
    members = [dict(head=h, stream=s, weight=1+i/4) for i,h in enumerate(head_names) for s in features.names]
    for seed,chosen in enumerate((members, members[::3], members[::-4])):
        states = [random_state(o['head'], features.shape[4:], len(features.vocab), seed) for o in chosen]
        want = expected_logits(features, chosen, states)
        learn = features_learner(features, chosen, states, valid=range(1, len(clips)), bs=3, num_workers=0)
        with learn.no_bar(): got = learn.get_preds(act=noop)[0]
        torch.testing.assert_close(got, want[1:], rtol=0, atol=1e-5*max(1, float(want.abs().max())))
    learn.save_pretrained(folder)
    return want.softmax(1)


@pytest.mark.parametrize('encoders', [encoders, pytest.param(more_encoders, marks=pytest.mark.slow)])
def test_assembled_learner(make_shapes, tmp_path, encoders):
    clips = some_clips(make_shapes((64,48)))
    folder,cache = tmp_path/'models',tmp_path/'cache'
    want = [check_assembled(clips, folder/f'{i}', cache, *o) for i,o in enumerate(encoders)]
    out = run_python('-c', load_and_predict, folder, *clips)
    got = torch.tensor(json.loads(out.splitlines()[-1]))
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-5)


def train_head(dls, model, head, state, epochs):
    "Train `head`, a part of `model`, from `state`, without dropout; return its new state and the CPU seconds"
    head.load_state_dict(state)
    for m in head.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    start = time.process_time()
    learn = Learner(dls, model, CrossEntropyLossFlat())
    if model is not head: # with an encoder
        learn = Learner(dls, model, CrossEntropyLossFlat(), splitter=clip_splitter, cbs=FrozenEncoder())
        learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3)
    return {k: v.clone() for k,v in head.state_dict().items()}, time.process_time()-start


@pytest.mark.parametrize('encoder,options', [
    ('efficientnet_lite0', dict(n_frames=2, size=64)),
    (small_cnn, dict(grid=2, size=32, n_frames=4, pretrained=False))])
def test_head_trained_on_the_cache(make_shapes, tmp_path, encoder, options):
    "The weights are those of the head trained through the frozen encoder on the same batches"
    features = embed(some_clips(make_shapes((64,48)), 13), encoder, cache=tmp_path, n_workers=0, **options)
    clips,epochs = range(1, len(features)), 3
    for name in ('linear', 'conv', 'attentive'):
        members = [dict(head=name, stream=o) for o in features.names]
        head = StreamHead(members, features.names, features.shape[4:], len(features.vocab))
        state = {k: v.clone() for k,v in head.state_dict().items()}
        own = features.subset(clips).dataloaders([], bs=4, shuffle=False)
        fast,fast_seconds = train_head(own, head, head, state, epochs)
        states = [o.state_dict() for o in head.heads]
        learn = features_learner(features, members, states, clips, bs=4, num_workers=0)
        dls = DataLoaders(learn.dls.valid, learn.dls.valid) # the frames of validation, in order
        slow,slow_seconds = train_head(dls, learn.model, learn.model.head, state, epochs)
        print(f'{name}: {fast_seconds:.2f} s on the cache, {slow_seconds:.2f} s through the encoder')
        for k,o in slow.items(): torch.testing.assert_close(fast[k], o, rtol=0, atol=1e-4)
