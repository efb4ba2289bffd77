"Measure the import time of `vidseq.all` after `fastai.vision.all`: medians over fresh processes."
import subprocess
import sys
from statistics import median

from harness import create_parser, machine, markdown_table, report

code = '''
import time, warnings; warnings.simplefilter('ignore'); start = time.perf_counter()
from fastai.vision.all import *
between = time.perf_counter()
from vidseq.all import *
print(between-start, time.perf_counter()-between)'''


def import_seconds(n=5):
    "Return the median import time of fastai, and of vidseq after it, over `n` processes"
    def run(): return subprocess.check_output([sys.executable, '-c', code], text=True)
    times = [map(float, run().split()) for _ in range(n)]
    return [median(o) for o in zip(*times)]


if __name__ == '__main__':
    args = create_parser(__doc__, rounds=False).parse_args()
    fastai,vidseq = import_seconds()
    names = {'fastai.vision.all': fastai, 'vidseq.all, after it': vidseq}
    rows = [[name, f'{secs:.2f}', f'{secs/fastai:.3f}'] for name,secs in names.items()]
    text = markdown_table(['import', 'seconds', 'ratio'], *rows)
    report('imports', [machine('fastai', 'torch'), text], args.save)
