"""Read random ranges of frames from keyframes, of every kind of file: they equal those of a full decode.

They differ in codec, distance of keyframes, B-frames, open GOPs, frame rate, edit lists and container."""
import os
import random

import numpy as np
import pytest
from make_videos import decode, write

from vidseq.video.info import video_info
from vidseq.video.read import decoded_from_start, plan_reads, read_arrays

n = 80
gaps = [i+i//7*3+i//11 for i in range(n)]
x264,x265 = dict(codec='libx264'),dict(codec='libx265')


def hevc(**params):
    return x265 | {'x265-params': ':'.join(f'{k.replace("_", "-")}={v}' for k,v in params.items())}


kinds = dict(
    mpeg4_avi=('avi', dict(g=12)), mpeg4_mp4=('mp4', dict(g=5)), mpeg4_mkv=('mkv', dict(g=12)),
    mpeg4_b_mp4=('mp4', dict(g=10, bf=2)), mpeg4_b_mkv=('mkv', dict(g=9, bf=2)),
    mpeg4_b_avi=('avi', dict(g=10, bf=2)), mpeg4_shifted=('mp4', dict(g=10, shift=13)),
    h264_mp4=('mp4', x264 | dict(g=10)), h264_mkv=('mkv', x264 | dict(g=25, bf=0)),
    h264_mov=('mov', x264 | dict(g=7, bf=3)), h264_ts=('ts', x264 | dict(g=10)),
    h264_flv=('flv', x264 | dict(g=10, bf=2)), h264_avi=('avi', x264 | dict(g=10, bf=0)),
    h264_short=('mp4', x264 | dict(g=1)), h264_two=('mp4', x264 | dict(g=2, bf=1)),
    h264_open=('mp4', x264 | {'g': 10, 'bf': 2, 'x264-params': 'open-gop=1'}),
    h264_open_ts=('ts', x264 | {'g': 10, 'bf': 2, 'x264-params': 'open-gop=1'}),
    h264_refresh=('mp4', x264 | {'g': 10, 'x264-params': 'intra-refresh=1'}),
    h264_refresh_ts=('ts', x264 | {'g': 10, 'x264-params': 'intra-refresh=1'}),
    h264_shifted=('mp4', x264 | dict(g=10, bf=2, shift=13)),
    h264_early=('mp4', x264 | dict(g=10, bf=2, shift=-4)), # an edit list hides frames
    h264_gaps=('mp4', x264 | dict(g=10, bf=2, pts=gaps)),
    h264_gaps_mkv=('mkv', x264 | dict(g=10, pts=gaps)), mpeg4_gaps=('mkv', dict(g=6, pts=gaps)),
    h264_sound=('mp4', x264 | dict(g=10, sound=3)), h264_turned=('mp4', x264 | dict(g=10, rotation=90)),
    hevc_mp4=('mp4', hevc(keyint=10, open_gop=0, bframes=2, log_level=-1)),
    hevc_open=('mp4', hevc(keyint=10, min_keyint=10, open_gop=1, bframes=3, log_level=-1)),
    hevc_open_mkv=('mkv', hevc(keyint=12, min_keyint=12, open_gop=1, bframes=3, log_level=-1)),
    hevc_open_ts=('ts', hevc(keyint=10, min_keyint=10, open_gop=1, bframes=3, log_level=-1)),
    mpeg1_mpg=('mpg', dict(codec='mpeg1video', g=6, bf=2)),
    mpeg2_ts=('ts', dict(codec='mpeg2video', g=6, bf=2)),
    mpeg2_mpg=('mpg', dict(codec='mpeg2video', g=9)), mpeg2_mkv=('mkv', dict(codec='mpeg2video', g=6, bf=2)),
    vp8=('webm', dict(codec='libvpx', g=8)), vp9=('webm', dict(codec='libvpx-vp9', g=8)),
    vp9_mkv=('mkv', dict(codec='libvpx-vp9', g=20, auto_alt_ref=1, lag_in_frames=16)),
    av1=('mp4', {'codec': 'libsvtav1', 'svtav1-params': 'keyint=10', 'preset': '10'}),
    mjpeg=('avi', dict(codec='mjpeg', pix_fmt='yuvj420p')), ffv1=('mkv', dict(codec='ffv1', g=10)),
    flv1=('flv', dict(codec='flv1', g=8)), msmpeg4=('avi', dict(codec='msmpeg4', g=8)),
    wmv2=('asf', dict(codec='wmv2', g=8)), theora=('ogv', dict(codec='libtheora', g=8)))


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Return a function that writes a video of a kind; the file looks old, so that its index is remembered"
    folder = tmp_path_factory.mktemp('videos')
    def make(kind):
        suffix,options = kinds[kind]
        path = folder/f'{kind}.{suffix}'
        if not path.exists():
            try: write(path, n=n, **options)
            except (ValueError, LookupError) as e: pytest.skip(f'{kind}: this FFmpeg cannot write it ({e})')
            os.utime(path, (0,0))
        return path
    return make


def ranges(rng, n_frames, k):
    "Yield `k` lists of frame numbers: ranges, with steps, and anywhere"
    for i in range(k):
        if i%4 == 3: yield [rng.randrange(n_frames) for _ in range(4)]
        else:
            a,step = rng.randrange(n_frames),1+i%3
            yield list(range(a, min(a+step*rng.randint(1, 12), n_frames), step))


# H.264 without IDR pictures after the first, and timestamps that repeat
always_from_start = {'h264_open','h264_open_ts','h264_refresh','h264_refresh_ts','mpeg2_mpg'}

@pytest.mark.parametrize('kind', kinds)
def test_ranges(videos, kind):
    path = videos(kind)
    info,reference = video_info(path),decode(path)
    assert info.frames == len(reference)
    before = sum(decoded_from_start.values())
    for idxs in ranges(random.Random(kind), info.frames, 24):
        got = read_arrays(path, idxs, info=info)
        for i,o in zip(idxs, got): assert np.array_equal(o, reference[i]), (i, idxs, info.keyframes)
    from_start = kind in always_from_start
    assert bool(info.unseekable) == from_start == (info.keyframes == [0])
    assert sum(decoded_from_start.values()) == before+24*from_start # no other file needs it


def test_plans():
    "Compare plans with a loop over frames, for random keyframes"
    rng = random.Random(0)
    for _ in range(2000):
        keyframes = [0, *sorted(rng.sample(range(1, 200), rng.randrange(20)))]
        numbers = sorted(rng.sample(range(220), rng.randint(1, 30)))
        runs = plan_reads(numbers, keyframes)
        assert [i for _,o in runs for i in o] == numbers
        for k,(start,o) in enumerate(runs):
            assert start == max(key for key in keyframes if key <= o[0])
            if k: assert start > runs[k-1][1][-1]+1 # a seek skips frames
