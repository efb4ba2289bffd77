"Test `probe`: the scores of a plain loop over the folds, folds of all kinds, and learners of its heads."
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import DataLoaders, load_learner
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from vidseq.data.folds import group_folds
from vidseq.deploy.export import export_program
from vidseq.deploy.predict import predict_video
from vidseq.deploy.timeline import predict_timeline
from vidseq.evaluate.interpret import class_activation, frame_importance
from vidseq.evaluate.probe import probe
from vidseq.evaluate.scores import evaluate, time_sensitivity
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel
from vidseq.models.layers import stack_frames
from vidseq.train.amp import to_amp
from vidseq.train.embed import embed
from vidseq.train.features import Features
from vidseq.train.learner import video_learner
from vidseq.train.rates import layer_lrs
from vidseq.train.resume import ResumeTraining


def drawn_features(n_groups=6, n_clips=4, n_classes=3, labels=None, n_views=1, seed=0, **kwargs):
    "Return random features V,2,4,10 that differ by class and by group"
    rng = np.random.default_rng(seed)
    classes = [c for _ in range(n_groups) for c in np.arange(n_clips)%n_classes]
    groups = [g for g in range(n_groups) for _ in range(n_clips)]
    means,group_means = rng.normal(size=(n_classes,10)),rng.normal(size=(n_groups,10))
    noise = rng.normal(size=(len(classes),n_views,2,4,10))
    array = (means[classes]+group_means[groups])[:,None,None,None]+2*noise
    paths = [f'g{g:02d}_{i}.mp4' for i,g in enumerate(groups)]
    labels = labels or [f'class {c}' for c in classes]
    options = dict(labels=labels, group='^[^_]+', names=['frames','motion'])
    return Features(array.astype('float32'), paths, **options | kwargs)


def summaries(features, stream, view=0):
    return features.stream(stream, view).mean(1).astype(float)


def mean_and_changes(features, stream, view=0):
    x = features.stream(stream, view).astype(float)
    return np.concatenate([x.mean(1), x.std(1, ddof=1), abs(x[:,1:]-x[:,:-1]).mean(1)], axis=1)


def plain_loop(features, folds, stream, summarize=summaries):
    "Return held-out logits C of logistic regression on standardized features, fold by fold"
    x,y = summarize(features, stream),features.targets.numpy()
    logits = np.zeros((len(x), len(features.vocab)))
    for train,valid in folds:
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=.1, max_iter=1000).fit(scaler.transform(x[train]), y[train])
        found = model.decision_function(scaler.transform(x[valid]))
        logits[valid] = found if found.ndim > 1 else np.stack([-found/2, found/2], axis=1)
    return torch.tensor(logits)


def test_plain_loop():
    features = drawn_features()
    res = probe(features, ['linear','stats'], folds=3, n_workers=0)
    folds = group_folds(features.paths, features.labels, '^[^_]+', 3)
    assert [tuple(map(list, o)) for o in res.folds] == [tuple(map(list, o)) for o in folds]
    assert set(res.table) == {'head','accuracy','low','high','seconds','params'}
    of_head = dict(Linear=summaries) | {'Linear with changes': mean_and_changes}
    for title,f in of_head.items():
        logits = [plain_loop(features, folds, o, f) for o in features.names]
        both = f'{title} on frames + motion'
        for name,o in zip([f'{title} on {s}' for s in features.names]+[both], [*logits, sum(logits)/2]):
            scores = res.scores[name]
            torch.testing.assert_close(scores.probs.double(), o.softmax(1), rtol=0, atol=1e-3)
            accuracy = (o.argmax(1) == features.targets).double().mean()
            assert abs(scores.accuracy-accuracy)*len(features) <= 1
            assert scores.groups == features.groups and list(scores.paths) == list(features.paths)
    row,scores = res.table.set_index('head').loc['Linear on motion'],res.scores['Linear on motion']
    assert row.accuracy == scores.accuracy and (row.low, row.high) == scores.interval()
    assert row.params == 10*3+3
    assert res.table.accuracy.is_monotonic_decreasing
    assert res.scores[res.best].accuracy == res.table.accuracy[0]


def test_corrected():
    "The correction lowers the best score by the luck of the choice"
    features = drawn_features()
    res = probe(features, ['linear','stats'], folds=3, n_workers=0)
    score,low,high = res.corrected()
    assert low < score < high and score <= res.scores[res.best].score+.02
    few = probe(drawn_features(n_groups=2), 'linear', folds=2, n_workers=0)
    assert few.corrected() is None # two groups


def test_time_sensitivity():
    features = drawn_features()
    res = probe(features, ['linear','attentive','conv'], folds=3, epochs=3, n_workers=0)
    for name in res.units:
        found = res.time_sensitivity(name)
        assert found['ordered'] == res.scores[name].score
        assert list(found.index) == ['ordered','reversed','shuffled'] # no encoder for repeated frames
        if name.startswith('Linear on'): assert found.nunique() == 1 # the mean does not depend on the order


def test_several_labels():
    labels = [['a'] if i%3 == 0 else ['a','b'] if i%3 == 1 else ['b','c'] for i in range(24)]
    features = drawn_features(labels=labels)
    res = probe(features, ['linear','conv'], folds=3, epochs=4, n_workers=0)
    scores = res.scores['Linear on frames']
    x,want = summaries(features, 'frames'),np.zeros((24,3))
    for train,valid in res.folds:
        scaler = StandardScaler().fit(x[train])
        for c in range(3):
            y = features.targets[train,c].numpy()
            model = LogisticRegression(C=.1, max_iter=1000).fit(scaler.transform(x[train]), y)
            want[valid,c] = model.predict_proba(scaler.transform(x[valid]))[:,1]
    torch.testing.assert_close(scores.probs.double(), torch.tensor(want), rtol=0, atol=1e-3)
    mean = average_precision_score(features.targets.numpy(), scores.probs.numpy(), average='macro')
    assert abs(scores.score-mean) < 1e-6 and res.corrected() is None
    assert 'mean_average_precision' in res.table


@pytest.mark.parametrize('n', [1,2])
def test_numbers(n):
    rng = np.random.default_rng(0)
    features = drawn_features()
    values = 50+20*(features.array.mean((1,2,3))@rng.normal(size=(10,n)))
    features = drawn_features(labels=values[:,0].tolist() if n == 1 else values.tolist())
    res = probe(features, ['linear','conv'], folds=3, epochs=15, n_workers=0)
    x,want = summaries(features, 'frames'),np.zeros((24,n))
    for train,valid in res.folds:
        scaler = StandardScaler().fit(x[train])
        model = Ridge(alpha=10).fit(scaler.transform(x[train]), values[train])
        want[valid] = model.predict(scaler.transform(x[valid])).reshape(-1, n)
    scores = res.scores['Linear on frames']
    torch.testing.assert_close(scores.probs.double(), torch.tensor(want), rtol=1e-4, atol=1e-3)
    assert abs(scores.score-abs(want-values).mean()) < 1e-3
    assert res.table.mae.is_monotonic_increasing
    score,low,high = res.corrected()
    assert 0 < low < score < high
    outputs = res.fits['conv','motion',0].outputs # numbers, not standardized ones
    assert .3*values.std() < outputs.std() < 3*values.std()
    assert abs(outputs.mean()-values.mean()) < values.std()


def test_groups_and_classes():
    unknown = probe(drawn_features(group=None), 'linear', folds=4, n_workers=0)
    assert unknown.scores['Linear on frames'].groups is None and unknown.corrected()[0] > 0
    assert len(probe(drawn_features(), 'linear', folds=None, n_workers=0).folds) == 6 # one for each group
    # a class that one group has: no training clips for it in one of the folds
    labels = ['rare' if i < 2 else f'class {i%2}' for i in range(24)]
    rare = probe(drawn_features(labels=labels), ['linear','conv'], folds=3, epochs=2, n_workers=0)
    for o in rare.scores.values():
        assert o.probs.isfinite().all() and torch.allclose(o.probs.sum(1), torch.ones(24), atol=1e-4)
    assert (rare.scores['Linear on frames'].probs[:2,2] < 1e-3).all()
    two = drawn_features(n_classes=2)
    res = probe(two, 'linear', folds=3, n_workers=0)
    want = plain_loop(two, res.folds, 'motion').softmax(1)
    torch.testing.assert_close(res.scores['Linear on motion'].probs.double(), want, rtol=0, atol=1e-3)
    # folds of scikit-learn: arrays, from a generator
    folds = ((np.array(a), np.array(b)) for a,b in [(range(8,24), range(8)), (range(16), range(16,24))])
    own = probe(two, 'linear', folds=folds, n_workers=0)
    assert own.scores['Linear on frames'].paths == [two.paths[i] for i in [*range(8), *range(16,24)]]
    want = plain_loop(two, own.folds, 'frames').softmax(1)[[*range(8), *range(16,24)]]
    torch.testing.assert_close(own.scores['Linear on frames'].probs.double(), want, rtol=0, atol=1e-3)


def test_views():
    features = drawn_features(n_views=3)
    res = probe(features, 'linear', folds=3, n_workers=0)
    y,want = features.targets.numpy(),0
    xs = [summaries(features, 'frames', v) for v in range(3)]
    logits = torch.zeros(24, 3)
    for train,valid in res.folds:
        x = np.concatenate([o[train] for o in xs])
        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=.1, max_iter=1000).fit(scaler.transform(x), np.tile(y[train], 3))
        want = sum(model.decision_function(scaler.transform(o[valid])) for o in xs)/3
        logits[valid] = torch.tensor(want).float()
    torch.testing.assert_close(res.scores['Linear on frames'].probs, logits.softmax(1), rtol=0, atol=1e-3)


of_resume = dict(heads=['linear','conv','attentive'], folds=3, epochs=4, n_workers=0)


def run_probe(folder):
    "Train heads in a child process"
    torch.set_num_threads(1)
    probe(drawn_features(digest='drawn'), cache=folder, **of_resume)


@pytest.mark.skipif(os.name == 'nt', reason='no fork')
@pytest.mark.slow
def test_resume(tmp_path):
    "Heads that a killed process has finished are not trained again, and the results are those of one run"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['vidseq.evaluate.probe', 'vidseq.deploy.saving'])
    child = context.Process(target=run_probe, args=(tmp_path,))
    child.start()
    deadline = time.monotonic()+60
    def finished(): return sorted(o.name for o in tmp_path.glob('heads-*/*.safetensors'))
    while len(finished()) < 3 and child.is_alive() and time.monotonic() < deadline: time.sleep(.001)
    child.kill()
    child.join()
    before = {o: o.stat().st_mtime_ns for o in tmp_path.glob('heads-*/*.safetensors')}
    assert len(before) >= 3
    features = drawn_features(digest='drawn')
    res = probe(features, cache=tmp_path, **of_resume)
    assert all(o.stat().st_mtime_ns == t for o,t in before.items())
    assert len(finished()) == 6
    want = probe(features, **of_resume)
    for k,o in want.scores.items():
        torch.testing.assert_close(res.scores[k].probs, o.probs, rtol=0, atol=1e-6)
    # others do not use these files: other labels, folds, passes, clips
    n = len(finished())
    numbers = [1,2,10]*8
    for kwargs in (dict(labels=numbers), dict(labels=[str(o) for o in numbers]), dict(digest='other')):
        probe(drawn_features(**dict(digest='drawn') | kwargs), 'linear', folds=3, cache=tmp_path, n_workers=0)
        assert len(finished()) == (n := n+2)
    probe(features, 'linear', folds=2, cache=tmp_path, n_workers=0)
    probe(features, 'conv', folds=3, epochs=1, cache=tmp_path, n_workers=0)
    assert len(finished()) == n+4


def test_seconds():
    features,start = drawn_features(),time.monotonic()
    res = probe(features, ['linear','conv'], folds=3, epochs=10**6, seconds=2, n_workers=0)
    assert time.monotonic()-start < 20
    assert 'Linear on motion' in res.scores and not any('conv' in o for o in res.fits)


# Learners

@pytest.fixture(scope='module')
def small_probe(make_shapes, tmp_path_factory):
    "Return a probe of 60 clips of moving shapes by a small random encoder"
    torch.manual_seed(0)
    features = embed(make_shapes((64,48)), small_cnn, ('frames','motion'), 2, 32, pretrained=False, grid=2,
                     cache=tmp_path_factory.mktemp('cache'), n_workers=0)
    return probe(features, ['linear','conv'], folds=5, epochs=3, n_workers=0)


def test_learner_of_a_fold(small_probe):
    for name in ('Linear on motion', 'Temporal convolutions on frames', 'All heads on frames + motion'):
        learn = small_probe.learner(name, fold=1, num_workers=0)
        scores,valid = evaluate(learn),small_probe.folds[1][1]
        want = small_probe.scores[name]
        rows = [want.paths.index(o) for o in scores.paths]
        assert sorted(scores.paths) == sorted(small_probe.features.paths[i] for i in valid)
        torch.testing.assert_close(scores.probs, want.probs[rows], rtol=0, atol=1e-5)
        assert (scores.targs == want.targs[rows]).all() and scores.groups == [want.groups[i] for i in rows]
        reversed_ = time_sensitivity(learn, n_shuffles=1)
        assert reversed_['ordered'] == scores.score


def test_heat_maps(small_probe):
    "Grad-CAM of frames and motion images, computed without hooks"
    learn = small_probe.learner('Linear on frames + motion', fold=0, num_workers=0)
    clip = small_probe.features.paths[0]
    x,model = stack_frames(learn.dls.test_dl([clip]).one_batch()[0]),learn.model.eval()
    cnn,pool = model.encoder.encoder.module
    images = torch.cat(model.encoder.images(x), dim=1)[0] # 4 images: 2 frames and 2 motion images
    maps = cnn(images)
    logits = model.head(pool(maps).view(1, 2, 2, 32, 2, 2))
    torch.testing.assert_close(logits, model(x))
    weights = torch.autograd.grad(logits[0,3], maps)[0].mean((2,3), keepdim=True)
    heat = (weights*maps).sum(1).relu() # 4,h,w
    heat = (heat[:2]+heat[2:])[[0,0,1,1]] # for the frames of both pairs
    heat = F.interpolate(heat[None,None], (4,32,32), mode='trilinear')[0,0]
    got = class_activation(learn, clip, target=3)
    torch.testing.assert_close(got, (heat/heat.max()).detach(), rtol=0, atol=1e-5)
    importance = frame_importance(learn, clip, target=3)
    probs = model(x).softmax(1)[0,3]
    for i in range(4):
        other = x.clone()
        other[:,i] = (x.sum(1)-x[:,i])/3
        assert abs(importance[i]-float(probs-model(other).softmax(1)[0,3])) < 1e-5


def test_heat_maps_of_frames(small_probe):
    "The frames of a `ConvLSTMModel` are not the channels of a map"
    dls = small_probe.learner(fold=0, num_workers=0).dls
    learn = video_learner(dls, ConvLSTMModel, arch=small_cnn, pretrained=False)
    x,model = stack_frames(dls.valid.one_batch()[0])[:1],learn.model.eval()
    maps = model.encoder(x).detach().requires_grad_() # 1,T,C,h,w
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.encoder, 'forward', lambda _: maps)
        weights = torch.autograd.grad(model(x)[0,2], maps)[0].mean((3,4), keepdim=True)
    heat = F.interpolate((weights*maps).sum(2).relu()[None], (x.shape[1],32,32), mode='trilinear')[0,0]
    got = class_activation(learn, x, target=2)
    torch.testing.assert_close(got, (heat/heat.max()).detach(), rtol=0, atol=1e-5)


def test_learner_of_all_clips(small_probe, tmp_path):
    learn = small_probe.learner(num_workers=0)
    clips = small_probe.features.paths[:2]
    with pytest.raises(ValueError, match='dl: empty'): evaluate(learn)
    want = predict_video(learn, clips[0])
    assert predict_timeline(learn, clips[0]).shape[0] >= 1
    program = export_program(learn.model, learn.dls.one_batch()[0]) # checks the logits
    assert program is not None
    learn.export(tmp_path/'learn.pkl')
    assert predict_video(load_learner(tmp_path/'learn.pkl'), clips[0]) == want
    encoder = [o.clone() for o in learn.model.encoder.parameters()]
    def changed(): return any((a != b).any() for a,b in zip(encoder, learn.model.encoder.parameters()))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        assert not changed()
        learn.unfreeze()
        learn.fit_one_cycle(1, layer_lrs(learn, 1e-4))
        assert changed()
        to_amp(learn).fit_one_cycle(1, layer_lrs(learn, 1e-4), cbs=ResumeTraining(tmp_path/'state'))
    again = small_probe.learner(num_workers=0) # fine-tuning does not change the probe
    assert all((a == b).all() for a,b in zip(encoder, again.model.encoder.parameters()))
    assert isinstance(learn.dls, DataLoaders)


def test_module_as_encoder(make_shapes, tmp_path):
    "Fine-tuning a learner does not change a module that was given as the encoder"
    net = small_cnn()
    features = embed(make_shapes((64,48)), net, ('frames','motion'), 2, 32, cache=tmp_path, n_workers=0)
    learn = probe(features, 'linear', folds=2, n_workers=0).learner(num_workers=0)
    weights = [o.clone() for o in net.parameters()]
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert all((a == b).all() for a,b in zip(weights, net.parameters()))
