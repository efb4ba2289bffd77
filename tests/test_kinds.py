"Check predictions, scores and explanations for every kind of label and loss function on tiny models"
import json
import shutil
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import make_kinds
from fastai.vision.all import IndexSplitter
from vidseq.cli import main
from vidseq.data.splits import leaked_groups
from vidseq.deploy.card import model_card
from vidseq.deploy import saving  # noqa: F401 (adds `save_pretrained`)
from vidseq.deploy.predict import predict_video
from vidseq.data.events import find_events
from vidseq.deploy.timeline import plot_timeline, predict_timeline
from vidseq.evaluate.interpret import ClipInterpretation, class_activation, explain, frame_importance
from vidseq.evaluate.scores import evaluate, time_sensitivity
from vidseq.models.conv3d import Conv3dModel
from vidseq.report.page import write_report
from vidseq.train.learner import video_learner
from vidseq.train.outputs import labels_of

close = dict(rtol=1e-4, atol=1e-5)
metrics = {'class': 'accuracy', 'classes': 'mean_average_precision', 'numbers': 'mae'}


@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('kinds')


@pytest.fixture(scope='module')
def clips(path): return make_kinds.make_clips(path)


@pytest.fixture(scope='module')
def loaders(path, clips): return make_kinds.make_loaders(path, clips)


def expected(learn, clip):
    "Return the probabilities or numbers of a clip, computed from the logits"
    return make_kinds.activations[labels_of(learn.dls).kind](make_kinds.logits_of(learn, clip))


def as_tensor(predictions, names):
    "Return the result of `predict_video` as a tensor in the order of the outputs"
    if not isinstance(predictions[0], tuple): return torch.tensor(predictions)
    assert [p for _,p in predictions] == sorted([p for _,p in predictions], reverse=True)
    return torch.tensor([dict(predictions)[str(o)] for o in names])


def check_scores(learn, valid):
    "Check the scores against the predictions of each clip"
    scores = evaluate(learn)
    torch.testing.assert_close(scores.probs, torch.stack([expected(learn, o) for o in valid]), **close)
    data = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert list(data)[0] == scores.metric == metrics[scores.kind] and data['videos'] == len(valid)
    json.dumps(scores.per_class().to_dict('records'), allow_nan=False)
    assert time_sensitivity(learn, n_shuffles=1).name == scores.metric


def check_timeline(learn, clip):
    "Check the only window of a timeline against the prediction of the clip"
    timeline = predict_timeline(learn, clip, window=4, fps=1)
    np.testing.assert_allclose(timeline.iloc[0,2:].astype(float), expected(learn, clip), **close)
    if labels_of(learn.dls).kind == 'numbers': return
    n_likely = (timeline.iloc[0,2:] >= .5).sum()
    assert len(find_events(timeline)) == n_likely


def check_explanations(learn, clip):
    "Check the importance of frames against predictions of clips with a frame replaced"
    x = learn.dls.test_dl([clip], num_workers=0).one_batch()[0]
    x = torch.stack([torch.as_tensor(o) for o in x], 1).as_subclass(torch.Tensor) # 1,T,C,H,W
    target = min(1, len(labels_of(learn.dls).names)-1) # as a name, 1 is the same class of integers
    importance = frame_importance(learn, clip, target)
    y = x.clone()
    y[:,0] = x[:,1:].mean(1)
    with torch.no_grad(): outs = learn.model.eval()(torch.cat([x, y]))
    if isinstance(learn.model.last, torch.nn.LogSoftmax): outs = outs.exp()
    elif isinstance(learn.model.last, torch.nn.Identity):
        outs = make_kinds.activations[labels_of(learn.dls).kind](outs)
    np.testing.assert_allclose(importance[0], float(outs[0,target]-outs[1,target]), **close)
    assert class_activation(learn, clip).shape == (4,16,16)


@pytest.mark.parametrize('plain', [False, True], ids=['video_learner','Learner'])
@pytest.mark.parametrize('kind, loss, last', [pytest.param(*o, id=name) for name,*o in make_kinds.table()])
def test_answers_are_probabilities_or_numbers(loaders, kind, loss, last, plain):
    learn = make_kinds.tiny_learner(loaders[kind], loss, last, plain)
    valid = [o[0] for o in learn.dls.valid.items]
    predictions = predict_video(learn, valid[0], k=9)
    names,want = labels_of(learn.dls).names,expected(learn, valid[0])
    torch.testing.assert_close(as_tensor(predictions, names), want, **close)
    check_scores(learn, valid)
    if plain: return
    check_timeline(learn, valid[0])
    check_explanations(learn, valid[0])


@pytest.mark.parametrize('kind, loss, last', [pytest.param(*o, id=name) for name,*o in make_kinds.table()])
def test_a_video_learner_trains_and_decodes_with_any_loss(loaders, kind, loss, last):
    "fastai's own methods decode too, and the largest losses are the means of the losses of each clip"
    learn = make_kinds.tiny_learner(loaders[kind], loss, last)
    with learn.no_logging(): learn.fit(1, 1e-3)
    assert all(np.isfinite(learn.recorder.values[0]))
    item,info = learn.dls.valid.items[0],labels_of(learn.dls)
    decoded = learn.predict(item[0])[0]
    probs = expected(learn, item[0])
    if info.kind == 'class': assert decoded == str(info.names[int(probs.argmax())])
    elif info.kind == 'numbers': np.testing.assert_allclose(decoded, probs, **close)
    interpretation = ClipInterpretation.from_learner(learn)
    values,_ = interpretation.top_losses()
    assert len(values) == len(learn.dls.valid_ds) and values.isfinite().all()
    assert len(interpretation.per_class()) and 'predicted' in interpretation.top_players(1)._repr_html_()


@pytest.mark.parametrize('kind', ['class','integers','classes','encoded','number','numbers'])
def test_every_kind_has_its_figures(loaders, kind):
    learn = make_kinds.tiny_learner(loaders[kind])
    clip = learn.dls.valid.items[0][0]
    plt.close(explain(learn, clip, n=2))
    plt.close(evaluate(learn).plot())
    ax = plot_timeline(predict_timeline(learn, clip, window=2, fps=1))
    is_number = labels_of(learn.dls).kind == 'numbers'
    assert (ax.get_ylabel() == 'value') == is_number
    assert (ax.get_ylim() == (-.02,1.02)) != is_number
    assert len(ax.get_lines()) == len(labels_of(learn.dls).names)
    plt.close('all')


def run(capsys, *args):
    "Run a command, which must succeed, and return its output"
    capsys.readouterr()
    assert main([str(o) for o in args]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize('kind', ['class','integers','classes','encoded','number','numbers'])
def test_commands_answer_like_the_learner(loaders, kind, tmp_path, capsys):
    "A saved model of each kind goes through all commands, and JSON has no NaN"
    learn = video_learner(loaders[kind], partial(Conv3dModel, width=4))
    model,clip = learn.save_pretrained(tmp_path/'model'),learn.dls.valid.items[0][0]
    names,is_number = labels_of(learn.dls).names,labels_of(learn.dls).kind == 'numbers'
    found = json.loads(run(capsys, 'predict', model, clip, '--top', 9, '--json'))[str(clip)]
    want = predict_video(learn, clip, k=9)
    if is_number: assert found == pytest.approx(want, rel=1e-4)
    else: assert dict(found) == pytest.approx(dict(want), rel=1e-4)
    assert len(run(capsys, 'predict', model, clip, '--top', 9).splitlines()) == 1+len(names)
    rows = json.loads(run(capsys, 'timeline', model, clip, '--fps', 1, '--json', '--threshold', 0))
    assert len(rows) == (3 if is_number else len(names))
    assert f'output: {len(names)} {"numbers" if is_number else "logits"}' in run(
        capsys, 'export', model, tmp_path/'model.pt2')
    if kind == 'numbers': return # a folder's name is one number
    folders = ['0','1'] if kind in ('integers','number') else names[:2]
    for o in folders: shutil.copytree(clip, tmp_path/'data'/o/'clip')
    scores = json.loads(run(capsys, 'evaluate', model, tmp_path/'data', '--json'))
    assert scores['videos'] == 2 and scores['groups'] is None and metrics[labels_of(learn.dls).kind] in scores
    assert 'groups unknown' in run(capsys, 'evaluate', model, tmp_path/'data')


@pytest.mark.parametrize('kind', ['class','classes','numbers'])
def test_a_page_compares_models_of_every_kind(loaders, kind, tmp_path):
    "The best model is the one with the best main score, and the scores are JSON without NaN"
    learners = {}
    for name in ('one','two'):
        learn = video_learner(loaders[kind], partial(Conv3dModel, width=4))
        nan = float('nan')
        curve = [[1.,1.,.5],[1.,nan,.5]]
        learn.report = dict(epochs=2, seconds=1., times=[.5,1.], curve=curve, valid_loss=nan)
        learn.report['scores'] = evaluate(learn)
        learners[name] = learn
    best = write_report(tmp_path, learners, n_clips=3)
    scores = {k: o.report['scores'] for k,o in learners.items()}
    choose = max if scores['one'].higher_is_better else min
    assert scores[best].score == choose(o.score for o in scores.values())
    data = json.loads((tmp_path/'scores.json').read_text(), parse_constant=lambda o: pytest.fail(o))
    assert data['models'][best][scores[best].metric] == scores[best].score
    page = (tmp_path/'index.html').read_text(encoding='utf-8')
    assert 0 < page.count('<picture>') <= 4 and scores[best].score_text() in page
    card = (tmp_path/'model'/'README.md').read_text(encoding='utf-8')
    assert 'unknown: what clips share' in card and 'none found' not in card


def test_scores_and_cards_know_the_groups_of_the_loaders(path, clips):
    "A group is given once, to the loaders: `evaluate`, `leaked_groups` and the card use it"
    names = [o.parent.name for o in clips]
    def learner(**kwargs): return make_kinds.tiny_learner(make_kinds.create(path, clips, names, **kwargs))
    apart = learner(group='^p[0-9]', valid_pct=.6)
    persons = {o[0].name[:2] for o in apart.dls.valid.items}
    assert len(persons) == 2 and evaluate(apart).n_groups == 2 and 'over 2 groups' in repr(evaluate(apart))
    assert leaked_groups(apart.dls) == [] == model_card(apart)['groups_on_both_sides']
    mixed = learner(group='^p[0-9]', splitter=IndexSplitter([0, 6, 12]))
    assert leaked_groups(mixed.dls) == ['p0'] == model_card(mixed)['groups_on_both_sides']
    unknown = learner()
    assert evaluate(unknown).n_groups is None and model_card(unknown)['groups_on_both_sides'] is None


def test_one_number_is_compared_with_its_own_label(loaders):
    "Predictions B,1 and labels B: `nn.MSELoss` alone would compare each with all others"
    learn = make_kinds.tiny_learner(loaders['number'], torch.nn.MSELoss())
    scores = evaluate(learn)
    with learn.no_logging(): loss = learn.validate()[0]
    assert loss == pytest.approx(scores.rmse**2, rel=1e-4)


def test_evaluating_keeps_what_training_recorded(loaders):
    learn = make_kinds.tiny_learner(loaders['class'])
    with learn.no_logging(): learn.fit(2, 1e-3)
    before = list(learn.recorder.values),list(learn.recorder.losses)
    evaluate(learn)
    predict_video(learn, learn.dls.valid.items[0][0])
    assert (list(learn.recorder.values), list(learn.recorder.losses)) == before


def test_unsuitable_metrics_do_not_disturb_predictions(loaders):
    from fastai.vision.all import accuracy
    learn = make_kinds.tiny_learner(loaders['classes'])
    learn.metrics = accuracy # fails for several labels
    assert evaluate(learn).metric == 'mean_average_precision'


def test_labels_of_numbers_have_their_default_metric(loaders):
    names = {k: [m.name for m in make_kinds.tiny_learner(o).metrics] for k,o in loaders.items()}
    assert names == {'class': ['accuracy'], 'integers': ['accuracy'], 'classes': ['accuracy_multi'],
                     'encoded': ['accuracy_multi'], 'number': ['mae'], 'numbers': ['mae']}
