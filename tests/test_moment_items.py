"Use moments of films wherever files can be used: they read the same as files that are cut out of the film"
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import IndexSplitter, RandomSplitter, set_seed
from make_videos import write

from vidseq.all import (ImageTuple, ImageTupleTfm, Moment, SimpleModel, VideoDataLoaders, VideoError,
                        clip_paths, embed, extract_frames, first_frames, follow_frames, leaked_groups,
                        spread_frames, video_info, video_learner, window_frames)
from vidseq.data.moments import MomentClips
from vidseq.file_index import file_key
from vidseq.models.encoders import small_cnn
from vidseq.video.frame_cache import FrameCache
from vidseq.video.frame_memmap import FrameMemmap


def cut(film, path, start, stop):
    "Copy the packets from keyframe number `start` to that of number `stop`, without encoding them again"
    with av.open(str(film)) as source, av.open(str(path), 'w') as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        packets = [o for o in source.demux(stream) if o.size]
        first = packets[start].pts
        for packet in packets[start:stop]:
            packet.pts,packet.dts = packet.pts-first,packet.dts-first
            packet.stream = out
            target.mux(packet)
    return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Return a film of 120 frames and a file cut from its frames 40 to 80"
    folder = tmp_path_factory.mktemp('films')
    film = write(folder/'film.mp4', n=120, w=64, h=48, g=20, bf=0, sc_threshold=1000000000)
    assert video_info(film).keyframes == [0,20,40,60,80,100]
    return film, cut(film, folder/'cut.mp4', 40, 80)


@pytest.fixture
def moment(files): return Moment(files[0], 40/25, 80/25)


samplers = dict(
    first=first_frames, spread=spread_frames, window=window_frames, follow=partial(follow_frames, gaps=(1,)),
    first_step=partial(first_frames, step=3), window_seconds=partial(window_frames, seconds=.12),
    window_range=partial(window_frames, step=(1,4)), follow_seconds=partial(follow_frames, seconds=(.1,)))


def arrays(clip): return [np.asarray(o) for o in clip]


@pytest.mark.parametrize('train', [False,True])
@pytest.mark.parametrize('name', samplers)
def test_equals_a_cut_file(files, moment, name, train):
    film,cut_file = files
    assert len(list(extract_frames(cut_file))) == 40
    for size in (None, 24):
        tfm = ImageTupleTfm(8, samplers[name], size)
        for seed in range(5):
            clips = []
            for path in (moment, Path(moment), str(moment), cut_file):
                set_seed(seed)
                tfm.train = train
                clips.append(arrays(tfm.encodes(path)))
            for clip in clips[:3]: np.testing.assert_equal(clip, clips[3])


def test_views(files, moment):
    for view in range(3):
        tfm = ImageTupleTfm(4, window_frames, view=view, n_views=3)
        a,b = (arrays(tfm.encodes(o)) for o in (moment, files[1]))
        np.testing.assert_equal(a, b)


def test_all_frames(files, moment):
    a,b = (arrays(ImageTuple.create(o)) for o in (moment, files[1]))
    np.testing.assert_equal(a, b)


def test_caches(files, moment, tmp_path):
    "Read a moment from jpgs of its film, and from the memory map, which keeps only its frames"
    jpgs = FrameCache.fill(tmp_path/'jpgs', [moment, files[0]], n_workers=0)
    assert len(jpgs.report) == 1
    whole = ImageTupleTfm(8, cache=jpgs).encodes(files[0])
    part = ImageTupleTfm(40, first_frames, cache=jpgs).encodes(moment)
    assert len(whole) == 8
    folder = jpgs(files[0])
    want = ImageTupleTfm(120, first_frames).encodes(folder)
    np.testing.assert_equal(arrays(part), arrays(want)[40:80])
    for n in (None, 8):
        store = FrameMemmap.fill(tmp_path/'memmap', [moment, files[1]], n_frames=n, n_workers=0)
        a,b = (store.read(o)[0] for o in (moment, files[1]))
        assert len(a) == (n or 40)
        np.testing.assert_equal(np.array(a), np.array(b))
        a,b = (arrays(ImageTupleTfm(8, cache=store).encodes(o)) for o in (moment, files[1]))
        np.testing.assert_equal(a, b)
    with pytest.raises(VideoError, match='has 4.80 seconds'): ImageTupleTfm(8).encodes(Moment(files[0], 5, 6))


def test_many_moments_in_one_pass(files, tmp_path):
    "Moments of one film are decoded together; one that is beyond the film is named, the others are kept"
    moments = [Moment(files[0], i/25, (i+5)/25) for i in range(0, 110, 3)]
    store = FrameMemmap.fill(tmp_path, [Moment(files[0], 5, 6), *moments, files[1]], n_workers=0)
    assert [o for o in store.report.reason if o] == [str(o) for o in store.report.reason[:1]]
    assert 'has 4.80 seconds' in store.report.reason[0]
    want = list(map(np.asarray, extract_frames(files[0])))
    for k,moment in enumerate(moments):
        got = store.read(moment)[0].transpose(0,2,3,1) # n,3,H,W -> n,H,W,3
        np.testing.assert_equal(got, np.stack(want[3*k:3*k+5]))


def test_folder_of_frames(files, tmp_path):
    "Read a moment of a film that was extracted: its rate is known, or given"
    frames = FrameCache.fill(tmp_path, [files[0]], n_workers=0)(files[0])
    want = arrays(ImageTupleTfm(120, first_frames).encodes(frames))
    for fps in (None, 50.):
        a,b = (25,50) if fps is None else (50,100)
        got = ImageTupleTfm(b-a, first_frames, fps=fps).encodes(Moment(frames, 1, 2))
        np.testing.assert_equal(arrays(got), want[a:b])
    (frames/'0.jpg').unlink() # with the record of the source
    (frames/'119.jpg').rename(frames/'0.jpg')
    moment = Moment(frames, 1, 2)
    with pytest.raises(VideoError, match='frame rate is unknown'): ImageTupleTfm(8).encodes(moment)


def test_names(files, moment):
    assert file_key(moment) == file_key(files[0])
    assert pickle.loads(pickle.dumps(moment)) == moment
    assert Moment.of(os.path.abspath(moment)).path == str(files[0])


@pytest.fixture(scope='module')
def learner(files):
    "Return an untrained learner of two classes of moments"
    film,cut_file = files
    torch.manual_seed(0)
    names = [Moment(film, i/2, i/2+.5) for i in range(8)] + [cut_file]
    dls = VideoDataLoaders.from_lists(
        '.', names, ['a','b']*4+['a'], bs=2, seq_len=4, image_size=32, num_workers=0,
        splitter=IndexSplitter([6,7]))
    return video_learner(dls, partial(SimpleModel, small_cnn), pretrained=False)


def test_loaders_and_predictions(files, moment, learner):
    x,y = learner.dls.one_batch()
    assert len(x) == 4 and x[0].shape == (2,3,32,32)
    learner.dls.show_batch()
    a,b = (learner.predict_video(o) for o in (moment, files[1]))
    assert a == b
    scores = learner.evaluate()
    assert [Path(o).name for o in scores.paths] == ['film.mp4#t=3,3.5','film.mp4#t=3.5,4']
    with pytest.raises(VideoError, match='no such file'): learner.predict_video(Moment('nowhere.mp4', 0, 1))


def test_timelines(files, moment, learner):
    learner.dls.one_batch() # a training batch, whose frames are random: a timeline has none of that
    a,b = (learner.predict_timeline(o, window=.4, stride=.2) for o in (moment, files[1]))
    np.testing.assert_allclose(a.iloc[:,2:], b.iloc[:,2:], rtol=1e-5)
    np.testing.assert_allclose(a[['start','end']], b[['start','end']]+1.6)


def test_embeddings(files, moment, tmp_path):
    features = embed([moment, files[1]], small_cnn, n_frames=4, size=32, labels=None, pretrained=False,
                     cache=tmp_path, n_workers=0)
    np.testing.assert_equal(np.array(features[0]), np.array(features[1]))
    assert [str(o) for o in features.paths] == [os.path.abspath(moment), os.path.abspath(files[1])]


# Tables

@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "Return a folder of four films of four seconds"
    folder = tmp_path_factory.mktemp('tables')
    for i in range(4): write(folder/f'film{i}.mp4', n=100, seed=i)
    return folder


def table_of(rows): return pd.DataFrame(rows, columns=['file','start','end','label'])


def loaders(table, folder, **kwargs):
    small = dict(bs=2, seq_len=4, image_size=16, num_workers=0)
    return VideoDataLoaders.from_moments(table, folder, **small | kwargs)


def films_of(dl): return {Path(o.path).name for o in map(Moment.of, clip_paths(dl.dataset))}


@pytest.mark.parametrize('seed', range(20))
def test_no_film_on_both_sides(films, seed):
    rng = np.random.default_rng(seed)
    rows = [(f'film{rng.integers(4)}.mp4', a/10, a/10+.1, 'abc'[rng.integers(3)]) for a in range(38)]
    dls = loaders(table_of(rows), films, seed=seed, missing_ok=True)
    assert not films_of(dls.train) & films_of(dls.valid) and films_of(dls.train) and films_of(dls.valid)
    assert not leaked_groups(dls)


def test_a_film_with_one_label_only(films):
    rows = [(f'film{i}.mp4', a, a+.5, 'a' if i == 0 or a < 1 else 'b') for i in range(4) for a in (0,1,2,3)]
    dls = loaders(table_of(rows), films, seed=0)
    assert dls.vocab == ['a','b'] and not leaked_groups(dls)
    one = table_of([o for o in rows if o[3] == 'a'])
    with pytest.raises(ValueError, match='one class'): loaders(one, films)


def test_many_moments_of_one_film(films):
    rows = [('film0.mp4', i/2600, i/2600+.0003, 'ab'[i%2]) for i in range(10_000)]
    dls = loaders(table_of(rows), films, splitter=RandomSplitter(.2, seed=0))
    assert sum(len(dl.dataset) for dl in dls.loaders) == 10_000
    with pytest.raises(ValueError, match='one group'): loaders(table_of(rows), films)


def test_two_tables_of_one_film(films, tmp_path):
    "Two tables can share a film, a cache and its index"
    a = table_of([(f'film{i}.mp4', k, k+1, 'xy'[k%2]) for i in range(2) for k in range(4)])
    b = table_of([(f'film{i}.mp4', k+.5, k+1.5, 'uv'[k%2]) for i in range(2) for k in range(3)])
    for cache in (tmp_path/'jpgs', 'memmap', None):
        if cache == 'memmap':
            moments = [Moment(films/r.file, r.start, r.end) for o in (a,b) for r in o.itertuples()]
            cache = FrameMemmap.fill(tmp_path/'map', moments, 16, n_workers=0)
        first,second = (loaders(o, films, cache=cache, seed=0) for o in (a,b))
        assert first.vocab == ['x','y'] and second.vocab == ['u','v']
        for dls in (first, second): assert dls.one_batch()[0][0].shape == (2,3,16,16)


def test_rows_are_named(films, tmp_path):
    good = 'file,start,end,label\nfilm0.mp4,0,1,a\nfilm1.mp4,0,1,b\n'
    file = tmp_path/'moments.csv'
    for row in ('film1.mp4,2,1,b', 'film9.mp4,0,1,a', 'film0.mp4,3,9,a', 'film0.mp4,.5,1.5,b',
                'film0.mp4,1,2,', 'film0.mp4,x,2,a'):
        file.write_text(good+row+'\n')
        with pytest.raises(ValueError, match='moments.csv: line 4'): loaders(file, films)
    file.write_text(good)
    dls = loaders(file, films, seed=0, missing_ok=True, bs=1)
    assert [len(o.dataset) for o in dls.loaders] == [1,1]


def test_frames_of_a_table(films):
    seconds = table_of([(f'film{i}.mp4', .4, 1.2, 'ab'[i%2]) for i in range(4)])
    frames = seconds.drop(columns=['start','end']).assign(start_frame=10, end_frame=30)
    a,b = (loaders(o, films, seed=0, missing_ok=True, bs=1) for o in (seconds, frames))
    assert [list(map(str, clip_paths(o.dataset))) for o in a.loaders] == \
        [list(map(str, clip_paths(o.dataset))) for o in b.loaders]


def test_background(films):
    rows = [(f'film{i}.mp4', 1, 2, 'ab'[i%2]) for i in range(4)]
    found = MomentClips(table_of(rows), films, background='nothing', n_background=50, seed=3)
    drawn = [o for o,l in zip(found.clips, found.labels) if l == 'nothing']
    assert len(drawn) == 50 and {Path(o.path).name for o in drawn} == {f'film{i}.mp4' for i in range(4)}
    assert all(o.end <= 1+1e-6 or o.start >= 2-1e-6 for o in drawn)
    again = MomentClips(table_of(rows), films, background='nothing', n_background=50, seed=3)
    assert again.clips == found.clips
    with pytest.raises(ValueError, match='cover the films'):
        rows = [(f'film{i}.mp4', 0, 4, 'ab'[i%2]) for i in range(4)]
        MomentClips(table_of(rows), films, background='nothing')


@pytest.mark.slow
def test_the_command(films, tmp_path):
    "Train on a table from a shell, and predict a moment"
    rows = [(f'film{i}.mp4', k/2, k/2+.5, 'ab'[k%2]) for i in range(4) for k in range(8)]
    table_of(rows).to_csv(films/'rows.csv', index=False)
    def vidseq(*args):
        command = [sys.executable, '-m', 'vidseq.cli', *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout
    out = vidseq('train', films/'rows.csv', '--videos', films, '--out', tmp_path, '--seconds', 45,
                 '--scratch')
    assert 'Best model' in out and (tmp_path/'index.html').exists()
    assert '%' in vidseq('predict', tmp_path/'model', f'{films/"film0.mp4"}#t=1,2')
