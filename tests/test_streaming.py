"Check streams: rows equal those of the whole film, each frame is encoded once, memory does not grow"
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import nn

from test_causal import randomized
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import first_frames, follow_frames, step_frames, window_frames
from vidseq.datasets.shapes import draw_clip, moving_shapes
from vidseq.deploy.engines import FeatureEngine, FramePipeline, WindowEngine
from vidseq.deploy.streaming import stream
from vidseq.deploy.timeline import predict_timeline
from vidseq.models.conv3d import Conv3dModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.streams import StreamModel
from vidseq.models.timeline_model import TimelineModel
from vidseq.train.learner import video_learner
from vidseq.video.decode import write_video
from vidseq.video.moment import Moment

frames = list(draw_clip('TurnClockwise', 0, 0, n=60, size=(64,48)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('shapes')/'data'
    return moving_shapes(path, n_groups=4, n_clips=1, size=(64,48), n_workers=0)


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp('film')/'film.avi'
    write_video(path, frames, fps=25)
    return path


def learner(folder, model, sampler=window_frames, seq_len=4):
    torch.manual_seed(0)
    dls = VideoDataLoaders.from_folder(folder, seq_len=seq_len, image_size=32, bs=4, sampler=sampler, seed=0,
                                       num_workers=0)
    learn = video_learner(dls, model, pretrained=False)
    randomized(learn.model)
    return learn


causal = dict(
    average=(partial(SimpleModel, small_cnn, per_frame=True), window_frames),
    shift=(partial(SimpleModel, small_cnn, per_frame=True, shift=.25, causal=True), window_frames),
    every_third=(partial(RNNModel, small_cnn, per_frame=True, hidden_size=8), partial(window_frames, step=3)),
    seconds=(partial(RNNModel, small_cnn, per_frame=True, hidden_size=8, rnn=nn.GRU),
             partial(first_frames, seconds=.1)),
    convlstm=(partial(ConvLSTMModel, small_cnn, per_frame=True, hidden_size=8), window_frames),
    conv3d=(partial(Conv3dModel, per_frame=True, causal=True, width=4), window_frames),
    timeline=(partial(TimelineModel, small_cnn, heads=['tcn','recurrent','attentive']),
              partial(step_frames, rate=5, seconds=(.12,))),
    fast_steps=(partial(TimelineModel, small_cnn, heads=['recurrent']),
                partial(step_frames, rate=40, seconds=(.12,))),
    motions=(partial(TimelineModel, small_cnn, streams=['frames','motion','short_motion','flow']),
             partial(step_frames, rate=10, seconds=(.12,.04,.12))))
clips = dict(
    average=(partial(SimpleModel, small_cnn), window_frames, 4),
    rnn=(partial(RNNModel, small_cnn, hidden_size=8), partial(window_frames, step=2), 4),
    convlstm=(partial(ConvLSTMModel, small_cnn, hidden_size=8), partial(window_frames, step=2), 4),
    stream=(partial(StreamModel, small_cnn), partial(follow_frames, seconds=(.12,)), 8))


def frames_of_step(sampler):
    keywords = getattr(sampler, 'keywords', {})
    return 1+len(keywords['seconds']) if 'rate' in keywords else 1


def in_parts(learn, n, **kwargs):
    "Return the rows of a stream of parts of n frames"
    camera = stream(learn, **kwargs)
    parts = [camera(frames[i:i+n]) for i in range(0, len(frames), n)]
    return pd.concat([*parts, camera.finish()], ignore_index=True)


def count_images(learn):
    "Return a list of the numbers of images that the encoder of frames gets"
    encoder = learn.model.encoder
    net = getattr(encoder, 'image_encoder', None) or encoder
    found = []
    net.register_forward_pre_hook(lambda _, args: found.append(args[0].shape[:-3].numel()))
    return found


def whole_film(learn, numbers):
    "Return the probabilities of one call of the model with the frames of all steps"
    pipeline = FramePipeline(learn)
    x = pipeline([pipeline.image(frames[i]) for i in numbers])[None]
    with torch.no_grad(): return learn.model.eval()(x)[0].softmax(-1)


def numbers_of(learn, sampler):
    "Return the frames of all steps, from the definition of the samplers"
    keywords = getattr(sampler, 'keywords', {})
    if 'rate' in keywords:
        rate,gaps = keywords['rate'],[max(int(o*25+.5), 1) for o in keywords['seconds']]
        steps,i = [],0
        while (f := -int(-(i*25/rate-1e-6)//1)) < len(frames):
            steps += [max(f-g, 0) for g in (0,*gaps)]
            i += 1
        return steps
    distance = keywords['seconds']*25 if 'seconds' in keywords else keywords.get('step', 1)
    found = [-int(-(i*distance-1e-6)//1) for i in range(len(frames))]
    return [o for o in found if o < len(frames)]


@pytest.mark.parametrize('name', causal)
def test_stream_equals_the_model_on_all_frames(folder, name):
    model,sampler = causal[name]
    n = frames_of_step(sampler)
    learn = learner(folder, model, sampler, 4*n)
    numbers = numbers_of(learn, sampler)
    want = whole_film(learn, numbers)
    for size in (1, 2, 7, 100):
        images = count_images(learn)
        rows = in_parts(learn, size)
        np.testing.assert_allclose(rows.iloc[:,2:], want, atol=1e-5)
        n_streams = len(learn.model.encoder.names) if isinstance(learn.model, TimelineModel) else 1
        if name != 'conv3d': assert sum(images) == len(numbers)//n*n_streams # each frame once
        learn.model.encoder._forward_pre_hooks.clear()


@pytest.mark.parametrize('name', [o for o in causal if o != 'fast_steps'])
def test_timeline_of_a_file_equals_the_stream(folder, film, name):
    "Check files and moments against a stream of the decoded frames, up to the rounding of scaled pixels"
    model,sampler = causal[name]
    n = frames_of_step(sampler)
    learn = learner(folder, model, sampler, 4*n)
    timeline = predict_timeline(learn, film)
    rows = in_parts(learn, 7)
    assert timeline.iloc[:,:2].equals(rows.iloc[:,:2])
    assert (timeline.iloc[:,2:]-rows.iloc[:,2:]).abs().max(axis=None) < .15 # lossy frames
    part = predict_timeline(learn, Moment(film, .4, 1.2))
    assert part.start.iloc[0] == pytest.approx(.4) and part.end.iloc[-1] <= 1.2+.25


@pytest.mark.parametrize('stride', [.04, .2, .13])
@pytest.mark.parametrize('name', clips)
def test_windows_share_features(folder, film, name, stride, monkeypatch):
    "Check shared features against windows that are predicted one by one; each step is encoded once"
    model,sampler,seq_len = clips[name]
    learn = learner(folder, model, sampler, seq_len)
    images = count_images(learn)
    shared = predict_timeline(learn, film, window=1., stride=stride)
    n_encoded = sum(images)
    images.clear()
    monkeypatch.setattr('vidseq.deploy.engines.FeatureEngine', WindowEngine)
    apart = predict_timeline(learn, film, window=1., stride=stride)
    assert len(shared) == len(apart) > 1
    np.testing.assert_allclose(shared.iloc[:,2:], apart.iloc[:,2:], atol=1e-5)
    assert n_encoded <= sum(images)
    if stride == .04 and name == 'average': assert n_encoded <= len(frames)


def test_engine_of_models(folder):
    "Check which models share features, and that a model that needs later frames is refused for streams"
    learn = learner(folder, partial(RNNModel, small_cnn, hidden_size=8, subtract_mean=True))
    assert type(stream(learn).engine) is WindowEngine
    assert type(stream(learner(folder, partial(SimpleModel, small_cnn))).engine) is FeatureEngine
    for model in (partial(RNNModel, small_cnn, per_frame=True, bidirectional=True, hidden_size=8),
                  partial(Conv3dModel, per_frame=True)):
        with pytest.raises(ValueError, match='later frames'): stream(learner(folder, model))


def test_offline_model_of_both_directions(folder, film):
    "Check a model that needs the whole film against one call"
    learn = learner(folder, partial(RNNModel, small_cnn, per_frame=True, bidirectional=True, hidden_size=8))
    timeline = predict_timeline(learn, film)
    assert len(timeline) == len(frames)
    np.testing.assert_allclose(timeline.iloc[:,2:], whole_film(learn, range(60)), atol=.15) # lossy frames


@pytest.mark.parametrize('kwargs', [dict(fps=0), dict(window=0), dict(stride=-1)])
def test_wrong_arguments(folder, kwargs):
    learn = learner(folder, partial(SimpleModel, small_cnn))
    with pytest.raises(ValueError, match=next(iter(kwargs))): stream(learn, **kwargs)


def test_frames_of_all_kinds(folder):
    "Check that an array, an image and a tensor of a frame give the same row"
    from PIL import Image
    learn = learner(folder, *causal['average'])
    kinds = [frames[0], Image.fromarray(frames[0]), torch.from_numpy(frames[0]).permute(2, 0, 1)]
    rows = [stream(learn)(o).iloc[0,2:].tolist() for o in kinds]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
@pytest.mark.parametrize('name', causal)
def test_memory_is_flat(folder, name):
    "Check 10,000 frames: the rows stay equal for other chunks, the memory grows by at most 2 MB"
    model,sampler = causal[name]
    n = frames_of_step(sampler)
    learn = learner(folder, model, sampler, 4*n)
    camera,used = stream(learn),[]
    for i in range(10_000):
        camera(frames[i%60])
        if i%1000 == 999: used.append(psutil.Process().memory_info().rss)
    print(name, [round((o-used[3])/2**20, 2) for o in used])
    assert min(used[-3:])-used[3] < 2*2**20


@pytest.mark.slow
@pytest.mark.parametrize('name', causal)
def test_exported_step(folder, tmp_path, name):
    "Check 500 frames in onnxruntime against the model"
    onnxruntime = pytest.importorskip('onnxruntime')
    from vidseq.deploy.step_export import export_step
    model,sampler = causal[name]
    n = frames_of_step(sampler)
    learn = learner(folder, model, sampler, 4*n)
    x = torch.rand(1, 500*n, 3, 32, 32)
    shapes = export_step(learn.model, tmp_path/'step.onnx', x[:,:n])
    session = onnxruntime.InferenceSession(tmp_path/'step.onnx')
    state = [np.zeros(o, np.float32) for o in shapes]
    with torch.no_grad(): want = learn.model.eval()(x)[0].numpy()
    for i in range(500):
        inputs = dict(frames=x[:,i*n:i*n+n].numpy()) | {f'state_{j}': o for j,o in enumerate(state)}
        logits,*state = session.run(None, inputs)
        np.testing.assert_allclose(logits[0,0], want[i], atol=1e-4*max(1, abs(want).max()))
