"Synthetic films: properties of events and states over many seeds, files, and the place of the motion"
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from vidseq.all import VideoDataLoaders
from vidseq.datasets.films import (draw_film, drawn_films, event_seconds, film_disturbances, film_events,
                                   film_scene, film_states, gap_seconds)
from vidseq.datasets.moment_table import check_moments
from vidseq.datasets.moments import read_moments
from vidseq.datasets.shapes import motions, speed_ranges
from vidseq.video.info import video_info
from vidseq.video.read import read_frames

N,FPS = 500,25
SMALL = dict(n_films=3, seconds=20, n_workers=0)
SUBSETS = [tuple(motions), ('MoveLeft','MoveRight'), ('Grow','Shrink'), ('TurnClockwise',),
           ('MoveLeft','Grow','Shrink')]


@pytest.fixture(scope='module')
def films(tmp_path_factory): return drawn_films(tmp_path_factory.mktemp('films')/'drawn', **SMALL)


def contents(folder):
    "Return the name of each file in `folder` -> its bytes"
    return {str(o.relative_to(folder)): o.read_bytes() for o in sorted(folder.rglob('*')) if o.is_file()}


# Pure functions

def draw(seed, n=1500, fps=FPS, **kwargs):
    "Return the events, and the states of each shape, of a film of one or two shapes"
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-.1, 1.1, 1+seed%2)
    events = film_events(rng, n, fps, starts, **kwargs)
    own = [[o for o in events if o.shape == i] for i in range(len(starts))]
    return events,own,[film_states(rng, o, n, fps, size) for o,size in zip(own, starts)]


@pytest.mark.parametrize('classes', SUBSETS)
@pytest.mark.parametrize('fps,n,rate', [(25,1500,12.), (25,250,12.), (30,900,8.), (12,1200,20.), (5,50,8.)])
def test_events_are_inside_the_film_and_do_not_overlap(classes, fps, n, rate):
    shortest,longest = gap_seconds
    for seed in range(60):
        events,own,_ = draw(seed, n, fps, classes=classes, rate_of_events=rate)
        assert events
        assert events[0].start >= shortest*fps and n-events[-1].end >= shortest*fps
        assert events[0].start <= longest*fps
        for o in events:
            low,high = event_seconds[motions[o.label][0]]
            assert low <= (o.end-o.start)/fps <= high and 0 <= o.shape < len(own) and o.label in classes
        for a,b in pairwise(events):
            if a.end == b.start: assert a.label != b.label
            else: assert shortest*fps <= b.start-a.end <= longest*fps


@pytest.mark.parametrize('classes', SUBSETS)
def test_all_classes_are_frequent(classes):
    labels = [o.label for seed in range(200) for o in draw(seed, classes=classes)[0]]
    counts = pd.Series(labels).value_counts()
    assert set(counts.index) == set(classes) and counts.max() < 1.1*counts.min()


@pytest.mark.parametrize('rate', [8., 12., 16., 20.])
def test_rate_of_events(rate):
    n = 15000 # long, so that the gaps at both ends hardly count
    found = np.mean([len(draw(seed, n, rate_of_events=rate)[0]) for seed in range(20)])/(n/FPS/60)
    assert abs(found/rate-1) < .1


def test_some_events_touch_and_lengths_vary():
    films = [draw(seed)[0] for seed in range(100)]
    touching = [a.end == b.start for o in films for a,b in pairwise(o)]
    assert .1 < np.mean(touching) < .2
    for label in motions: assert len({o.end-o.start for film in films for o in film if o.label == label}) > 20


@pytest.mark.parametrize('fps', [5, 12, 25, 30])
def test_events_are_faster_than_any_background(fps):
    "The change into each frame: continuous, with one limit for all, and in an event of the right sign"
    for seed in range(100):
        _,own,states = draw(seed, 60*fps, fps)
        for events,state in zip(own, states):
            speed = fps*np.diff(state, axis=0)
            assert (np.abs(speed) <= speed_ranges[:,1] + .35*speed_ranges[:,0] + 1e-9).all()
            is_event = np.zeros(speed.shape, bool)
            for o in events:
                column,sign = motions[o.label]
                inside = slice(o.start-1, o.end-1), column
                is_event[inside] = True
                assert (sign*speed[inside] >= .65*speed_ranges[column,0] - 1e-9).all()
            background = np.where(is_event, 0, np.abs(speed))
            assert (background <= .35*speed_ranges[:,0] + 1e-9).all()
            assert background.max() > 0


def test_size_stays_within_limits():
    for seed in range(300):
        for state in draw(seed)[2]: assert -.2-1e-9 <= state[:,2].min() and state[:,2].max() <= 1.2+1e-9


def test_a_single_frame_hardly_tells_the_class():
    "Accuracy of the best classifier that knows one number of the state in a random frame of an event"
    values = {o: [] for o in motions}
    for seed in range(600):
        _,own,states = draw(seed)
        for events,state in zip(own, states):
            for o in events: values[o.label].append(state[o.start:o.end])
    arrays = {k: np.concatenate(o) for k,o in values.items()}
    for column,limit in ((0,.185), (1,.185), (2,.22)):
        shares = []
        for o in arrays.values():
            x = o[:,column] if column == 2 else o[:,column]%1
            shares.append(np.histogram(x, 12, (-.2,1.2) if column == 2 else (0,1))[0]/len(x))
        assert 1/6-1e-9 <= np.max(shares, 0).sum()/6 < limit


def test_disturbances():
    found = [film_disturbances(np.random.default_rng(seed), 1500) for seed in range(40)]
    brightness,shift = (np.concatenate(o) for o in zip(*found))
    assert .6 <= brightness.min() < .65 and brightness.max() == 1 and (brightness < 1).mean() < .3
    assert shift.dtype.kind == 'i' and set(np.unique(shift)) == {-3,-2,-1,0,1,2,3}
    assert (shift == 0).all(1).mean() > .8


def test_group_fixes_background_and_shapes():
    scenes = [film_scene(g, (64,48)) for g in range(12)]
    assert {len(o.shapes) for o in scenes} == {1,2}
    assert len({o.background.tobytes() for o in scenes}) == 12
    first,second = ([*draw_film(1, k, n=250, size=(64,48))[1]][0] for k in range(2))
    assert (first == second).all(-1).mean() > .5 # the background of the group
    assert (first != second).any()


# Files

def test_films_are_readable(films):
    videos = sorted((films/'films').iterdir())
    assert [o.name for o in videos] == ['film_g01_c01.mp4', 'film_g01_c02.mp4', 'film_g02_c01.mp4']
    for o in videos:
        info = video_info(o)
        assert (info.frames, info.fps, info.width, info.height) == (N, FPS, 160, 120)
        assert not info.unseekable and max(np.diff([*info.keyframes, N])) <= 2*FPS


def test_table_is_valid(films):
    for df in (read_moments(films/'moments.csv'), read_moments(films/'moments.csv', videos=films)):
        check_moments(df)
        assert df.columns.tolist() == ['file','start','end','label','group']
        for i,(file,rows) in enumerate(df.groupby('file')):
            group,film = divmod(i, 2)
            assert file == f'films/film_g{group+1:02d}_c{film+1:02d}.mp4'
            assert set(rows.group) == {f'g{group+1:02d}'}
            expected = [(o.start/FPS, o.end/FPS, o.label) for o in draw_film(group, film, n=N)[0]]
            assert list(rows[['start','end','label']].itertuples(index=False, name=None)) == expected


def test_times_have_three_digits(tmp_path):
    "Also at a frame rate that has no exact times"
    path = drawn_films(tmp_path/'films', n_films=1, seconds=10, fps=30, size=(64,48), n_workers=0)
    lines = (path/'moments.csv').read_text().splitlines()
    for o,event in zip(lines[1:], draw_film(0, 0, n=300, fps=30, size=(64,48))[0], strict=True):
        assert o == f'films/film_g01_c01.mp4,{event.start/30:.3f},{event.end/30:.3f},{event.label},g01'
    df = read_moments(path/'moments.csv', videos=path)
    assert (abs(df.start*30-(df.start*30).round()) < .02).all()


def test_loaders_read_the_films(films):
    kwargs = dict(seq_len=4, image_size=32, bs=2, num_workers=0)
    dls = VideoDataLoaders.from_moments(films/'moments.csv', path=films, **kwargs)
    x,y = dls.one_batch()
    assert len(x) == 4 and x[0].shape == (2,3,32,32) and set(dls.vocab) <= set(motions)


def test_moments_are_where_the_motion_is(films):
    df = read_moments(films/'moments.csv')
    for file,rows in df.groupby('file'):
        frames = read_frames(films/file, range(N)).astype(int)
        change = np.abs(np.diff(frames, axis=0)).mean((1,2,3)) # N-1, the change into frames 1 to N-1
        inside = np.zeros(N, bool)
        for o in rows.itertuples(): inside[round(o.start*FPS):round(o.end*FPS)] = True
        assert 0 < inside.sum() < N and change[inside[1:]].mean() > 1.2*change[~inside[1:]].mean()


def test_same_seed_same_files_for_any_number_of_workers(films, tmp_path):
    expected = contents(films)
    assert len(expected) == 5 # three films, the table and the settings
    assert contents(drawn_films(tmp_path/'again', **SMALL)) == expected
    assert contents(drawn_films(tmp_path/'one', **SMALL | dict(n_workers=1))) == expected
    with ThreadPoolExecutor(2) as executor:
        assert contents(drawn_films(tmp_path/'threads', **SMALL, executor=executor)) == expected
    other = contents(drawn_films(tmp_path/'other', **SMALL, seed=1))
    assert set(other) == set(expected) and all(other[o] != expected[o] for o in expected)


def test_same_settings_are_reused(films):
    stamps = {o: o.stat().st_mtime_ns for o in films.rglob('*')}
    assert drawn_films(films, **SMALL) == films
    assert drawn_films(films, **SMALL | dict(classes=[*reversed(motions)])) == films
    assert {o: o.stat().st_mtime_ns for o in films.rglob('*')} == stamps


def test_classes_choose_the_labels(tmp_path):
    kwargs = SMALL | dict(size=(64,48), films_per_group=1)
    path = drawn_films(tmp_path/'films', **kwargs, classes=('MoveRight','MoveLeft'))
    df = read_moments(path/'moments.csv')
    assert set(df.label) == {'MoveLeft','MoveRight'} and set(df['group']) == {'g01','g02','g03'}
    assert (path/'.drawn_films').read_text() == 'drawn_films-3x1-64x48-500at25-12.0-42-MoveLeft-MoveRight'


@pytest.mark.parametrize('change', [
    dict(n_films=4), dict(films_per_group=1), dict(seconds=21), dict(size=(64,48)), dict(fps=30),
    dict(rate_of_events=10), dict(seed=1), dict(classes=['MoveLeft'])])
def test_other_settings_are_refused(films, change):
    before = contents(films)
    with pytest.raises(ValueError, match='not the data set .* Remove it, or give another `dest`'):
        drawn_films(films, **SMALL | change)
    assert contents(films) == before


@pytest.mark.parametrize('kwargs,message', [
    (dict(n_films=0), 'n_films=0: out of range'),
    (dict(films_per_group=0), 'films_per_group=0: out of range'),
    (dict(seconds=9.9), 'seconds=9.9: out of range'),
    (dict(seconds=float('nan')), 'seconds=nan: out of range'),
    (dict(fps=4), 'fps=4: out of range'),
    (dict(rate_of_events=30), 'rate_of_events=30: out of range'),
    (dict(size=(160,31)), 'height=31: out of range'),
    (dict(size=(31.5,120)), 'width=31.5: out of range'),
    (dict(classes=[]), 'classes: none given. Give some of MoveLeft'),
    (dict(classes=['Jump']), "classes: unknown: 'Jump'. Give some of MoveLeft"),
    (dict(classes=['Grow','MoveLeft']), 'Give both or none')])
def test_wrong_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message): drawn_films(tmp_path/'films', **SMALL | kwargs)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path/'a.txt').write_text('mine')
    with pytest.raises(ValueError, match='not the data set'): drawn_films(tmp_path, **SMALL)
    assert [o.name for o in tmp_path.iterdir()] == ['a.txt']
