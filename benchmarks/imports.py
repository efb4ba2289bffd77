"What `from vidseq.all import *` adds to `from fastai.vision.all import *`: fresh processes, medians."
import argparse
import subprocess
import sys
from statistics import median

from harness import machine, report

code = '''
import time, warnings; warnings.simplefilter('ignore'); start = time.perf_counter()
from fastai.vision.all import *
between = time.perf_counter()
from vidseq.all import *
print(between-start, time.perf_counter()-between)'''


def seconds(n=5):
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() for _ in range(n)]
    return [median(float(r[i]) for r in runs) for i in range(2)]


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--save', action='store_true', help='put the table into README.md')
    args = p.parse_args()
    fastai,vidseq = seconds()
    rows = [f'| {name} | {secs:.2f} | {secs/fastai:.3f} |' for name,secs in (('fastai.vision.all', fastai), ('vidseq.all, after it', vidseq))]
    text = '\n'.join([machine('fastai', 'torch'), '', '| import | seconds | ratio |', '|---|---|---|', *rows])
    report('imports', [text], args.save)
