"Check events in probabilities against plain loops, streams against whole films, and the search of a rule"
import itertools
import json
import pickle
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest

from vidseq.data.event_detector import Event, EventDetector, EventRule, remove_overlaps
from vidseq.data.events import choose_rule, count_pairs, event_f1, find_events


# The reference: the rules one after another, over the whole film, in loops

def runs_above(p, rule):
    "Return (first step, step after the last) of the runs of steps >= low with a step >= high"
    found,first = [],0
    for above,steps in itertools.groupby(p, lambda o: o >= rule.low):
        stop = first+len(list(steps))
        if above and max(p[first:stop]) >= rule.high: found.append((first,stop))
        first = stop
    return found


def events_of_class(label, p, edges, rule):
    "Return the merged events of a class that are long enough; `edges` are the N+1 bounds of the steps"
    merged = []
    for first,stop in runs_above(p, rule):
        if merged and edges[first]-edges[merged[-1][1]] <= rule.gap_seconds: merged[-1] = merged[-1][0],stop
        else: merged.append((first,stop))
    events = []
    for first,stop in merged:
        if edges[stop]-edges[first] < rule.min_seconds: continue
        total = 0.
        for o in p[first:stop]: total += o
        events.append(Event(label, edges[first], edges[stop], total/(stop-first)))
    return events


def overlap_of(a, b):
    "Return the temporal intersection over union by the lengths of both"
    both = max(0, min(a.end, b.end)-max(a.start, b.start))
    return both/((a.end-a.start)+(b.end-b.start)-both)


def is_better(a, b):
    if a.score != b.score: return a.score > b.score
    return (a.start,a.label) < (b.start,b.label)


def kept_events(events, overlap):
    "Return the events that no kept better one overlaps too much: decided by recursion, without sorting"
    def removes(k, o): return is_better(k, o) and overlap_of(k, o) > overlap and is_kept(k)
    def is_kept(o): return not any(removes(k, o) for k in events)
    return [o for o in events if is_kept(o)]


def reference(probs, edges, names, rule, background=None, exclusive=True):
    found = []
    for name,settings in rule.by_class(names, background).items():
        i = names.index(name)
        found += events_of_class(name, [row[i] for row in probs], edges, settings)
    if exclusive: found = kept_events(found, rule.overlap)
    return sorted(found, key=lambda o: (o.start,o.label))


# Random films: multiples of 1/4 s and of 1/8, so that durations and scores are exact and often equal

names = ['cut','none','pour','stir']


def random_probs(rng, n):
    kind = rng.integers(6)
    probs = rng.integers(0, 9, (n,4))/8
    if kind == 0: probs[:] = rng.integers(0, 9)/8 # constant, often all above
    if kind == 1: probs = rng.choice([0,1], (n,4)) # touching
    if kind == 2: probs = np.repeat(probs, rng.integers(1, 6), axis=0)[:n] # long runs
    if kind == 3: probs = rng.random((n,4)) # any sum
    if kind == 4: probs = np.eye(4)[rng.integers(0, 4, n)]*.75+.0625 # one class at a time
    return probs.astype(float)


def random_rule(rng):
    def setting(values):
        values = np.array(values)
        if rng.random() < .3: return dict(zip(names, rng.choice(values, 4).tolist()))
        return float(rng.choice(values))
    high,low = setting([.5,.625,.75,1]),rng.choice([None, setting([0,.125,.25,.5])])
    overlap = float(rng.choice([0,.1,.25,.5,.75,1]))
    return EventRule(high, low, setting([0,0,.25,.5,1,2]), setting([0,0,.25,.5,1,3]), overlap)


def random_film(seed):
    "Return probabilities, bounds of the steps, rule and options of a film of 0 to 40 steps"
    rng = np.random.default_rng(seed)
    n = int(rng.choice([0,1,2,rng.integers(3, 40)], p=[.03,.07,.05,.85]))
    lengths = rng.choice([.25,.5,1], n+1) if rng.random() < .5 else np.full(n+1, .25)
    edges = rng.integers(0, 9)/4+np.cumsum(lengths)-lengths[0]
    options = dict(background=rng.choice([None,'none']), exclusive=bool(rng.random() < .6))
    return random_probs(rng, n), edges, random_rule(rng), options


def as_events(df): return [Event(*o) for o in df.itertuples(index=False)]


def stream(probs, edges, rule, options, size):
    "Return the events in the order in which a stream in chunks of `size` steps emits them, and the alarms"
    detector = EventDetector(names, rule, **options)
    found,started = [],[]
    for i in range(0, len(probs), size):
        stop = min(i+size, len(probs))
        found += detector(probs[i:stop], edges[i:stop])
        started += detector.started
    found += detector.finish(edges[-1])
    return found, started+detector.started


def test_1000_films_equal_the_reference():
    n = 0
    for seed in range(1000):
        probs,edges,rule,options = random_film(seed)
        if not len(probs): assert not stream(probs, edges, rule, options, 7)[0]; continue
        want = reference(probs.tolist(), edges.tolist(), names, rule, **options)
        found = find_events((probs, edges[:-1], names), rule, **options, step=edges[-1]-edges[-2])
        assert as_events(found) == want, seed
        n += len(want)
    assert n > 2000


def test_streams_equal_films():
    "Check for all sizes of chunks the same floats in the same order, and that alarms precede each event once"
    for seed in range(1000):
        probs,edges,rule,options = random_film(seed)
        if not len(probs): continue
        want = find_events((probs, edges[:-1], names), rule, **options, step=edges[-1]-edges[-2])
        runs = [stream(probs, edges, rule, options, k) for k in (1,2,7,100)]
        assert all(o == runs[0] for o in runs), seed
        found,started = runs[0]
        assert sorted(found, key=lambda o: (o.start,o.label)) == as_events(want), seed
        assert len(set(started)) == len(started) and {(o.label,o.start) for o in found} <= set(started)
        if not options['exclusive'] or rule.overlap == 1: assert len(started) == len(found)


def is_final(k, end, p, edges, rule):
    "Return whether no step from `k` on can be merged with an event that ended at `end`"
    if edges[k]-end < 0 or p[k] < rule.low: return edges[k]-end >= rule.gap_seconds
    first = k # of the run of steps >= low
    while first and p[first-1] >= rule.low: first -= 1
    return edges[first]-end > rule.gap_seconds


def test_events_are_emitted_at_the_first_possible_step():
    "Check this for classes that do not compete: an event waits only for its gap"
    for seed in range(300):
        probs,edges,rule,_ = random_film(seed)
        if not len(probs): continue
        emitted,alarms = {},{}
        detector = EventDetector(names, rule, exclusive=False)
        for i,row in enumerate(probs):
            emitted |= {(o.label,o.start): (i,o.end) for o in detector(row, edges[i])}
            alarms |= dict.fromkeys(detector.started, i)
        rules = rule.by_class(names)
        for (label,start),(i,end) in emitted.items():
            p,r = probs[:,names.index(label)].tolist(),rules[label]
            assert i == next(k for k in range(len(p)) if is_final(k, end, p, edges, r)), seed
            assert alarms[label,start] <= i


def test_a_group_is_emitted_when_nothing_can_compete():
    "Check that an event with a short overlap does not wait for the end of a long one"
    rule = EventRule(.5, .25, overlap=.5)
    probs = [[.75,0]]*10+[[.75,.5]]+[[.1,.75]]*100
    detector = EventDetector('ab', rule)
    emitted = [(i, o.label) for i,row in enumerate(probs) for o in detector(row, i)]
    assert emitted == [(11,'a')]
    assert [o.label for o in detector.finish()] == ['b']
    detector = EventDetector('ab', rule) # long overlap: the tIoU of 8 of 10 steps becomes 8 of 16
    probs = [[.75,0]]*2+[[.75,.5]]*8+[[.1,.75]]*100
    emitted = [(i, o.label) for i,row in enumerate(probs) for o in detector(row, i)]
    assert emitted == [(17,'a')] # rounding errors are allowed for, so one step after 8/16


def test_memory_is_bounded():
    rng = np.random.default_rng(0)
    detector = EventDetector(names, EventRule(.6, .3, .5, .5, .3))
    sizes = []
    for i in range(60):
        probs = rng.dirichlet([.4]*4, 500)
        detector(probs, np.arange(500*i, 500*(i+1))/4)
        sizes.append(len(pickle.dumps((detector._held,[[t.start,t.end] for t in detector._tracks]))))
    assert max(sizes) < 2000, max(sizes)


def test_36000_steps_take_a_second():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([.3]*10, 36_000)
    timeline = probs,np.arange(36_000)/4,[f'class {i}' for i in range(10)]
    begin = time.perf_counter()
    find_events(timeline, EventRule(.6, .2, 1, 1, .5))
    assert time.perf_counter()-begin < 3 # .2 s on an idle machine


def test_rounding_errors_of_seconds():
    "Check that durations of .2 and .3 s that are computed from multiples of .1 s count as such"
    times = [i*.1 for i in range(12)]
    p = [[o] for o in (0,1,1,0,0,0,1,1,0,0,0,0)] # .1 to .3 s, .6 to .8 s
    assert len(find_events((p, times, 'a'), EventRule(min_seconds=.2))) == 2
    assert len(find_events((p, times, 'a'), EventRule(min_seconds=.201))) == 0
    assert len(find_events((p, times, 'a'), EventRule(gap_seconds=.3))) == 1
    assert len(find_events((p, times, 'a'), EventRule(gap_seconds=.299))) == 2


def test_nan_and_other_values_are_refused_and_change_nothing():
    detector = EventDetector(names, EventRule(.5))
    detector([.9,0,0,0], 0)
    for bad in (float('nan'), -.1, 1.1, float('inf')):
        with pytest.raises(ValueError, match='not probabilities'): detector([[.9,0,0,0],[0,bad,0,0]], [1,2])
        with pytest.raises(ValueError, match='not probabilities'): find_events(([[bad]]*3, range(3), 'a'))
    for times in ([2,1], [1,1], [0,1], [1,float('nan')]):
        with pytest.raises(ValueError, match='times'): detector([[0]*4]*2, times)
    assert detector([0]*4, 1) == [Event('cut',0.,1.,.9)]


# Windows of `predict_timeline`

def random_windows(rng):
    n = int(rng.integers(1, 30))
    start = np.cumsum(rng.random(n)+.1)
    table = pd.DataFrame(dict(start=start, end=start+rng.choice([.5,2,5])))
    return pd.concat([table, pd.DataFrame(rng.dirichlet([.5]*3, n), columns=['start','b','a'])], axis=1)


def segments(timeline, threshold):
    "Return the consecutive windows above `threshold`, each between the middles of the gaps to its neighbors"
    rows,values = [],timeline.values.tolist()
    middles = [(a+b)/2 for a,b,*_ in values]
    edges = [values[0][0], *((a+b)/2 for a,b in itertools.pairwise(middles)), values[-1][1]]
    for i,name in enumerate(timeline.columns[2:], 2):
        for above,o in itertools.groupby(range(len(values)), lambda k, i=i: values[k][i] >= threshold):
            o = list(o)
            if above: rows.append([name, edges[o[0]], edges[o[-1]+1], np.mean([values[k][i] for k in o])])
    return sorted(rows, key=lambda o: (o[1],o[0]))


@pytest.mark.parametrize('threshold', [0,.2,.5,.9,1])
def test_one_threshold_gives_the_windows_above_it(threshold):
    rng = np.random.default_rng(0)
    for _ in range(100):
        timeline = random_windows(rng)
        found,want = find_events(timeline, threshold=threshold),segments(timeline, threshold)
        assert found.iloc[:,:3].values.tolist() == [o[:3] for o in want]
        np.testing.assert_allclose(found.score, [o[3] for o in want], rtol=1e-12)


def test_classes_compete_by_the_kind_of_the_timeline():
    timeline = pd.DataFrame(dict(start=[0.,1], end=[1.,2], a=[.9,.9], b=[.8,.8]))
    for kind,n in (('class',1), ('classes',2), (None,1)):
        timeline.attrs['kind'] = kind
        assert len(find_events(timeline, EventRule(overlap=.5))) == n
    timeline.attrs['kind'] = 'numbers'
    with pytest.raises(ValueError, match='not probabilities'): find_events(timeline)


# The rule

def test_rules_are_saved_as_json():
    for seed in range(200):
        rule = random_film(seed)[2]
        assert EventRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    for data in (dict(high='a'), dict(high=[.5]), dict(low=.9), dict(other=1), None, dict(overlap=None)):
        with pytest.raises(ValueError): EventRule.from_dict(data)


def test_unknown_classes_are_refused():
    for rule in (EventRule(dict(cut=.5)), EventRule(gap_seconds=dict.fromkeys([*names,'chop'], 1))):
        with pytest.raises(ValueError, match='unknown or missing'): EventDetector(names, rule)
    with pytest.raises(ValueError, match='background'): EventDetector(names, background='chop')
    rule = EventRule(dict.fromkeys(['cut','pour','stir'], .5))
    assert [o.label for o in EventDetector(names, rule, 'none')._tracks] == ['cut','pour','stir']


def test_removed_events_remove_nothing():
    a,b,c = Event('a',0,10,.9),Event('b',3,13,.8),Event('c',6,16,.7)
    assert remove_overlaps([a,b,c], .4) == [a,c] == kept_events([a,b,c], .4)


# The search

def most_pairs(a, b, tolerance):
    "Return the largest number of pairs by trying all"
    if not a: return 0
    rest = [most_pairs(a[1:], b[:i]+b[i+1:], tolerance) for i,o in enumerate(b) if abs(a[0]-o) <= tolerance]
    return max([most_pairs(a[1:], b, tolerance), *(o+1 for o in rest)])


def test_pairs_are_as_many_as_possible():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a,b = (sorted((rng.integers(0, 12, rng.integers(0, 6))/2).tolist()) for _ in range(2))
        assert count_pairs(a, b, 1) == most_pairs(a, b, 1)


classes = ['none','cut','pour','stir']


def simulate(n, seed, n_steps=300, classes=classes):
    "Return timelines of `n` films with noise and flicker, and their true actions"
    rng = np.random.default_rng(seed)
    timelines,rows = {},[]
    for film in range(n):
        truth,i = np.zeros(n_steps, int),0
        while (i := i+int(rng.integers(8, 40))) < n_steps-30:
            label,length = int(rng.integers(1, len(classes))),int(rng.integers(10, 25))
            truth[i:i+length] = label
            rows.append((film, classes[label], i/4, (i+length)/4))
            i += length
        logits = 2.2*np.eye(len(classes))[truth]+rng.normal(0, 1, (n_steps,len(classes)))
        probs = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
        timelines[film] = probs,np.arange(n_steps)/4,classes
    return timelines,pd.DataFrame(rows, columns=['file','label','start','end'])


def found_in(timelines, rule):
    found = [find_events(o, rule, background='none').assign(file=k) for k,o in timelines.items()]
    return pd.concat(found)


def test_a_chosen_rule_is_better_on_other_films():
    timelines,truth = simulate(10, 0)
    rule,score = choose_rule(timelines, truth, background='none')
    assert score == event_f1(found_in(timelines, rule), truth)
    thresholds = [EventRule(round(.05*i, 2)) for i in range(1, 20)]
    assert score >= max(event_f1(found_in(timelines, o), truth) for o in thresholds)
    others,truth = simulate(15, 1)
    found = found_in(others, rule)
    assert len(found)/len(truth) <= 1.1
    f1,plain = event_f1(found, truth),max(event_f1(found_in(others, o), truth) for o in thresholds)
    assert f1 >= plain, (f1, plain)


def test_of_equal_rules_the_simplest_is_chosen():
    timelines,truth = simulate(3, 0)
    assert choose_rule(timelines, truth, lambda found,truth: 1, 'none') == (EventRule(.5), 1)
    assert choose_rule(timelines, truth, lambda found,truth: -len(found), 'none')[1] == 0
    exact = {k: (np.eye(4)[o[0].argmax(1)], *o[1:]) for k,o in timelines.items()} # the same at any threshold
    truth = found_in(exact, EventRule(.5))
    assert choose_rule(exact, truth, background='none') == (EventRule(.5), 1)


def test_thresholds_by_class():
    "Check that a class with low probabilities gets its own threshold"
    truth,timelines = [],{}
    for film in ('a.mp4','b.mp4'):
        p = np.zeros((100,2))+[.45,.05]
        p[20:40,0],p[60:80,1] = .9,.3
        timelines[film] = p,np.arange(100.),['loud','quiet']
        truth += [(film,'loud',20,40),(film,'quiet',60,80)]
    truth = pd.DataFrame(truth, columns=['file','label','start','end'])
    rule,score = choose_rule(timelines, truth)
    assert score == 1 and rule.high['loud'] > .45 and .05 < rule.high['quiet'] <= .3
    assert rule.min_seconds == rule.gap_seconds == 0 and rule.low is None
    assert EventRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_any_score_can_be_given():
    timelines,truth = simulate(3, 2)
    wide = choose_rule(timelines, truth, partial(event_f1, tolerance=5), 'none')[1]
    assert wide >= choose_rule(timelines, truth, partial(event_f1, tolerance=.5), 'none')[1]
    assert event_f1(truth, truth) == 1 == event_f1(truth[:0], truth[:0])
    assert event_f1(truth[:0], truth) == 0 == event_f1(truth.assign(label='x'), truth)
