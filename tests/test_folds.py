"Check cross-validation folds against a plain Python check and against brute force"
import itertools
import random
import shutil
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

import make_kinds
from fastai.vision.all import IndexSplitter, TensorImage, Transform, no_random
from vidseq.data.block import VideoDataLoaders
from vidseq.data.loader import balanced_order, repeat_each
from vidseq.data.folds import fold_loaders, fold_note, group_folds, pool_items, split_folds
from vidseq.data.splits import clip_paths
from vidseq.evaluate.cross_validation import cross_validate
from vidseq.evaluate.intervals import statistic_interval
from vidseq.evaluate.kinds import LabelScores, NumberScores
from vidseq.evaluate.metrics import ClassScores
from vidseq.evaluate.scores import evaluate


def classes_of(label): return label if isinstance(label, list) else [label]


def groups_of_classes(groups, labels):
    "Return class -> its groups"
    found = defaultdict(set)
    for g,label in zip(groups, labels):
        for l in classes_of(label): found[l].add(g)
    return found


def untrained(groups, labels, fold_of):
    "Return the classes in several groups that are all in the same fold"
    found = groups_of_classes(groups, labels)
    return {l for l,gs in found.items() if len(gs) > 1 and len({fold_of[g] for g in gs}) == 1}


def check_folds(folds, groups, n_folds):
    "Check that each clip is held out once, that groups are whole and no set is empty; return group -> fold"
    n = len(groups)
    assert len(folds) == n_folds
    assert sorted(i for _,valid in folds for i in valid) == list(range(n))
    for train,valid in folds:
        assert sorted([*train, *valid]) == list(range(n)) and len(train) and len(valid)
        assert not {groups[i] for i in train} & {groups[i] for i in valid}
    return {groups[i]: k for k,(_,valid) in enumerate(folds) for i in valid}


def possible(groups, labels, n_folds):
    "Return whether an assignment without empty folds leaves training clips to every class in several groups"
    names = sorted(set(groups))
    fold_lists = (o for o in itertools.product(range(n_folds), repeat=len(names)) if len(set(o)) == n_folds)
    return any(not untrained(groups, labels, dict(zip(names, o))) for o in fold_lists)


def random_case(rng, max_groups=8):
    "Return random groups, labels and a number of folds"
    n_groups = rng.randint(2, max_groups)
    groups = [f'g{i}' for i in range(n_groups)]
    groups += [f'g{rng.randrange(n_groups)}' for _ in range(rng.randint(0, 25))]
    rng.shuffle(groups)
    names = 'abcdef'[:rng.randint(1, 6)]
    if rng.random() < .4: labels = [rng.sample(names, rng.randint(0, min(3, len(names)))) for _ in groups]
    else: labels = [rng.choice(names) for _ in groups]
    return groups, labels, rng.randint(2, min(n_groups, 4))


@pytest.mark.parametrize('seed', range(4))
def test_random_cases_have_the_best_possible_training_sets(seed):
    rng = random.Random(seed)
    n_possible = 0
    for _ in range(40):
        groups,labels,n_folds = random_case(rng, 7)
        fold_of = check_folds(split_folds(groups, labels, n_folds, seed), groups, n_folds)
        is_possible = possible(groups, labels, n_folds)
        n_possible += is_possible
        assert not (is_possible and untrained(groups, labels, fold_of)), (groups, labels, n_folds)
    assert n_possible > 20


def test_the_order_of_the_clips_does_not_matter():
    for seed in range(16):
        rng = random.Random(seed)
        groups,labels,n_folds = random_case(rng, 12)
        if seed%3 == 0: labels = [rng.random() for _ in groups]
        if seed%2: groups = [f'{i:03}' for i in range(len(groups))]
        order = rng.sample(range(len(groups)), len(groups))
        folds = split_folds(groups, labels, n_folds, seed)
        again = split_folds([groups[i] for i in order], [labels[i] for i in order], n_folds, seed)
        assert folds == split_folds(groups, labels, n_folds, seed)
        assert [set(valid) for _,valid in folds] == [{order[i] for i in valid} for _,valid in again]


def test_seeds_give_different_folds():
    groups = [f'g{i//2}' for i in range(40)]
    assert len({str(split_folds(groups, list('ab')*20, 5, seed)) for seed in range(10)}) > 5


def spread(values): return max(values)-min(values)


def class_counts(folds, labels, name): return [sum(labels[i] == name for i in valid) for _,valid in folds]


@pytest.mark.filterwarnings('ignore:The least populated class')
def test_single_clips_are_divided_like_scikit_learn():
    for seed in range(30):
        rng = random.Random(seed)
        labels = rng.choices('abcd', [8,4,2,1], k=rng.randint(20, 80))
        n_folds = rng.randint(2, 5)
        folds = split_folds(range(len(labels)), labels, n_folds, seed)
        check_folds(folds, range(len(labels)), n_folds)
        want = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels)
        want = [(train, valid.tolist()) for train,valid in want]
        assert spread([len(o) for _,o in folds]) <= 1
        for l in 'abcd':
            assert sorted(class_counts(folds, labels, l)) == sorted(class_counts(want, labels, l))


def test_small_classes_are_divided_too():
    "Check data sets that scikit-learn refuses: all classes have fewer clips than folds"
    labels = [f'c{i//3}' for i in range(60)]
    folds = split_folds(range(60), labels, 5)
    assert [len(o) for _,o in folds] == [12]*5
    assert all(max(class_counts(folds, labels, l)) == 1 for l in set(labels))
    pairs = [f'{l}_{i%3}' for i,l in enumerate(labels) for _ in range(2)]
    folds = split_folds(pairs, [o.split('_')[0] for o in pairs], 7)
    check_folds(folds, pairs, 7)
    assert spread([len(o) for _,o in folds]) <= 2 # one group


def imbalance(groups, labels, fold_of, n_folds):
    "Return the sum of the squared deviations of fold sizes and class counts, relative to their totals"
    n_classes = len(set(labels))
    total = 0
    for name in [None, *set(labels)]:
        clips = [g for g,l in zip(groups, labels) if name in (None, l)]
        sizes = Counter(fold_of[g] for g in clips)
        squares = sum((sizes[k]-len(clips)/n_folds)**2 for k in range(n_folds))
        total += squares/len(clips)*(n_classes if name is None else 1)
    return total


def test_small_cases_are_optimal():
    "Compare with all assignments of groups to folds"
    for seed in range(12):
        rng = random.Random(seed)
        groups = [f'g{rng.randrange(7)}' for _ in range(30)]
        labels = [rng.choice('abc') for _ in groups]
        names,n_folds = sorted(set(groups)),rng.choice([2,3])
        fold_of = check_folds(split_folds(groups, labels, n_folds, seed), groups, n_folds)
        got = imbalance(groups, labels, fold_of, n_folds)
        every = (dict(zip(names, o)) for o in itertools.product(range(n_folds), repeat=len(names)))
        every = [o for o in every if len(set(o.values())) == n_folds and not untrained(groups, labels, o)]
        best = min(imbalance(groups, labels, o, n_folds) for o in every)
        assert got <= best*1.001 + 1e-9, (seed, got, best)


@pytest.mark.filterwarnings('ignore:The least populated class')
def test_scikit_learn_is_repaired():
    "Check cases in which `StratifiedGroupKFold` leaves a fold empty or a class without training clips"
    n_repaired = 0
    for seed in range(60):
        groups,labels,n_folds = random_case(random.Random(seed), 8)
        labels = [str(o) for o in labels]
        if max(Counter(labels).values()) < n_folds: continue # refused by scikit-learn
        kfold = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        want = {groups[i]: k for k,(_,valid) in enumerate(kfold.split(groups, labels, groups)) for i in valid}
        fold_of = check_folds(split_folds(groups, labels, n_folds, seed), groups, n_folds)
        ours,theirs = (len(untrained(groups, labels, o)) for o in (fold_of, want))
        is_empty = len(set(want.values())) < n_folds
        assert ours <= theirs or is_empty
        n_repaired += ours < theirs or is_empty
    assert n_repaired > 1


def test_numbers_are_spread_over_the_folds():
    for seed in range(10):
        rng = random.Random(seed)
        labels = [rng.gauss(0, 1) for _ in range(100)]
        folds = split_folds(range(100), labels, 5, seed)
        assert [len(o) for _,o in folds] == [20]*5
        ordered = sorted(labels)
        for _,valid in folds: # two of each tenth
            assert Counter(ordered.index(labels[i])//10 for i in valid) == {o: 2 for o in range(10)}
        assert folds == split_folds(range(100), [[o, 0.] for o in labels], 5, seed)


def test_equal_paths_stay_together():
    paths = [Path(f'{c}/{i}.mp4') for c in 'ab' for i in range(10)]*2
    folds = group_folds(paths, [o.parent.name for o in paths], n_folds=5)
    check_folds(folds, [str(o) for o in paths], 5)
    assert [len(o) for _,o in folds] == [8]*5
    assert all(class_counts(folds, [o.parent.name for o in paths], l) == [4]*5 for l in 'ab')


def test_leave_one_group_out():
    paths = [f'{c}/{p}_{i}.mp4' for c in 'ab' for p in ('ann','bob','cy') for i in range(3)]
    folds = group_folds(paths, None, '^[^_]+', None)
    held_out = [{Path(paths[i]).name.split('_')[0] for i in valid} for _,valid in folds]
    assert held_out == [{'ann'}, {'bob'}, {'cy'}]
    assert [len(o) for _,o in group_folds(paths, None, n_folds=None)] == [1]*18


def test_classes_in_one_group_are_named():
    paths = [f'{c}/{g}_{c}.mp4' for c in 'ab' for g in 'pqrs'] + ['c/p_c.mp4', 'd/p_d.mp4']
    labels = [o[0] for o in paths]
    for n_folds in (2, 4, None): assert 'c, d' in fold_note(group_folds(paths, labels, '^.', n_folds), labels)
    # every pair of three groups shares a class: two folds cannot separate all pairs
    groups,labels = list('ppqqrr'),[*'abbcac']
    folds = split_folds(groups, labels, 2)
    assert len(untrained(groups, labels, check_folds(folds, groups, 2))) == 1
    assert fold_note(folds, labels).startswith('No training clips in one of the folds')


@pytest.mark.parametrize('n_folds', [0, 1, -2, 2.5, '3'])
def test_numbers_of_folds_are_checked(n_folds):
    with pytest.raises(ValueError, match='not a number of folds'): split_folds('abc', None, n_folds)


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match='n_folds=5: more than the 3 groups .* Give 3 or fewer'):
        split_folds('aabbcc', None, 5)
    with pytest.raises(ValueError, match='all 4 clips belong to one group'): split_folds('aaaa', None, 2)
    with pytest.raises(ValueError, match='all 0 clips'): split_folds([], [], 2)
    with pytest.raises(ValueError, match='a.mp4: no group found'):
        group_folds(['a.mp4','g1.mp4'], None, 'g[0-9]')
    with pytest.raises(ValueError, match='1 labels for 2 clips'): group_folds(['a','b'], ['x'])


def test_no_warnings(recwarn):
    split_folds([f'g{i//2}' for i in range(20)], ['a']*17+['b']*3, 5)
    assert not len(recwarn)


# Cross-validation of trained models

@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('kinds')


@pytest.fixture(scope='module')
def clips(path): return make_kinds.make_clips(path)


def train(dls):
    "Train a tiny learner on `dls`"
    learn = make_kinds.tiny_learner(dls)
    with learn.no_logging(), learn.no_bar(): learn.fit(2, 1e-2)
    return learn


def labels_of_kind(kind, clips):
    "Return the labels of clips, and the classes"
    names = make_kinds.classes
    if kind == 'class': return [o.parent.name for o in clips], names
    if kind == 'classes': return [[o.parent.name, 'all'] for o in clips], sorted([*names, 'all'])
    return [[i/10, -i/5] for i in range(len(clips))], None


@pytest.mark.parametrize('kind', ['class','classes','numbers'])
def test_cross_validation_equals_a_loop(kind, path, clips):
    "Compare with single splits, trained and evaluated one after another"
    labels,vocab = labels_of_kind(kind, clips)
    dls = make_kinds.create(path, clips, labels, group='^p[0-9]')
    result = cross_validate(train, dls, 3, seed=7)
    groups = [o.name[:2] for o in clips]
    assert result.scores.kind == kind and result.scores.n_groups == 3 and len(result.table) == 3
    probs,values = {},[]
    for held_out in ('p0','p1','p2'):
        valid = [i for i,g in enumerate(groups) if g == held_out]
        with no_random(7, reproducible=False):
            one = make_kinds.create(path, clips, labels, splitter=IndexSplitter(valid), vocab=vocab)
            scores = evaluate(train(one))
        probs |= dict(zip(scores.paths, scores.probs))
        values.append(scores.score)
    torch.testing.assert_close(result.scores.probs, torch.stack([probs[o] for o in result.scores.paths]))
    assert sorted(result.table.score) == pytest.approx(sorted(values))
    assert sorted(result.scores.paths) == sorted(clips)
    assert result.scores.groups == [o.name[:2] for o in result.scores.paths]
    by_path = dict(zip(clips, labels))
    for o,targ in zip(result.scores.paths, result.scores.targs):
        if kind == 'class': assert by_path[o] == vocab[int(targ)]
        elif kind == 'classes': assert sorted(by_path[o]) == [n for n,v in zip(vocab, targ) if v]
        else: assert by_path[o] == pytest.approx(targ.tolist())


def test_loaders_and_clips_agree(path, clips):
    "Loaders, a folder, a list of clips in another order, and folds as lists give the same predictions"
    dls = make_kinds.create(path, clips, [o.parent.name for o in clips], group='^p[0-9]')
    options = make_kinds.settings | dict(group='^p[0-9]')
    options.pop('seed')
    shuffled = random.Random(0).sample(clips, len(clips))
    folds = group_folds(shuffled, [o.parent.name for o in shuffled], '^p[0-9]', 3)
    results = [cross_validate(train, dls, 3)]
    results += [cross_validate(train, path, 3, **options), cross_validate(train, shuffled, 3, **options),
                cross_validate(train, shuffled, folds, **options)]
    want = dict(zip(results[0].scores.paths, results[0].scores.probs))
    for o in results[1:]:
        torch.testing.assert_close(o.scores.probs, torch.stack([want[p] for p in o.scores.paths]))
        assert o.table.score.tolist() == results[0].table.score.tolist()


def test_an_interruption_keeps_the_finished_folds(path, clips, tmp_path, capsys):
    dls = make_kinds.create(path, clips, [o.parent.name for o in clips], group='^p[0-9]')
    calls = []
    def count(dls):
        calls.append(len(dls.train_ds))
        if len(calls) == 2: raise KeyboardInterrupt
        return train(dls)
    want = cross_validate(train, dls, 3)
    with pytest.raises(KeyboardInterrupt): cross_validate(count, dls, 3, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    result = cross_validate(count, dls, 3, folder=tmp_path)
    assert len(calls) == 4 and len(list(tmp_path.iterdir())) == 3
    torch.testing.assert_close(result.scores.probs, want.scores.probs)
    assert result.scores.targs.tolist() == want.scores.targs.tolist()
    cross_validate(count, dls, 3, folder=tmp_path)
    assert len(calls) == 4
    # another seed or more views, a damaged file, and learners that must be returned
    cross_validate(count, dls, 3, n_views=2, folder=tmp_path)
    cross_validate(count, dls, 3, seed=1, folder=tmp_path)
    assert len(calls) == 10
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:9])
    for o in (dict(), dict(n_views=2), dict(seed=1)): cross_validate(count, dls, 3, folder=tmp_path, **o)
    assert len(calls) == 11 and 'not safetensors' in capsys.readouterr().out
    kept = cross_validate(count, dls, 3, folder=tmp_path, keep_learners=True)
    assert len(calls) == 14 and len(kept.learners) == 3
    torch.testing.assert_close(evaluate(kept.learners[0]).probs, kept.scores.probs[sorted(kept.folds[0][1])])


def test_a_class_without_training_clips_is_named(path, clips, capsys):
    some = [o for o in clips if o.parent.name != 'start' or o.name.startswith('p0')]
    dls = make_kinds.create(path, some, [o.parent.name for o in some], group='^p[0-9]')
    result = cross_validate(train, dls, 3)
    assert 'No training clips in one of the folds' in capsys.readouterr().out
    assert len(result.scores.vocab) == 3 and result.scores.probs.shape == (14,3)
    assert repr(result).startswith('Cross-validation with 3 folds: accuracy')
    assert result.scores.interval() is not None


def test_training_on_all_clips(path, clips):
    dls = make_kinds.create(path, clips, [o.parent.name for o in clips])
    everything = fold_loaders(dls, range(len(clips)), [])
    assert sorted(clip_paths(everything.train_ds)) == sorted(clip_paths(pool_items(dls))) == sorted(clips)
    learn = train(everything)
    assert len(evaluate(learn, dls.valid).targs) == len(dls.valid_ds)


def test_clips_with_labels_from_a_table(path, clips):
    table = pd.DataFrame(dict(name=[str(o) for o in clips], label=[o.parent.name for o in clips],
                              person=[o.name[:2] for o in clips]))
    dls = VideoDataLoaders.from_df(table, group_col='person', **make_kinds.settings)
    result = cross_validate(train, dls, None)
    assert result.table.groups.tolist() == [1,1,1] and result.scores.n_groups == 3
    dls = make_kinds.create(path, clips, [o.parent.name for o in clips], group='^p[0-9]')
    want = cross_validate(train, dls, 3)
    assert sorted(result.table.score) == sorted(want.table.score)


# Balanced classes and repeated clips

def test_balanced_orders_have_equal_classes():
    "Compare with a plain count: classes are equal, and so are the clips of a class, except for rounding"
    for seed in range(50):
        rng = random.Random(seed)
        classes = [rng.choice('aaaaaabbc') for _ in range(rng.randint(1, 60))]
        n = rng.choice([len(classes), rng.randint(1, 99)])
        order = balanced_order(classes, n, random.Random(seed))
        counts = Counter(classes[i] for i in order)
        assert len(order) == n
        assert spread([counts[c] for c in set(classes)]) <= 1
        for c in set(classes): assert spread([order.count(i) for i,o in enumerate(classes) if o == c]) <= 1
        assert order == balanced_order(classes, n, random.Random(seed))
    assert len({str(balanced_order('aabb', 4, random.Random(i))) for i in range(20)}) > 5


def test_copies_stay_in_one_process():
    for n,repeats,n_processes in itertools.product(range(1, 9), (1,2,3), (1,2,4)):
        idxs = repeat_each(list(range(n)), repeats, n_processes)
        if repeats == 1: assert idxs == list(range(n))
        else:
            share = len(idxs)//n_processes # as `DistributedDL` divides them
            assert len(idxs)%n_processes == 0 and share%repeats == 0
            assert idxs[::repeats] == idxs[repeats-1::repeats] and set(idxs) == set(range(n))
            assert len(idxs) < (n+n_processes)*repeats


class RandomShift(Transform):
    "Add a random number to an image"
    order = 100
    def encodes(self, x:TensorImage): return x + torch.rand(1)


def unequal(kind, path, clips, **kwargs):
    "Return loaders of 6, 3 and 1 training clips of the classes"
    some = [*clips[:6], *clips[6:9], clips[12], clips[13]]
    labels,_ = labels_of_kind(kind, some)
    return make_kinds.create(path, some, labels, splitter=IndexSplitter([10]), **kwargs)


def epoch(dl):
    "Return the labels of each batch of an epoch"
    return [y.tolist() for _,y in dl]


@pytest.mark.parametrize('num_workers', [0,2])
def test_balanced_loaders(path, clips, num_workers):
    dls = unequal('class', path, clips, balanced=True, bs=3, num_workers=num_workers)
    for _ in range(4):
        counts = Counter(l for o in epoch(dls.train) for l in o)
        assert sum(counts.values()) == 9 and all(2 <= counts[c] <= 4 for c in range(3))
    assert epoch(dls.valid) == [[2]] and len(dls.valid) == 1
    plain = dls.train.new(shuffle=False, drop_last=False)
    assert Counter(l for o in epoch(plain) for l in o) == {0: 6, 1: 3, 2: 1}
    assert dls.train.new().balanced and fold_loaders(dls, range(10), [10]).train.balanced


def test_epochs_follow_the_generator_of_the_loader(path, clips):
    "Compare the indices of an epoch with the pure functions"
    dls = unequal('class', path, clips, balanced=True, repeats=2, bs=4)
    state = dls.train.rng.getstate()
    classes = [int(y) for _,y in dls.train_ds]
    for _ in range(3):
        rng = random.Random()
        rng.setstate(dls.train.rng.getstate())
        want = [i for i in balanced_order(classes, 10, rng) for _ in range(2)]
        assert dls.train.get_idxs() == want
    dls.train.rng.setstate(state)
    first = epoch(dls.train)
    dls.train.rng.setstate(state)
    assert epoch(dls.train) == first and len(first) == len(dls.train) == 5


@pytest.mark.parametrize('num_workers', [0,2])
def test_repeated_clips_have_independent_transforms(path, clips, num_workers):
    dls = unequal('class', path, clips, repeats=3, bs=6, num_workers=num_workers)
    assert (len(dls.train), dls.train.drop_last) == (5, True)
    dls.train.after_item.add(RandomShift())
    seen = Counter()
    for x,y in dls.train:
        assert y[::3].equal(y[1::3]) and y[::3].equal(y[2::3])
        shifts = [round(float(o), 6) for o in x[0].reshape(6, -1).max(1).values]
        assert len(set(shifts)) == 6
        seen.update(y.tolist())
    assert seen == {0: 18, 1: 9, 2: 3}
    assert len(epoch(dls.valid)) == 1


def test_default_batches_hold_all_copies(path, clips):
    dls = make_kinds.create(path, clips, [o.parent.name for o in clips], repeats=2, bs=None)
    assert dls.train.bs == 2 and len(dls.train) == len(dls.train_ds)
    with pytest.raises(ValueError, match='bs=5: not a multiple of repeats=2'):
        make_kinds.create(path, clips, [o.parent.name for o in clips], repeats=2, bs=5)
    for o in (0, 1.5, '2'):
        with pytest.raises(ValueError, match='not a number of copies'):
            make_kinds.create(path, clips, [o.parent.name for o in clips], repeats=o)


def test_several_labels_balance_the_rarest(path, clips):
    dls = unequal('classes', path, clips, balanced=True, bs=3)
    dl = dls.train
    rare = [min(set(o.nonzero().flatten().tolist())-{0}) for _,o in dl.dataset] # class 0 is 'all'
    for _ in range(3): assert spread(Counter(rare[i] for i in dl.get_idxs()).values()) <= 1
    with pytest.raises(ValueError, match='balanced=True: the labels are not classes'):
        unequal('numbers', path, clips, balanced=True)


def test_bad_clips_are_replaced_in_balanced_epochs(path, clips, tmp_path, capsys):
    for o in clips[:4] + clips[6:10]: shutil.copytree(o, tmp_path/o.parent.name/o.name)
    options = make_kinds.settings | dict(bs=4, balanced=True, repeats=2, skip_bad=True)
    dls = VideoDataLoaders.from_folder(tmp_path, splitter=IndexSplitter([3,7]), **options)
    bad = dls.train_ds.items[1]
    shutil.rmtree(bad)
    ys = [l for _ in range(3) for o in epoch(dls.train) for l in o]
    assert Counter(ys) == {0: 18, 1: 18} and bad.name in capsys.readouterr().out


def test_processes_divide_balanced_epochs(path, clips, monkeypatch):
    "Check the batches of each of two processes, without starting them"
    distributed = pytest.importorskip('fastai.distributed')
    monkeypatch.setattr('vidseq.data.loader.num_distrib', lambda: 2)
    monkeypatch.setattr(distributed.DistributedDL, '_broadcast', lambda self, t, rank: t)
    dls = unequal('class', path, clips, balanced=True, repeats=2, bs=2)
    state,batches = dls.train.rng.getstate(),[]
    for rank in range(2):
        dls.train.rng.setstate(state)
        batches.append(epoch(distributed.DistributedDL(dls.train, rank, 2)))
    assert [len(o) for o in batches] == [5,5]
    assert all(a == b for o in batches for a,b in o)
    assert sorted(Counter(a for o in batches for a,_ in o).values()) == [3,3,4]


# Intervals

def percentiles(values): return np.percentile(values, [2.5,97.5])


def resample(groups, n=200):
    "Yield the weights of the clips in bootstrap samples of groups, as `statistic_interval` draws them"
    names,ids = np.unique(groups, return_inverse=True)
    shares = np.full(len(names), 1/len(names))
    yield from np.random.default_rng(0).multinomial(len(names), shares, size=n)[:,ids]


def resample_means(groups, n=10000):
    "Yield the weights of the clips in bootstrap samples of groups, as `group_interval` draws them"
    names,ids = np.unique(groups, return_inverse=True)
    for drawn in np.random.default_rng(0).integers(len(names), size=(n,len(names))):
        yield np.bincount(drawn, minlength=len(names))[ids]


@pytest.fixture
def fewer_samples(monkeypatch):
    "Draw 200 bootstrap samples for statistics that scikit-learn computes slowly"
    for o in ('kinds','metrics'):
        monkeypatch.setattr(f'vidseq.evaluate.{o}.statistic_interval', partial(statistic_interval, n=200))


@pytest.fixture(scope='module')
def groups(): return [f'g{i%9}' for i in range(40)]


def test_intervals_of_several_labels_equal_scikit_learn(groups, fewer_samples):
    rng = np.random.default_rng(1)
    probs,labels = rng.random((40,3)).round(1),rng.random((40,3)) < [.5,.3,.05]
    scores = LabelScores(torch.tensor(probs), torch.tensor(labels).float(), list('abc'), range(40), groups)
    weights = list(resample(groups))
    def mean_precision(w):
        present = (w[:,None]*labels).any(0)
        return np.mean([metrics.average_precision_score(labels[:,c], probs[:,c], sample_weight=w)
                        for c in np.flatnonzero(present)])
    np.testing.assert_allclose(scores.interval(), percentiles([mean_precision(w) for w in weights]))
    f1 = [metrics.f1_score(labels, probs > .5, average='micro', sample_weight=w) for w in weights]
    np.testing.assert_allclose(scores.interval(metric='f1'), percentiles(f1))
    right = (labels == (probs > .5)).all(1)
    subset = [np.average(right, weights=w) for w in resample_means(groups)]
    np.testing.assert_allclose(scores.interval(metric='subset_accuracy'), percentiles(subset))
    data = scores.to_dict()
    assert data['f1_interval'] == list(scores.interval(metric='f1'))


def test_intervals_of_numbers_equal_scikit_learn(groups, fewer_samples):
    rng = np.random.default_rng(2)
    targs = rng.normal(10, 3, (40,2))
    preds = targs + rng.normal(0, 2, (40,2))
    scores = NumberScores(torch.tensor(preds), torch.tensor(targs), ['x','y'], range(40), groups)
    r2 = [metrics.r2_score(targs, preds, sample_weight=w) for w in resample(groups)]
    np.testing.assert_allclose(scores.interval(metric='r2'), percentiles(r2))
    samples = list(resample_means(groups))
    mae = [np.average(abs(preds-targs).mean(1), weights=w) for w in samples]
    np.testing.assert_allclose(scores.interval(), percentiles(mae))
    mse = [np.average(((preds-targs)**2).mean(1), weights=w) for w in samples]
    np.testing.assert_allclose(scores.interval(metric='rmse'), percentiles(np.sqrt(mse)), rtol=1e-3)
    for i in (0,1,2): # the references are those of scikit-learn
        w = samples[i]
        assert mae[i] == pytest.approx(metrics.mean_absolute_error(targs, preds, sample_weight=w))
        assert mse[i] == pytest.approx(metrics.mean_squared_error(targs, preds, sample_weight=w))


@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_intervals_of_classes_equal_scikit_learn(groups, fewer_samples):
    rng = np.random.default_rng(3)
    probs,targs = rng.random((40,7)),rng.integers(0, 7, 40)
    probs[range(40),targs] += .6
    scores = ClassScores(torch.tensor(probs), torch.tensor(targs), list('abcdefg'), range(40), groups)
    balanced = [metrics.balanced_accuracy_score(targs, probs.argmax(1), sample_weight=w)
                for w in resample(groups)]
    want = metrics.balanced_accuracy_score(targs, probs.argmax(1))
    assert scores.mean_class_accuracy == pytest.approx(want)
    np.testing.assert_allclose(scores.interval(metric='mean_class_accuracy'), percentiles(balanced))
    assert scores.top(5) == pytest.approx(metrics.top_k_accuracy_score(targs, probs, k=5))
    right = (np.argsort(-probs, 1)[:,:5] == targs[:,None]).any(1)
    top5 = [np.average(right, weights=w) for w in resample_means(groups)]
    np.testing.assert_allclose(scores.interval(metric='top5'), percentiles(top5))
