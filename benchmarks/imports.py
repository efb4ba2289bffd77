"What `from vidseq.all import *` adds to `from fastai.vision.all import *`: interleaved runs in fresh processes, medians."
import platform
import subprocess
import sys
from statistics import median

code = '''
import time, warnings; warnings.simplefilter('ignore'); start = time.perf_counter()
from fastai.vision.all import *
between = time.perf_counter()
from vidseq.all import *
print(between-start, time.perf_counter()-between)'''


def measure(n=5):
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() for _ in range(n)]
    return [median(float(r[i]) for r in runs) for i in range(2)]


if __name__ == '__main__':
    fastai,vidseq = measure()
    print(f'{platform.machine()}, Python {platform.python_version()}\n')
    print('| import | seconds | ratio |\n|---|---|---|')
    for name,secs in (('fastai.vision.all', fastai), ('vidseq.all, after it', vidseq)): print(f'| {name} | {secs:.2f} | {secs/fastai:.3f} |')
