"Check the project: modules equal their notebooks, metadata has one source, packages contain the right files."
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

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']


def run(*args, **kwargs):
    res = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kwargs)
    assert res.returncode == 0, f'{args}\n{res.stdout}\n{res.stderr}'
    return res.stdout


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "Copy the project and run nbdev-export and nbdev-clean in the copy"
    copy = tmp_path_factory.mktemp('project')
    for name in ('nbs', 'vidseq'): shutil.copytree(root/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, copy/name)
    for tool in ('nbdev_export', 'nbdev_clean'):
        run(sys.executable, '-c', f'import nbdev.doclinks, nbdev.clean, nbdev.export; from nbdev.{"doclinks" if tool == "nbdev_export" else "clean"} import {tool}; {tool}()', cwd=copy)
    return copy


def test_modules_equal_their_notebooks(prepared):
    for module in sorted((root/'vidseq').rglob('*.py')):
        copy = prepared/module.relative_to(root)
        assert module.read_text(encoding='utf-8') == copy.read_text(encoding='utf-8'), f'{module} differs from its notebook: make prep'


def test_every_module_comes_from_a_notebook():
    exported = {re.search(r'default_exp ([\w.]+)', text)[1] for nb in notebooks if 'default_exp' in (text := nb.read_text(encoding='utf-8'))}
    assert {house.name_of(p, root).removeprefix('vidseq.') for p in house.sources(root)} == exported | {'all'}


def test_notebooks_are_named_after_their_modules():
    "10_video.decode.ipynb exports to video.decode; the first digit is the number of the package"
    for nb in (root/'nbs').glob('[0-9]*.ipynb'):
        number,_,module = nb.stem.partition('_')
        assert re.search(rf'default_exp {re.escape(module)}(?![\w.])', nb.read_text(encoding='utf-8')), nb.name
        assert int(number[0]) == house.PACKAGES.index(module.split('.')[0]), nb.name


@pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_small(prepared, nb):
    assert nb.read_text(encoding='utf-8') == (prepared/nb.relative_to(root)).read_text(encoding='utf-8'), f'{nb.name} has metadata in it: make prep'
    assert nb.stat().st_size < 700_000, f'{nb.name} is heavy: smaller figures'


def test_readme_equals_index():
    text,pictures = readme()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'README.md differs from nbs/index.ipynb: make prep'
    assert {p.name: p.read_bytes() for p in (root/'README_files').iterdir()} == pictures


def test_links_in_readme_resolve():
    links = re.findall(r'\]\(([^)#]+)\)', (root/'README.md').read_text(encoding='utf-8'))
    assert len(links) > 5
    for link in links:
        if not link.startswith('http'): assert (root/link).exists(), link


def test_no_paths_of_one_machine():
    tracked = run('git', 'ls-files', cwd=root).split() if (root/'.git').exists() else [str(p.relative_to(root)) for p in notebooks]
    for name in tracked:
        if Path(name).suffix in {'.ipynb', '.md', '.py', '.toml', '.ini', '.yml'} and name != 'tests/test_project.py':
            found = re.search(r'(/(root|work|farm|tmp)/[a-z.]|/home/[a-z]|C:\\\\Users)', (root/name).read_text(encoding='utf-8'))
            assert not found, f'{name}: {found[0]}'


def test_version_and_python_live_once():
    assert vidseq.__version__ == settings['version']
    pyproject = (root/'pyproject.toml').read_text(encoding='utf-8')
    assert '[project]' not in pyproject and settings['version'] not in pyproject
    assert f'## {settings["version"]}' in (root/'CHANGELOG.md').read_text(encoding='utf-8')
    oldest = re.search(r"python: \['([0-9.]+)'", (root/'.github'/'workflows'/'test.yml').read_text(encoding='utf-8'))[1]
    assert oldest == settings['min_python']
    assert 'Apache License' in (root/'LICENSE').read_text(encoding='utf-8') and settings['license'] == 'Apache-2.0'


def test_help_needs_nothing_heavy():
    loaded = run(sys.executable, '-c', 'import sys, vidseq.cli; vidseq.cli._parser(); print([m for m in ("torch", "fastai", "av") if m in sys.modules])')
    assert loaded.strip() == '[]'


def test_packages(tmp_path):
    "sdist and wheel, the wheel built from the sdist"
    run(sys.executable, '-m', 'build', '--outdir', tmp_path, root)
    wheel,sdist = next(tmp_path.glob('*.whl')),next(tmp_path.glob('*.tar.gz'))
    names = zipfile.ZipFile(wheel).namelist()
    assert {p.relative_to(root).as_posix() for p in (root/'vidseq').rglob('*.py')} == {n for n in names if n.startswith('vidseq/')}
    meta = {Path(n).name: zipfile.ZipFile(wheel).read(n).decode() for n in names if 'dist-info' in n}
    assert 'vidseq = vidseq.cli:main' in meta['entry_points.txt'] and 'vidseq = vidseq._modidx:d' in meta['entry_points.txt']
    assert 'Apache License' in meta['LICENSE']
    for line in ('Name: vidseq', f'Version: {settings["version"]}', f'Requires-Python: >={settings["min_python"]}', 'Author: vidseq contributors'): assert line in meta['METADATA']
    required = {re.match('[A-Za-z0-9_-]+', o)[0] for o in re.findall('^Requires-Dist: (.*)$', meta['METADATA'], re.M) if 'extra' not in o}
    assert required == {'fastai', 'fastcore', 'torch', 'torchvision', 'av', 'simplejpeg', 'rarfile', 'timesformer-pytorch', 'safetensors', 'pyyaml', 'filelock'}
    assert not [n for n in names if 'nbs' in n or 'test' in n]
    packed = tarfile.open(sdist).getnames()
    assert any(n.endswith('settings.ini') for n in packed) and not [n for n in packed if '/nbs' in n or '/tests' in n]
