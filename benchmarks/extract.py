"""Frames out of videos: vidseq against the tutorials' code, ffmpeg's command line, decord and torchcodec.

One core for each, in one run, the rounds interleaved. What is not installed is left out.
"""
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness import arguments, load_module, machine, measure, one_core, report, table

one_core() # before anything counts the cores

import av
import numpy as np
import torch
from PIL import Image

from vidseq.extract import avi2frames, frames_folder
from vidseq.shapes import moving_shapes
from vidseq.video import get_videos, read_frames, video_info


def each(f, videos, n_frames):
    "A candidate that does `f` to all videos: so many frames"
    def _inner():
        for v in videos: f(v)
        return n_frames
    return _inner


def by_ffmpeg(*args):
    "ffmpeg's command line, writing where `avi2frames` would"
    def _inner(v, out):
        folder = frames_folder(v, out)
        folder.mkdir(parents=True)
        subprocess.run(['ffmpeg', '-v', 'error', '-threads', '1', '-i', str(v), '-threads', '1', *args, '-start_number', '0', str(folder/'%d.jpg')], check=True, stdin=subprocess.DEVNULL)
    return _inner


def mean_error(videos, out):
    "Mean absolute difference of the jpgs from the decoded frames, of 255, every 10th frame; and their mean size in kB"
    errors,sizes = [],[]
    for v in videos:
        with av.open(str(v)) as container:
            for i,frame in enumerate(container.decode(video=0)):
                jpg = frames_folder(v, out)/f'{i}.jpg'
                if i%10 or not jpg.exists(): continue
                errors.append(np.abs(np.asarray(Image.open(jpg)).astype(int)-frame.to_ndarray(format='rgb24')).mean())
                sizes.append(jpg.stat().st_size)
    return f'{np.mean(errors):.2f}', f'{np.mean(sizes)/1000:.1f}'


def extraction(videos, tutorial, tmp, rounds):
    "Whole videos to jpgs: at their own size, and to 128 pixels"
    n_frames = sum(video_info(v).frames for v in videos)
    ways = {}
    if tutorial: ways['the tutorials\''] = lambda v,out: tutorial.avi2frames(v, out)
    ways['vidseq'] = lambda v,out: avi2frames(v, out)
    if shutil.which('ffmpeg'):
        ways['ffmpeg'] = by_ffmpeg()
        ways['ffmpeg -q:v 2'] = by_ffmpeg('-q:v', '2')
    ways['vidseq, size=128'] = lambda v,out: avi2frames(v, out, size=128)
    if shutil.which('ffmpeg'): ways['ffmpeg, 128 px'] = by_ffmpeg('-q:v', '2', '-vf', 'scale=-2:128')
    outs = {name: tmp/f'{i}' for i,name in enumerate(ways)}
    times = measure({name: each(lambda v,f=f,out=outs[name]: f(v, out), videos, n_frames) for name,f in ways.items()}, rounds, lambda name: shutil.rmtree(outs[name], ignore_errors=True))
    quality = {name: mean_error(videos, out) for name,out in outs.items() if '128' not in name}
    extra = {'mean error, of 255': {k: v[0] for k,v in quality.items()}, 'kB': {k: v[1] for k,v in quality.items()}}
    return f'{len(videos)} videos, {n_frames} frames.\n\n{table(times, "frame", extra=extra)}'


def spread(n, k=16): return np.linspace(0, n-1, k).astype(int).tolist()


def reading(videos, rounds, size=112):
    "16 spread frames of each video, from the file's path, the number of frames not known before"
    def vidseq_way(v): return read_frames(v, spread(video_info(v).frames), size)
    ways = {'vidseq': vidseq_way}
    widths = {v: round(i.width*size/i.height) for v in videos for i in (video_info(v),)}
    if importlib.util.find_spec('decord'):
        import decord
        def decord_way(v):
            reader = decord.VideoReader(str(v), ctx=decord.cpu(0), width=widths[v], height=size, num_threads=1)
            return reader.get_batch(spread(len(reader))).asnumpy()
        ways['decord'] = decord_way
    if importlib.util.find_spec('torchcodec'):
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
        def torchcodec_way(v, seek_mode='exact'):
            reader = VideoDecoder(str(v), num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=[Resize((size, widths[v]))])
            return reader.get_frames_at(spread(len(reader))).data
        ways['torchcodec'] = torchcodec_way
        ways['torchcodec, approximate'] = lambda v: torchcodec_way(v, 'approximate')
    def naive(v):
        with av.open(str(v)) as c: frames = [f.to_ndarray(format='rgb24') for f in c.decode(video=0)]
        return np.stack([Image.fromarray(frames[i]).resize((widths[v], size)) for i in spread(len(frames))])
    ways['PyAV, all frames, PIL'] = naive
    times = measure({name: each(f, videos, len(videos)) for name,f in ways.items()}, rounds)
    return f'{len(videos)} videos.\n\n{table(times, "clip")}'


if __name__ == '__main__':
    p = arguments(__doc__, 'avi2frames')
    p.add_argument('--every', type=int, default=1, help='only every so many videos')
    args = p.parse_args()
    torch.set_num_threads(1)
    videos = get_videos(args.dir or moving_shapes())[::args.every]
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as tmp:
        tables = [machine('av', 'pillow', 'decord', 'torchcodec'),
                  '**Extraction.** '+extraction(videos, args.baseline and load_module(args.baseline), Path(tmp), args.rounds),
                  '**16 spread frames at 112 pixels.** '+reading(videos, args.rounds)]
    report('extract', tables, args.save)
