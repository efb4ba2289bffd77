"Two processes against one: the same steps, so the same losses, scores and weights."
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip('accelerate')

# In two processes each takes one half of the shuffled clips, so step k has the k-th `bs` of either half. One process is given them in that order.
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
dls = VideoDataLoaders.from_folder(path, seq_len=4, sampler=first_frames, image_size=32, bs=16 if alone else 8, seed=0, num_workers=0, device=torch.device("cpu"))
if alone: dls.loaders[0].__class__ = InHalves
learn = video_learner(dls, small_timesformer, cbs=ResumeTraining(resume))
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx():
    learn.fit_one_cycle(3, 1e-2)
    curve = [list(map(float, o)) for o in learn.recorder.values]
    preds,targs = learn.get_preds()
    together = evaluate(learn, n_views=2).to_dict()
weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
res = dict(curve=curve, preds=preds.tolist(), targs=targs.tolist(), together=together, alone=evaluate(learn, n_views=2).to_dict(), norm=float(weights.norm()), some=weights[::97].tolist())
if not rank_distrib(): Path(out).write_text(json.dumps(res))
'''


def launch(n, *args):
    start = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', str(n), '--main_process_port', '0'] if n > 1 else []
    res = subprocess.run([sys.executable, *start, *map(str, args)], capture_output=True, text=True, env=os.environ | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1'))
    assert res.returncode == 0, res.stderr[-6000:]
    return res


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    from vidseq.shapes import moving_shapes
    return moving_shapes(tmp_path_factory.mktemp('distributed')/'shapes', n_groups=5, n_clips=2, seconds=.6, size=(32,32), n_workers=0)


def test_two_processes_are_as_one(shapes, tmp_path):
    (tmp_path/'train.py').write_text(program)
    found = []
    for n in (1, 2):
        launch(n, tmp_path/'train.py', shapes, tmp_path/f'{n}.json', tmp_path/f'{n}.pt')
        found.append(json.loads((tmp_path/f'{n}.json').read_text()))
    one,two = found
    assert len(one['curve']) == 3 and len(one['preds']) == 12
    for a,b in zip(one['curve'], two['curve'], strict=True): assert b[1:] == pytest.approx(a[1:], abs=1e-4)  # loss and accuracy of the validation set
    assert two['targs'] == one['targs']
    for a,b in zip(one['preds'], two['preds'], strict=True): assert b == pytest.approx(a, abs=1e-4)
    assert two['norm'] == pytest.approx(one['norm'], rel=1e-5) and two['some'] == pytest.approx(one['some'], abs=1e-3)
    for o in (one['alone'], two['together'], two['alone']):
        for k,v in one['together'].items(): assert o[k] == pytest.approx(v, abs=1e-6), k
    assert one['curve'][0] != one['curve'][2]


@pytest.mark.slow
def test_the_train_command_in_two_processes(shapes, tmp_path):
    res = launch(2, '-m', 'vidseq.cli', 'train', shapes, '--out', tmp_path/'out', '--seconds', '3', '--size', '32', '--frames', '4', '--bs', '8')
    lines = res.stdout.splitlines()
    assert sum('is the best' in o for o in lines) == 1 and sum('Split by group' in o for o in lines) == 1  # the first process speaks for both
    scores = json.loads((tmp_path/'out'/'scores.json').read_text())
    assert scores['valid_clips'] == 12 and len(scores['models']) == 4
    for name in ('index.html', 'model.json', 'model.safetensors'): assert (tmp_path/'out'/name).is_file()
    res = subprocess.run([sys.executable, '-m', 'vidseq.cli', 'evaluate', tmp_path/'out'/'model.json', shapes, '--json'], capture_output=True, text=True)
    assert res.returncode == 0 and json.loads(res.stdout)['videos'] == 60
