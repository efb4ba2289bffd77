"""Send signals to commands and to a notebook kernel while they work: they end soon, the next run completes.

The output of `pytest -s` has the measured times. Each run is interrupted at its first sign of progress.
"""
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import child_env

psutil = pytest.importorskip('psutil')
posix = pytest.mark.skipif(os.name != 'posix', reason='sends signals to processes')
pytestmark = [pytest.mark.slow, posix]

repeats = range(int(os.environ.get('VIDSEQ_TEST_REPEATS', 1)))
codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Write 60 videos, which two processes extract in a second or more"
    from vidseq.datasets.shapes import moving_shapes
    path = tmp_path_factory.mktemp('signals')/'data'
    return moving_shapes(path, n_groups=5, n_clips=2, seconds=4, size=(240,180))

@pytest.fixture(scope='module')
def small(make_shapes): return make_shapes((32,32))

def tree(folder):
    paths = (o for o in folder.rglob('*') if o.is_file())
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in paths}

@pytest.fixture(scope='module')
def frames(data, tmp_path_factory):
    "Return the files of an extraction that was not interrupted"
    from vidseq.cli import main
    out = tmp_path_factory.mktemp('whole')/'frames'
    assert main(['extract', str(data), '--out', str(out)]) == 0
    return tree(out)

def accept_ctrl_c():
    "Receive SIGINT, which a shell ignores in processes that it starts in the background"
    signal.signal(signal.SIGINT, signal.SIG_DFL)

def begin(*args):
    "Start the command in its own process group"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, '-m', 'vidseq.cli', *map(str, args)]
    return subprocess.Popen(command, env=child_env(), start_new_session=True,
                            preexec_fn=accept_ctrl_c, **pipes)

def wait_for_line(p, word):
    "Read the messages of `p` until one begins with `word`"
    read = []
    for line in p.stderr:
        read.append(line)
        if line.startswith(word): return
    raise AssertionError(f'no {word!r} in {read}')

def still_running(processes):
    return [o for o in processes if o.is_running() and o.status() != psutil.STATUS_ZOMBIE]

def stop(p, number, to_group):
    "Send a signal; return the seconds until the process and all of its children have ended"
    processes = [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]
    start = time.monotonic()
    (os.killpg if to_group else os.kill)(p.pid, number)
    err = p.communicate(timeout=120)[1]
    seconds = time.monotonic()-start
    while (left := still_running(processes)) and time.monotonic()-start < 60: time.sleep(.02)
    print(f'{number.name}: output closed after {seconds:.2f} s, '
          f'{len(left)} of {len(processes)} processes left after {time.monotonic()-start:.2f} s')
    assert p.returncode == codes[number] and 'Traceback' not in err, err
    assert not left

def interrupt(args, word, number, to_group):
    p = begin(*args)
    try:
        wait_for_line(p, word)
        stop(p, number, to_group)
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)

signals = pytest.mark.parametrize('number, to_group', [
    (signal.SIGINT,True), (signal.SIGINT,False), (signal.SIGTERM,False), (signal.SIGTERM,True),
    (signal.SIGKILL,False)], ids=['ctrl-c','int','term','term-all','kill'])

@signals
@pytest.mark.parametrize('i', repeats)
def test_extract(data, frames, tmp_path, number, to_group, i):
    from vidseq.cli import main
    args = 'extract', data, '--out', tmp_path/'frames', '--workers', 2
    interrupt(args, 'extracted: ', number, to_group)
    got = tree(tmp_path/'frames')
    n_done = len({o.rpartition('/')[0] for o in got})
    print(n_done, 'of 60 videos extracted, the signal came after 6')
    assert 6 <= n_done <= 30 and all(frames[k] == v for k,v in got.items() if '.vidseq' not in k)
    if number != signal.SIGKILL: assert not [o for o in got if '.vidseq' in o]
    assert main([str(o) for o in args]) == 0
    again = tree(tmp_path/'frames')
    assert {k: v for k,v in again.items() if k != 'extract_videos.csv'} == {
        k: v for k,v in frames.items() if k != 'extract_videos.csv'}

@signals
@pytest.mark.parametrize('i', repeats)
def test_check(data, number, to_group, i):
    interrupt(('check', data, '--workers', 2), 'checked: ', number, to_group)

@signals
@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('i', repeats)
def test_train(small, tmp_path, number, to_group, workers, i):
    options = '--seconds', 1200, '--size', 32, '--workers', workers
    args = 'train', small, '--scratch', '--out', tmp_path/'out', *options
    interrupt(args, 'epoch 0', number, to_group)
    assert not (tmp_path/'out'/'index.html').exists()

notebook = '''
import sys
from vidseq.video.extract import extract_videos
from vidseq.video.decode import get_videos
extract_videos(get_videos({data!r}), {out!r}, n_workers=2)
'''

def reply_to(kc, request):
    "Return the reply of a kernel to the message with the identifier `request`"
    while True:
        message = kc.get_shell_msg(timeout=120)
        if message['parent_header'].get('msg_id') == request: return message['content']

@pytest.mark.parametrize('i', repeats)
def test_interrupt_in_a_notebook(data, frames, tmp_path, i):
    "Check the interrupt button: the cell ends with `KeyboardInterrupt`, and running it again completes"
    manager = pytest.importorskip('jupyter_client.manager')
    km,kc = manager.start_new_kernel(env=child_env())
    try:
        code = notebook.format(data=str(data), out=str(tmp_path/'frames'))
        request = kc.execute(code)
        while len(list((tmp_path/'frames').glob('*/*'))) < 6: time.sleep(.02)
        start = time.monotonic()
        km.interrupt_kernel()
        reply = reply_to(kc, request)
        print(f'cell ended after {time.monotonic()-start:.2f} s')
        assert reply['ename'] == 'KeyboardInterrupt'
        kernel = psutil.Process(km.provisioner.process.pid)
        assert not still_running(kernel.children(recursive=True))
        n_done = len(list((tmp_path/'frames').glob('*/*')))
        print(n_done, 'of 60 videos extracted')
        assert n_done < 40 and not list((tmp_path/'frames').rglob('.vidseq*'))
        assert reply_to(kc, kc.execute(code))['status'] == 'ok'
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    again = tree(tmp_path/'frames')
    assert again.keys() == frames.keys()
