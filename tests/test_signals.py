"""Test that Ctrl-C, SIGTERM and the death of the parent stop all processes, and that the next run completes.

Items that never end show that processes were stopped: no test depends on time. The output of a process
reaches its end when it and all of its workers have closed it, so reading it to the end waits for all of them.
"""
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import child_env

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='sends signals to processes')

script = '''
import multiprocessing, os, signal, sys, time
from pathlib import Path
from vidseq.files import atomic_folder
from vidseq.parallel import parallel_map

def write(i):
    "Write a folder; items from 4 never end, unless the file `free` exists"
    with atomic_folder(Path('out')/f'{i}') as folder:
        (folder/'a').write_text(f'{i}')
        Path(f'started-{i}').touch()
        if i == 9 and Path('fail').exists(): raise ValueError('item 9')
        while i > 3 and not Path('free').exists(): time.sleep(.01)
        (folder/'b').write_text(f'{i}')
    return i

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    if sys.argv[2] == 'exit': signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try: print(list(parallel_map(write, range(12), n_workers=2)))
    except KeyboardInterrupt: sys.exit(130)
'''

default = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
others = [o for o in multiprocessing.get_all_start_methods() if o != default]
methods = [default, *(pytest.param(o, marks=pytest.mark.slow) for o in others)]
everything = {f'{i}/{o}' for i in range(12) for o in 'ab'}


def accept_ctrl_c():
    "Receive SIGINT, which a shell ignores in processes that it starts in the background"
    signal.signal(signal.SIGINT, signal.SIG_DFL)

def start(folder, method, handler='none'):
    "Start the script in its own process group"
    (folder/'run.py').write_text(script)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, 'run.py', method, handler]
    return subprocess.Popen(command, cwd=folder, env=child_env(), start_new_session=True,
                            preexec_fn=accept_ctrl_c, **pipes)

def wait_for(*paths):
    "Wait until the files exist"
    deadline = time.monotonic()+120
    while not all(o.exists() for o in paths):
        assert time.monotonic() < deadline, f'{paths} did not appear'
        time.sleep(.01)

def wait_for_all(p):
    "Wait until `p` and all processes that it started have ended; return their output"
    try: return p.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        raise

def files(folder):
    out = folder/'out'
    return {o.relative_to(out).as_posix() for o in out.rglob('*') if o.is_file()}

def complete(folder, method):
    "Run again without items that never end, and check that everything is there"
    (folder/'free').touch()
    (folder/'fail').unlink(missing_ok=True)
    p = start(folder, method)
    out,err = wait_for_all(p)
    assert p.returncode == 0 and str(list(range(12))) in out, err
    assert files(folder) == everything

def interrupt(folder, method, number, group, handler='none'):
    "Send a signal while two items never end; return the exit code and the errors of the process"
    p = start(folder, method, handler)
    wait_for(folder/'started-4', folder/'started-5')
    (os.killpg if group else os.kill)(p.pid, number)
    err = wait_for_all(p)[1]
    return p.returncode,err


@pytest.mark.parametrize('method', methods)
@pytest.mark.parametrize('group', [True,False], ids=['group','parent'])
def test_ctrl_c(tmp_path, method, group):
    code,err = interrupt(tmp_path, method, signal.SIGINT, group)
    assert (code, err) == (130, '')
    assert files(tmp_path) == {f'{i}/{o}' for i in range(4) for o in 'ab'} # nothing more, no hidden files
    assert not (tmp_path/'started-6').exists()
    complete(tmp_path, method)

@pytest.mark.parametrize('method', methods)
def test_sigterm(tmp_path, method):
    code,_ = interrupt(tmp_path, method, signal.SIGTERM, group=False, handler='exit')
    assert code == 143
    assert files(tmp_path) == {f'{i}/{o}' for i in range(4) for o in 'ab'}
    complete(tmp_path, method)

@pytest.mark.parametrize('method', methods)
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, method, number):
    code,_ = interrupt(tmp_path, method, number, group=False)
    assert code == -number
    assert {f'{i}/{o}' for i in range(4) for o in 'ab'} <= files(tmp_path)
    assert not (tmp_path/'out'/'4').exists()
    complete(tmp_path, method)

@pytest.mark.parametrize('method', methods)
def test_an_exception_stops_the_others(tmp_path, method):
    (tmp_path/'free').touch()
    (tmp_path/'fail').touch()
    p = start(tmp_path, method)
    err = wait_for_all(p)[1]
    assert p.returncode == 1 and 'item 9' in err
    assert not [o for o in files(tmp_path) if o.startswith(('.','9'))]
    complete(tmp_path, method)

@pytest.mark.parametrize('method', methods)
def test_a_killed_worker_costs_only_its_item(tmp_path, method):
    "Check that the item of a killed worker is retried, while the item of the other worker continues"
    p = start(tmp_path, method)
    wait_for(tmp_path/'started-4', tmp_path/'started-5')
    (tmp_path/'started-4').unlink()
    (tmp_path/'started-5').unlink()
    kill_one_worker(p)
    wait_for(tmp_path/'started-6')
    (tmp_path/'free').touch()
    out,err = wait_for_all(p)
    assert p.returncode == 0 and str(list(range(12))) in out, err
    assert len(list(tmp_path.glob('started-[45]'))) == 1
    complete(tmp_path, method)

def kill_one_worker(p):
    psutil = pytest.importorskip('psutil')
    [worker,*_] = [o for o in psutil.Process(p.pid).children(recursive=True) if len(o.threads()) > 1]
    worker.kill()

without_guard = '''
import multiprocessing
from vidseq.parallel import parallel_map
multiprocessing.set_start_method('spawn', force=True)
parallel_map(abs, [1,2], n_workers=2)
'''

def test_a_script_without_guard_is_told(tmp_path):
    (tmp_path/'run.py').write_text(without_guard)
    res = subprocess.run([sys.executable, 'run.py'], cwd=tmp_path, env=child_env(), capture_output=True,
                         text=True)
    assert res.returncode == 1 and 'if __name__ == "__main__":' in res.stderr.splitlines()[-1]

ignored = '''
import signal, sys, time
import vidseq.cli
from vidseq.commands import videos
class Deleted:
    def __del__(self): signal.raise_signal(getattr(signal, sys.argv[1]))
def work(args, out):
    "Receive a signal where Python ignores exceptions, then work forever"
    Deleted()
    while True: time.sleep(.01)
work.command = videos._info.command
videos._info = work
sys.exit(vidseq.cli.main(['info', 'a.avi']))
'''

@pytest.mark.parametrize('name, code', [('SIGINT',130), ('SIGTERM',143)])
def test_no_signal_is_lost(name, code):
    "Check a command whose signal arrives while an object is deleted"
    p = subprocess.Popen([sys.executable, '-c', ignored, name], env=child_env(), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=accept_ctrl_c)
    out,err = wait_for_all(p)
    assert (p.returncode, out, err) == (code, '', '')
