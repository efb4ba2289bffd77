"Test training in two processes against one process: the same steps give the same losses, scores and weights."
import json

import pytest

from conftest import run_python

pytest.importorskip('accelerate')

# Each of two processes trains on one half of the shuffled clips, so step k has the k-th `bs` clips of both
# halves. The single process gets the clips in this order.
program = '''
import json, sys, warnings
warnings.simplefilter("ignore")
from fastai.vision.all import *
from vidseq.all import *
torch.set_num_threads(1)
path,out,resume = sys.argv[1:]
def alternate(idxs):
    n,bs = len(idxs)//2,8
    return [i for k in range(0, n, bs) for half in (idxs[:n],idxs[n:]) for i in half[k:k+bs]]
class InHalves(ClipDL):
    def shuffle_fn(self, idxs): return alternate(super().shuffle_fn(idxs))
set_seed(3)
alone = num_distrib() < 2
kwargs = dict(seq_len=4, sampler=first_frames, image_size=32, seed=0, num_workers=0)
dls = VideoDataLoaders.from_folder(path, bs=16 if alone else 8, device=torch.device("cpu"), **kwargs)
if alone: dls.loaders[0].__class__ = InHalves
learn = video_learner(dls, small_timesformer, cbs=ResumeTraining(resume))
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx():
    learn.fit_one_cycle(3, 1e-2)
    curve = [list(map(float, o)) for o in learn.recorder.values]
    preds,targs = learn.get_preds()
    together = evaluate(learn, n_views=2).to_dict()
alone = evaluate(learn, n_views=2).to_dict()
weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
res = dict(curve=curve, preds=preds.tolist(), targs=targs.tolist(), together=together, alone=alone,
           norm=float(weights.norm()), some=weights[::97].tolist())
if not rank_distrib(): Path(out).write_text(json.dumps(res))
'''


def launch(n, *args):
    "Run Python in `n` processes of accelerate with one thread each and return what they print"
    command = '-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes'.split()
    start = [*command, n] if n > 1 else []
    return run_python(*start, *args, env=dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1'))


@pytest.fixture
def shapes(make_shapes): return make_shapes((32,32)) # as large as the model's input, so no random crop


@pytest.mark.slow
def test_two_processes_are_as_one(shapes, tmp_path):
    (tmp_path/'train.py').write_text(program)
    found = []
    for n in (1, 2):
        launch(n, tmp_path/'train.py', shapes, tmp_path/f'{n}.json', tmp_path/f'{n}.pt')
        found.append(json.loads((tmp_path/f'{n}.json').read_text()))
    one,two = found
    assert len(one['curve']) == 3 and len(one['preds']) == 12
    for a,b in zip(one['curve'], two['curve'], strict=True):
        assert b[1:] == pytest.approx(a[1:], abs=1e-4) # loss and accuracy of the validation set
    assert two['targs'] == one['targs']
    for a,b in zip(one['preds'], two['preds'], strict=True): assert b == pytest.approx(a, abs=1e-4)
    assert two['norm'] == pytest.approx(one['norm'], rel=1e-5)
    assert two['some'] == pytest.approx(one['some'], abs=1e-3)
    for o in (one['alone'], two['together'], two['alone']):
        for k,v in one['together'].items(): assert o[k] == pytest.approx(v, abs=1e-6), k
    assert one['curve'][0] != one['curve'][2]


@pytest.mark.slow
def test_the_train_command_in_two_processes(shapes, tmp_path):
    out = tmp_path/'out'
    options = '--seconds 12 --size 32 --frames 4 --bs 8'.split()
    lines = launch(2, '-m', 'vidseq.cli', 'train', shapes, '--out', out, *options).splitlines()
    assert sum('Best model: ' in o for o in lines) == 1 # only the first process prints
    scores = json.loads((out/'scores.json').read_text())
    assert scores['valid_clips'] == 12 and len(scores['models']) == 4
    for name in ('index.html', 'model/config.json', 'model/model.safetensors'): assert (out/name).is_file()
    res = run_python('-m', 'vidseq.cli', 'evaluate', out/'model', shapes, '--json')
    assert json.loads(res)['videos'] == 60
