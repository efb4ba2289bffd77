"Write the pages of small studies: sentences, well-formed HTML, safe names, finite numbers, limited size"
import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

import vidseq.report.clip_cards
from vidseq.evaluate.kinds import LabelScores, NumberScores
from vidseq.evaluate.metrics import ClassScores
from vidseq.report.figures import ClipPlayer
from vidseq.report.page import write_page
from vidseq.report.study import Contender, Study

kinds = 'class','classes','numbers'
orders = 'ordered','reversed','shuffled','one frame'


@pytest.fixture(scope='module')
def videos(make_shapes):
    "Return 60 videos of 6 classes and 5 groups"
    return sorted(make_shapes((32,32)).rglob('*.avi'))


def class_of(path): return path.parent.name


def group_of(path): return re.search('_g(\\d+)_', path.name)[1]


def draw_scores(videos, kind='class', right=.8, seed=0, known=True, group=group_of, names=None):
    "Return scores with about the share `right` of correct predictions"
    rng = np.random.default_rng(seed)
    videos = list(videos)
    vocab = names or sorted(set(map(class_of, videos)))
    actual = np.array([sorted(set(map(class_of, videos))).index(class_of(o)) for o in videos])
    n,guess = len(vocab),rng.integers(len(vocab), size=len(videos))
    shown = np.where(rng.random(len(videos)) < right, actual, guess)
    groups = [group(o) for o in videos] if known else None
    probs = torch.tensor(np.eye(n)[shown]*.8+.2/n).float()
    if kind == 'class': return ClassScores(probs, torch.tensor(actual), vocab, videos, groups)
    if kind == 'classes': return LabelScores(probs, torch.tensor(np.eye(n)[actual]), vocab, videos, groups)
    noise = rng.normal(size=(len(videos),2))*(1-right)*2
    values = np.stack([actual, -actual], 1)
    return NumberScores(torch.tensor(values+noise), torch.tensor(values), ['x','y'], videos, groups)


def contender(name, scores, time=None):
    "Return a contender with curves, one value of which is not a number"
    curves = {'train loss': ([1,2], [1.,float('nan')]), 'valid loss': ([1,2], [1.,.9]),
              'valid accuracy': ([1,2], [.3,.5])}
    return Contender(name, scores, 'random weights', 3.2, 1234, curves, time and pd.Series(time, orders))


def make_study(videos, kind='class', known=True, time=None, right=.8, other=.3, names=None, **kwargs):
    make = partial(draw_scores, videos, kind, known=known, names=names)
    best = contender('Convolutions', make(right=right), time)
    simple = contender('Frames', make(right=other, seed=1))
    commands = [('Predict', 'vidseq predict model new.mp4')]
    options = dict(simplest='Frames', n_folds=5, commands=commands) | kwargs
    return Study('Shapes', [simple,best], 'Convolutions', **options)


# The page

class Page(HTMLParser):
    "Parse a page; fail unless each end tag closes the last open element"
    void = {'meta','img','br','source','link','hr','input'}
    def __init__(self, html):
        super().__init__()
        self.html,self.open,self.found,self.text = html,[],[],''
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in self.void: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag, (tag, self.open, self.getpos())

    def handle_data(self, data):
        if 'style' not in self.open: self.text += data+' '

    def all(self, tag): return [attrs for t,attrs in self.found if t == tag]


def check(page):
    "Check what holds for each page: no script, nothing from other files, names for images and links"
    assert page.html.lower().startswith('<!doctype html>') and page.all('html')[0]['lang'] == 'en'
    assert not page.all('script') and not [k for _,o in page.found for k in o if k.startswith('on')]
    ids = [o['id'] for _,o in page.found if 'id' in o]
    assert len(ids) == len(set(ids))
    links = [o['href'] for o in page.all('a')]
    assert links and all(o[1:] in ids and o[0] == '#' for o in links)
    sources = [o[k] for _,o in page.found for k in ('src','srcset') if k in o]
    assert all(o.startswith('data:image/') for o in sources)
    assert all(o.get('alt') for o in page.all('img'))
    assert not re.search(r'url\(|@import|https?:', re.sub('data:[^"]+', '', page.html))
    assert len(page.html) < 5_000_000


def read(out):
    "Return the checked page, and the data of scores.json, which has finite numbers only"
    page = Page((out/'index.html').read_text(encoding='utf-8'))
    check(page)
    return page, json.loads((out/'scores.json').read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('known', [True, False])
def test_pages(videos, kind, known, tmp_path):
    time = [.8,.4,.5,.3] if kind != 'numbers' else [.3,4,4,5]
    study = make_study(videos, kind, known, time, found=['60 videos'], notes=['No pretrained weights.'])
    write_page(tmp_path, study, n_clips=4)
    page,data = read(tmp_path)
    text = page.text.replace('  ', ' ').replace('  ', ' ')
    for o in (study.verdict(), '60 videos', 'No pretrained weights.', 'vidseq predict model new.mp4',
              'random weights', study.scores.score_text(), *map(' '.join, study.advice())):
        assert o.replace('`', ' ').replace('  ', ' ') in text, o
    assert data['verdict'] == study.verdict() and data['best'] == 'Convolutions'
    assert data['models']['Convolutions']['time'] == dict(zip(orders, time))
    assert data['models']['Frames']['curves']['train loss'] == [[1,2], [1.,None]]
    wrong,right = vidseq.report.clip_cards.pick_clips(study.scores, 4)
    assert len(page.all('picture')) == len(wrong)+len(right) and len(wrong) == 4
    assert ('The groups are unknown.' in page.text) != known


def test_a_page_with_similar_clips(videos, tmp_path):
    "Errors come with their most similar training clips, three at most"
    near = {i: [(videos[j], class_of(videos[j]), .9) for j in range(4)] for i in range(60)}
    study = make_study(videos, neighbors=near)
    write_page(tmp_path, study, n_clips=3)
    page,_ = read(tmp_path)
    assert page.html.count('training clip of') == 9 and page.text.count('Most similar training clips') == 3


def test_hostile_names(videos, tmp_path):
    "Names of classes, models, groups and files cannot add elements, and are shown"
    names = ['<script>alert(1)</script>','"><img src=x>','a&amp;b',"it's \"so\"",'$x^{2','\x1b[31m\udce9\n']
    study = make_study(videos, names=names, right=.3, known=False)
    study.title = study.contenders[1].name = study.best = '</title><script>1</script>'
    study.commands = [('<b>', 'rm "a" \'b\' && <c>')]
    study.found = ['</li><iframe>']
    study.scores.paths[0] = videos[0].parent/'<img src=y onerror=1>.avi'
    write_page(tmp_path, study, n_clips=60)
    page,data = read(tmp_path)
    assert not page.all('iframe') and data['classes'] == names
    for o in (*names[:5], study.title, 'rm "a" \'b\' && <c>'): assert o in page.text
    assert '\x1b' not in page.html and r'\x1b[31m\xe9\n' in page.text
    assert 'no such file' in page.text


def test_the_page_stays_small(videos, tmp_path, monkeypatch):
    "Clips are added until their size reaches the limit"
    monkeypatch.setattr(vidseq.report.clip_cards, 'ClipPlayer', partial(ClipPlayer, max_bytes=50_000))
    write_page(tmp_path, make_study(videos, right=0), n_clips=60)
    page,_ = read(tmp_path)
    shown = [len(o['src']) for o in page.all('img') if 'webp' in o['src'][:20] or 'gif' in o['src'][:20]]
    assert 2 < len(shown) < 50 and sum(shown) < 50_000+2*max(shown)


def test_a_page_is_complete_or_absent(videos, tmp_path, monkeypatch):
    study = make_study(videos)
    write_page(tmp_path, study, n_clips=0)
    before = (tmp_path/'index.html').read_bytes()
    def fail(*args): raise RuntimeError('cannot draw')
    monkeypatch.setattr(vidseq.report.page, '_sections', fail)
    with pytest.raises(RuntimeError): write_page(tmp_path, study)
    assert (tmp_path/'index.html').read_bytes() == before
    assert sorted(o.name for o in tmp_path.iterdir()) == ['index.html','scores.json']


# The sentences

def seen(study): return ' '.join(o for o,_ in study.advice())


def test_a_verdict(videos):
    study = make_study(videos, time=[.8,.4,.5,.3])
    scores,(low,high) = study.scores,study.interval
    assert study.verdict().startswith(
        f'The best of 2 models, “Convolutions”, reaches an accuracy of {scores.score:.0%} (95% interval '
        f'{low:.0%} to {high:.0%}) on 60 videos of 5 unseen groups, where always answering “Grow” gets 17%; '
        'it uses the order of the frames and is better than the simplest, “Frames”, by ')


def test_a_verdict_on_numbers(videos):
    study = make_study(videos, 'numbers')
    mean = float(abs(study.scores.targs-study.scores.targs.double().mean(0)).mean())
    assert f'a mean absolute error of {study.scores.score:.3g} (95% interval' in study.verdict()
    assert f'always predicting the mean gets {mean:.3g};' in study.verdict()


def test_a_study_that_learned_nothing(videos):
    study = make_study(videos, right=0, other=0, time=[.2,.2,.2,.2])
    assert study.verdict().startswith('No model beats chance: the best of 2 models, “Convolutions”, reaches')
    assert 'No model beats chance.' in seen(study)
    assert 'One frame' not in seen(study) and 'confused' not in seen(study)


def test_few_groups(videos):
    two = make_study([o for o in videos if group_of(o) in ('01','02')])
    assert two.scores.n_groups == 2 and '2 groups tell little.' in seen(two)
    one = make_study([o for o in videos if group_of(o) == '01'])
    assert 'no interval: too few groups' in one.verdict() and '1 group tells little.' in seen(one)


@pytest.mark.parametrize('time,advice,verdict', [
    ([.8,.8,.8,.8], 'One frame is enough: 80% with one frame repeated, 80% with all.',
     'shows no use of time'),
    ([.8,.8,.8,.3], 'Several frames help, but not their order.', 'uses several frames, but not their order'),
    ([.8,.2,.2,.2], '', 'uses the order of the frames')])
def test_use_of_time(videos, time, advice, verdict):
    study = make_study(videos, time=time)
    assert verdict in study.verdict() and advice in seen(study)
    assert ('frame' in seen(study).lower()) == bool(advice)


def test_the_choice_of_the_best(videos):
    study = make_study(videos)
    assert 'The best of 2 models was chosen on the videos that score it.' in seen(study)
    corrected = make_study(videos, corrected=(.7,.6,.75))
    assert 'chosen on' not in seen(corrected)
    assert '70% (95% interval 60% to 75%, corrected for choosing the best of 2)' in corrected.verdict()
    alone = Study('', [study.winner], 'Convolutions')
    assert 'chosen on' not in seen(alone) and alone.verdict().startswith('The model “Convolutions” reaches')


def test_the_simplest_model(videos):
    alike = make_study(videos, other=.9)
    assert '“Convolutions” is not clearly better than “Frames”.' in seen(alike)
    assert 'is not clearly better than the simplest, “Frames”: ' in alike.verdict()
    itself = make_study(videos, simplest='Convolutions')
    assert itself.verdict().endswith('it is also the simplest.')


def test_classes(videos):
    "Confused pairs, small classes, certain errors and perfect scores are named"
    study = make_study(videos, right=1)
    assert 'There are no errors.' in seen(study)
    scores = study.scores
    scores.probs[:8] = torch.eye(6)[1]*.95+.05/6 # the videos of the first class
    assert '“MoveLeft” and “Grow” are confused: 8 errors in 20 videos.' in seen(study)
    assert '8 errors with a probability over 90%.' in seen(study) and 'no errors' not in seen(study)
    few = make_study(videos[:10]+videos[10:16])
    assert '1 of 2 classes has fewer than 10 scored videos (MoveLeft: 6).' in seen(few)
    assert 'fewer' not in seen(make_study(videos[:10]+videos[10:16], n_folds=None))


def test_a_study_names_its_contenders(videos):
    only = [contender('a', None)]
    with pytest.raises(ValueError, match="best='x': not one of"): Study('', only, 'x')
    with pytest.raises(ValueError, match="simplest='x': not one of"): Study('', only, 'a', 'x')
