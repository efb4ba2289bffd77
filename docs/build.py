"The site of the documentation, from the notebooks: `make docs`, or `python docs/build.py`."
import argparse
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

here = Path(__file__).resolve().parent
sys.path.append(str(here))
from pages import BuildError, Site


def run_notebooks(root, n_workers=2):
    "Every cell of every notebook; a failing one ends the build"
    nbdev_test = Path(sys.executable).with_name('nbdev-test')
    env = dict(os.environ, PATH=f'{nbdev_test.parent}{os.pathsep}{os.environ["PATH"]}')
    if subprocess.run([nbdev_test, '--n-workers', str(n_workers)], cwd=root, env=env).returncode: raise BuildError('A cell failed, so there is nothing true to show: see above.')


def render(folder, out, nav, repo):
    "Markdown in `folder` -> pages in `out`"
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException
    config = load_config(str(here/'mkdocs.yml'), docs_dir=str(folder), site_dir=str(out), nav=nav)
    config.extra['repo'] = repo
    config.plugins.on_startup(command='build', dirty=False)
    try: mkdocs_build(config)
    except MkDocsException as e: raise BuildError(str(e)) from e
    finally: config.plugins.on_shutdown()


class _Found(HTMLParser):
    "What a page links to, what it shows, and what can be linked to in it"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.no_alt = {''},[],[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[o] for o in ('id','name') if attrs.get(o)}
        self.links += [attrs[o] for o in ('href','src') if attrs.get(o)]
        if tag == 'img' and not (attrs.get('alt') or '').strip(): self.no_alt.append(attrs.get('src', '')[:80])


def check(out):
    "Every link, anchor and picture within the site; what is wrong, as a list"
    pages = {p: _Found(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    problems = []
    for page,found in pages.items():
        problems += [f'{page.relative_to(out)}: no words for {o}' for o in found.no_alt]
        for link in dict.fromkeys(found.links):
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            base = out if url.path.startswith('/') else page.parent
            target = (base/unquote(url.path).lstrip('/')).resolve() if url.path else page
            if target.is_dir(): target /= 'index.html'
            if not target.exists() or target in pages and unquote(url.fragment) not in pages[target].ids: problems.append(f'{page.relative_to(out)}: {link} leads nowhere')
    return problems


def build(root, out, saved=False):
    "The site of the project in `root`, into the folder `out`"
    if not saved: run_notebooks(root)
    with TemporaryDirectory() as tmp:
        folder = Path(tmp)/'docs'
        site = Site(root)
        site.write(folder)
        for o in ('style.css','iframe-worker.js','icon.svg'): shutil.copy(here/o, folder/o)
        render(folder, out, site.nav(), site.repo.removesuffix('/blob/main'))
    if problems := check(out): raise BuildError('\n'.join(problems))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--saved', action='store_true', help='show the saved outputs without running the notebooks first')
    parser.add_argument('--out', type=Path, default=here.parent/'_docs', help='folder to write to')
    args = parser.parse_args()
    try: build(here.parent, args.out.resolve(), args.saved)
    except BuildError as e: sys.exit(str(e))
    print(f'Open {args.out/"index.html"}')
