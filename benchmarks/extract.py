"""Compare frame extraction: vidseq, the tutorials' code, the ffmpeg command line, decord and torchcodec.

All candidates run on one core, in interleaved rounds. Tools that are not installed are skipped.
"""
import importlib.util
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from harness import (
    add_folder_argument,
    create_parser,
    fast_folder,
    load_module,
    machine,
    measure,
    one_core,
    report,
    table,
)

one_core() # before any library counts the cores

import av
import numpy as np
import torch
from PIL import Image

from vidseq.datasets.shapes import moving_shapes
from vidseq.video.decode import get_videos
from vidseq.video.read import read_frames
from vidseq.video.extract import avi2frames
from vidseq.video.frame_folder import frames_folder
from vidseq.video.info import video_info


def for_each(f, videos, n_units):
    "Create a candidate that calls `f` on each video and returns `n_units`"
    def _inner():
        for v in videos: f(v)
        return n_units
    return _inner


# Extraction: f(video, out) writes the frames of a video to the folder `frames_folder(video, out)`

def by_ffmpeg(*options):
    "Create a function that extracts with the ffmpeg command line and these options"
    def _inner(v, out):
        folder = frames_folder(v, out)
        folder.mkdir(parents=True)
        one_thread = ('-threads', '1') # of the decoder before -i, of the encoder after it
        source = (*one_thread, '-i', str(v))
        target = (*one_thread, *options, '-start_number', '0', str(folder/'%d.jpg'))
        subprocess.run(['ffmpeg', '-v', 'error', *source, *target], check=True, stdin=subprocess.DEVNULL)
    return _inner


def extractors(tutorial):
    "Return the functions to compare by name: full size, then 128 pixels"
    found = {"the tutorials'": tutorial.avi2frames} if tutorial else {}
    found['vidseq'] = avi2frames
    with_ffmpeg = shutil.which('ffmpeg') is not None
    if with_ffmpeg: found |= {'ffmpeg': by_ffmpeg(), 'ffmpeg -q:v 2': by_ffmpeg('-q:v', '2')}
    found['vidseq, size=128'] = partial(avi2frames, size=128)
    if with_ffmpeg: found['ffmpeg, 128 px'] = by_ffmpeg('-q:v', '2', '-vf', 'scale=-2:128')
    return found


def jpg_errors(v, folder, step=10):
    "Yield mean absolute error (of 255) and size in bytes of every `step`-th jpg of a video"
    with av.open(str(v)) as container:
        for i,frame in enumerate(container.decode(video=0)):
            jpg = folder/f'{i}.jpg'
            if i%step or not jpg.exists(): continue
            error = np.asarray(Image.open(jpg)).astype(int)-frame.to_ndarray(format='rgb24')
            yield np.abs(error).mean(),jpg.stat().st_size


def jpg_quality(videos, out):
    "Return the mean error of the jpgs in `out`, of 255, and their mean size in kB, as strings"
    error,size = np.mean([o for v in videos for o in jpg_errors(v, frames_folder(v, out))], axis=0)
    return f'{error:.2f}', f'{size/1000:.1f}'


def compare_extraction(videos, tutorial, tmp, rounds):
    "Compare the extraction of all frames to jpgs, at full size and at 128 pixels"
    n_frames = sum(video_info(v).frames for v in videos)
    ways = extractors(tutorial)
    outs = {name: tmp/f'{i}' for i,name in enumerate(ways)}
    def extract(name): return lambda v: ways[name](v, outs[name])
    candidates = {name: for_each(extract(name), videos, n_frames) for name in ways}
    times = measure(candidates, rounds, lambda name: shutil.rmtree(outs[name], ignore_errors=True))
    quality = {name: jpg_quality(videos, out) for name,out in outs.items() if '128' not in name}
    extra = {'mean error, of 255': {name: error for name,(error,_) in quality.items()},
             'kB': {name: size for name,(_,size) in quality.items()}}
    return f'{len(videos)} videos, {n_frames} frames.\n\n{table(times, "frame", extra=extra)}'


# Reading: f(video) returns 16 frames, without knowing their number before

def spread(n, k=16): return np.linspace(0, n-1, k).astype(int).tolist()


def decord_reader(size, widths):
    "Create a function that reads with decord"
    import decord
    def _inner(v):
        reader = decord.VideoReader(str(v), ctx=decord.cpu(0), width=widths[v], height=size, num_threads=1)
        return reader.get_batch(spread(len(reader))).asnumpy()
    return _inner


def torchcodec_reader(size, widths, seek_mode='exact'):
    "Create a function that reads with torchcodec"
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize
    def _inner(v):
        resize = Resize((size, widths[v]))
        reader = VideoDecoder(str(v), num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=[resize])
        return reader.get_frames_at(spread(len(reader))).data
    return _inner


def pyav_reader(size, widths):
    "Create a function that decodes all frames with PyAV and resizes 16 of them with PIL"
    def _inner(v):
        with av.open(str(v)) as c: frames = [f.to_ndarray(format='rgb24') for f in c.decode(video=0)]
        return np.stack([Image.fromarray(frames[i]).resize((widths[v], size)) for i in spread(len(frames))])
    return _inner


def readers(size, widths):
    "Return the functions to compare by name; `widths` holds the width of each video at this height"
    found = {'vidseq': lambda v: read_frames(v, spread(video_info(v).frames), size)}
    if importlib.util.find_spec('decord'): found['decord'] = decord_reader(size, widths)
    if importlib.util.find_spec('torchcodec'):
        found['torchcodec'] = torchcodec_reader(size, widths)
        found['torchcodec, approximate'] = torchcodec_reader(size, widths, 'approximate')
    return found | {'PyAV, all frames, PIL': pyav_reader(size, widths)}


def compare_reading(videos, rounds, size=112):
    "Compare the reading of 16 evenly spaced frames of each video"
    infos = {v: video_info(v) for v in videos}
    widths = {v: round(i.width*size/i.height) for v,i in infos.items()}
    candidates = {name: for_each(f, videos, len(videos)) for name,f in readers(size, widths).items()}
    return f'{len(videos)} videos.\n\n{table(measure(candidates, rounds), "clip")}'


if __name__ == '__main__':
    p = create_parser(__doc__, 'avi2frames')
    add_folder_argument(p)
    p.add_argument('--every', type=int, default=1, help='use only every n-th video (default: 1)')
    args = p.parse_args()
    torch.set_num_threads(1)
    videos = get_videos(args.dir or moving_shapes())[::args.every]
    tutorial = args.baseline and load_module(args.baseline)
    with tempfile.TemporaryDirectory(dir=fast_folder()) as tmp:
        extraction = compare_extraction(videos, tutorial, Path(tmp), args.rounds)
        reading = compare_reading(videos, args.rounds)
    tables = [f'**Extraction.** {extraction}', f'**16 spread frames at 112 pixels.** {reading}']
    report('extract', [machine('av', 'pillow', 'decord', 'torchcodec'), *tables], args.save)
