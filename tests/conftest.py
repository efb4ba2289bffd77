"Share fixtures and helpers between test files. Heavy modules are imported where they are used."
import io
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import vidseq

os.environ['MPLBACKEND'] = 'Agg' # figures need no display, in child processes too


@pytest.fixture(scope='session')
def make_shapes(tmp_path_factory):
    "Return a function that generates 60 videos of 15 frames once per size; never change the files"
    from vidseq.datasets.shapes import moving_shapes
    folder = tmp_path_factory.mktemp('moving_shapes')
    def make(size): # width and height
        path = folder/f'{size[0]}x{size[1]}'
        return moving_shapes(path, n_groups=5, n_clips=2, seconds=.6, size=size, n_workers=0)
    return make


@pytest.fixture
def seeded():
    "Seed torch's generator"
    import torch
    torch.manual_seed(0)


# Child processes

def child_env():
    "Return an environment in which a child process imports the tested vidseq and the modules of tests/"
    paths = [Path(vidseq.__file__).parent.parent, Path(__file__).parent, os.environ.get('PYTHONPATH')]
    return os.environ | dict(PYTHONPATH=os.pathsep.join(str(o) for o in paths if o))


def run_python(*args, env=None, **kwargs):
    "Run Python with `args` in a child process and return its output; fail with its errors"
    command = [sys.executable, *map(str, args)]
    res = subprocess.run(command, capture_output=True, text=True, env=child_env() | (env or {}), **kwargs)
    assert res.returncode == 0, res.stderr[-6000:]
    return res.stdout


def run_command(*args):
    "Run a `vidseq` command in this process; return its exit code, stdout and stderr"
    from vidseq.cli import main
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main([str(o) for o in args])
    return code,out.getvalue(),err.getvalue()


load_and_predict = '''
import sys, warnings
warnings.simplefilter('ignore')
from fastai.vision.all import load_learner, Path
learn = load_learner(sys.argv[1])
with learn.no_bar():
    for o in sys.argv[2:]: print(*learn.predict(Path(o))[2].tolist())
'''


def predict_exported(fname, items):
    "Load an exported learner in a new process that imports only fastai; return its probabilities of `items`"
    out = run_python('-c', load_and_predict, fname, *items, cwd=Path(fname).parent)
    return [[float(o) for o in line.split()] for line in out.splitlines()]


# Networks

def assert_near(got, want, tol=1e-4, least=0.):
    "Check that the error is at most `tol` times the largest absolute value of `want`, or times `least`"
    import torch
    scale = max(least, float(want.detach().abs().max()))
    torch.testing.assert_close(got, want, rtol=0, atol=tol*scale)


def calibrate_batchnorm(model, x):
    "Set the statistics of BatchNorm layers to those of `x`; return the model in eval mode"
    import torch
    from fastai.vision.all import bn_types
    norms = [m for m in model.modules() if isinstance(m, bn_types)]
    momenta = [m.momentum for m in norms]
    for m in norms: m.momentum = 1.
    with torch.no_grad():
        if norms: model.train()(x)
    for m,momentum in zip(norms, momenta, strict=True): m.momentum = momentum
    return model.eval()


@contextmanager
def saved_for_backward(model):
    "Collect address -> bytes of what autograd saves for the backward pass besides parameters and buffers"
    import torch
    own = {o.untyped_storage().data_ptr() for o in (*model.parameters(), *model.buffers())}
    sizes = {}
    def pack(o):
        storage = o.untyped_storage()
        if storage.data_ptr() not in own: sizes[storage.data_ptr()] = storage.nbytes()
        return o
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda o: o): yield sizes
