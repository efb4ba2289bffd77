"""Compare the scores of moments with loops that follow the published definitions, and with scikit-learn

Random times are multiples of 1/8 s, which floats hold exactly, so that ties are ties in both.
"""
import functools
import json
import random
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score

from vidseq.evaluate.moment_counts import MomentCounts, moment_metrics
from vidseq.evaluate.moment_films import MomentFilms
from vidseq.evaluate.moment_metrics import interpolated_average_precision
from vidseq.evaluate.moment_scores import moment_scores

thresholds = [.5, .55, .6, .65, .7, .75, .8, .85, .9, .95]
found_columns,true_columns = ['file','start','end','label','score'],['file','start','end','label']


def table(rows, columns=found_columns): return pd.DataFrame(rows, columns=columns)


def near(got, want):
    if want is None or got is None: return got is None and want is None
    return abs(got-want) < 1e-9


# References: steps are lists of labels, moments are tuples (file, start, end, label, score)

def reference_steps(moments, seconds, rate):
    "Return the label of each step of a film by testing all moments at each step"
    steps,i = [],0
    while i/rate < seconds-1e-6:
        inside = [m for m in moments if m[1]-1e-6 <= i/rate < m[2]-1e-6]
        best = max(inside, key=lambda m: (m[4],m[1],m[2],m[3]), default=None)
        steps.append(best and best[3])
        i += 1
    return steps


def reference_runs(steps):
    "Return (label, set of steps) of the runs that are not background"
    runs = []
    for i,o in enumerate(steps):
        if i and o == steps[i-1]: runs[-1][1].add(i)
        else: runs.append((o,{i}))
    return [o for o in runs if o[0] is not None]


def reference_edit(found, true):
    a,b = ([o for o,_ in reference_runs(s)] for s in (found,true))
    @functools.cache
    def distance(i, j):
        if 0 in (i,j): return i+j
        replaced = distance(i-1, j-1) + (a[i-1] != b[j-1])
        return min(distance(i-1, j)+1, distance(i, j-1)+1, replaced)
    return 1-distance(len(a), len(b))/max(len(a), len(b)) if a or b else 1


def reference_segments(pairs, k):
    "Return the F1 at k: predictions in order of time, each with the true segment of the highest IoU"
    tp = fp = fn = 0
    for found,true in pairs:
        found,true = reference_runs(found),reference_runs(true)
        taken = [False]*len(true)
        for label,steps in found:
            best,best_iou = None,Fraction(-1)
            for j,(other,others) in enumerate(true):
                iou = Fraction(len(steps & others), len(steps | others)) if label == other else Fraction(0)
                if iou > best_iou: best,best_iou = j,iou
            if best is None or taken[best] or 100*best_iou < k: fp += 1
            else:
                taken[best] = True
                tp += 1
        fn += taken.count(False)
    return 2*tp/(2*tp+fp+fn) if tp+fp+fn else None


def reference_iou(a, b):
    shared = max(0, min(a[2], b[2])-max(a[1], b[1]))
    union = a[2]-a[1] + b[2]-b[1] - shared
    return shared/union if union else 0


def reference_average_precision(found, true, tiou):
    "Return the area under the interpolated curve: at each recall, the best precision of this or a higher one"
    left = sorted(true, key=lambda m: m[:3])
    correct = []
    for m in sorted(found, key=lambda m: (-m[4],*m[:3])):
        possible = [(reference_iou(m, t),-i) for i,t in enumerate(left) if t[0] == m[0]]
        iou,i = max(possible, default=(-1,0))
        correct.append(iou >= tiou)
        if correct[-1]: del left[-i]
    points = [(sum(correct[:i])/len(true), sum(correct[:i])/i) for i in range(1, len(correct)+1)]
    area,last = 0,0
    for recall,_ in points:
        area += (recall-last)*max(p for r,p in points if r >= recall)
        last = recall
    return area


def reference_map(found, true, tiou):
    labels = sorted({m[3] for m in true})
    of = [[[m for m in rows if m[3] == k] for rows in (found,true)] for k in labels]
    values = [reference_average_precision(*o, tiou) for o in of]
    return sum(values)/len(values) if values else None


def reference_events(found, true, tolerance):
    "Return the size of the maximum matching of starts, by augmenting paths"
    partner = {}
    def place(i, tried):
        for j,t in enumerate(true):
            if j in tried or (t[0],t[3]) != (found[i][0],found[i][3]): continue
            if abs(t[1]-found[i][1]) > tolerance: continue
            tried.add(j)
            if j not in partner or place(partner[j], tried):
                partner[j] = i
                return True
        return False
    return sum(place(i, set()) for i in range(len(found)))


# Random tables

def random_moments(rng, films, n, apart=False):
    "Return up to `n` random moments per film; `apart`: they do not overlap"
    rows = []
    for film in films:
        time = rng.randrange(4)/8
        for _ in range(rng.randint(0, n)):
            start = time if apart else rng.randrange(64)/8
            end = start+rng.randint(0, 20)/8
            rows.append((film,start,end,rng.choice('abc'),rng.randint(1, 4)/4))
            time = end+rng.choice([0,0,1,5])/8
    rng.shuffle(rows)
    return rows


def test_tables_equal_the_definitions():
    rng,n_undefined = random.Random(1),0
    for case in range(1000):
        films = {f'f{i}': rng.choice([3.,8.,10.3]) for i in range(rng.randint(1, 3))}
        rate,tolerance = rng.choice([1,2.5,5]),rng.choice([0,.25,1,2])
        true,found = random_moments(rng, films, 5, apart=rng.random() < .8),random_moments(rng, films, 6)
        scores = moment_scores(table(found), table([m[:4] for m in true], true_columns), films, rate=rate,
                               tolerance=tolerance)
        flat = [(*m[:4],0) for m in true]
        overlapping = any(a[0] == b[0] and a[3] != b[3] and min(a[2], b[2]) > max(a[1], b[1])
                          for a in true for b in true)
        assert bool(scores.films.overlap) == overlapping, case
        of = [[[m for m in rows if m[0] == k] for rows in (found,flat)] for k in films]
        pairs = [[reference_steps(o, films[k], rate) for o in p] for k,p in zip(films, of)]
        steps = [[str(o) for pair in pairs for o in pair[i]] for i in (0,1)]
        want = {'frame_accuracy': accuracy_score(*steps), 'edit': np.mean([reference_edit(*o) for o in pairs])}
        want |= {f'f1@{k}': reference_segments(pairs, k) for k in (10,25,50)}
        if overlapping: want = dict.fromkeys(want)
        n_undefined += overlapping
        n_pairs = reference_events(found, true, tolerance)
        want |= {'map@0.5': reference_map(found, true, .5)}
        if case%4 == 0:
            means = [reference_map(found, true, o) for o in thresholds]
            want |= {'mean_map': None if None in means else sum(means)/10}
        want |= {'event_precision': n_pairs/len(found) if found else None,
                 'event_recall': n_pairs/len(true) if true else None,
                 'event_f1': 2*n_pairs/(len(found)+len(true)) if found or true else None}
        for k,v in want.items(): assert near(scores.value(k), v), (case,k,scores.value(k),v)
    assert 50 < n_undefined < 400


def random_steps(rng, names, n):
    steps = []
    while len(steps) < n: steps += [rng.choice(names)]*rng.randint(1, 6)
    return steps[:n]


def test_steps_equal_the_definitions():
    "Check given steps, with background by name and steps that are not judged"
    rng,empty = random.Random(2),table([], found_columns)
    for case in range(1000):
        count_background = rng.random() < .5
        raw = {}
        for i in range(rng.randint(1, 3)):
            n = rng.choice([0,1,2,30,40])
            raw[f'f{i}'] = (random_steps(rng, ['a','b','c','none',None], n),
                            random_steps(rng, ['a','b','c','none',None,-100], n))
        scores = moment_scores(empty, empty, steps=raw, background='none', count_background=count_background)
        judged = [[(f,t) for f,t in zip(*o) if t != -100] for o in raw.values()]
        pairs = [[[None if o[i] == 'none' else o[i] for o in pair] for i in (0,1)] for pair in judged]
        counted = [(str(f),str(t)) for pair in pairs for f,t in zip(*pair) if count_background or t is not None]
        accuracy = accuracy_score([t for _,t in counted], [f for f,_ in counted]) if counted else None
        assert near(scores.frame_accuracy, accuracy), case
        assert near(scores.edit, np.mean([reference_edit(*o) for o in pairs])), case
        for k in (10,25,50,75): assert near(scores.f1(k), reference_segments(pairs, k)), (case,k)
        assert [scores.map(), scores.event_f1] == [None,None]


def test_average_precision_equals_scikit_learn_where_precision_falls():
    "Check that interpolation changes nothing if precision decreases along the correct predictions"
    rng,equal = np.random.default_rng(0),0
    for _ in range(300):
        correct = rng.random(rng.integers(1, 9)) < .6
        if not correct.any(): continue
        values = np.arange(len(correct), 0, -1.)
        got = interpolated_average_precision(correct, np.ones((1,len(correct))), [correct.sum()])[0]
        want = average_precision_score(correct, values)
        precision = (correct.cumsum()/np.arange(1, len(correct)+1))[correct]
        falls = (np.diff(precision) <= 0).all()
        equal += falls
        assert abs(got-want) < 1e-9 if falls else got > want
    assert equal > 50


def test_weights_of_films_equal_copies_of_films():
    "Check the sums of the bootstrap: a film with weight 2 counts like two films"
    rng = random.Random(3)
    for case in range(60):
        films = {f'f{i}': 9. for i in range(3)}
        true,found = (random_moments(rng, films, 5, apart=o) for o in (True,False))
        found = [(*m[:4],i) for i,m in enumerate(found)] # no equal scores: copies stay together
        counts = MomentCounts(MomentFilms(table(found), table([m[:4] for m in true], true_columns), films))
        weights = np.array([[rng.randint(0, 3) for _ in films] for _ in range(4)])
        weights[weights.sum(1) == 0] = 1
        for row in weights:
            names = {f'f{i}x{j}': 9. for i,n in enumerate(row) for j in range(n)}
            def copies(rows, names=names): return [(k,*m[1:]) for k in names for m in rows if k.startswith(m[0])]
            copied = moment_scores(table(copies(found)), table([m[:4] for m in copies(true)], true_columns), names)
            for k in moment_metrics:
                got = counts.metric(k, row[None])[0]
                assert near(None if np.isnan(got) else got, copied.value(k)), (case,k)
