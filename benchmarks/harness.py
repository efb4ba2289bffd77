"Candidates measured side by side: interleaved rounds, CPU and wall time, medians of the ratios within a round."
import argparse
import importlib.util
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

try: import resource
except ImportError: resource = None # Windows: the time of child processes is not counted


def cpu_seconds():
    "CPU time so far of this process and of the children it has waited for"
    if resource is None: return time.process_time()
    usages = [resource.getrusage(o) for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(o.ru_utime+o.ru_stime for o in usages)


def one_core():
    "Keep this process and what it starts on one core, where the system allows it"
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
    if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def load_module(fname):
    "The module in the file `fname`"
    spec = importlib.util.spec_from_file_location(Path(fname).stem, fname)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(candidates, rounds=5, before=lambda name: None):
    "`{name: function that returns how many units it did}` -> `{name: [(CPU s per unit, wall s per unit) of each round]}`, the rounds interleaved; `before(name)` is not timed"
    times = {name: [] for name in candidates}
    for r in range(rounds+1):
        for name,f in candidates.items():
            before(name)
            cpu,wall = cpu_seconds(),time.perf_counter()
            n = f()
            cpu,wall = cpu_seconds()-cpu,time.perf_counter()-wall
            if r: times[name].append((cpu/n, wall/n)) # the first round warms caches
    return times


def table(times, unit, reference=None, extra=None):
    "Markdown: median ms per unit, and how many times the work of `reference` (default: the first) is done in the same CPU time, the median over rounds; `extra` is {column: {name: text}}"
    reference,extra = reference or next(iter(times)),extra or {}
    rows = [['', f'CPU ms per {unit}', f'wall ms per {unit}', f'times {reference}', *extra]]
    for name,ts in times.items():
        ratio = median(ref[0]/t[0] for ref,t in zip(times[reference], ts))
        rows.append([name, *(f'{1000*median(t[i] for t in ts):.2f}' for i in range(2)), f'{ratio:.2f}', *(col.get(name, '') for col in extra.values())])
    head,*body = ['| '+' | '.join(r)+' |' for r in rows]
    return '\n'.join([head, '|---'*len(rows[0])+'|', *body])


def machine(*packages):
    "One line: processor, system, Python and the versions that matter"
    cpuinfo = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*:\s*(.+)', cpuinfo.read_text()) if cpuinfo.exists() else None
    def named(p):
        try: return f'{p} {version(p)}'
        except PackageNotFoundError: return f'{p} not installed'
    return ', '.join([found[1] if found else platform.processor() or platform.machine(), f'{os.cpu_count()} cores', platform.system(), f'Python {platform.python_version()}', *map(named, packages)])


def arguments(doc, baseline):
    "The arguments that comparisons of videos share; `baseline` is what it takes from the tutorials' code"
    p = argparse.ArgumentParser(description=doc)
    p.add_argument('dir', type=Path, nargs='?', help='class folders of videos (default: drawn shapes)')
    p.add_argument('--baseline', type=Path, help=f'a Python file with the tutorials\' own {baseline}')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--save', action='store_true', help='put the tables into README.md')
    return p


def report(section, tables, keep=True):
    "Print `tables`, and if `keep` put them between the marks of `section` in README.md"
    text = '\n\n'.join(tables)
    print(text)
    if not keep: return
    readme = Path(__file__).with_name('README.md')
    old = readme.read_text(encoding='utf-8')
    start,end = f'<!-- {section} -->\n',f'<!-- end {section} -->'
    head,rest = old.split(start)
    readme.write_text(f'{head}{start}{text}\n{end}{rest.split(end)[1]}', encoding='utf-8')
