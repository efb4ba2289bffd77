"""Measure how long 16 frames of a film take to read, from its beginning and from the last keyframe.

The film has H.264 with B-frames, 320x240 pixels and a keyframe every 10 seconds. With torchcodec installed,
its exact mode is measured too, on a file that it has opened before."""
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from harness import create_parser, fast_folder, machine, markdown_table, measure, one_core, report, table

from vidseq.video.decode import FrameConverter
from vidseq.video.info import video_info
from vidseq.video.read import decoded_from_start, read_arrays

fps = 25


def pictures(n):
    "Yield `n` frames of moving blocks"
    blocks = np.random.default_rng(0).integers(0, 255, (15,20,3), np.uint8).repeat(16, 0).repeat(16, 1)
    for i in range(n): yield np.ascontiguousarray(np.roll(blocks, i%320, 1))


def write_film(path, minutes):
    "Write a film and return its path"
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps, width=320, height=240, pix_fmt='yuv420p')
        options = {'g': '250', 'bf': '2', 'preset': 'veryfast', 'x264-params': 'scenecut=0'}
        stream.codec_context.options = options
        for i,arr in enumerate(pictures(round(minutes*60*fps))):
            frame = av.VideoFrame.from_ndarray(arr, format='rgb24')
            frame.pts,frame.time_base = i,Fraction(1,fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path, numbers):
    "Read frames without an index: decode all frames before them"
    to_rgb,wanted = FrameConverter(path),set(numbers)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for i,frame in enumerate(container.decode(stream)):
            if i in wanted: to_rgb(frame)
            if i == numbers[-1]: return 1


def torchcodec_reader(path):
    "Return a function that reads frames with torchcodec in exact mode; None if it is not installed"
    try: from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError): return None
    decoder = VideoDecoder(str(path), seek_mode='exact', num_ffmpeg_threads=1)
    return lambda numbers: decoder.get_frames_at(numbers).data


def main(args):
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        path = write_film(Path(folder)/'film.mp4', args.minutes)
        start = time.perf_counter()
        info = video_info(path)
        seconds = time.perf_counter()-start
        first = round(info.frames*5/6) # minute 50 of 60
        numbers = list(range(first, first+64, 4))
        candidates = {'from the beginning': partial(decode_all, path, numbers),
                      'from a keyframe': lambda: len(read_arrays(path, numbers, info=info))/16}
        other = torchcodec_reader(path)
        if other: candidates['torchcodec, exact mode'] = lambda: len(other(numbers))/16
        times = measure(candidates, args.rounds)
    assert not decoded_from_start
    index = markdown_table(['', 'seconds'], [f'index of {info.frames} frames', f'{seconds:.2f}'])
    report('seek', [machine('av', 'torchcodec'), index, table(times, 'clip')], args.save)


if __name__ == '__main__':
    parser = create_parser(__doc__)
    parser.add_argument('--minutes', type=float, default=60, help='length of the film (default: 60)')
    one_core()
    main(parser.parse_args())
