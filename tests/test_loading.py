"Loading a stranger's model: no other file, no network, memory in proportion to the file, the same answers"
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat, FocalLossFlat, L1LossFlat, LabelSmoothingCrossEntropyFlat
from fastai.vision.all import (CategoryBlock, CropPad, CrossEntropyLossFlat, Learner, MultiCategoryBlock,
                               PILImageBW, RandomResizedCrop, Resize, aug_transforms, nn)
from torchvision.models import VisionTransformer

from conftest import calibrate_batchnorm, run_python
from saved_models import answers
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import first_frames, window_frames
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import AttentionPool
from vidseq.models.timesformer import small_timesformer
from vidseq.models.vit import TimeSformerViT
from vidseq.train.learner import video_learner
from vidseq.video.decode import get_videos

# The same answers as the learner, for every kind of label, loss, image and model

def custom_loss(pred, targ): return pred.sum()


many = dict(label=lambda i: [['a','b'], ['b','c'], ['a']][i%3])
encoded = dict(label=lambda i: [i%2, 1, (i+1)%2], y_block=MultiCategoryBlock(encoded=True,
    vocab=['x','y','z']))
number,numbers = dict(label=lambda i: i/10.), dict(label=lambda i: [i/10., 1.-i])
gray = dict(img_cls=PILImageBW, model=partial(Conv3dModel, n_in=1, width=2))
vit = partial(VisionTransformer, 32, 8, 1, 2, 32, 64)
kinds = dict(
    plain={}, whole_numbers=dict(label=lambda i: i%3*10, y_block=CategoryBlock), true_false=dict(
        label=lambda i: i%2 == 0, y_block=CategoryBlock), order=dict(vocab=['c2','c0','c1']),
    smoothing=dict(loss=CrossEntropyLossFlat(label_smoothing=.2, weight=torch.tensor([1.,2.,3.]))),
    focal=dict(loss=FocalLossFlat(gamma=3.)), smooth_flat=dict(loss=LabelSmoothingCrossEntropyFlat(eps=.3)),
    torch_loss=dict(loss=nn.CrossEntropyLoss()), loss_function=dict(loss=F.cross_entropy),
    partial_loss=dict(loss=partial(F.cross_entropy, label_smoothing=.1)), custom=dict(loss=custom_loss),
    log_probabilities=dict(loss=nn.NLLLoss()), plain_learner=dict(loss=custom_loss, create=Learner),
    many=many, many_thresh=many | dict(loss=BCEWithLogitsLossFlat(thresh=.4)),
    many_torch=many | dict(loss=nn.BCEWithLogitsLoss()), many_custom=many | dict(loss=custom_loss),
    encoded=encoded, number=number, numbers=numbers | dict(loss=L1LossFlat()),
    number_huber=number | dict(loss=nn.HuberLoss()), gray=gray, gray_many=gray | many,
    resized=dict(item_tfms=Resize((24,40), 'squish'), batch_tfms=aug_transforms(size=(20,32))),
    padded=dict(item_tfms=CropPad((40,72), pad_mode='zeros'), normalize=False),
    random_crop=dict(item_tfms=RandomResizedCrop(28, min_scale=.5)), small=dict(size=20),
    window=dict(sampler=partial(window_frames, seconds=(.1,.2))),
    first=dict(sampler=partial(first_frames, step=2)),
    attention=dict(model=partial(SimpleModel, small_cnn, pool=AttentionPool, pretrained=False)),
    gru=dict(model=partial(RNNModel, small_cnn, rnn=nn.GRU, hidden_size=8, grid=2, pretrained=False)),
    convlstm=dict(model=partial(ConvLSTMModel, small_cnn, hidden_size=4, pretrained=False)),
    timesformer=dict(model=small_timesformer), vit=dict(model=partial(TimeSformerViT, vit, pretrained=False)),
    timm=dict(model=partial(SimpleModel, 'mobilenetv3_small_050', pretrained=False)))


small_conv3d = partial(Conv3dModel, width=2)


def make_learner(path, label=lambda i: f'c{i%3}', loss=None, model=small_conv3d, create=video_learner,
                 **kwargs):
    "Return an untrained learner for 12 videos"
    kwargs = dict(item_tfms=Resize(32)) | kwargs
    videos = get_videos(path)[:12]
    labels = [label(i) for i in range(len(videos))]
    def splitter(items): return list(range(8)), list(range(8,12))
    dls = VideoDataLoaders.from_lists(path, videos, labels, seq_len=4, bs=4, num_workers=0, splitter=splitter,
                                      **kwargs)
    torch.manual_seed(1)
    if create is Learner: return Learner(dls, model(n_out=dls.c), loss_func=loss, metrics=[])
    return create(dls, model, loss_func=loss, metrics=[])


def save_all(path, folder, names):
    "Save a learner of each kind, and return its answers"
    res = {}
    for name in names:
        learn = make_learner(path, **kinds[name])
        calibrate_batchnorm(learn.model, learn.dls.one_batch()[0])
        save_pretrained(learn, folder/name)
        res[name] = answers(learn, get_videos(path)[:3])
    return res


def assert_same(got, want, name):
    "Compare nested lists: text exactly, numbers to 1e-6"
    if isinstance(want, list):
        assert len(got) == len(want), name
        for a,b in zip(got, want): assert_same(a, b, name)
    elif isinstance(want, float): assert got == pytest.approx(want, abs=1e-6, nan_ok=True), name
    else: assert got == want, name


@pytest.fixture
def path(make_shapes):
    threads = torch.get_num_threads()
    torch.set_num_threads(1) # threads split sums
    yield make_shapes((64,48))
    torch.set_num_threads(threads)


def test_a_loaded_model_answers_as_the_learner_did(path, tmp_path):
    names = ['smoothing', 'plain_learner', 'many_thresh', 'encoded', 'number', 'gray', 'resized', 'gru']
    want = save_all(path, tmp_path, names)
    for name in names: assert_same(answers(load_pretrained(tmp_path/name), get_videos(path)[:3]), want[name],
            name)


@pytest.mark.slow
def test_every_kind_of_model_answers_the_same_in_a_fresh_process(path, tmp_path):
    want = save_all(path, tmp_path, kinds)
    code = '''import json, sys, warnings
warnings.simplefilter('ignore')
import torch
from saved_models import answers
from vidseq.deploy.saving import load_pretrained
torch.set_num_threads(1)
print(json.dumps({k: answers(load_pretrained(k), sys.argv[2:]) for k in sys.argv[1].split(',')}))'''
    out = run_python('-c', code, ','.join(kinds), *get_videos(path)[:3], cwd=tmp_path)
    got = json.loads(out.splitlines()[-1])
    assert list(got) == list(kinds)
    for name in kinds: assert_same(got[name], want[name], name)


# No other file, no network, no memory

audit = '''
import itertools, os, random, sys, warnings
warnings.simplefilter('ignore')
import timm, torchvision.models.video
from fuzz_settings import forged, forged_names
from saved_models import saved_files, settings_of, write_model
from vidseq.deploy.saving import load_pretrained
originals = {k: settings_of(k) for k in ('conv3d','simple','rnn')}
for name in originals: load_pretrained(write_model('warm', originals[name], saved_files(name)[1]))
events = []
watched = ('open', 'os', 'socket', 'urllib', 'http', 'subprocess', 'shutil', 'ctypes', 'pickle')
def hook(event, args):
    if event.split('.')[0] in watched: events.append((event, str(args[0]) if args else ''))
sys.addaudithook(hook)
def is_harmless(event, path):
    if event != 'open': return event in ('os.listdir', 'os.scandir') # imports list folders
    own = os.path.basename(os.path.dirname(path)) == 'model' and os.path.basename(path) in ('config.json',
        'model.safetensors')
    return own or path.startswith((sys.prefix, sys.base_prefix)) and path.endswith(('.py', '.pyc', '.so'))
n_refused,named = 0,random.Random(0).sample(list(forged_names(originals)), 120)
for name,settings in itertools.chain(named, forged(originals, 80)):
    folder = write_model('model', settings, saved_files(name)[1])
    events.clear()
    try: load_pretrained(folder)
    except ValueError: n_refused += 1
    found = [o for o in events if not is_harmless(*o)]
    assert ('open', str(folder/'config.json')) in events
    assert not found, (settings['model'], found)
print(n_refused)'''


@pytest.mark.slow
def test_forged_settings_open_no_other_file_and_no_socket(tmp_path):
    n_refused = int(run_python('-c', audit, cwd=tmp_path).splitlines()[-1])
    assert 150 < n_refused <= 200


@pytest.mark.slow
def test_forged_settings_need_little_memory_and_time():
    pytest.importorskip('resource') # not on Windows
    print(run_python(Path(__file__).with_name('fuzz_settings.py'), 2000))
