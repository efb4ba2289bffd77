"Saved models: load in a fresh process without the training data, refuse bad files, write valid model cards."
import ast
import hashlib
import json
import shutil
from functools import partial
from xml.etree import ElementTree

import pytest
import timm
import torch
import yaml
from fastai.vision.all import Resize, aug_transforms, nn, resnet18
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer
from torchvision.models.video import mc3_18

from conftest import run_python
from vidseq.data.block import VideoDataLoaders
from vidseq.data.samplers import window_frames
from vidseq.deploy.card import card_markdown, escape_markdown
from vidseq.deploy.predict import predict_video
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import AttentionPool
from vidseq.models.timesformer import TimeSformer, small_timesformer
from vidseq.models.vit import JointBlock, TimeSformerViT, load_timesformer
from vidseq.train.learner import video_learner
from vidseq.video.decode import get_videos

vit = partial(VisionTransformer, 32, 8, 1, 2, 32, 64)
gru = dict(rnn=nn.GRU, num_rnn_layers=2, bidirectional=True, hidden_size=8, grid=2, subtract_mean=True)
models = dict(
    simple=partial(SimpleModel, resnet18, pool=AttentionPool, pretrained=False),
    rnn=partial(RNNModel, small_cnn, pretrained=False, **gru),
    convlstm=partial(ConvLSTMModel, small_cnn, pretrained=False, hidden_size=8),
    conv3d=partial(Conv3dModel, width=4),
    video=partial(VideoModel, mc3_18, pretrained=False),
    timm=partial(SimpleModel, 'mobilenetv3_small_050', pretrained=False),
    timesformer=small_timesformer,
    package=partial(TimeSformer, dim=16, patch_size=8, depth=1, heads=2, dim_head=8, rotary_emb=False),
    vit=partial(TimeSformerViT, vit, pretrained=False),
    timm_vit=partial(TimeSformerViT, 'vit_tiny_patch16_224', pretrained=False, block=JointBlock))


@pytest.fixture(scope='module')
def path(make_shapes): return make_shapes((64,48))


def loaders(path):
    tfms = dict(item_tfms=Resize(32, 'squish'), batch_tfms=aug_transforms(size=32))
    sampler = partial(window_frames, step=(1,3))
    return VideoDataLoaders.from_folder(path, seq_len=4, bs=4, seed=0, num_workers=0, sampler=sampler, **tfms)


@pytest.fixture(scope='module')
def saved(path, tmp_path_factory):
    "A folder with all models, a video and their predictions, computed with one thread: threads split sums"
    folder = tmp_path_factory.mktemp('models')
    dls,video = loaders(path),shutil.copy(get_videos(path)[0], folder/'video.avi')
    answers = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name,model in models.items():
        learn = video_learner(dls, model)
        save_pretrained(learn, folder/name)
        answers[name] = predict_video(learn, video, k=6)
    torch.set_num_threads(threads)
    (folder/'answers.json').write_text(json.dumps(answers))
    return folder


def test_a_fresh_process_without_the_data_predicts_the_same(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path/'elsewhere')
    code = '''import json
from pathlib import Path
import torch
from vidseq.deploy.saving import load_pretrained
import vidseq.deploy.predict
torch.set_num_threads(1)
answers = json.loads(Path('answers.json').read_text())
for name,want in answers.items():
    assert [list(o) for o in load_pretrained(name).predict_video('video.avi', k=6)] == want, name
print(len(answers), 'models')'''
    assert f'{len(models)} models' in run_python('-W', 'ignore', '-c', code, cwd=folder)


def test_weights_are_plain_safetensors(saved):
    learn = load_pretrained(saved/'conv3d')
    for k,v in load_file(saved/'conv3d'/'model.safetensors').items():
        assert torch.equal(v, learn.model.state_dict()[k])


def test_published_timesformer_predicts_the_same_at_other_sizes(path, tmp_path):
    "The loaded model of a published checkpoint still resizes position embeddings as the original code does"
    transformers = pytest.importorskip('transformers')
    size = dict(image_size=32, patch_size=8, num_frames=4, hidden_size=64, num_hidden_layers=1)
    config = transformers.TimesformerConfig(num_attention_heads=1, intermediate_size=32, num_labels=6, **size)
    state = transformers.TimesformerForVideoClassification(config).state_dict()
    for v in state.values(): v += torch.randn_like(v)*.1
    save_file(state, tmp_path/'published.safetensors')
    learn = video_learner(loaders(path), load_timesformer(tmp_path/'published.safetensors'))
    save_pretrained(learn, tmp_path/'mine')
    x = torch.rand(2,6,3,48,40)
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path/'mine').model(x), learn.model.eval()(x))


def test_a_failed_save_leaves_the_files_of_the_last_save(path, tmp_path, monkeypatch):
    learn = video_learner(loaders(path), partial(Conv3dModel, width=4))
    save_pretrained(learn, tmp_path/'model')
    def contents(): return {o.name: o.read_bytes() for o in (tmp_path/'model').iterdir()}
    before = contents()
    def full(self, data): raise OSError('No space left on device')
    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError): save_pretrained(learn, tmp_path/'model')
    assert contents() == before


@pytest.mark.parametrize('n_written', [1, 2])
def test_a_save_interrupted_between_files_is_detected(path, tmp_path, monkeypatch, n_written):
    "Weights are written first and config.json last"
    from vidseq.deploy import saving
    dls = loaders(path)
    save_pretrained(video_learner(dls, partial(Conv3dModel, width=4)), tmp_path/'model')
    atomic_file,names = saving.atomic_file,[]
    def interrupted(fname):
        if len(names) == n_written: raise KeyboardInterrupt
        names.append(fname.name)
        return atomic_file(fname)
    monkeypatch.setattr(saving, 'atomic_file', interrupted)
    other = video_learner(dls, partial(Conv3dModel, width=4))
    with pytest.raises(KeyboardInterrupt): save_pretrained(other, tmp_path/'model')
    assert names[0] == 'model.safetensors' and 'config.json' not in names
    with pytest.raises(ValueError, match='not the weights'): load_pretrained(tmp_path/'model')


def test_timm_is_never_asked_to_download(monkeypatch, saved, tmp_path):
    "A name that timm would download is refused before timm gets it"
    def never(*args, **kwargs): raise AssertionError('timm was asked')
    monkeypatch.setattr(timm, 'create_model', never)
    bad = shutil.copytree(saved/'timm', tmp_path/'bad')
    data = json.loads((bad/'config.json').read_text(encoding='utf-8'))
    del data['settings_sha256']
    data['model']['kwargs']['arch'] = 'timm.hf-hub:somebody/something'
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (bad/'config.json').write_text(json.dumps(data | dict(settings_sha256=digest)))
    with pytest.raises(ValueError, match='bad/config.json.*hf-hub'): load_pretrained(bad)


# Model cards: names come from users, so any text must survive YAML and Markdown

marks = [*'\n\r\t |:"\'`*_#<>[]{}()!\\&~$-=+.1', '[a](b)', '![a](b)', '<b>a</b>', '&amp;', '~~a~~', '`a`',
         '**a**', '_a_', '# ', '<!--', '<http://a.b>', 'http://a.b', '|---|', '```', '\n---\n']
letters = st.characters(exclude_categories=['Cs', 'Cc', 'Co', 'Cn'])
names = st.lists(st.sampled_from(marks) | letters, max_size=12).map(''.join)


def rendered(html): return ElementTree.fromstring(f'<div>{html}</div>') # both renderers write XHTML


def text(element): return one_line(''.join(element.itertext()))


def cells(html):
    "Return the text of the cells of all tables"
    return [text(o) for o in rendered(html).iter('td')]


def one_line(s): return ' '.join(s.split())


def page_of(vocab=('x',), name='model', **card):
    labels = dict(kind='class', vocab=list(vocab))
    return card_markdown(dict(model={}, clips=dict(seq_len=4), labels=labels, card=card), name)


def render(page):
    "Render Markdown as GitHub and the Hub do: CommonMark with tables and strikethrough"
    markdown_it = pytest.importorskip('markdown_it')
    return markdown_it.MarkdownIt('commonmark').enable(['table','strikethrough']).render(page)


@given(names)
def test_any_text_is_rendered_as_plain_text(s):
    html = rendered(render(f'x {escape_markdown(s)} y'))
    assert text(html) == one_line(f'x {s} y')
    assert {o.tag for o in html.iter()} <= {'div', 'p'}


@given(names)
def test_python_markdown_renders_the_same(s):
    markdown = pytest.importorskip('markdown')
    html = rendered(markdown.markdown(f'x {escape_markdown(s)} y', extensions=['tables']))
    assert text(html) == one_line(f'x {s} y')
    assert {o.tag for o in html.iter()} <= {'div', 'p'}


@given(names, names)
def test_any_note_is_one_row_of_a_table(key, value):
    key = f'note {key}'
    page = page_of(scores={key: value}).split('\n---\n', 1)[1]
    assert cells(render(page)) == [one_line(key), one_line(value)]


@given(names, st.lists(names, min_size=1, max_size=3), names)
def test_any_names_make_a_valid_card(name, vocab, license):
    meta,body = page_of(vocab, name, license=license).split('\n---\n', 1)
    assert yaml.safe_load(meta)['license'] == license
    html = rendered(render(body))
    assert text(html.find('.//h1')) == one_line(name)
    assert one_line(', '.join(map(one_line, vocab))) in text(html.find('.//p'))
    call = ast.parse(html.find('.//code').text).body[-1].value # load_pretrained(name).predict_video(…)
    assert call.func.value.args[0].value == name
