"Check on a CPU what explanations need on a GPU: model and clip on one device, gradients of recurrent layers"
from copy import deepcopy
from functools import partial

import pytest
import torch
from fastai.vision.all import Learner, nn, plt
from torch.nn import functional as F

import vidseq.train.embedding  # noqa: F401  (adds `learn.embed`)
from vidseq.data.block import VideoDataLoaders
from vidseq.deploy.export import export_learner
from vidseq.deploy.predict import predict_video
from vidseq.deploy.timeline import predict_timeline
from vidseq.evaluate.interpret import (ClipInterpretation, _differentiable_rnns, class_activation, explain,
                                       explain_gif, frame_importance)
from vidseq.evaluate.scores import evaluate, time_sensitivity
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import RNNModel
from vidseq.models.layers import TimeDistributed, stack_frames
from vidseq.models.streams import StreamModel
from vidseq.train.learner import video_learner
from vidseq.video.decode import get_videos


@pytest.fixture(scope='module')
def dls(make_shapes, tmp_path_factory):
    return VideoDataLoaders.from_folder(make_shapes((32,32)), seq_len=4, image_size=32, bs=8, num_workers=0,
                                        seed=0, cache=tmp_path_factory.mktemp('frames'))


@pytest.fixture
def video(make_shapes): return get_videos(make_shapes((32,32)))[0]


# Before any training, the model can be on another device

class Placed(nn.Module):
    "Fail unless the model was moved to the device of the data, as a model on another device does"
    def __init__(self):
        super().__init__()
        self.encoder,self.head = TimeDistributed(nn.Conv2d(3, 4, 3)),nn.Linear(4, 6)
        self.place = None

    def to(self, device, *args, **kwargs):
        self.place = torch.device(device)
        return super().to(device, *args, **kwargs)

    def forward(self, x):
        x = stack_frames(x)
        assert self.place == x.device and not self.training, 'the model is on another device, or trains'
        return self.head(self.encoder(x).mean(dim=(1,3,4)))


def export(learn, video, folder):
    learn.model.place = None
    return export_learner(learn, folder/'model.pt2')


functions = dict(
    frame_importance=lambda learn, video, folder: frame_importance(learn, video),
    class_activation=lambda learn, video, folder: class_activation(learn, video),
    explain=lambda learn, video, folder: explain(learn, video),
    explain_gif=lambda learn, video, folder: explain_gif(learn, video, folder/'why.gif'),
    interpretation=lambda learn, video, folder: ClipInterpretation.from_learner(learn).top_players(2),
    predict_video=lambda learn, video, folder: predict_video(learn, video),
    predict_timeline=lambda learn, video, folder: predict_timeline(learn, video, window=.3, stride=.2),
    evaluate=lambda learn, video, folder: evaluate(learn, n_views=2),
    time_sensitivity=lambda learn, video, folder: time_sensitivity(learn, n_shuffles=1),
    embed=lambda learn, video, folder: learn.embed([video]),
    predict=lambda learn, video, folder: learn.predict(video),
    validate=lambda learn, video, folder: learn.validate(),
    export=export)


@pytest.mark.parametrize('name', functions)
def test_the_model_is_moved_to_the_device_of_the_data(name, dls, video, tmp_path):
    learn = Learner(dls, Placed().train(), loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(): functions[name](learn, video, tmp_path)
    plt.close('all')
    assert learn.model.place == torch.device('cpu')


def test_a_clip_in_memory_is_moved_to_the_device_of_the_model(dls, monkeypatch):
    "Check with a clip without memory, on the device 'meta', that the batch is moved"
    learn,places = Learner(dls, Placed(), loss_func=nn.CrossEntropyLoss()),[]
    class Clip(torch.Tensor):
        def to(self, device):
            places.append(device)
            return torch.rand(1,4,3,32,32)
    clip = torch.empty(1,4,3,32,32, device='meta').as_subclass(Clip)
    assert class_activation(learn, clip).shape == (4,32,32) and frame_importance(learn, clip).shape == (4,)
    assert places == [torch.device('cpu')]*2


# Gradients of recurrent layers in eval mode

def test_outputs_do_not_change():
    "Check that recurrent layers train without dropout, within the context only, also if it fails"
    model = RNNModel(small_cnn, 5, pretrained=False, num_rnn_layers=2, hidden_size=8, dropout=.5).eval()
    x = torch.rand(2,4,3,32,32)
    want = model(x)
    with _differentiable_rnns(model):
        assert [k for k,m in model.named_modules() if m.training] == ['rnn'] and model.rnn.dropout == 0
        for _ in range(2): assert torch.equal(model(x), want)
    def unchanged(): return not any(m.training for m in model.modules()) and model.rnn.dropout == .5
    assert unchanged()
    with pytest.raises(KeyboardInterrupt), _differentiable_rnns(model): raise KeyboardInterrupt
    assert unchanged()
    model.train()
    with _differentiable_rnns(model): assert model.rnn.dropout == .5 # training already


class OwnModel(nn.Module):
    "A model of the user, with a GRU in the encoder and dropout"
    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(3*8*8, 6, batch_first=True)
        self.drop = nn.Dropout(.9)
    def forward(self, x): return self.drop(self.encoder(F.avg_pool2d(stack_frames(x).flatten(0,1), 4)
                                                        .unflatten(0, (len(x),-1)).flatten(2))[0][:,-1])


members = [dict(head='recurrent', stream='frames')]
models = dict(
    lstm=partial(RNNModel, small_cnn, pretrained=False, hidden_size=8, num_rnn_layers=2, dropout=.5),
    gru=partial(RNNModel, small_cnn, pretrained=False, hidden_size=8, rnn=nn.GRU, bidirectional=True),
    stream=partial(StreamModel, small_cnn, pretrained=False, members=members))


@pytest.mark.parametrize('name', [*models,'own'])
def test_cudnn_could_compute_the_gradients(name, dls, video, monkeypatch, tmp_path):
    "Fail where cuDNN does: in the gradient of a recurrent layer that ran in eval mode"
    learn = Learner(dls, OwnModel()) if name == 'own' else video_learner(dls, models[name])
    before,modes = deepcopy(learn.model.state_dict()),[]
    for m in learn.model.modules():
        if not isinstance(m, nn.RNNBase): continue
        m.register_forward_hook(lambda m, args, out: modes.append((m.training, torch.is_grad_enabled())))
    heat = class_activation(learn, video)
    assert torch.equal(class_activation(learn, video), heat) and heat.max() == 1
    explain(learn, video, n=2)
    explain_gif(learn, video, tmp_path/'why.gif')
    frame_importance(learn, video)
    plt.close('all')
    assert modes and all(trains == has_gradients for trains,has_gradients in modes)
    assert not any(m.training for m in learn.model.modules())
    for k,o in learn.model.state_dict().items(): assert torch.equal(o, before[k])
