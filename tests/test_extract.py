"""Test extraction that is killed, crashes, runs twice at once, fills the disk or uses another executor.

The files must always equal those of an undisturbed run.
"""
import errno
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
from make_videos import decode, pictures, write
from simplejpeg import decode_jpeg, encode_jpeg

from conftest import child_env, run_python
from vidseq.data.clip import ImageTupleTfm
from vidseq.video.extract import avi2frames, check_videos, extract_videos
from vidseq.video.frame_folder import frames_folder
from vidseq.parallel import parallel_map
from vidseq.video.decode import VideoError, write_video

posix = pytest.mark.skipif(os.name != 'posix', reason='kills processes by signals')


def make_clips(root, n_classes, n_clips, n_frames, size):
    "Write `n_clips` videos for each of `n_classes` classes below `root`; return their paths"
    clips = [root/f'class {i}'/f'clip {j}.avi' for i in range(n_classes) for j in range(n_clips)]
    for i,clip in enumerate(clips): write_video(clip, pictures(n_frames, *size, seed=i))
    return clips

def tree(folder):
    "Return name -> bytes (None for a folder) of all below `folder`, hidden files included, except the report"
    paths = [p for p in folder.rglob('*') if p.name != 'extract_videos.csv']
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    "Return twelve clips, one damaged and one not a video, and the report and files of a run in one process"
    root = tmp_path_factory.mktemp('few')
    clips = make_clips(root/'data', 3, 4, 12, (64,48))
    clips[5].write_bytes(clips[5].read_bytes()[:6000])
    clips[6].write_text('no video')
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        report = extract_videos(clips, root/'frames', n_workers=0)
    assert ['2 of 12' in str(o.message) for o in w] == [True]
    assert list(report.status) == ['done']*5+['partial','failed']+['done']*5
    return clips, report, tree(root/'frames')

@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "Return sixty clips, which take long enough to interrupt, and the files of an uninterrupted run"
    root = tmp_path_factory.mktemp('many')
    clips = make_clips(root/'data', 5, 12, 40, (96,72))
    assert set(extract_videos(clips, root/'frames', n_workers=0).status) == {'done'}
    return clips, tree(root/'frames')


def clip_folder(clip): return f'{clip.parent.name}{os.sep}{clip.stem}{os.sep}'

def jpgs(clip): return [f'{clip_folder(clip)}{i}.jpg' for i in range(len(decode(clip)))]

def as_jpg(arr): return encode_jpeg(np.ascontiguousarray(arr), 90, colorspace='RGB', colorsubsampling='420')

def test_the_trees_are_the_frames(few, many):
    "Check that each frame of a plain decode has one jpg, with the same pixels"
    for clip in [*few[0][:5], *many[0][:3]]:
        found = few[2] if clip in few[0] else many[1]
        assert {o for o in found if o.startswith(clip_folder(clip))} == set(jpgs(clip))
        for i,(name,arr) in enumerate(zip(jpgs(clip), decode(clip), strict=True)):
            if i: assert found[name] == as_jpg(arr)
            else: assert np.array_equal(decode_jpeg(found[name]), decode_jpeg(as_jpg(arr))) # it has a record



# Executors

@contextmanager
def dask():
    "Start a Dask cluster of two workers on this machine and yield its executor"
    distributed = pytest.importorskip('distributed')
    # Dask logs an error if a heartbeat arrives while the cluster closes
    kwargs = dict(processes=True, dashboard_address=None, silence_logs=logging.CRITICAL)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **kwargs) as cluster:
        with distributed.Client(cluster) as client, client.get_executor() as executor: yield executor

def threads(): return ThreadPoolExecutor(3)

def spawn(): return ProcessPoolExecutor(2, multiprocessing.get_context('spawn'))

executors = dict(dask=dask, threads=threads, spawn=spawn, local=lambda: None)

slow_to_start = pytest.param('dask', marks=pytest.mark.slow)

@pytest.mark.parametrize('name', [slow_to_start, *list(executors)[1:]])
def test_executors(name, few, tmp_path, recwarn, capfd):
    clips,report,expected = few
    pool = executors[name]()
    if pool is None: got = extract_videos(clips, tmp_path/'frames', n_workers=2)
    else:
        with pool as executor: got = extract_videos(clips, tmp_path/'frames', executor=executor)
    pd.testing.assert_frame_equal(got, report)
    assert tree(tmp_path/'frames') == expected
    # Python 3.12 and 3.13 warn if a process with threads forks; Dask leaves threads
    messages = [str(o.message) for o in recwarn if 'fork' not in str(o.message)]
    assert ['2 of 12' in o for o in messages] == [True]
    assert capfd.readouterr().err == ''


# Killed, crashed, twice at once

script = '''
import os, signal, sys, time
from pathlib import Path
import vidseq.video.extract

decode_video = vidseq.video.extract.decode_video
def read(path):
    try: return path.read_text()
    except FileNotFoundError: return '' # another process may have removed it
def dying(path, each=None, *args):
    "Kill the process at frame 20 of a clip that the file `always` or `once` names; remove `once` first"
    def frame(i, img):
        each(i, img)
        for o in (Path('always'), Path('once')):
            if i == 20 and f'{path.parent.name}/{path.name}' in read(o):
                if o.name == 'once': o.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
    return decode_video(path, frame, *args)

vidseq.video.extract.decode_video = dying
if __name__ == '__main__':
    order,force,n_workers = sys.argv[1:]
    print('ready', flush=True)
    sys.stdin.readline()
    clips = sorted(Path('data').rglob('*.avi'), reverse=order == 'down')
    kwargs = dict(n_workers=int(n_workers), force=bool(int(force)))
    report = vidseq.video.extract.extract_videos(clips, 'frames', **kwargs)
    assert not set(report.status)-{'done','skipped'}, report.to_csv()
'''

started = []
def end(p):
    "Kill the process group of `p`"
    with suppress(ProcessLookupError, PermissionError): os.killpg(p.pid, signal.SIGKILL)
    p.communicate()

def start(folder, order='up', force=0, n_workers=2):
    "Start a process in its own process group; it extracts when `go` tells it to"
    (folder/'run.py').write_text(script)
    command = [sys.executable, 'run.py', order, str(force), str(n_workers)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen(command, cwd=folder, start_new_session=True, env=child_env(), **pipes)
    started.append(p)
    return p

def go(*ps):
    "Wait until all processes are ready, then let them extract at the same time"
    for p in ps: assert p.stdout.readline() == 'ready\n'
    for p in ps:
        p.stdin.write('\n')
        p.stdin.flush()

def finish(p):
    _,err = p.communicate(timeout=120)
    assert p.returncode == 0 and 'Traceback' not in err, err

def run(folder, **kwargs):
    p = start(folder, **kwargs)
    go(p)
    finish(p)

@pytest.fixture
def place(many, tmp_path):
    "Yield a folder with the clips of `many`; kill the processes that a test started"
    (tmp_path/'data').symlink_to(many[0][0].parent.parent)
    yield tmp_path
    while started: end(started.pop())

def kill(p, group):
    "Kill process `p`, with its workers if `group`"
    (os.killpg if group else os.kill)(p.pid, signal.SIGKILL)
    p.wait()

def wait_for_orphans(p, frames):
    "Wait until workers that outlive their parent have finished their clips, then kill them"
    quiet = 0
    while quiet < 5:
        time.sleep(.1)
        quiet = 0 if list(frames.rglob('.vidseq-*')) else quiet+1
    end(p)

def interrupt(place, expected, moment, group):
    "Kill an extraction after `moment` seconds and resume it; return the fraction that was done before"
    p = start(place)
    go(p)
    time.sleep(moment)
    kill(p, group)
    got = tree(place/'frames') if (place/'frames').exists() and group else {}
    # A file with its final name is complete
    assert all(got[k] == expected[k] for k in got if '.vidseq-' not in k)
    run(place)
    if not group: wait_for_orphans(p, place/'frames')
    assert tree(place/'frames') == expected
    return len(got)/len(expected)

@posix
@pytest.mark.parametrize('group', [True,False], ids=['all','parent'])
def test_killed_and_called_again(many, place, group): interrupt(place, many[1], .3, group)

@posix
@pytest.mark.slow
@pytest.mark.parametrize('group', [True,False], ids=['all','parent'])
@pytest.mark.parametrize('moment', [round(.1*(i+random.Random(i).random()), 3) for i in range(10)])
def test_killed_at_many_moments(many, place, group, moment):
    print(moment, interrupt(place, many[1], moment, group))

@posix
def test_a_worker_dies_once(many, place):
    (place/'once').write_text('class 1/clip 3.avi')
    run(place)
    assert not (place/'once').exists()
    assert tree(place/'frames') == many[1]

@posix
def test_a_deadly_clip_is_named_and_the_rest_done(many, place):
    lost = [f'class {i}/clip 3' for i in range(5)]
    (place/'always').write_text(''.join(f'{o}.avi\n' for o in lost))
    p = start(place)
    go(p)
    err = p.communicate(timeout=120)[1]
    for o in lost: assert f'data/{o}.avi,failed,0,,"the process that decoded it died' in err
    def is_lost(k): return any(k == o or k.startswith(f'{o}/') for o in lost)
    assert tree(place/'frames') == {k: v for k,v in many[1].items() if not is_lost(k)}

def _die_at_3(i):
    if i == 3: os.kill(os.getpid(), signal.SIGKILL)
    return i

def _fail_and_die(i):
    if i == 4: raise ZeroDivisionError
    return _die_at_3(i)

@posix
def test_many_tasks_left_when_a_worker_dies():
    "Check with frequent thread switches, because the pool's thread cancels tasks while the caller waits"
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    def run_all(f): return parallel_map(f, range(1000), n_workers=2, crashed=lambda i: -1)
    try:
        assert list(run_all(_die_at_3)) == [0,1,2,-1,*range(4,1000)]
        for _ in range(5):
            with pytest.raises(ZeroDivisionError): run_all(_fail_and_die)
    finally: sys.setswitchinterval(usual)

@posix
@pytest.mark.parametrize('order, force', [('up',0),('down',0),('up',1)])
def test_twice_at_once(many, place, order, force):
    if force: copytree(many[0][0].parent.parent.parent/'frames', place/'frames')
    ps = [start(place, force=force), start(place, order, force)]
    go(*ps)
    for p in ps: finish(p)
    assert tree(place/'frames') == many[1]


# A full disk

def full_disk(room, write=os.write):
    "Return a replacement of `os.write` that writes `room` bytes in total, then raises `ENOSPC`"
    def limited(handle, data):
        nonlocal room
        if not room: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = write(handle, data[:room])
        room -= n
        return n
    return limited

def test_full_disk(few, tmp_path, monkeypatch):
    clips,report,expected = few
    with monkeypatch.context() as m:
        m.setattr(os, 'write', full_disk(100_000))
        with pytest.raises(OSError, match='free some disk space and call again to resume') as e:
            extract_videos(clips, tmp_path/'frames', n_workers=0)
    assert e.value.errno == errno.ENOSPC and str(tmp_path/'frames') in str(e.value)
    got = tree(tmp_path/'frames')
    assert 5 < len(got) < 40 and all(expected[k] == v for k,v in got.items())
    with pytest.warns(UserWarning, match='2 of 12'):
        again = extract_videos(clips, tmp_path/'frames', n_workers=0)
    assert tree(tmp_path/'frames') == expected
    assert list(again.frames) == list(report.frames)

def test_no_room_for_the_report(few, tmp_path, monkeypatch):
    def to_csv(self, *args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(pd.DataFrame, 'to_csv', to_csv)
    message = 'writing the report. Complete folders are kept: free some disk space.*extract_videos.csv'
    with pytest.raises(OSError, match=message): extract_videos(few[0][:2], tmp_path/'frames', n_workers=0)
    assert os.listdir(tmp_path/'frames') == ['class 0']


# Folders and names

def test_names(tmp_path):
    names = [
        'two words', "it's", 'say "x"', '-x', '%d', 'a%03d', 'é 視頻', 'a:b', 'http:x', 'two\nlines', 'a.b',
        '[x]', '*', 'end ']
    if os.name == 'nt': names = [o for o in names if not set('":*\n') & set(o) and o == o.strip()]
    if sys.platform == 'linux': names.append(os.fsdecode(b'caf\xe9'))
    data = write(tmp_path/'a.avi', n=3).read_bytes()
    clips = [tmp_path/'data'/'class'/f'{o}.avi' for o in names]
    clips[0].parent.mkdir(parents=True)
    for clip in clips: clip.write_bytes(data)
    report = extract_videos(clips, n_workers=0)
    assert list(report.file) == [str(o) for o in clips] and set(report.status) == {'done'}
    folders = [k for k,v in tree(tmp_path/'data-frames').items() if v is None]
    assert {os.path.relpath(k, 'class') for k in folders} == {'.', *names}
    fname = tmp_path/'data-frames'/'extract_videos.csv'
    assert list(pd.read_csv(fname, encoding_errors='surrogateescape').file) == list(report.file)
    assert set(check_videos(clips, n_workers=0).status) == {'whole'}

@pytest.mark.parametrize('name', ['..avi', '...avi', '.vidseq-x.part.avi'])
def test_names_that_make_no_folder(tmp_path, name):
    clip = write(tmp_path/name, n=2)
    with pytest.raises(VideoError, match='avi: '): avi2frames(clip, tmp_path/'frames', root=tmp_path)
    assert not list(tmp_path.rglob('*.jpg'))

def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path(tmp_path.anchor)
    assert frames_folder('a/b/../c.avi', 'f') == Path('f')/'a'/'c'
    assert frames_folder('a/../b/c.avi', 'f', root='.') == Path('f')/'b'/'c'
    assert frames_folder(here/'a'/'c.avi', 'f') == Path('f')/'a'/'c' # the data set is the root of the disk
    assert frames_folder(here/'a'/'b'/'c.avi', 'f', root=here) == Path('f')/'a'/'b'/'c'
    with pytest.raises(ValueError, match='Give `path_frames`'): frames_folder(here/'a'/'c.avi')
    with pytest.raises(VideoError, match='not inside'): frames_folder('a/../x/c.avi', 'f', root='a')

def test_damaged_frames_do_not_end_the_batch(tmp_path):
    clips = make_clips(tmp_path/'data', 1, 3, 4, (64,48))
    extract_videos(clips, n_workers=0)
    (frames_folder(clips[1])/'0.jpg').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 3'): report = extract_videos(clips, n_workers=0)
    assert list(report.status) == ['skipped']*3 and 'force=True' in report.reason[1]
    assert list(extract_videos(clips, n_workers=0, force=True).status) == ['done']*3

def test_frames_are_read_while_they_are_replaced(tmp_path):
    "Check that a reader meets no missing and no mixed frames while `force` replaces the folder"
    clip = make_clips(tmp_path/'data', 1, 1, 60, (64,48))[0]
    avi2frames(clip)
    folder,tfm = frames_folder(clip),ImageTupleTfm(8)
    expected = [np.asarray(o) for o in tfm(folder)]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: [avi2frames(clip, force=True) for _ in range(12)])
        n = 0
        while not done.done() or not n:
            for a,b in zip(tfm(folder), expected, strict=True): assert np.array_equal(np.asarray(a), b)
            n += 1
        done.result()

def test_one_bad_pair_does_not_refuse_a_data_set(tmp_path):
    "Check that two videos of one name, and a folder named like a video, cost only these videos"
    clips = make_clips(tmp_path/'data', 1, 3, 4, (64,48))
    other = shutil.copy(clips[0], clips[0].with_suffix('.mp4'))
    (tmp_path/'data'/'class 0'/'clip 1').mkdir()
    inside = shutil.copy(clips[1], tmp_path/'data'/'class 0'/'clip 1'/'inner.avi')
    with pytest.warns(UserWarning, match='2 of 5'):
        report = extract_videos([*clips, other, inside], root=tmp_path/'data', n_workers=0)
    assert list(report.status) == ['done']*3+['failed']*2
    assert f'share a folder with those of {clips[0]}' in report.reason[3]
    assert 'inside the folder of frames' in report.reason[4] and 'rename' in report.reason[4]

def test_a_replaced_video_is_extracted_again(tmp_path):
    clips = make_clips(tmp_path/'data', 1, 3, 4, (64,48))
    extract_videos(clips, n_workers=0)
    shutil.copy(clips[1], clips[0]) # another video
    os.utime(clips[2], (0,0)) # the same video, copied
    report = extract_videos(clips, n_workers=0)
    assert list(report.status) == ['replaced','skipped','skipped']
    assert report.note[0] == 'extracted again: the video has changed' and not any(report.reason)
    for o in (0,1): assert (frames_folder(clips[o])/'3.jpg').read_bytes() == as_jpg(decode(clips[1])[3])

def test_a_folder_that_may_not_be_written(tmp_path):
    if os.name != 'posix' or os.geteuid() == 0: pytest.skip('this user may write everywhere')
    clips = make_clips(tmp_path/'data', 1, 1, 4, (64,48))
    (tmp_path/'frames').mkdir(mode=0o500)
    with pytest.raises(PermissionError, match='clip 0.avi'):
        extract_videos(clips, tmp_path/'frames', n_workers=0)


# Memory

measure = '''
import sys
from make_videos import peak
from vidseq.video.extract import avi2frames
from vidseq.video.decode import extract_frames
from vidseq.video.info import scan_video, video_info
what,video,out = sys.argv[1:]
if what == 'avi2frames': avi2frames(video, out, size=64)
if what == 'video_info': video_info(video)
if what == 'scan_video': scan_video(video)
if what == 'extract_frames':
    for _ in extract_frames(video): pass
print(peak())
'''

def peak_of(what, video, out): return float(run_python('-c', measure, what, video, out))

@pytest.fixture(scope='module')
def long_and_short(tmp_path_factory):
    "Write a video of 20,000 frames and one of 200"
    tmp = tmp_path_factory.mktemp('long')
    return [write(tmp/f'{n}.avi', n=n, w=160, h=120) for n in (20_000,200)]

@posix
@pytest.mark.slow
@pytest.mark.parametrize('what', ['avi2frames','video_info','scan_video','extract_frames'])
def test_memory_does_not_grow_with_length(long_and_short, tmp_path, what):
    long,short = (peak_of(what, o, tmp_path/o.stem) for o in long_and_short)
    print(what, long, short)
    assert long < 1.2*short
