"Run the lines of the original tutorials, unchanged but for a smaller network without pretrained weights."
import inspect
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import Learner, accuracy, get_files, parallel, resnet18, resnet34

from conftest import predict_exported
from vidseq.data.block import get_action_dataloaders
from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.loader import get_instances
from vidseq.datasets.archives import unrar
from vidseq.models import frame_models
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.frame_models import RNNModel, simple_splitter, SimpleModel
from vidseq.models.layers import TimeDistributed
from vidseq.train.learner import video_learner
from vidseq.video.decode import extract_frames
from vidseq.video.extract import avi2frames


@pytest.fixture(scope='module')
def path_frames(make_shapes):
    "Extract videos to the default `path_frames` of `avi2frames`, as in the tutorial"
    path = make_shapes((64,48))
    parallel(avi2frames, get_files(path, extensions='.avi'), n_workers=2)
    return path.with_name(f'{path.name}-frames')


def test_the_seeds_lines(path_frames):
    SimpleModel = partial(frame_models.SimpleModel, arch=resnet18, pretrained=False)

    dls = get_action_dataloaders(get_instances(path_frames), bs=32, image_size=64, seq_len=5)
    x,y = dls.one_batch()
    assert (type(x), len(x), x[0].shape, y.shape) == (ImageTuple, 5, (32,3,64,64), (32,))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # fp16 on a machine without CUDA: fastai warns that it has no effect
        learn = Learner(dls, SimpleModel(n_out=dls.c), metrics=[accuracy], splitter=simple_splitter).to_fp16()
        learn.fine_tune(1, 1e-3, freeze_epochs=1)
    assert learn.model(x).shape == (32,6)
    assert len(learn.recorder.values) == 1 and all(np.isfinite(learn.recorder.values[0]))


# The parameters that the tutorials pass by position or name, with their defaults
signatures = {
    avi2frames: 'video_path, path_frames, force=False',
    extract_frames: 'video_path',
    unrar: 'fname, dest',
    get_instances: 'path',
    get_action_dataloaders: 'files, bs=8, image_size=64, seq_len=20, val_idxs=None',
    ImageTupleTfm: 'seq_len=20',
    TimeDistributed: 'module, low_mem=False, tdim=1',
    SimpleModel: 'arch=resnet34, n_out=101',
    RNNModel: 'arch=resnet34, n_out=101, num_rnn_layers=1'}
constants = {'resnet34': resnet34, 'False': False, 'None': None}


def test_seed_signatures():
    "Check that the first parameters are those of the tutorials, with the same defaults"
    for f,expected in signatures.items():
        params = [p for p in inspect.signature(f).parameters.values() if p.name != 'self']
        for p,want in zip(params, expected.split(', ')):
            name,_,default = want.partition('=')
            assert p.name == name, f
            if default.isdigit(): assert p.default == int(default), (f, name)
            elif default: assert p.default == constants[default], (f, name)


def test_export_and_load_in_a_fresh_process(path_frames, tmp_path):
    dls = get_action_dataloaders(get_instances(path_frames), bs=8, image_size=32, seq_len=4, num_workers=0)
    learn = video_learner(dls, Conv3dModel)
    learn.path = tmp_path
    learn.export()
    item = get_instances(path_frames)[3]
    with learn.no_bar(): _,_,probs = learn.predict(item)
    got, = predict_exported(tmp_path/'export.pkl', [item])
    assert got == pytest.approx(probs.tolist(), abs=1e-5)


def test_workers_give_the_same_validation_batches(path_frames):
    files,batches = get_instances(path_frames),[]
    for n in (0, 2):
        dls = get_action_dataloaders(files, bs=8, image_size=32, seq_len=4, seed=3, num_workers=n)
        batches.append([(torch.stack(tuple(x)), y) for x,y in dls.valid])
    for (x0,y0),(x2,y2) in zip(*batches, strict=True): assert torch.equal(x0, x2) and torch.equal(y0, y2)
