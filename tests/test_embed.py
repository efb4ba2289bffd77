"Test features of clips: equal to what an assembled learner computes, and stored whatever happens."
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import run_python
from fastai.vision.all import SGD, CrossEntropyLossFlat, DataLoaders, Learner, bn_types, nn, noop, resnet18
from filelock import FileLock

from vidseq.data.loader import get_clips
from vidseq.deploy.saving import load_pretrained
from vidseq.models.encoders import small_cnn
from vidseq.models.heads import create_head_for
from vidseq.models.frame_models import clip_splitter
from vidseq.models.streams import StreamHead
from vidseq.train.embed import ClipEmbedder, embed
from vidseq.train.fit_heads import features_learner
from vidseq.train.frozen import FrozenEncoder
from vidseq.video.decode import extract_frames

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

encoders = [(small_cnn, dict(grid=2)), ('efficientnet_lite0', dict(pretrained=True))]
more_encoders = [
    (resnet18, {}), ('vit_tiny_patch16_224', dict(size=32)),
    ('efficientnet_lite0', dict(pretrained=True, grid=2, streams=('motion','foreground')))]


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
    loaded = load_pretrained(folder).model.train()
    assert not any(o.training for o in loaded.encoder.modules() if isinstance(o, bn_types))
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
    learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=SGD) # Adam would amplify rounding
    if model is not head: # with an encoder
        learn.splitter = clip_splitter
        learn.add_cb(FrozenEncoder())
        learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 2e-3)
    return {k: v.clone() for k,v in head.state_dict().items()}, time.process_time()-start


@pytest.mark.parametrize('encoder,options', [
    ('efficientnet_lite0', dict(n_frames=4, size=64)),
    (small_cnn, dict(grid=2, size=32, n_frames=4, pretrained=False))])
def test_head_trained_on_the_cache(make_shapes, tmp_path, encoder, options, seeded):
    "The weights are those of the head trained through the frozen encoder on the same batches"
    features = embed(some_clips(make_shapes((64,48)), 13), encoder, ('frames','motion'), cache=tmp_path,
                     n_workers=0, **options)
    clips,epochs = range(1, len(features)), 3
    for name in ('linear', 'conv', 'attentive'):
        members = [dict(head=name, stream=o) for o in features.names]
        head = StreamHead(members, features.names, features.shape[4:], len(features.vocab))
        state = {k: v.clone() for k,v in head.state_dict().items()}
        own = features.subset(clips).dataloaders([], bs=6, shuffle=False)
        fast,fast_seconds = train_head(own, head, head, state, epochs)
        states = [o.state_dict() for o in head.heads]
        learn = features_learner(features, members, states, clips, bs=6, num_workers=0)
        dls = DataLoaders(learn.dls.valid, learn.dls.valid) # the frames of validation, in order
        slow,slow_seconds = train_head(dls, learn.model, learn.model.head, state, epochs)
        print(f'{name}: {fast_seconds:.2f} s on the cache, {slow_seconds:.2f} s through the encoder')
        assert any((fast[k]-o).abs().max() > 1e-4 for k,o in state.items() if o.is_floating_point())
        for k,o in slow.items(): torch.testing.assert_close(fast[k], o, rtol=0, atol=1e-5)


# The store

def small_features(clips, cache, seed=0, **kwargs):
    "Embed clips with a small random encoder"
    torch.manual_seed(seed)
    options = dict(encoder=small_cnn, streams=('frames','motion'), n_frames=2, size=32, pretrained=False,
                   labels=None, n_workers=0)
    return embed(clips, cache=cache, **options | kwargs)


def stores(cache): return sorted(o for o in cache.iterdir() if o.is_dir())


def content(cache):
    "Return the bytes of the features in the only store, and path -> row of its index"
    [store] = stores(cache)
    lines = [json.loads(o) for o in (store/'index.jsonl').read_text().splitlines() if o.endswith(']')]
    return (store/'features.bin').read_bytes(), {path: row for path,row,_ in lines}


@contextmanager
def no_encoding():
    "Fail where a clip is encoded"
    def fail(*_): raise AssertionError('the encoder was used')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipEmbedder, '__call__', fail)
        yield


def embed_here(cache, clips, n_workers):
    "Embed clips in a child process"
    torch.set_num_threads(1)
    small_features(clips, cache, n_workers=n_workers)


def start_child(cache, clips, n_workers=0):
    "Start a process that embeds clips, from a server that has imported torch"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['vidseq.train.embed', 'vidseq.deploy.saving'])
    child = context.Process(target=embed_here, args=(cache, clips, n_workers))
    child.start()
    return child


def wait_for_lines(path, n, process):
    "Wait until the file has `n` lines or the process has ended"
    deadline = time.monotonic()+60
    while process.is_alive() and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b'\n') >= n: return
        time.sleep(.001)


@pytest.mark.skipif(os.name == 'nt', reason='no fork')
@pytest.mark.slow
def test_killed_ten_times(make_shapes, tmp_path):
    clips = get_clips(make_shapes((64,48)))
    small_features(clips, tmp_path/'whole')
    whole,rows = content(tmp_path/'whole')
    index = tmp_path/'killed'/stores(tmp_path/'whole')[0].name/'index.jsonl'
    for i in range(10):
        child = start_child(tmp_path/'killed', clips, n_workers=i%3//2)
        wait_for_lines(index, 4*i+1, child)
        time.sleep(i*.002)
        child.kill()
        child.join()
    done = len(content(tmp_path/'killed')[1])
    assert 30 < done < 60
    completed = small_features(clips, tmp_path/'killed')
    assert content(tmp_path/'killed') == (whole, rows)
    torch.testing.assert_close(completed[:], small_features(clips, tmp_path/'whole')[:], rtol=0, atol=0)


def test_interrupted_at_every_write(make_shapes, tmp_path):
    "A process that ends after any write of a row or of a part of a line loses at most one clip"
    clips = some_clips(make_shapes((64,48)), 6)
    small_features(clips, tmp_path/'whole')
    whole = content(tmp_path/'whole')
    [folder] = stores(tmp_path/'whole')
    index,row = (folder/'index.jsonl').read_bytes(),len(whole[0])//len(clips)
    ends = [i+1 for i,o in enumerate(index) if o == 10]
    for n_bytes in (0, row//2, row, 2*row+1, 6*row):
        for n_lines in range(n_bytes//row+1):
            part = index[:ends[n_lines-1] if n_lines else 0] + index[:9]
            store = tmp_path/f'{n_bytes}-{n_lines}'/folder.name
            store.mkdir(parents=True)
            (store/'features.bin').write_bytes(whole[0][:n_bytes])
            (store/'index.jsonl').write_bytes(part)
            got = small_features(clips, store.parent)
            assert content(store.parent) == whole
            assert (got[:] == small_features(clips, tmp_path/'whole')[:]).all()


def test_nothing_is_computed_twice(make_shapes, tmp_path, capsys):
    clips = some_clips(make_shapes((64,48)), 4)
    first = small_features(clips, tmp_path)
    [store] = stores(tmp_path)
    before = {o.name: o.stat().st_mtime_ns for o in store.iterdir()}
    with no_encoding():
        again = small_features(clips, tmp_path)
        assert (again[:] == first[:]).all() and again.digest == first.digest
        assert (small_features(clips[::-1], tmp_path)[:] == first[:][::-1]).all()
        with FileLock(store/'.vidseq.lock'): small_features(clips[2:], tmp_path) # others may be adding clips
        with pytest.raises(AssertionError): small_features(get_clips(clips[0].parent.parent), tmp_path)
    assert {o.name: o.stat().st_mtime_ns for o in store.iterdir()} == before


def test_changed_clips(make_shapes, tmp_path):
    "A replaced video and a changed frame are embedded again, and only these; earlier results do not change"
    originals = some_clips(make_shapes((64,48)), 4)
    clips = [Path(shutil.copy(o, tmp_path/f'{i}.avi')) for i,o in enumerate(originals)]
    folder = tmp_path/'frames'
    folder.mkdir()
    for i,img in enumerate(extract_frames(clips[0])): img.save(folder/f'{i}.jpg')
    clips.append(folder)
    before = small_features(clips, tmp_path/'cache')
    old = before[:].copy()
    shutil.copy(clips[3], clips[1])
    shutil.copy(folder/'12.jpg', folder/'6.jpg')
    encoded = []
    with pytest.MonkeyPatch.context() as patch:
        call = ClipEmbedder.__call__
        patch.setattr(ClipEmbedder, '__call__', lambda self, path: encoded.append(path) or call(self, path))
        after = small_features(clips, tmp_path/'cache')
    assert sorted(encoded) == sorted([str(clips[1]), str(folder)])
    assert (before[:] == old).all()
    assert (after[[0,2,3]] == old[[0,2,3]]).all() and (after[1] == old[3]).all()
    assert not (after[4] == old[4]).all() and after.digest != before.digest
    assert (after[:] == small_features(clips, tmp_path/'other')[:]).all()
    clips[2].unlink()
    assert small_features(clips, tmp_path/'cache').paths == [o for o in clips if o != clips[2]]


def test_stores_are_not_shared(make_shapes, tmp_path):
    clips = some_clips(make_shapes((64,48)), 1)
    weights = small_cnn()
    other = small_cnn()
    other.load_state_dict(weights.state_dict())
    other[1][1].running_mean += 1e-3
    same = dict(encoder=weights)
    options = [dict(size=48), dict(n_frames=3), dict(n_views=2), dict(grid=2), dict(pattern='*.jpg'),
               *(dict(streams=o) for o in ('frames', ('motion','frames'), ('frames','foreground')))]
    settings = [same, dict(encoder=other), *(o | same for o in options), dict(encoder=resnet18, size=64),
                dict(encoder='resnet18', size=64)]
    for n,o in enumerate(settings, 1):
        small_features(clips, tmp_path, **o)
        assert len(stores(tmp_path)) == n
    for o in settings[:-2]: small_features(clips, tmp_path, seed=5, **o) # the seed does not matter
    assert len(stores(tmp_path)) == len(settings)


@pytest.mark.parametrize('kind', ['threads', pytest.param('processes', marks=pytest.mark.slow)])
def test_executors(make_shapes, tmp_path, kind):
    clips = some_clips(make_shapes((64,48)), 12)
    small_features(clips, tmp_path/'here')
    n = torch.get_num_threads()
    with (ThreadPoolExecutor if kind == 'threads' else ProcessPoolExecutor)(2) as executor:
        small_features(clips, tmp_path/'there', executor=executor)
    if kind == 'processes': small_features(clips, tmp_path/'workers', n_workers=2)
    for o in tmp_path.iterdir(): assert content(o) == content(tmp_path/'here')
    assert torch.get_num_threads() == n


def test_unreadable_videos(make_shapes, tmp_path, capsys):
    good = some_clips(make_shapes((64,48)), 3)
    bad = [tmp_path/'text.mp4', tmp_path/'empty.avi', tmp_path/'missing.mp4', tmp_path/'a folder']
    bad[0].write_text('not a video')
    bad[1].touch()
    bad[3].mkdir()
    (tmp_path/'half.avi').write_bytes(good[0].read_bytes()[:3000])
    clips = [bad[0], good[0], *bad[1:], *good[1:]]
    features = small_features(clips, tmp_path/'cache', labels=list('abcdefg'))
    assert features.paths == good and features.labels == ['b','f','g']
    out = capsys.readouterr().out
    for o in bad: assert f'Skipped: {o}: ' in out
    assert (features[:] == small_features(good, tmp_path/'other')[:]).all()


def test_odd_names(make_shapes, tmp_path):
    names = ['with space.avi', 'ünïcode 日本.avi', 'quote" and \\ and \n line.avi', '-x.avi', '%41.avi']
    if os.name == 'nt': names = names[:2]
    if sys.platform == 'linux': names.append(os.fsdecode(b'bytes \xff\xfe.avi'))
    clips = some_clips(make_shapes((64,48)), len(names))
    (tmp_path/'clips').mkdir()
    paths = [Path(shutil.copy(o, tmp_path/'clips'/name)) for o,name in zip(clips, names)]
    want = small_features(clips, tmp_path/'cache')
    with ThreadPoolExecutor(1) as executor: got = small_features(paths, tmp_path/'odd', executor=executor)
    assert got.paths == paths and (got[:] == want[:]).all()
    with no_encoding(): assert small_features(paths, tmp_path/'odd').digest == got.digest


@pytest.mark.skipif(os.name == 'nt', reason='no fork')
def test_two_processes_at_once(make_shapes, tmp_path):
    "Each clip is embedded once, and a process whose time is up does not wait for the other"
    clips = get_clips(make_shapes((64,48)))
    small_features(clips, tmp_path/'here')
    child = start_child(tmp_path/'there', clips)
    index = tmp_path/'there'/stores(tmp_path/'here')[0].name/'index.jsonl'
    wait_for_lines(index, 1, child)
    start = time.monotonic()
    with suppress(ValueError): small_features(clips, tmp_path/'there', seconds=.1)
    assert time.monotonic()-start < 10
    small_features(clips, tmp_path/'there')
    child.join()
    assert child.exitcode == 0
    data,rows = content(tmp_path/'there')
    assert sorted(rows.values()) == list(range(len(clips)))
    assert len(index.read_bytes().splitlines()) == len(clips)
    assert data == content(tmp_path/'here')[0]
