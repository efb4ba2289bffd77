"""The number of frames of a video is the number that decodes, for every codec and container.

Each file is written as it is, and again with packets changed as cutting, streaming and repairing do.
"""
import random
import re
import warnings
from functools import partial

import av
import numpy as np
import pytest
from make_videos import decode, write

from vidseq.data.block import VideoDataLoaders
from vidseq.data.clip import ImageTupleTfm
from vidseq.data.samplers import first_frames, spread_frames, window_frames
from vidseq.video import info as info_module
from vidseq.video.decode import extract_frames, VideoError
from vidseq.video.read import read_frames
from vidseq.video.extract import check_videos, extract_videos
from vidseq.video.info import scan_video, video_info

alt_ref = dict(auto_alt_ref='1', lag_in_frames='16', b='200k', deadline='good', g='20')
x265 = 'log-level=none:keyint=10:bframes=3'
# name -> arguments of `write`
codecs = {
    'mpeg4.avi': dict(bf='2', g='12'),
    'mpeg4.mp4': dict(bf='2', g='12'),
    'h264.mp4': dict(codec='libx264', bf='3', g='12'),
    'h264.mkv': dict(codec='libx264', bf='3', g='12'),
    'h264.ts': dict(codec='libx264', bf='3', g='12'),
    'h264.avi': dict(codec='libx264', bf='0', g='12'),
    'open_gop.mp4': dict(codec='libx264', x264_params='open-gop=1:keyint=10:bframes=3'),
    'open_gop.ts': dict(codec='libx264', x264_params='open-gop=1:keyint=10:bframes=3'),
    'refresh.mp4': dict(codec='libx264', x264_params='intra-refresh=1:keyint=10'),
    'fields.mp4': dict(codec='libx264', x264_params='tff=1:keyint=10'),
    'fields.ts': dict(codec='mpeg2video', bf='2', g='10', flags='+ildct+ilme'),
    'hevc.mp4': dict(codec='libx265', x265_params=x265),
    'hevc_open.ts': dict(codec='libx265', x265_params=f'{x265}:open-gop=1'),
    'vp8.webm': dict(codec='libvpx', **alt_ref),
    'vp9.webm': dict(codec='libvpx-vp9', **alt_ref),
    'av1.mp4': dict(codec='libsvtav1', w=128, h=128, preset='12', g='20', svtav1_params='log-level=-2'),
    'mpeg1.mpg': dict(codec='mpeg1video', bf='2', g='10'),
    'mpeg2.mkv': dict(codec='mpeg2video', bf='2', g='10'),
    'mjpeg.avi': dict(codec='mjpeg', pix_fmt='yuvj420p'),
    'windows.wmv': dict(codec='wmv2'),
    'flash.flv': dict(codec='flv'),
    'lossless.mkv': dict(codec='ffv1')}


def has_encoder(name):
    try: return av.Codec(codecs[name].get('codec', 'mpeg4'), 'w') is not None
    except av.codec.codec.UnknownCodecError: return False


def remux(source, dest, keep=lambda i, packet: True, payload=None, insert=None):
    "Copy packets for which `keep` is true; replace those in `payload`, and insert `insert` one frame after"
    with av.open(str(source)) as a, av.open(str(dest), 'w') as b:
        stream = a.streams.video[0]
        out = b.add_stream_from_template(stream)
        packets = [o for o in a.demux(stream) if o.size]
        for i,packet in enumerate(packets):
            if not keep(i, packet): continue
            new = [_with_bytes(packet, payload[i]) if payload and i in payload else packet]
            if insert and i in insert: new.append(_with_bytes(packet, insert[i], 1))
            for o in new:
                o.stream = out
                b.mux(o)
    return dest


def _with_bytes(packet, data, shift=0):
    new = av.Packet(data)
    new.pts, new.dts, new.time_base = packet.pts+shift, packet.dts+shift, packet.time_base
    new.is_keyframe = packet.is_keyframe and not shift
    return new


def from_second_key(path, dest):
    "Start a copy of `path` at its second keyframe, as cutting does"
    seen = []
    def keep(i, packet):
        seen.append(packet.is_keyframe)
        return sum(seen) >= 2
    return remux(path, dest, keep)


# name -> function of a file and the file to write
changes = {
    'as it is': lambda path, dest: path,
    'between keyframes': lambda path, dest: remux(path, dest, lambda i, o: i >= 5),
    'from the second keyframe': from_second_key,
    'without the end': lambda path, dest: remux(path, dest, lambda i, o: i < 30),
    'with lost packets': lambda path, dest: remux(path, dest, lambda i, o: i%11 != 7)}


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Return a function that writes each of `codecs` once"
    folder = tmp_path_factory.mktemp('codecs')
    def get(name):
        path = folder/name
        return path if path.exists() else write(path, n=40, **codecs[name])
    return get


def count(path):
    "Return the number of frames that decode, up to the first error"
    n = 0
    try:
        for _ in extract_frames(path): n += 1
    except VideoError: pass
    return n


def check(path):
    "Check that `video_info` counts what decodes, and that the last frame can be read"
    n = count(path)
    if not n:
        with pytest.raises(VideoError): video_info(path)
        return
    assert video_info(path).frames == n == scan_video(path).frames
    assert len(read_frames(path, [n-1])) == 1
    with pytest.raises(VideoError, match=f'frame {n} does not exist|decoding stopped'): read_frames(path, [n])


# AVI files without gaps in their timestamps hide that reference frames were lost
undetected = {('mpeg4.avi','with lost packets'), ('h264.avi','with lost packets')}
cases = [(name, change) for name in codecs for change in changes if (name, change) not in undetected]

@pytest.mark.parametrize('name,change', cases, ids=lambda o: o)
def test_count_is_what_decodes(videos, tmp_path, name, change):
    if not has_encoder(name): pytest.skip('FFmpeg has no encoder for it')
    try: path = changes[change](videos(name), tmp_path/name)
    except (ValueError, av.FFmpegError): pytest.skip('FFmpeg does not write such a file')
    check(path)

@pytest.mark.parametrize('name', codecs)
def test_variable_rates_and_edit_lists(tmp_path, name):
    if not has_encoder(name): pytest.skip('FFmpeg has no encoder for it')
    check(write(tmp_path/f'gaps_{name}', n=20, pts=[0,1,2,5,9,10,*range(20,34)], **codecs[name]))
    check(write(tmp_path/f'edit_{name}', n=20, shift=-5, **codecs[name]))

def test_most_videos_are_counted_without_decoding(videos, monkeypatch):
    "Check that counting by packets is not given up: whole files of the usual codecs are not decoded"
    def fail(path): raise AssertionError(f'{path} was decoded')
    names = ['mpeg4.avi', 'mpeg4.mp4', 'h264.mp4', 'h264.mkv', 'h264.ts', 'hevc.mp4', 'vp8.webm', 'vp9.webm']
    monkeypatch.setattr(info_module, '_decoded', fail)
    for name in names: assert video_info(videos(name)).frames == 40


# MPEG-4 as DivX and XviD write it

def mpeg4_packets(path):
    with av.open(str(path)) as a: return [bytes(o) for o in a.demux(video=0) if o.size]

def not_coded(i):
    "Return a P picture with vop_coded=0, which repeats the last one, at frame `i` of 25 per second"
    bits = f'01{"0"}1{i%25:05b}10'.ljust(16, '1')
    return b'\0\0\1\xb6'+int(bits, 2).to_bytes(2, 'big')

def write_not_coded(folder):
    "Write 39 frames and, in the place of number 7, a packet that stores none"
    plain = write(folder/'plain.avi', n=39, pts=[*range(7),*range(8,40)])
    return remux(plain, folder/'not_coded.avi', insert={6: not_coded(7)})

def test_frames_that_are_not_coded(tmp_path):
    path = write_not_coded(tmp_path)
    assert len(mpeg4_packets(path)) == 40 and count(path) == 39
    check(path)
    assert check_videos([path], n_workers=0).status[0] == 'whole'

def pack(packets):
    "Pack each B-frame into the packet before it, and leave a placeholder, as DivX does"
    marker = b'\0\0\1\xb2DivX503b1393p'
    start = b'\0\0\1\xb6'
    is_b = [o[o.index(start)+4]>>6 == 2 for o in packets]
    packed = []
    for i,data in enumerate(packets):
        follows = i+1 < len(packets) and is_b[i+1]
        if is_b[i]: packed.append(data if follows else start+b'\x50\xcf')
        else: packed.append(data+packets[i+1] if follows else data)
    for i in range(len(packed)-1): # a B-frame moves one packet ahead
        if is_b[i] and is_b[i+1]: packed[i] = packets[i+1]
    return [marker+packed[0], *packed[1:]]

def test_packed_b_frames(tmp_path):
    plain = write(tmp_path/'plain.avi', n=40, bf='2', g='40')
    packed = pack(mpeg4_packets(plain))
    path = remux(plain, tmp_path/'packed.avi', payload=dict(enumerate(packed)))
    assert min(map(len, packed)) < 10 and count(path) >= 38
    check(path)


# What a wrong count must not do

def test_a_clip_is_sampled_from_what_is_there(tmp_path, monkeypatch):
    "Check that an early end, which the count did not show, is named once and ends no epoch"
    for c in 'AB':
        (tmp_path/c).mkdir()
        for i in range(4): write(tmp_path/c/f'v{i}.avi', n=40, seed=i)
    real = info_module._video_info.__wrapped__
    wrong = info_module.cached_by_file(shared=False)(lambda path: real(path) | dict(frames=60))
    monkeypatch.setattr(info_module, '_video_info', wrong)
    small = dict(seq_len=4, image_size=32, bs=2, valid_pct=.25, num_workers=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dls = VideoDataLoaders.from_folder(tmp_path, **small)
        for _ in range(3): assert len(list(dls.train)) == 3
    named = [re.match(r'(.*avi): frame \d+ does not exist', str(o.message)) for o in caught]
    assert sorted(o[1] for o in named if o) == sorted(map(str, dls.train_ds.items))

def test_random_windows(videos):
    "Check 50 random windows of each kind of video with every sampler"
    samplers = [window_frames, partial(window_frames, step=(1,5)), spread_frames, first_frames,
                partial(window_frames, seconds=.1), partial(window_frames, seconds=(.02,.5))]
    random.seed(0)
    for name in filter(has_encoder, codecs):
        for sampler in samplers:
            tfm = ImageTupleTfm(random.randint(1, 50), sampler, size=16)
            tfm.train = True
            for _ in range(2): assert len(tfm(videos(name))) == tfm.seq_len


# Seconds in videos of variable rate

def test_samplers_with_seconds_use_timestamps(tmp_path):
    "Check a sampler of times against the timestamps: 20 frames at 25 per second, then 20 at 5"
    pts = [*range(20), *range(20, 120, 5)]
    path = write(tmp_path/'v.mkv', n=40, pts=pts, codec='libx264')
    frames = decode(path)
    for seconds in (.2, .4, 1.):
        clip = ImageTupleTfm(4, partial(first_frames, seconds=seconds))(path)
        want = [max(i for i,t in enumerate(pts) if t <= k*seconds*25+.5) for k in range(4)]
        arrays = list(map(np.asarray, clip))
        assert [next(i for i,o in enumerate(frames) if np.array_equal(o, f)) for f in arrays] == want
    extract_videos([path], tmp_path/'frames', root=tmp_path, n_workers=0)
    for seconds in (.2, 1.): # the same frames from jpgs, without a frame rate
        by_time = ImageTupleTfm(4, partial(first_frames, seconds=seconds))
        for a,b in zip(by_time(path), by_time(tmp_path/'frames'/'v'), strict=True):
            errors = [np.abs(o.astype(int)-np.asarray(b)).mean() for o in frames]
            assert np.array_equal(frames[int(np.argmin(errors))], np.asarray(a))


# One word for one file

def test_all_say_the_same_of_a_file(tmp_path, capsys):
    "Check that info, check, extraction and loader agree: a header that counts differently is no damage"
    path = write(tmp_path/'v.avi', n=40)
    cut = tmp_path/'cut.avi'
    cut.write_bytes(path.read_bytes()[:path.stat().st_size*3//4])
    gap = write_not_coded(tmp_path)
    for video,missing in ((path,False), (gap,False), (cut,True)):
        report = check_videos([video], n_workers=0)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            extracted = extract_videos([video], tmp_path/'frames', root=tmp_path, n_workers=0)
        info = video_info(video)
        assert report.frames[0] == extracted.frames[0] == info.frames == count(video)
        statuses = report.status[0], extracted.status[0]
        assert statuses == (('partial','partial') if missing else ('whole','done'))
        assert bool(info.missing) == bool(report.reason[0]) == bool(extracted.reason[0]) == missing
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            ImageTupleTfm(4)(video)
        assert [str(video) in str(o.message) for o in caught] == [True]*missing
    assert check_videos([gap], n_workers=0).note[0] == 'the header declares 40 frames'
