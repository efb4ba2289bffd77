"Check cross-validation folds against a plain Python check and against brute force"
import itertools
import random
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

import make_kinds
from fastai.vision.all import IndexSplitter, no_random
from vidseq.data.block import VideoDataLoaders
from vidseq.data.folds import fold_loaders, fold_note, group_folds, pool_items, split_folds
from vidseq.data.splits import clip_paths
from vidseq.evaluate.cross_validation import cross_validate
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
