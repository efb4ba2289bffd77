"Check that modules equal their notebooks, metadata has one source and packages contain the right files"
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import house
import pytest
from make_readme import readme

import vidseq
from conftest import run_python

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']


def read(*parts): return root.joinpath(*parts).read_text(encoding='utf-8')


def run(*args, **kwargs):
    "Run a command and return its output; fail with its errors"
    res = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kwargs)
    assert res.returncode == 0, f'{args}\n{res.stdout}\n{res.stderr}'
    return res.stdout


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "Copy the project and run nbdev-export and nbdev-clean in the copy"
    copy = tmp_path_factory.mktemp('project')
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'vidseq'): shutil.copytree(root/name, copy/name, ignore=ignore)
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, copy/name)
    for module,tool in (('doclinks', 'nbdev_export'), ('clean', 'nbdev_clean')):
        imports = 'import nbdev.doclinks, nbdev.clean, nbdev.export'
        run(sys.executable, '-c', f'{imports}; from nbdev.{module} import {tool}; {tool}()', cwd=copy)
    return copy


def test_modules_equal_their_notebooks(prepared):
    for module in sorted((root/'vidseq').rglob('*.py')):
        copy = prepared/module.relative_to(root)
        text,exported = (o.read_text(encoding='utf-8') for o in (module, copy))
        assert text == exported, f'{module} differs from its notebook: make prep'


def test_every_module_comes_from_a_notebook():
    texts = [nb.read_text(encoding='utf-8') for nb in notebooks]
    exported = {re.search(r'default_exp ([\w.]+)', o)[1] for o in texts if 'default_exp' in o}
    modules = {house.name_of(p, root).removeprefix('vidseq.') for p in house.sources(root)}
    assert modules == exported | {'all'}


def test_notebooks_are_named_after_their_modules():
    "Check that the first digit is the number of the package and that `10_video.decode` exports video.decode"
    for nb in (root/'nbs').glob('[0-9]*.ipynb'):
        number,_,module = nb.stem.partition('_')
        text = nb.read_text(encoding='utf-8')
        assert re.search(rf'default_exp {re.escape(module)}(?![\w.])', text), nb.name
        assert int(number[0]) == house.DIGITS[module.split('.')[0]], nb.name


@pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_small(prepared, nb):
    text,cleaned = (o.read_text(encoding='utf-8') for o in (nb, prepared/nb.relative_to(root)))
    assert text == cleaned, f'{nb.name} has metadata in it: make prep'
    assert nb.stat().st_size < 700_000, f'{nb.name} is too large. Make its figures smaller.'


def test_readme_equals_index():
    text,pictures = readme()
    assert read('README.md') == text, 'README.md differs from nbs/index.ipynb: make prep'
    assert {p.name: p.read_bytes() for p in (root/'README_files').iterdir()} == pictures


def test_links_in_readme_resolve():
    links = re.findall(r'\]\(([^)#]+)\)', read('README.md'))
    assert len(links) > 5
    for link in links:
        if not link.startswith('http'): assert (root/link).exists(), link


def tracked_files():
    "Return the names of all tracked files, or without git those of the notebooks"
    if (root/'.git').exists(): return run('git', 'ls-files', cwd=root).split()
    return [str(p.relative_to(root)) for p in notebooks]


def test_no_paths_of_one_machine():
    for name in tracked_files():
        if name == 'tests/test_project.py': continue
        if Path(name).suffix not in {'.ipynb', '.md', '.py', '.toml', '.ini', '.yml'}: continue
        found = re.search(r'(/(root|work|farm|tmp)/[a-z.]|/home/[a-z]|C:\\\\Users)', read(name))
        assert not found, f'{name}: {found[0]}'


def test_version_and_python_live_once():
    assert vidseq.__version__ == settings['version']
    pyproject = read('pyproject.toml')
    assert '[project]' not in pyproject and settings['version'] not in pyproject
    assert f'## {settings["version"]}' in read('CHANGELOG.md')
    oldest = re.search(r"python: \['([0-9.]+)'", read('.github', 'workflows', 'test.yml'))[1]
    assert oldest == settings['min_python']
    assert 'Apache License' in read('LICENSE') and settings['license'] == 'Apache-2.0'


print_heavy = '''
import sys
import vidseq.cli
vidseq.cli._parser()
print([m for m in ("torch", "fastai", "av") if m in sys.modules])
'''


def test_help_needs_nothing_heavy(): assert run_python('-c', print_heavy).strip() == '[]'


dependencies = {
    'fastai', 'fastcore', 'torch', 'torchvision', 'timm', 'av', 'simplejpeg', 'rarfile',
    'timesformer-pytorch', 'safetensors', 'pyyaml', 'filelock'}
metadata_lines = [
    'Name: vidseq',
    f'Version: {settings["version"]}',
    f'Requires-Python: >={settings["min_python"]}',
    'Author: vidseq contributors']


def required(metadata):
    "Return the names of the required packages in the METADATA of a wheel, without those of extras"
    lines = re.findall('^Requires-Dist: (.*)$', metadata, re.M)
    return {re.match('[A-Za-z0-9_-]+', o)[0] for o in lines if 'extra' not in o}


def check_wheel(wheel):
    "Check the modules and the metadata of a wheel"
    names = wheel.namelist()
    modules = {p.relative_to(root).as_posix() for p in (root/'vidseq').rglob('*.py')}
    assert {n for n in names if n.startswith('vidseq/')} == modules
    assert not [n for n in names if 'nbs' in n or 'test' in n]
    meta = {Path(n).name: wheel.read(n).decode() for n in names if 'dist-info' in n}
    entry_points = meta['entry_points.txt']
    for line in ('vidseq = vidseq.cli:main', 'vidseq = vidseq._modidx:d'): assert line in entry_points
    assert 'Apache License' in meta['LICENSE']
    for line in metadata_lines: assert line in meta['METADATA']
    assert required(meta['METADATA']) == dependencies


def test_packages(tmp_path):
    "Build the sdist, and the wheel from the sdist, and check their contents"
    run(sys.executable, '-m', 'build', '--outdir', tmp_path, root)
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel: check_wheel(wheel)
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as sdist: packed = sdist.getnames()
    assert any(n.endswith('settings.ini') for n in packed)
    assert not [n for n in packed if '/nbs' in n or '/tests' in n]
