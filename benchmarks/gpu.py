"""Check and time vidseq on one GPU: one run of at most 8 minutes, without a network.

Videos are synthetic, and weights are random. A check that fails is a row with the error, and the others
continue. When the time is up, the remaining rows are skipped. Without CUDA, or with `--tiny`, everything is
tiny and runs on the CPU: a test of the script, whose figures mean nothing and are not saved.
"""
import io
import os
import tempfile
import time
import warnings
from contextlib import redirect_stdout

import torch
from gpu_checks import (
    environment,
    interpretation,
    interrupted_batch,
    mixed_precision,
    out_of_memory,
    outputs_and_gradients,
    resume,
)
from gpu_loading import loading
from gpu_setup import Run, error_cells, rows_table, skipped
from gpu_speed import attention_kernels, compiled_models, embedding, host_to_device_copies, train_steps
from harness import create_parser, machine, save_tables

checks = (environment, outputs_and_gradients, interpretation, mixed_precision, interrupted_batch, resume,
          out_of_memory, train_steps, attention_kernels, host_to_device_copies, loading, embedding,
          compiled_models)


def run_check(run, check):
    "Return the rows of a check; an error ends it with a row, and without time left it is skipped"
    if run.seconds_left() <= 0: return [(check.__name__, skipped)]
    rows = []
    try:
        with redirect_stdout(io.StringIO()):
            for row in check(run): rows.append(row)
    except Exception as e: rows.append((check.__name__, error_cells(e)))
    return rows


def check_tables(run, checks):
    "Yield a title and a table for each check as soon as it is complete"
    for check in checks:
        start = time.perf_counter()
        table = rows_table(run_check(run, check))
        yield f'**{check.__name__}**: {check.__doc__} ({time.perf_counter()-start:.0f} s)\n\n{table}'


def parse_args():
    "Parse the command line"
    p = create_parser(__doc__, 'SimpleModel and RNNModel', rounds=False)
    names = [o.__name__ for o in checks]
    p.add_argument('--only', nargs='+', choices=names, metavar='NAME', help=f'any of: {", ".join(names)}')
    p.add_argument('--seconds', type=float, default=450., help='start no row after this time (default: 450)')
    p.add_argument('--tiny', action='store_true', help='run tiny on the CPU, to test the script')
    args = p.parse_args()
    if args.baseline and not args.baseline.is_file(): p.error(f'--baseline: {args.baseline}: no such file')
    return args


def run_checks(args, folder):
    "Run the checks that `args` select, print each table, and save them"
    run = Run(folder, args.seconds, args.tiny or not torch.cuda.is_available(), args.baseline)
    tables = []
    def add(text):
        print(text, flush=True, end='\n\n')
        tables.append(text)
    add(f'### {run.card}')
    add(machine('torch', 'torchvision', 'fastai', 'timesformer-pytorch'))
    for o in check_tables(run, [o for o in checks if not args.only or o.__name__ in args.only]): add(o)
    if args.save and run.tiny: print('Not saved: a tiny run only tests the script.')
    elif args.save: save_tables('gpu', tables)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    args = parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ['FASTAI_HOME'] = folder # also for the caches in fastai's data folder
        run_checks(args, folder)
