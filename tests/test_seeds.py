"The tutorials' own lines, as printed but for a smaller network without pretrained weights."
import inspect
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import Learner, accuracy, get_files, parallel, resnet18, resnet34

from vidseq import models
from vidseq.all import (Conv3dModel, ImageTuple, ImageTupleTfm, RNNModel, SimpleModel, TimeDistributed, avi2frames, extract_frames, get_action_dataloaders, get_instances,
                        moving_shapes, simple_splitter, unrar, video_learner)


@pytest.fixture(scope='module')
def path_frames(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('seeds')
    path = moving_shapes(tmp/'shapes', n_groups=5, n_clips=2, seconds=.6, size=(64,48))
    parallel(avi2frames, get_files(path, extensions='.avi'), n_workers=2)  # the default of `path_frames`, as printed
    return tmp/'shapes-frames'


def test_the_seeds_lines(path_frames):
    SimpleModel = partial(models.SimpleModel, arch=resnet18, pretrained=False)

    dls = get_action_dataloaders(get_instances(path_frames), bs=32, image_size=64, seq_len=5)
    x,y = dls.one_batch()
    assert (type(x), len(x), x[0].shape, y.shape) == (ImageTuple, 5, (32,3,64,64), (32,))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # fp16 on a machine without CUDA: fastai says that it has no effect
        learn = Learner(dls, SimpleModel(n_out=dls.c), metrics=[accuracy], splitter=simple_splitter).to_fp16()
        learn.fine_tune(1, 1e-3, freeze_epochs=1)
    assert learn.model(x).shape == (32,6)
    assert len(learn.recorder.values) == 1 and all(np.isfinite(learn.recorder.values[0]))


def test_seed_signatures():
    "What the seeds call by position or name comes first, with the seeds' defaults"
    first_params = {avi2frames: 'video_path, path_frames, force=False', extract_frames: 'video_path', unrar: 'fname, dest', get_instances: 'path',
        get_action_dataloaders: 'files, bs=8, image_size=64, seq_len=20, val_idxs=None', ImageTupleTfm: 'seq_len=20', TimeDistributed: 'module, low_mem=False, tdim=1',
        SimpleModel: "arch=resnet34, n_out=101", RNNModel: "arch=resnet34, n_out=101, num_rnn_layers=1"}
    for f,expected in first_params.items():
        params = [p for p in inspect.signature(f).parameters.values() if p.name != 'self']
        for p,want in zip(params, expected.split(', ')):
            name,_,default = want.partition('=')
            assert p.name == name, f
            if default: assert p.default == {'resnet34': resnet34, 'False': False, 'None': None}.get(default, default if not default.isdigit() else int(default)), (f, name)


def test_export_and_load_in_a_fresh_process(path_frames, tmp_path):
    dls = get_action_dataloaders(get_instances(path_frames), bs=8, image_size=32, seq_len=4, num_workers=0)
    learn = video_learner(dls, Conv3dModel)
    learn.path = tmp_path
    learn.export()
    item = get_instances(path_frames)[3]
    with learn.no_bar(): _,_,probs = learn.predict(item)
    code = f'''
import warnings; warnings.simplefilter('ignore')
from fastai.vision.all import load_learner, Path
learn = load_learner({str(tmp_path/"export.pkl")!r})
with learn.no_bar(): print(*learn.predict(Path({str(item)!r}))[2].tolist())'''
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode == 0, res.stderr
    assert [float(o) for o in res.stdout.split()] == pytest.approx(probs.tolist(), abs=1e-5)


def test_workers_give_the_same_validation_batches(path_frames):
    batches = []
    for n in (0, 2):
        dls = get_action_dataloaders(get_instances(path_frames), bs=8, image_size=32, seq_len=4, seed=3, num_workers=n)
        batches.append([(torch.stack(tuple(x)), y) for x,y in dls.valid])
    for (x0,y0),(x2,y2) in zip(*batches, strict=True): assert torch.equal(x0, x2) and torch.equal(y0, y2)
