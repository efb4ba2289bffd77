"Check that killed training resumes to the same weights, and the memory that long videos need"
import random
import subprocess
import sys
import time

import pytest
import torch

from conftest import run_python

program = '''from functools import partial
from fastai.vision.all import Path, aug_transforms, set_seed
import torch
from vidseq.data.block import VideoDataLoaders
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import RNNModel
from vidseq.train.learner import video_learner
from vidseq.train.resume import ResumeTraining
set_seed(0)
dls = VideoDataLoaders.from_folder('shapes', seq_len=4, image_size=32, bs=4, seed=0, num_workers=0,
                                   batch_tfms=aug_transforms())
model = partial(RNNModel, small_cnn, pretrained=False, hidden_size=8, grid=2, dropout=.3)
learn = video_learner(dls, model, cbs=ResumeTraining('training.pt'))
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, 1e-2)
torch.save(learn.model.state_dict(), 'trained.pt')
learn.resume_training.done()
'''


def run(folder):
    "Start a training in a child process"
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', program], cwd=folder)


def run_until_killed(folder, saved):
    "Kill a training a random time after it saves its state; return whether it was still running"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    def is_saved(): return saved.exists() and saved.stat().st_mtime_ns > before
    p = run(folder)
    while p.poll() is None and not is_saved(): time.sleep(.01)
    time.sleep(random.uniform(0, .3))
    running = p.poll() is None
    p.kill()
    p.wait()
    return running


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(tmp_path):
    "Kill training (SIGKILL, or its equivalent) after the first epoch and again later, then let it finish"
    from vidseq.datasets.shapes import moving_shapes
    for name in ('uninterrupted', 'killed'):
        moving_shapes(tmp_path/name/'shapes', n_groups=4, n_clips=2, seconds=1, size=(64,48), n_workers=0)
    assert run(tmp_path/'uninterrupted').wait() == 0
    saved = tmp_path/'killed'/'training.pt'
    kills = [run_until_killed(tmp_path/'killed', saved) for _ in range(2)]
    assert any(kills) and saved.exists()
    assert run(tmp_path/'killed').wait() == 0
    a,b = (torch.load(tmp_path/name/'trained.pt', weights_only=True) for name in ('uninterrupted','killed'))
    for k in a: assert torch.equal(a[k], b[k]), k
    assert not saved.exists()


holding = '''import sys
from filelock import FileLock
lock = FileLock('.training.pt.lock')
lock.acquire()
print('locked', flush=True)
sys.stdin.read()
'''


def test_two_processes_do_not_train_with_one_file(tmp_path):
    "Train while another process has the file, and again after that process was killed"
    from hostile_learn import train
    command = [sys.executable, '-c', holding]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'locked\n'
        with pytest.raises(ValueError, match='training.pt: another process is training with this file'):
            train(tmp_path/'training.pt')
        other.kill()
        other.wait()
        train(tmp_path/'training.pt', done=True)
    assert not list(tmp_path.iterdir())


watching = '''import sys, time
from functools import partial
from fastai.vision.all import resnet18
from make_videos import peak
import torch
from vidseq.data.block import VideoDataLoaders
from vidseq.deploy.timeline import predict_timeline
from vidseq.models.frame_models import RNNModel
from vidseq.train.learner import video_learner
torch.set_num_threads(1)
dls = VideoDataLoaders.from_folder('shapes', seq_len=8, image_size=112, bs=4, seed=0, num_workers=0)
learn = video_learner(dls, partial(RNNModel, resnet18, pretrained=False))
start = time.perf_counter()
timeline = predict_timeline(learn, sys.argv[1])
print(len(timeline), peak(), time.perf_counter()-start)
'''


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='peak memory is read from /proc')
def test_a_long_video_needs_the_memory_of_a_short_one(tmp_path):
    "Compare ten minutes of 320x240 pixels with ten seconds"
    from vidseq.datasets.shapes import draw_clip, moving_shapes
    from vidseq.video.decode import write_video
    moving_shapes(tmp_path/'shapes', n_groups=2, n_clips=1, seconds=1, size=(64,48), n_workers=0)
    frames = list(draw_clip('Grow', 0, 0, n=50))
    peaks = []
    for seconds in (10, 600):
        write_video(tmp_path/'film.avi', (frames[i%50] for i in range(25*seconds)), fps=25)
        out = run_python('-W', 'ignore', '-c', watching, 'film.avi', cwd=tmp_path)
        n,peak,took = out.split()[-3:]
        assert int(n) == seconds-1
        peaks.append(float(peak))
        print(f'{seconds} s of video: {took} s, {float(peak):.0f} MB')
    assert peaks[1] < 1.3*peaks[0], peaks
