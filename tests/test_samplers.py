"Test the samplers for all lengths of videos and clips: number, order, range, coverage and determinism."
import random
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vidseq.data.samplers import first_frames, spread_frames, window_frames

lengths, seq_lens = st.integers(1, 500), st.integers(1, 64)
ints, floats = st.integers(1, 8), st.floats(.05, 8)
pairs = st.tuples(floats, floats).map(sorted).map(tuple)
seconds = st.floats(.005, 2), st.tuples(st.floats(.005, 1), st.floats(1, 2))
frame_rates = st.sampled_from([5., 23.976, 25., 29.97, 60.])
steps = st.one_of(*(st.fixed_dictionaries(dict(step=o)) for o in (ints, floats, pairs)),
                  *(st.fixed_dictionaries(dict(seconds=o, fps=frame_rates)) for o in seconds))
with_steps = st.builds(lambda f, kw: partial(f, **kw), st.sampled_from([first_frames, window_frames]), steps)
samplers = st.one_of(st.just(spread_frames), with_steps)
last = 1-2**-53 # the largest number that `random.random()` returns


class Draws(SimpleNamespace):
    """Replace `random`: a draw is a given fraction, 0 to `last`, of its range

    The first draw of a window, the step, uses the fraction `step`; all others use `rest`."""
    def uniform(self, a, b):
        share, self.step = (self.rest, None) if self.step is None else (self.step, None)
        return a + (b-a)*share # as in Python's
    def randrange(self, n): return int(n*self.rest)


def swept(sampler, n, seq_len, grid, steps=(0, .3, .5, .8, last)):
    "Yield the clips that `sampler` returns in training, for all pairs of draws"
    for s in steps:
        for rest in grid:
            with patch('vidseq.data.samplers.random', Draws(step=s, rest=rest)):
                yield sampler(n, seq_len, True)

def check(idxs, n, seq_len):
    assert [type(o) for o in idxs] == [int]*seq_len
    assert idxs == sorted(idxs) and 0 <= idxs[0] and idxs[-1] < n, idxs


@settings(max_examples=500, deadline=None)
@given(samplers, lengths, seq_lens)
def test_sorted_and_in_range_in_training(sampler, n, seq_len):
    for idxs in swept(sampler, n, seq_len, [0, .25, .5, .75, 1-1e-7, last]): check(idxs, n, seq_len)
    for _ in range(3): check(sampler(n, seq_len, True), n, seq_len)


@settings(max_examples=500, deadline=None)
@given(samplers, lengths, seq_lens, st.integers(1, 10))
def test_the_same_every_time_outside_of_training(sampler, n, seq_len, n_views):
    with patch('vidseq.data.samplers.random', None): # any draw would fail
        views = [sampler(n, seq_len, view=k, n_views=n_views) for k in range(n_views)]
        for k,idxs in enumerate(views):
            check(idxs, n, seq_len)
            assert sampler(n, seq_len, False, view=k, n_views=n_views) == idxs
        assert sampler(n, seq_len) == sampler(n, seq_len, view=0, n_views=1)
    assert views == sorted(views) # later views take later frames
    for view in (-1, n_views):
        with pytest.raises(ValueError, match=f'view={view}: out of range for n_views={n_views}'):
            sampler(n, seq_len, view=view, n_views=n_views)


@settings(max_examples=200, deadline=None)
@given(lengths, seq_lens)
def test_spread_draws_one_of_each_segment(n, seq_len):
    "Each position takes every frame of its segment equally often and no others; the segments cover the video"
    edges = [i*n//seq_len for i in range(seq_len+1)]
    sizes = {max(b-a, 1) for a,b in zip(edges, edges[1:])}
    assert max(sizes)-min(sizes) <= 1
    for size in sizes:
        clips = list(swept(spread_frames, n, seq_len, [(k+.5)/size for k in range(size)], steps=[0]))
        for a,b,drawn in zip(edges, edges[1:], zip(*clips)):
            if max(b-a, 1) == size: assert list(drawn) == list(range(a, a+size))
    assert {o for a,b in zip(edges, edges[1:]) for o in range(a, b)} == set(range(n))


@settings(max_examples=150, deadline=None)
@given(lengths, seq_lens, steps)
@example(500, 1, dict(step=8))
@example(1, 64, dict(step=1))
@example(64, 64, dict(step=1))
def test_window_reaches_every_frame(n, seq_len, step):
    "Starts that are less than a frame apart reach every frame, for every step"
    starts = [(k+.5)/(2*n) for k in range(2*n)]
    for s in (0, .5, last):
        clips = swept(partial(window_frames, **step), n, seq_len, starts, steps=[s])
        assert {o for idxs in clips for o in idxs} == set(range(n))


@pytest.mark.parametrize('sampler', [spread_frames, window_frames, partial(window_frames, step=3),
                                     partial(window_frames, step=(1,5)), partial(window_frames, step=.5),
                                     partial(window_frames, seconds=.1, fps=25)])
@pytest.mark.parametrize('n,seq_len', [(1,4), (3,5), (7,7), (40,6), (60,1)])
def test_true_draws_reach_every_frame(sampler, n, seq_len):
    random.seed(0)
    assert {o for _ in range(2000) for o in sampler(n, seq_len, True)} == set(range(n))


def distances(idxs): return [b-a for a,b in zip(idxs, idxs[1:])]

@settings(max_examples=300, deadline=None)
@given(seq_lens, ints, st.integers(0, 500), st.integers(1, 5))
@example(4, 1, 0, 1)
def test_windows_keep_their_step(seq_len, step, more, n_views):
    "Frames are `step` apart if the video is long enough"
    n, sampler, expected = seq_len*step+more, partial(window_frames, step=step), [step]*(seq_len-1)
    for k in range(n_views): assert distances(sampler(n, seq_len, view=k, n_views=n_views)) == expected
    for idxs in swept(sampler, n, seq_len, [k/50 for k in range(50)], steps=[0]):
        assert distances(idxs) == expected
    for _ in range(20): assert distances(sampler(n, seq_len, True)) == expected


@settings(max_examples=300, deadline=None)
@given(seq_lens, ints, st.integers(0, 500), st.one_of(st.floats(0, last), st.floats(1-1e-5, last)))
@example(4, 1, 0, last)
def test_windows_keep_their_step_at_any_draw(seq_len, step, more, share):
    "Including draws at the very end of the range"
    n = seq_len*step+more
    for idxs in swept(partial(window_frames, step=step), n, seq_len, [share], steps=[0]):
        assert distances(idxs) == [step]*(seq_len-1)


@settings(max_examples=300, deadline=None)
@given(seq_lens, lengths, ints, st.integers(1, 5))
def test_first_frames_are_the_first(seq_len, n, step, n_views):
    "Equal to `range` if the video is long enough; views start at equal intervals, or as late as possible"
    idxs = first_frames(n, seq_len, step=step)
    assert first_frames(n, seq_len, True, step=step) == idxs and idxs[0] == 0
    if n >= seq_len*step:
        for k in range(n_views):
            start = min(k*n//n_views, n-1-(seq_len-1)*step)
            idxs = first_frames(n, seq_len, step=step, view=k, n_views=n_views)
            assert idxs == list(range(start, start+seq_len*step, step))


@settings(max_examples=500, deadline=None)
@given(st.integers(2, 64).flatmap(lambda t: st.tuples(st.integers(1, t-1), st.just(t))),
       st.sampled_from([first_frames, spread_frames, window_frames]), st.floats(1, 8), st.integers(1, 5))
def test_short_videos_repeat_evenly(lengths, sampler, step, n_views):
    n,seq_len = lengths
    if sampler is not spread_frames: sampler = partial(sampler, step=step)
    for k in range(n_views):
        assert sampler(n, seq_len, view=k, n_views=n_views) == [i*n//seq_len for i in range(seq_len)]


@settings(max_examples=200, deadline=None)
@given(lengths, seq_lens, st.sampled_from([first_frames, window_frames]),
       st.sampled_from([1, 2, 5]), st.sampled_from([10., 25., 30.]))
def test_seconds_are_steps_at_a_frame_rate(n, seq_len, sampler, frames, fps):
    assert sampler(n, seq_len, seconds=frames/fps, fps=fps) == sampler(n, seq_len, step=frames)
    middle = sampler(n, seq_len, step=frames+1)
    assert sampler(n, seq_len, step=(frames, frames+2)) == middle
