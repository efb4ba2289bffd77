"Measure candidates in interleaved rounds: CPU and wall time, and the median of the ratios within a round."
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
except ImportError: resource = None # Windows: the CPU time of child processes is not counted


def cpu_seconds():
    "Return the CPU time so far of this process and of its finished child processes"
    if resource is None: return time.process_time()
    usages = [resource.getrusage(o) for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(o.ru_utime+o.ru_stime for o in usages)


def one_core():
    "Pin this process and its child processes to one core, where the system supports it"
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
    if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def load_module(fname):
    "Import the Python file `fname` as a module"
    spec = importlib.util.spec_from_file_location(Path(fname).stem, fname)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(f):
    "Call `f`, which returns a number of units, and return its CPU and wall seconds per unit"
    cpu,wall = cpu_seconds(),time.perf_counter()
    n = f()
    return (cpu_seconds()-cpu)/n, (time.perf_counter()-wall)/n


def measure(candidates, rounds=5, before=lambda name: None):
    """Time `candidates`, a dict of functions by name, in interleaved rounds after one to warm up.

    A function returns the number of units that it processed. `before(name)` is called before each, untimed.
    Return `{name: [(CPU seconds per unit, wall seconds per unit) of each round]}`."""
    times = {name: [] for name in candidates}
    for r in range(rounds+1):
        for name,f in candidates.items():
            before(name)
            seconds = timed(f)
            if r: times[name].append(seconds)
    return times


def table(times, unit, reference=None, extra=None):
    """Format `times` as a Markdown table: median milliseconds per unit, and the speedup over `reference`.

    The speedup is the median over rounds of the ratio of CPU times. `reference` defaults to the first
    candidate; `extra` holds further columns: `{column: {name: text}}`."""
    reference,extra = reference or next(iter(times)),extra or {}
    rows = [['', f'CPU ms per {unit}', f'wall ms per {unit}', f'times {reference}', *extra]]
    for name,ts in times.items():
        ratio = median(ref[0]/t[0] for ref,t in zip(times[reference], ts))
        medians = [f'{1000*median(o):.2f}' for o in zip(*ts)]
        rows.append([name, *medians, f'{ratio:.2f}', *(col.get(name, '') for col in extra.values())])
    return markdown_table(*rows)


def markdown_table(head, *body):
    "Format rows of strings as a Markdown table whose first row is the head"
    lines = ['| '+' | '.join(row)+' |' for row in (head, *body)]
    return '\n'.join([lines[0], '|---'*len(head)+'|', *lines[1:]])


def installed_version(package):
    "Return the name and version of `package`, or that it is not installed"
    try: return f'{package} {version(package)}'
    except PackageNotFoundError: return f'{package} not installed'


def machine(*packages):
    "Describe this machine in one line: processor, cores, system, and the versions of Python and `packages`"
    cpuinfo = Path('/proc/cpuinfo')
    model = re.search(r'model name\s*:\s*(.+)', cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = model[1] if model else platform.processor() or platform.machine()
    system = f'{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}'
    return ', '.join([processor, system, *map(installed_version, packages)])


def fast_folder():
    "Return a folder in memory for temporary files, or None for the system's default"
    return '/dev/shm' if os.path.isdir('/dev/shm') else None


def create_parser(doc, baseline=None, rounds=True):
    "Create a parser with the options of all benchmarks; `baseline` lists the names that its file must define"
    p = argparse.ArgumentParser(description=doc)
    if baseline: p.add_argument('--baseline', type=Path, help=f"Python file with the tutorials' {baseline}")
    if rounds: p.add_argument('--rounds', type=int, default=5, help='measured rounds (default: 5)')
    p.add_argument('--save', action='store_true', help='write the tables to benchmarks/README.md')
    return p


def add_folder_argument(p):
    "Add the optional folder of videos to the parser `p`"
    text = 'class folders of videos (default: synthetic moving shapes)'
    p.add_argument('dir', type=Path, nargs='?', help=text)


def save_tables(section, tables):
    "Write `tables` between the marks of `section` in README.md"
    readme = Path(__file__).with_name('README.md')
    start,end = f'<!-- {section} -->\n',f'<!-- end {section} -->'
    head,rest = readme.read_text(encoding='utf-8').split(start)
    text = '\n\n'.join(tables)
    readme.write_text(f'{head}{start}{text}\n{end}{rest.split(end)[1]}', encoding='utf-8')


def report(section, tables, save=True):
    "Print `tables` and, with `save`, write them between the marks of `section` in README.md"
    print('\n\n'.join(tables))
    if save: save_tables(section, tables)
