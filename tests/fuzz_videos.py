"""Read thousands of damaged videos.

`python fuzz_videos.py seed start stop folder` reads videos `start` to `stop` and prints the counts as JSON.
"""
import faulthandler
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from make_videos import peak, write

from vidseq.video.decode import VideoError
from vidseq.video.read import read_frames
from vidseq.video.info import scan_video, video_info

# name -> arguments of `write`
bases = {
    'a.avi': dict(bf='2'),
    'b.mp4': dict(codec='libx264'),
    'c.mkv': dict(codec='libx265', x265_params='log-level=none'),
    'd.webm': dict(codec='libvpx', auto_alt_ref='1', lag_in_frames='8', deadline='realtime'),
    'e.mov': dict(codec='qtrle', pix_fmt='argb', n=6),
    'f.mpg': dict(codec='mpeg2video', bf='2'),
    'g.ts': dict(codec='libx264', bf='2'),
    'h.flv': dict(codec='flv1'),
    'i.wmv': dict(codec='wmv2'),
    'j.gif': dict(codec='gif', pix_fmt='rgb8'),
    'k.h264': dict(codec='libx264'),
    'l.avi': dict(codec='ffv1', pix_fmt='yuv444p', n=6),
    'm.mp4': dict(rotation=90, sound=1),
    'n.webm': dict(codec='libvpx-vp9', deadline='realtime')}
# 0, -1 and the largest and smallest 32-bit integers, in both byte orders
extremes = [[0]*4, [255]*4, [127,255,255,255], [255,255,255,127], [0,0,0,128]]


# Damage before byte `end`

def _flip(data, rng, end):
    for i in rng.integers(0, end, rng.integers(1, 20)): data[i] = rng.integers(256)

def _extreme(data, rng, end):
    for i in rng.integers(0, end, rng.integers(1, 4)): data[i:i+4] = bytes(extremes[rng.integers(5)])

def _zero(data, rng, end):
    i = rng.integers(0, end)
    n = int(rng.integers(1, 2000))
    data[i:i+n] = bytes(len(data[i:i+n]))

def _cut(data, rng, end): del data[rng.integers(0, len(data)):]

def _drop(data, rng, end):
    i = rng.integers(0, end)
    del data[i:i+int(rng.integers(1, 2000))]

def _double(data, rng, end):
    i = rng.integers(0, end)
    data[i:i] = data[i:i+int(rng.integers(1, 2000))]

def _insert(data, rng, end):
    i = rng.integers(0, end)
    data[i:i] = rng.bytes(int(rng.integers(1, 500)))

def _swap(data, rng, end):
    i,j = sorted(rng.integers(0, len(data), 2))
    n = int(min(rng.integers(1, 1000), j-i, len(data)-j))
    data[i:i+n],data[j:j+n] = data[j:j+n],data[i:i+n]


damages = [_flip, _flip, _extreme, _extreme, _zero, _cut, _drop, _double, _insert, _swap]


def mutate(data, rng):
    "Apply one to three kinds of damage to `data`, with p=0.5 to its first 600 bytes"
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        damage = damages[rng.integers(10)]
        if not data: continue
        end = min(len(data), 600) if rng.random() < .5 else len(data)
        damage(data, rng, end)
    return bytes(data)


def make_mutants(folder, seed, start, stop):
    "Yield the number and path of each damaged video, which depends only on `seed` and the number"
    wholes = [(name, write(folder/f'whole_{name}', **kw).read_bytes()) for name,kw in bases.items()]
    for i in range(start, stop):
        name,data = wholes[i%len(wholes)]
        path = folder/f'{i}_{name}'
        path.write_bytes(mutate(data, np.random.default_rng([seed,i])))
        yield i, path
        path.unlink()


def _outcome(f):
    "Return the result of `f()`, or the problem that its `VideoError` names"
    try: return f()
    except VideoError as e:
        assert e.path.name in str(e)
        return e.found.split(' (')[0]


def attempt(path):
    "Read a video with `scan_video`, `video_info` and `read_frames`; raise errors other than `VideoError`"
    decoded = _outcome(lambda: scan_video(path, lambda i,img: img.max(), size=24))
    info = _outcome(lambda: video_info(path))
    if isinstance(decoded, str): return decoded, isinstance(info, dict), 0
    n = decoded.frames
    assert len(read_frames(path, [n-1,0,n//2,0])) == 4
    return 'partial' if decoded.missing else 'whole', isinstance(info, dict), n


def open_files(): return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0

def _limit_memory(extra):
    "Limit the address space of this process to `extra` more bytes"
    try: import resource
    except ImportError: return # Windows
    if not os.path.exists('/proc/self/statm'): return
    now = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now+extra, now+extra))

def timed_attempt(path):
    "Return what `attempt` returns and the seconds that it took; end the process after 30 seconds"
    faulthandler.dump_traceback_later(30, exit=True)
    begin = time.perf_counter()
    res = attempt(path)
    seconds = time.perf_counter()-begin
    faulthandler.cancel_dump_traceback_later()
    return *res, seconds

def main(seed, start, stop, folder):
    "Read damaged videos; print each name before it is read, so that a crash or a timeout shows it"
    warnings.simplefilter('ignore')
    os.environ['VIDSEQ_MAX_PIXELS'] = str(2**22)
    tried = Counter()
    before = None
    slowest = (0, None)
    for i,path in make_mutants(Path(folder), seed, start, stop):
        if before is None:
            _limit_memory(2**30)
            before,rss = open_files(),peak()
        print(i, path.name, flush=True)
        outcome,info,n,seconds = timed_attempt(path)
        tried.update({outcome: 1, 'frames': n, 'info': info})
        slowest = max(slowest, (seconds, path.name))
    print(json.dumps(dict(tried=tried, slowest=slowest, rss=(rss,peak()), files=(before,open_files()))))


if __name__ == '__main__': main(*map(int, sys.argv[1:4]), sys.argv[4])
