"""Test reading of all containers and codecs, and of damaged and hostile files.

The frames equal a plain decode, or a `VideoError` names the file.
"""
import json
import os
import socket
import struct
import subprocess
import sys
import time
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_videos import decode, write

from conftest import child_env, run_python
from vidseq.video.extract import extract_videos
from vidseq.video.frame_folder import frames_folder
from vidseq.files import natural_key
from vidseq.video.decode import extract_frames, get_videos, open_video, scaled_size, VideoError
from vidseq.video.read import read_frames
from vidseq.video.info import scan_video, video_info

alt_ref = dict(auto_alt_ref='1', lag_in_frames='16', b='200k', deadline='good')
quiet = dict(codec='libx265', x265_params='log-level=none')
gaps = [0,1,2,5,9,10,*range(20,34)]
# name -> arguments of `write`
whole = {
    'mpeg4.avi': {},
    'b_frames.avi': dict(bf='2'),
    'mjpeg.avi': dict(codec='mjpeg', pix_fmt='yuvj420p'),
    'gray.avi': dict(codec='ffv1', pix_fmt='gray'),
    'x264.mp4': dict(codec='libx264', bf='3'),
    'open_gop.mp4': dict(codec='libx264', n=40, x264_params='open-gop=1:keyint=8:bframes=3'),
    'x265.mp4': quiet,
    '10_bit.mp4': dict(pix_fmt='yuv420p10le', **quiet),
    'interlaced.mp4': dict(codec='libx264', x264_params='tff=1'),
    'edit_list.mp4': dict(codec='libx264', shift=-5),
    'late.mp4': dict(codec='libx264', shift=30),
    'odd_size.mp4': dict(codec='libx264', pix_fmt='yuv444p', w=65, h=49),
    'x264.mov': dict(codec='libx264'),
    'alpha.mov': dict(codec='qtrle', pix_fmt='argb'),
    'phone.3gp': {},
    '10_bit.mkv': dict(codec='ffv1', pix_fmt='yuv420p10le'),
    '16_bit_gray.mkv': dict(codec='ffv1', pix_fmt='gray16le'),
    'odd_size.mkv': dict(codec='ffv1', pix_fmt='yuv444p', w=65, h=49),
    'late.mkv': dict(codec='libx264', shift=30),
    'vp8_alt_ref.webm': dict(codec='libvpx', n=60, **alt_ref),
    'vp9_alt_ref.webm': dict(codec='libvpx-vp9', n=60, **alt_ref),
    'alpha.webm': dict(codec='libvpx-vp9', pix_fmt='yuva420p'),
    'vp8.ogv': dict(codec='libvpx', format='ogg'),
    'mpeg1.mpg': dict(codec='mpeg1video'),
    'mpeg2.mpg': dict(codec='mpeg2video', bf='2'),
    'interlaced.mpg': dict(codec='mpeg2video', flags='+ildct+ilme'),
    'x264.ts': dict(codec='libx264'),
    'mpeg2.ts': dict(codec='mpeg2video'),
    'flash.flv': dict(codec='flv1'),
    'windows.wmv': dict(codec='wmv2'),
    'palette.gif': dict(codec='gif', pix_fmt='rgb8'),
    'animated.png': dict(codec='apng', pix_fmt='rgba', format='apng'),
    'raw.h264': dict(codec='libx264'),
    'raw.hevc': quiet,
    'raw.m1v': dict(codec='mpeg1video'),
    'raw.m2v': dict(codec='mpeg2video'),
    'raw.mjpeg': dict(codec='mjpeg', pix_fmt='yuvj420p'),
    'rotated_90.mp4': dict(rotation=90),
    'rotated_180.mov': dict(rotation=180),
    'rotated_270.mp4': dict(rotation=270),
    'gaps.mp4': dict(pts=gaps),
    'gaps.mkv': dict(codec='libx264', pts=gaps),
    'longer_sound.avi': dict(sound=3),
    'longer_sound.mkv': dict(sound=3),
    'longer_sound.mp4': dict(sound=3),
    'longer_sound.flv': dict(sound=3, codec='flv1'),
    'longer_sound.ts': dict(sound=3)}
# A video of one frame for each container, with the arguments of its first video without shift and sound
simple = {name: kw for name,kw in whole.items() if not {'shift','sound'} & set(kw)}
one = {f'one{Path(name).suffix}': dict(kw, n=1, pts=None) for name,kw in reversed(simple.items())}
# Functions that read a video
readers = [scan_video, video_info, lambda o: read_frames(o, [0]), lambda o: next(extract_frames(o))]


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Return a function that writes each kind of video once"
    folder = tmp_path_factory.mktemp('videos')
    def get(name):
        path = folder/name
        return path if path.exists() else write(path, **(whole|one)[name])
    return get

def same(a, b): return len(a) == len(b) and all(np.array_equal(x, y) for x,y in zip(a, b))

def check(path, expected, folder):
    "Check that all readers of `path` return the frames `expected`; return the status of its extraction"
    got = {}
    assert scan_video(path, lambda i,img: got.update({i: img.copy()})).frames == len(expected)
    assert list(got) == list(range(len(expected)))
    # FFmpeg rounds 10-bit and scaled frames differently in bgr24 and rgb24
    assert same(list(got.values()), decode(path, 'bgr24'))
    assert same([np.asarray(o) for o in extract_frames(path)], expected)
    assert same(read_frames(path, range(len(expected))), expected)
    report = extract_videos([path], folder, root=path.parent, n_workers=0)
    assert len(frames_folder(path, folder, path.parent).ls_sorted()) == report.frames[0] == len(expected)
    return report.status[0]


def expected_length(name):
    "Return the number of frames of a video in `whole` or `one`; the edit list removes 5"
    if name in one: return 1
    return 15 if name == 'edit_list.mp4' else whole[name].get('n', 20)

@pytest.mark.parametrize('name', whole|one)
def test_every_kind(videos, tmp_path, name):
    path = videos(name)
    expected = decode(path)
    n = expected_length(name)
    assert len(expected) == n
    assert check(path, expected, tmp_path) == 'done'
    info = video_info(path)
    assert (info.frames, info.height, info.width) == (n, *expected[0].shape[:2])
    assert info.rotation == whole.get(name, {}).get('rotation', 0)
    if name[:4] == 'gaps':
        assert info.variable_rate
        assert info.duration == pytest.approx(34/25) and info.fps == pytest.approx(20/(34/25))
    elif name not in one:
        assert info.duration == pytest.approx(n/25, rel=.05) and info.fps == pytest.approx(25, rel=.05)


@pytest.mark.parametrize('name', ['raw.h264','raw.m2v','raw.m1v'])
def test_size_changes(tmp_path, monkeypatch, name):
    "Check that frames after a change of size are scaled to the size of the first frame"
    path = tmp_path/name
    codec = whole[name]['codec']
    small,large = (write(tmp_path/f'{w}_{name}', codec, w=w, h=h) for w,h in [(64,48),(96,80)])
    path.write_bytes(small.read_bytes()+large.read_bytes())
    expected = decode(path)
    assert len(expected) > 30 and {o.shape for o in expected} == {(48,64,3)}
    assert check(path, expected, tmp_path/'frames') == 'done'
    with open_video(path) as (container, stream): assert len({o.width for o in container.decode(stream)}) == 2
    monkeypatch.setenv('VIDSEQ_MAX_PIXELS', str(64*48))
    with pytest.raises(VideoError, match=r'96x80.*VIDSEQ_MAX_PIXELS=7680'): scan_video(path)


# Damaged

def cut(path, folder, share=.6):
    "Write the first `share` of the bytes of `path` to a new file in `folder`"
    out = folder/f'cut_{path.name}'
    out.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
    return out

# The file does not declare its length, and it may end between frames
silent = {'palette.gif', 'raw.mjpeg', 'raw.hevc', 'x264.ts'}
# The index is at the end of the file
closed = {'x264.mp4', 'x264.mov', 'phone.3gp'}

@pytest.mark.parametrize('name', [
    'mpeg4.avi', 'mjpeg.avi', 'x264.mp4', 'x264.mov', 'phone.3gp', '10_bit.mkv', 'vp9_alt_ref.webm',
    'x264.ts', 'mpeg1.mpg', 'mpeg2.mpg', 'flash.flv', 'windows.wmv', 'raw.h264', 'raw.hevc', 'palette.gif',
    'raw.mjpeg', 'longer_sound.mkv'])
def test_truncated(videos, tmp_path, recwarn, name):
    path = cut(videos(name), tmp_path, .5)
    report = extract_videos([path], tmp_path/'frames', root=tmp_path, n_workers=0)
    jpgs = list((tmp_path/'frames').rglob('*.jpg'))
    assert len(jpgs) == report.frames[0]
    if name in closed:
        assert (report.status[0], report.frames[0]) == ('failed', 0)
        assert 'not readable' in report.reason[0]
    else:
        assert 0 < report.frames[0] <= len(decode(videos(name)))
        assert report.status[0] == 'partial' or name in silent
    if report.status[0] != 'done': assert path.name in str(recwarn.pop(UserWarning).message)

@pytest.mark.parametrize('name', [
    'mpeg4.avi', 'x264.mp4', 'x264.mov', '10_bit.mkv', 'vp9_alt_ref.webm', 'x264.ts', 'mpeg1.mpg',
    'flash.flv', 'windows.wmv', 'raw.h264', 'palette.gif', 'raw.mjpeg'])
def test_only_the_header_is_right(videos, tmp_path, name):
    path = tmp_path/name
    path.write_bytes(videos(name).read_bytes()[:16]+np.random.default_rng(0).bytes(5000))
    message = f'{name}.*Check that it plays|{name}.*Remove the file|{name}.*replace'
    for f in readers:
        with pytest.raises(VideoError, match=message): f(path)

def fails(path, match):
    "Check that each of `readers` raises, within two seconds, an error that matches and names `path`"
    for f in readers:
        begin = time.perf_counter()
        with pytest.raises(VideoError, match=match) as e: f(path)
        assert path.name in str(e.value) and time.perf_counter()-begin < 2

def test_no_video(tmp_path):
    (tmp_path/'empty.avi').touch()
    fails(tmp_path/'empty.avi', 'an empty file')
    (tmp_path/'text.mp4').write_text('once upon a time\n'*1000)
    fails(tmp_path/'text.mp4', 'not readable')
    fails(write(tmp_path/'sound.mp4', codec=None, sound=1), 'no video stream')
    fails(tmp_path/'none.avi', 'no such file')
    fails(tmp_path/'nul\0.avi', 'no such file')
    fails(tmp_path, 'a folder')

def stream_types(path):
    with av.open(str(path)) as container: return [o.type for o in container.streams]

@pytest.mark.parametrize('name', ['mpeg4.avi','10_bit.mkv','phone.3gp'])
def test_sound_comes_first(videos, tmp_path, name):
    path = write(tmp_path/f'sound{Path(name).suffix}', sound=.8)
    assert stream_types(path) == ['audio','video']
    assert check(path, decode(path), tmp_path/'frames') == 'done'

def data_packet(stream, i):
    "Return packet `i` of a data stream, with a frame rate of 25"
    packet = av.Packet(b'note')
    packet.stream = stream
    packet.pts = packet.dts = i
    packet.time_base = Fraction(1,25)
    return packet

def test_streams_of_data(tmp_path):
    "Check a video with a data stream, as phones write it"
    path = tmp_path/'data.mp4'
    with av.open(str(write(tmp_path/'plain.mp4'))) as plain, av.open(str(path), 'w') as out:
        stream = out.add_stream_from_template(plain.streams.video[0])
        data = out.add_data_stream('bin_data')
        for i,packet in enumerate(plain.demux(video=0)):
            if packet.dts is None: continue
            packet.stream = stream
            out.mux(packet)
            out.mux(data_packet(data, i))
    assert stream_types(path) == ['video','data']
    assert check(path, decode(path), tmp_path/'frames') == 'done'

def patched(path, old, new):
    "Replace the bytes `old` by `new` in a copy of `path`; return its path"
    data = path.read_bytes()
    assert old in data
    out = path.with_name(f'patched_{path.name}')
    out.write_bytes(data.replace(old, new))
    return out

def test_absurd_sizes(videos):
    "Check that a huge size in the header raises an error, unless the codec stores another size"
    def resized(name, order, side):
        return patched(videos(name), struct.pack(order, 64, 48), struct.pack(order, side, side))
    for name,order in (('palette.gif','<HH'), ('alpha.mov','>HH'), ('gray.avi','<ii')):
        for side in (16000, 60000):
            fails(resized(name, order, side), 'more than 67108864 pixels.*larger VIDSEQ_MAX_PIXELS')
    for name,order in (('mpeg4.avi','<ii'), ('x264.mp4','>HH')):
        path = resized(name, order, 20000)
        assert same(list(map(np.asarray, extract_frames(path))), decode(videos(name)))

@pytest.mark.parametrize('name', ['mpeg4.avi','palette.gif','raw.h264','rotated_90.mp4'])
def test_max_pixels(videos, monkeypatch, name):
    path = videos(name)
    for f in readers:
        monkeypatch.setenv('VIDSEQ_MAX_PIXELS', '3071')
        with pytest.raises(VideoError, match=r'64x48.*VIDSEQ_MAX_PIXELS=3072'): f(path)
        monkeypatch.setenv('VIDSEQ_MAX_PIXELS', '3072')
        f(path)

@pytest.mark.parametrize('size', [-1,0,100_000])
def test_sizes_that_cannot_be(videos, tmp_path, size):
    path = videos('interlaced.mpg')
    for f in (lambda: read_frames(path, [0], size), lambda: scan_video(path, lambda i,img: None, size)):
        with pytest.raises(ValueError, match=f'interlaced.mpg.*{size}'): f()
    with pytest.raises(ValueError, match=f'size={size}'):
        extract_videos([path], tmp_path/'frames', root=path.parent, size=size, n_workers=0)
    assert not list(tmp_path.rglob('*.jpg'))

def test_metadata_that_is_not_utf8(tmp_path):
    for ending in ('.avi','.mp4','.mkv'):
        titled = write(tmp_path/f'titled{ending}', metadata=dict(title='QQQQ'))
        path = patched(titled, b'QQQQ', b'\xff\xfe\xe9\xe8')
        assert video_info(path).frames == len(list(extract_frames(path))) == 20


# Devices, pipes, links and playlists

@pytest.mark.skipif(os.name != 'posix', reason='needs devices that are files')
def test_devices_pipes_and_links(videos, tmp_path):
    for name in ('/dev/zero', os.devnull): fails(Path(name), 'a device or pipe')
    os.mkfifo(tmp_path/'fifo.avi')
    fails(tmp_path/'fifo.avi', 'a device or pipe')
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(tmp_path) # the path of a socket is limited to about 100 bytes
        try: s.bind('socket.avi')
        finally: os.chdir(here)
        fails(tmp_path/'socket.avi', 'a device or pipe')
    (tmp_path/'link.avi').symlink_to(videos('mpeg4.avi'))
    assert same(list(map(np.asarray, extract_frames(tmp_path/'link.avi'))), decode(videos('mpeg4.avi')))
    (tmp_path/'dangling.avi').symlink_to(tmp_path/'nowhere.avi')
    fails(tmp_path/'dangling.avi', 'no such file')
    (tmp_path/'round.avi').symlink_to(tmp_path/'round.avi')
    fails(tmp_path/'round.avi', 'no such file')

def test_a_file_that_may_not_be_read(videos, tmp_path):
    if os.name != 'posix' or os.geteuid() == 0: pytest.skip('this user may read everything')
    path = tmp_path/'secret.avi'
    path.write_bytes(videos('mpeg4.avi').read_bytes())
    path.chmod(0)
    fails(path, 'not readable.*ermission')

hls = '#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\n{}\n'
sdp = (
    'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
    'm=video {} RTP/AVP 96\na=rtpmap:96 H264/90000\n')
dash = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{}</BaseURL></Representation>'
    '</AdaptationSet></Period></MPD>')
playlists = {
    'vod.m3u8': hls+'#EXT-X-ENDLIST\n',
    'live.m3u8': hls,
    'hls.mp4': hls+'#EXT-X-ENDLIST\n',
    'crlf.m3u8': hls.replace('\n','\r\n'),
    'concat.mp4': 'ffconcat version 1.0\nfile {}\n',
    'a.sdp': sdp,
    'a.mpd': dash}

def playlist_target(name, what, port):
    "Return what the playlist `name` refers to: the port for SDP, else a file or a URL"
    if name == 'a.sdp': return port
    return 'target.ts' if what == 'file' else f'http://127.0.0.1:{port}/target.ts'

@pytest.mark.parametrize('name', playlists)
@pytest.mark.parametrize('what', ['file','network'])
def test_playlists_are_not_followed(videos, tmp_path, name, what):
    path = tmp_path/name
    (tmp_path/'target.ts').write_bytes(videos('x264.ts').read_bytes())
    with socket.create_server(('127.0.0.1', 0)) as server:
        target = playlist_target(name, what, server.getsockname()[1])
        path.write_bytes(playlists[name].format(target).encode())
        fails_in_a_process(path)
        server.settimeout(.05)
        with pytest.raises(TimeoutError): server.accept() # no connection was made

scan = '''
import sys
from vidseq.video.info import scan_video
from vidseq.video.decode import *
try: scan_video(sys.argv[1])
except VideoError as e: print(e)
'''

def fails_in_a_process(path, seconds=20):
    "Check the error in a new process with a timeout, because FFmpeg could wait forever for a live playlist"
    out = run_python('-c', scan, path, timeout=seconds)
    assert path.name in out and ('not readable' in out or 'playlist' in out)


# Properties

quick = settings(max_examples=25, deadline=None)
decode_once = cache(decode)
seekable = [
    'b_frames.avi', 'x264.mp4', 'open_gop.mp4', 'vp8_alt_ref.webm', 'interlaced.mpg', 'rotated_90.mp4',
    'gaps.mkv', 'palette.gif']

@quick
@given(st.data())
def test_read_frames_equals_decode_and_index(videos, data):
    path = videos(data.draw(st.sampled_from(seekable)))
    frames = decode_once(path)
    idxs = data.draw(st.lists(st.integers(0, len(frames)-1), min_size=1, max_size=12))
    assert same(read_frames(path, idxs), [frames[i] for i in idxs])
    size = data.draw(st.integers(2, 100))
    small = read_frames(path, range(len(frames)), size)
    assert min(small.shape[1:3]) == size and same(read_frames(path, np.array(idxs), size), small[idxs])
    too_large = data.draw(st.integers(len(frames), 10**6))
    negative = data.draw(st.integers(-10**6, -1))
    with pytest.raises(VideoError, match=f'{len(frames)} decode'): read_frames(path, [*idxs, too_large])
    with pytest.raises(ValueError, match='start at 0'): read_frames(path, [*idxs, negative])
    with pytest.raises(ValueError, match='at least one'): read_frames(path, [])

@given(st.lists(st.text(max_size=8) | st.from_regex('[a0-9_²٣]{1,6}', fullmatch=True), max_size=20))
@settings(max_examples=60, deadline=None)
def test_natural_order(names):
    "Check that the order is total: the result does not depend on the initial order"
    ordered = sorted(names, key=natural_key)
    again = sorted(reversed(ordered), key=natural_key)
    assert [natural_key(o) for o in again] == [natural_key(o) for o in ordered]

@given(st.integers(0, 10**12), st.integers(0, 10**12), st.text(alphabet='a_-é²', max_size=3))
@quick
def test_digits_sort_by_value(a, b, text):
    assert (natural_key(f'{text}{a}.jpg') < natural_key(f'{text}{b}.jpg')) == (a < b)

special_parts = st.sampled_from([
    'a', 'b', '..', '.', 'a.b', 'v.avi', 'v.mp4', '..avi', '...avi', '.avi', '.h', 'v', 'v.', '-v', '%d', 'é',
    '.vidseq-x.part'])
characters = st.characters(exclude_characters='/\\:\0', exclude_categories=['Cs'])
part = special_parts | st.text(characters, min_size=1, max_size=5)
starts = st.sampled_from(['','/','./','../'])
place = st.builds(lambda start, parts: start+'/'.join(parts), starts, st.lists(part, max_size=5))

@given(place, place, st.none() | place)
@settings(max_examples=300, deadline=None)
def test_frames_folder(a, b, root):
    found = []
    for o in (a, b):
        try: folder = frames_folder(o, 'frames', root)
        except (VideoError, ValueError) as e:
            assert isinstance(e, VideoError) and str(Path(o)) in str(e)
            continue
        folder = Path(os.path.abspath(folder))
        assert Path('frames').absolute() in folder.parents # a subfolder, not the folder itself
        found.append((folder, Path(os.path.abspath(o))))
    if len(found) == 2 and root is not None:
        (f1,v1),(f2,v2) = found
        assert (f1 == f2) == (v1.parent/v1.stem == v2.parent/v2.stem)

@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 2000))
@settings(max_examples=200, deadline=None)
def test_short_side(w, h, size):
    nw,nh = scaled_size(w, h, size)
    assert min(nw, nh) == size and (nw <= nh if w <= h else nw >= nh)
    assert abs(max(nw, nh)-size*max(w, h)/min(w, h)) <= 1 # rounded to an even number
    assert scaled_size(w, h, None) == (w, h)
    assert max(nw, nh)%2 == 0 or max(nw, nh) == size


# Fuzz

def fuzz(seed, start, stop, folder):
    "Read damaged videos in a new process and return its counts; if it fails, report the last video"
    folder.mkdir(exist_ok=True)
    fuzz_videos = Path(__file__).with_name('fuzz_videos.py')
    command = [sys.executable, fuzz_videos, *map(str, (seed, start, stop)), folder]
    p = subprocess.run(command, capture_output=True, text=True, env=child_env())
    assert p.returncode == 0, f'seed {seed}, video {p.stdout.splitlines()[-1]}:\n{p.stderr[-3000:]}'
    res = json.loads(p.stdout.splitlines()[-1])
    assert res['files'][0] == res['files'][1] and res['rss'][1] < 1000 and res['slowest'][0] < 10, res
    for outcome in ('whole', 'partial'): assert res['tried'].get(outcome, 0) > (stop-start)/20, res
    return res

def test_damage_of_all_kinds(tmp_path): fuzz(0, 0, 150, tmp_path)

@pytest.mark.slow
@pytest.mark.parametrize('start', range(0, 2400, 400))
def test_much_damage_of_all_kinds(tmp_path, start): print(fuzz(1, start, start+400, tmp_path))


@pytest.mark.slow
def test_200_000_videos_are_listed_in_order(tmp_path):
    names = [f'class_{c:03d}/v_{i:03d}.avi' for c in range(400) for i in range(500)]
    for name in reversed(names):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).touch()
    assert [o.relative_to(tmp_path).as_posix() for o in get_videos(tmp_path)] == names
