"""Hostile video files: not a video, damaged, odd names, wrong numbers of frames."""
import os
import warnings
from functools import partial
from unittest.mock import patch

import av
import numpy as np
from make_videos import pictures, write

from hostile import gives, refuses
from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.samplers import first_frames, spread_frames, window_frames
from vidseq.video.decode import VideoError, extract_frames, get_videos, open_video
from vidseq.video.read import read_frames
from vidseq.video.decode import stream_frames, write_video
from vidseq.video.extract import avi2frames, check_videos, extract_videos
from vidseq.video.frame_cache import FrameCache
from vidseq.video.info import scan_video, video_info

av.logging.set_level(None)
refuses = partial(refuses, error=VideoError)
bad_value = partial(refuses, error=ValueError)

readers = dict(info=video_info, scan=scan_video, extract=lambda p: list(extract_frames(p)),
               frames=lambda p: read_frames(p, [0]), stream=lambda p: list(stream_frames(p)),
               clip=ImageTupleTfm(4), all=ImageTuple.create)

def content(data, name='a.avi'):
    "Return a function that writes `data` to a file in a folder and returns its path"
    def make(folder):
        path = folder/name
        path.write_bytes(data)
        return path
    return make

def no_frames(folder):
    "Write an mp4 whose stream has no packets"
    path = folder/'a.mp4'
    data = write(folder/'b.mp4', n=3).read_bytes()
    path.write_bytes(data.replace(b'stsz', b'free').replace(b'stco', b'free'))
    return path

def sound_only(folder): return write(folder/'a.mp4', codec=None, sound=1)

# name of the case -> function that makes the file, words of the error
not_videos = {
    'no such file': (lambda p: p/'a.avi', 'no such file'),
    'an empty file': (content(b''), 'empty'),
    'text': (content(b'once upon a time\n'*100), 'Check that it plays'),
    'a web page': (content(b'<!DOCTYPE html><html><body>404</body></html>'), 'Check that it plays'),
    'zeros': (content(bytes(5000)), 'Check that it plays'),
    'noise': (content(np.random.default_rng(0).bytes(5000)), 'Check that it plays'),
    'a zip archive': (content(b'PK\3\4'+bytes(500)), 'Check that it plays'),
    'the start of an avi': (content(b'RIFF\0\0\0\0AVI LIST'), 'Check that it plays'),
    'the start of an mp4': (content(b'\0\0\0\x18ftypisom\0\0\2\0isomiso2'), 'Check that it plays'),
    'the start of a mkv': (content(b'\x1aE\xdf\xa3'+bytes(50)), 'Check that it plays'),
    'a playlist': (content(b'#EXTM3U\nfile:///etc/passwd\n', 'a.m3u8'), 'a playlist'),
    'a concatenation': (content(b'ffconcat version 1.0\nfile /etc/passwd\n'), 'a playlist'),
    'sound only': (sound_only, 'no video stream'),
    'no frames': (no_frames, 'Check that it plays')}
for kind,(make,words) in not_videos.items():
    for name,read in readers.items():
        def read_it(folder, make=make, read=read): return read(make(folder))
        refuses(f'video: {kind}: {name}', read_it, 'a.', words)
for name in ('info','scan','extract','frames','stream'):
    refuses(f'video: a folder: {name}', lambda p, read=readers[name]: read(p), 'a folder, not a video file')

def bad_report(function):
    "Return a function of a folder: statuses of a whole file, text and nothing"
    def run(folder):
        (folder/'x').mkdir()
        text = content(b'text', 'x/text.avi')(folder)
        paths = [write(folder/'x'/'good.avi', n=3), folder/'x'/'none.avi', text]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return list(function(paths, n_workers=0).status)
    return run
gives('video: check names the bad ones', bad_report(check_videos), ['whole','failed','failed'])
gives('video: extraction names the bad ones', bad_report(extract_videos), ['done','failed','failed'])
bad_value('video: check of nothing', lambda p: check_videos([]), 'paths', 'Give at least one')
bad_value('video: extraction of nothing', lambda p: extract_videos([]), 'paths', 'Give at least one')
bad_value('video: a cache of nothing', lambda p: FrameCache.fill(p, []), 'paths', 'Give at least one')

def good(folder, name='good.avi', **kwargs): return write(folder/name, n=5, **kwargs)

for idxs in ([5], [0,7], [10**9]):
    def beyond(p, idxs=idxs): return read_frames(good(p), idxs)
    refuses(f'video: frames {idxs}', beyond, 'good.avi', 'only 5 decode')
for idxs in ([], [-1], [0,-3]):
    def negative(p, idxs=idxs): return read_frames(good(p), idxs)
    bad_value(f'video: frames {idxs}', negative, 'good.avi', 'start at 0')
for size in (0, -1, 65501, 1.5, 'big'):
    bad_value(f'video: extract with size={size}',
              lambda p, size=size: avi2frames(good(p), p/'f', root=p, size=size), 'size')
for quality in (0, 96, -1, None):
    bad_value(f'video: extract with quality={quality}',
              lambda p, quality=quality: avi2frames(good(p), p/'f', root=p, quality=quality), 'quality')
for limit in ('abc', '', '-1', '1e6'):
    def limited(folder, limit=limit):
        path = good(folder)
        with patch.dict(os.environ, VIDSEQ_MAX_PIXELS=limit): return video_info(path)
    bad_value(f'video: VIDSEQ_MAX_PIXELS={limit!r}', limited, 'VIDSEQ_MAX_PIXELS', 'whole number')
refuses('video: write no frames', lambda p: write_video(p/'a.avi', []), 'a.avi: no frames')

odd_names = ['-i.avi', 'a b.avi', 'cam:1.avi', '%d.avi', 'a?b#c.avi', 'é.avi', '视频.avi', "it's.avi",
             'a.b.c.avi', '$HOME.avi', '&.avi', '=1+1.avi', 'new\nline.avi', '\x1b[31m.avi', 'x'*200+'.avi']
if os.name != 'posix': odd_names = ['a b.avi', 'é.avi', "it's.avi", 'a.b.c.avi', '$HOME.avi']
for name in odd_names:
    def read_odd(folder, name=name):
        path = good(folder, name)
        avi2frames(path, folder/'frames', root=folder)
        return video_info(path).frames, [o.name for o in get_videos(folder)], len(ImageTupleTfm(3)(path))
    gives(f'video: the name {name!r:.20}', read_odd, (5, [name], 3))

for sampler in (first_frames, spread_frames, window_frames):
    for args in ((0,4), (-1,4), (5,0), (5,-2)):
        def no_frames_or_clip(p, f=sampler, args=args): return f(*args)
        bad_value(f'sampler: {sampler.__name__}{args}', no_frames_or_clip, 'at least 1')
for step in (0, -1, float('nan'), float('inf'), (3,1), (0,2), (1,float('nan'))):
    for sampler in (first_frames, window_frames):
        bad_value(f'sampler: {sampler.__name__} step={step}',
                  lambda p, f=sampler, step=step: f(10, 4, step=step), 'Use positive numbers')
for view,n in ((2,2), (-1,3), (0,0)):
    def no_view(p, view=view, n=n): return spread_frames(9, 3, view=view, n_views=n)
    bad_value(f'sampler: view {view} of {n}', no_view, 'view')
bad_value('sampler: seconds without a rate', lambda p: window_frames(9, 3, seconds=1), 'rate is unknown')

def wrong_sampler(result):
    return lambda p: ImageTupleTfm(3, lambda n, seq_len, train: result)(good(p))
for result in ([0], [0,1,5], [-1,0,1], [0,1,2,3]):
    bad_value(f'sampler: one that returns {result}', wrong_sampler(result), 'good.avi', 'return 3 numbers')

def absurd_times(folder):
    "Read by seconds a video whose last frame comes after 11 days"
    path = write(folder/'a.mkv', codec='mjpeg', pix_fmt='yuvj420p', n=4, pts=[0,1,2,25*10**6])
    return len(ImageTupleTfm(4, partial(window_frames, seconds=.1))(path))
gives('video: absurd timestamps', absurd_times, 4)

def grown(folder):
    "Return the counts of a file that is replaced by a longer one"
    path = folder/'a.avi'
    counts = []
    for n in (3, 9):
        write_video(path, pictures(n))
        os.utime(path, (1000+n, 1000+n))
        counts.append(video_info(path).frames)
    return counts
gives('video: a file that is replaced', grown, [3,9])

def closed(folder):
    with open_video(good(folder)) as (_,stream): name = stream.codec_context.name
    (folder/'good.avi').unlink() # fails on Windows while the file is open
    return name
gives('video: files are closed', closed, 'mpeg4')
