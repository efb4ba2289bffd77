"Write small videos of every container and codec, and decode them with PyAV as a reference"
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def pictures(n=20, w=64, h=48, seed=0):
    "Yield `n` frames of moving noise; the gray level of a corner is the frame number"
    noise = np.random.default_rng(seed).integers(0, 255, (h//2+1, w//2+1, 3), np.uint8)
    base = noise.repeat(2,0).repeat(2,1)[:h,:w]
    for i in range(n):
        arr = np.roll(base, 3*i, 1)
        arr[:h//4,:w//4] = 40+7*i%200
        yield arr


def _sound(container, stream, seconds):
    "Encode `seconds` of mono audio at 16 kHz"
    stream.codec_context.layout = 'mono'
    stream.codec_context.sample_rate = 16000
    for i in range(int(seconds*16000/1024)):
        samples = np.full((1,1024), .1*(i%2), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format='fltp', layout='mono')
        frame.sample_rate = 16000
        frame.pts = 1024*i
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _add_video(container, codec, w, h, pix_fmt, rotation, options):
    "Add a video stream with encoder `options`; libraries spell them with hyphens"
    stream = container.add_stream(codec, rate=25, width=w, height=h, pix_fmt=pix_fmt)
    stream.codec_context.thread_count = 1
    if codec[:3] == 'lib': options = {k.replace('_','-'): v for k,v in options.items()}
    stream.codec_context.options = {k: str(v) for k,v in options.items()}
    if rotation: stream.set_display_rotation(rotation)
    return stream


def _frames(arrs, pix_fmt, pts):
    "Yield arrays as frames of format `pix_fmt`, with timestamps if `pts` is given"
    for i,arr in enumerate(arrs):
        frame = av.VideoFrame.from_ndarray(arr, format='rgb24').reformat(format=pix_fmt, threads=1)
        if pts: frame.pts, frame.time_base = pts[i], Fraction(1,25)
        yield frame


def write(
        path,
        codec='mpeg4', # None: no video stream
        pix_fmt='yuv420p',
        n=20, # number of frames
        w=64, h=48,
        format=None, # container, default: from the file name
        pts=None, # timestamps in 25ths of a second, default: consecutive
        rotation=0,
        sound=0, # seconds of audio in stream 0
        shift=0, # offset of the timestamps in 25ths of a second
        seed=0,
        metadata=None,
        **options): # of the encoder
    "Write a video of `n` frames and return its path"
    with av.open(f'file:{path}', 'w', format=format) as container:
        container.metadata.update(metadata or {})
        audio = container.add_stream('aac', rate=16000) if sound else None
        stream = _add_video(container, codec, w, h, pix_fmt, rotation, options) if codec else None
        if sound: _sound(container, audio, sound)
        if not codec: return path
        for frame in _frames(pictures(n, w, h, seed), pix_fmt, pts):
            container.mux(_shifted(stream.encode(frame), shift))
        container.mux(_shifted(stream.encode(), shift))
    return path


def _shifted(packets, shift):
    "Return `packets` with timestamps shifted by 25ths of a second"
    for packet in packets:
        ticks = int(shift/25/packet.time_base)
        packet.pts, packet.dts = packet.pts+ticks, packet.dts+ticks
    return packets


def decode(path, format='rgb24'):
    "Return all frames of the first video stream, upright, in the size of the first frame"
    lenient = dict(metadata_errors='ignore') if int(av.__version__.split('.')[0]) < 19 else {}
    with av.open(f'file:{os.fspath(path)}', **lenient) as container:
        frames = []
        size = {}
        for frame in container.decode(container.streams.video[0]):
            size = size or dict(width=frame.width, height=frame.height)
            arr = frame.to_ndarray(format=format, threads=1, **size)[...,:3]
            frames.append(np.rot90(arr, round(frame.rotation/90)%4))
    return frames


def peak():
    "Return the peak memory of this process in MB, 0 if unknown"
    # On Linux, `ru_maxrss` starts at the value of the parent process
    try: status = Path('/proc/self/status').read_text()
    except OSError: pass
    else: return int(re.search(r'VmHWM:\s+(\d+)', status)[1])/2**10
    try: import resource
    except ImportError: return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)
