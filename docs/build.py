"Build the documentation site from the notebooks: `make docs`, or `python docs/build.py`."
import argparse
import logging
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

assets = ('style.css', 'iframe-worker.js', 'icon.svg')


def run_notebooks(root, n_workers=2):
    "Run all cells of all notebooks, and raise `BuildError` if one fails"
    nbdev_test = Path(sys.executable).with_name('nbdev-test')
    env = dict(os.environ, PATH=f'{nbdev_test.parent}{os.pathsep}{os.environ["PATH"]}')
    res = subprocess.run([nbdev_test, '--n-workers', str(n_workers)], cwd=root, env=env)
    if res.returncode: raise BuildError('A cell failed: see the traceback above. Fix it, or use --saved.')


def render(folder, out, nav, repo):
    "Render the Markdown files in `folder` to HTML pages in `out`"
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException
    config = load_config(str(here/'mkdocs.yml'), docs_dir=str(folder), site_dir=str(out), nav=nav)
    config.extra['repo'] = repo
    logging.basicConfig(format='%(message)s') # else strict mode only counts the warnings
    config.plugins.on_startup(command='build', dirty=False)
    try: mkdocs_build(config)
    except MkDocsException as e: raise BuildError(str(e)) from e
    finally: config.plugins.on_shutdown()


class _LinkParser(HTMLParser):
    "Collect the links, the anchors, and the images without alternative text of an HTML page"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.no_alt = {''},[],[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[o] for o in ('id', 'name') if attrs.get(o)}
        self.links += [attrs[o] for o in ('href', 'src') if attrs.get(o)]
        has_alt = (attrs.get('alt') or '').strip()
        if tag == 'img' and not has_alt: self.no_alt.append(attrs.get('src', '')[:80])


def is_broken(link, page, out, pages):
    "Return whether a link in `page` has no target in the site `out`; links to other sites are not checked"
    url = urlsplit(link)
    if url.scheme or url.netloc: return False
    base = out if url.path.startswith('/') else page.parent
    target = (base/unquote(url.path).lstrip('/')).resolve() if url.path else page
    if target.is_dir(): target /= 'index.html'
    return not target.exists() or target in pages and unquote(url.fragment) not in pages[target].ids


def check(out):
    "Return the problems of the site `out`: broken links and anchors, and images without alternative text"
    pages = {p: _LinkParser(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    problems = []
    for page,parser in pages.items():
        name = page.relative_to(out)
        problems += [f'{name}: image {o} has no alternative text' for o in parser.no_alt]
        broken = [o for o in dict.fromkeys(parser.links) if is_broken(o, page, out, pages)]
        problems += [f'{name}: broken link {o}' for o in broken]
    return problems


def build(root, out, saved=False):
    "Build the site of the project in `root` in the folder `out`; raise `BuildError` if a page has a problem"
    if not saved: run_notebooks(root)
    with TemporaryDirectory() as tmp:
        folder = Path(tmp)/'docs'
        site = Site(root)
        site.write(folder)
        for o in assets: shutil.copy(here/o, folder/o)
        render(folder, out, site.nav(), site.repo.removesuffix('/blob/main'))
    if problems := check(out): raise BuildError('\n'.join(problems))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--saved', action='store_true', help='show saved outputs, do not run notebooks')
    parser.add_argument('--out', type=Path, default=here.parent/'_docs', help='folder (default: _docs)')
    args = parser.parse_args()
    try: build(here.parent, args.out.resolve(), args.saved)
    except BuildError as e: sys.exit(str(e))
    print(f'Open {args.out/"index.html"}')
