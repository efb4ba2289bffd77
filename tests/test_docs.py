"Test the documentation site: its pages, the errors of its build and, in slow tests, the site in a browser."
import functools
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urlsplit

import house
import pytest

root = Path(__file__).parent.parent
sys.path.append(str(root/'docs'))
from pages import BuildError, Site, packages
from reference import entries, signature, to_markdown

_spec = spec_from_file_location('docs_build', root/'docs'/'build.py')
docs_build = module_from_spec(_spec)
_spec.loader.exec_module(docs_build)

modules = [house.name_of(p, root) for p in house.sources(root) if p.stem != 'all']


def public_names():
    "Yield the names that modules export, and the methods that they patch into other classes"
    for m in modules:
        yield from importlib.import_module(m).__all__
        source = (root/f'{m.replace(".", "/")}.py').read_text(encoding='utf-8')
        for name,cls in re.findall(r'^@patch[^\n]*\ndef (\w+)\(self:\s*(\w+)', source, re.M):
            if not name.startswith('_'): yield f'{cls}.{name}'


@pytest.fixture(scope='module')
def site(): return Site(root)


@pytest.fixture
def project(tmp_path):
    "Return a function that writes a project of one page, with the given cells after its title"
    for o in ('settings.ini', 'pyproject.toml'): shutil.copy(root/o, tmp_path/o)
    (tmp_path/'nbs').mkdir()
    kernelspec = dict(language='python', name='python3', display_name='python3')
    def write(*cells):
        cells = [prose('# Small\n\n> One page.', id='a'), *cells]
        nb = dict(cells=cells, metadata=dict(kernelspec=kernelspec), nbformat=4, nbformat_minor=5)
        (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(nb))
        return tmp_path
    return write

def prose(text, id='b'): return dict(cell_type='markdown', id=id, metadata={}, source=text)
def code(source, *outputs):
    return dict(cell_type='code', id='c', metadata={}, execution_count=None, source=source,
                outputs=list(outputs))

def html(text): return dict(output_type='display_data', metadata={}, data={'text/html': text})
def stdout(text): return dict(output_type='stream', name='stdout', text=text)
def result(text):
    return dict(output_type='execute_result', metadata={}, execution_count=1, data={'text/plain': text})

def index_page(path):
    "Write the pages of a project and return the text of its index"
    Site(path).write(path/'pages')
    return (path/'pages'/'index.md').read_text(encoding='utf-8')

pixel = 'R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=='
figure = dict(output_type='display_data', metadata={}, data={'image/png': pixel, 'text/plain': '<Figure>'})
player = html(f'<figure><img src="data:image/gif;base64,{pixel}"></figure>')
progress = html('<style>p {}</style><div><progress></progress> 100%</div>')


# Pages

def test_every_public_name_has_an_entry(site):
    assert not set(public_names()) - set(site.names)

def test_pages_have_no_problems(site, tmp_path):
    "No link is broken, every figure has alternative text, and no page shows a memory address"
    site.problems.clear()
    site.write(tmp_path)
    for page in tmp_path.rglob('*.md'): assert ' at 0x' not in page.read_text(encoding='utf-8'), page.name
    names = {p.stem for p in tmp_path.glob('*.md')}
    assert {'index', 'cookbook', 'architecture', 'limits', 'migration', 'benchmarks', 'changelog'} <= names
    assert (tmp_path/'reference'/'video.decode.md').is_file()

def test_entry_has_signature_docments_and_source():
    from vidseq.models import layers
    source = inspect.getsource(layers.AttentionPool)
    entry, = entries(source, layers)
    assert signature(entry) == 'class AttentionPool(n_in:int, hidden_size:int=128)'
    text = to_markdown(entry, 3, lambda o, skip: o, 'https://host/blob/main')
    line = inspect.getsourcelines(layers.AttentionPool)[1]
    for o in ('### AttentionPool {: #AttentionPool .entry data-kind=class }',
              '| `hidden_size` | `int` | `128` |', source.strip(), '#### AttentionPool.weights {:',
              f'](https://host/blob/main/vidseq/models/layers.py#L{line})'): assert o in text, o

def test_delegated_arguments_are_in_the_signature(site):
    found = {e.name: e for p in site.pages for e in p.all_names()}
    from_folder = signature(found['VideoDataLoaders.from_folder'])
    assert 'sampler=spread_frames' in from_folder and 'kwargs' not in from_folder
    assert signature(found['ImageTuple']) == 'class ImageTuple(fastuple)'
    assert signature(found['show_batch']).startswith('def show_batch(\n    x:ImageTuple, y, samples')

@pytest.mark.parametrize('text,to', [
    ('`moving_shapes(n_groups=2)`', 'reference/datasets.shapes.md#moving_shapes'),
    ('`explain`', 'reference/evaluate.interpret.md#explain'),
    ('`learn.explain`', 'reference/evaluate.interpret.md#explain'),
    ('`path.ls_sorted()`', None), ('`Path.ls_sorted`', 'reference/files.md#Path.ls_sorted'),
    ('`nothing`', None), ('[`moving_shapes`](x.md)', None), ('# `moving_shapes`', None),
    ('    `moving_shapes`', None), ('`train`', None)]) # also a package, a folder, an argument
def test_names_in_prose_link_to_their_entries(site, text, to):
    assert site.link_names(text, site.pages[0]) == (f'[{text}]({to})' if to else text)

def test_packages_are_sections_of_the_reference(site):
    reference = next(o['Reference'] for o in site.nav() if 'Reference' in o)
    sections = {k: v for o in reference[1:] for k,v in o.items()}
    assert list(sections) == list(packages.values()) and all(sections.values())
    assert 'reference/models.layers.md' in [to for page in sections['Models'] for to in page.values()]

def test_cells(project):
    text = index_page(project(
        code('#| hide\nsecret = 1'), code('%time\n#a comment\n1+1', result('2')),
        code('#| exporti\ndef internal(): pass'),
        code('#| echo: false\nshown = 0', stdout('a\x1b[31mb\nc\n')),
        code('fit()', stdout('d\n'), progress, stdout(['e'])), prose('Three:\n- one\n- two')))
    for o in ('secret', 'internal', 'shown', 'progress', '%time'): assert o not in text, o
    for o in ('``` { .python }\n#a comment\n1+1\n```', '``` { .text .output .no-copy .line }\n2\n```',
              '``` { .text .output .no-copy }\nab\nc\n```', '``` { .text .output .no-copy }\nd\ne\n```',
              'Three:\n\n- one\n- two'): assert o in text, o

def test_alt_text(project):
    text = index_page(project(code('#| fig-alt: A white "dot" [1]\ndot()', figure),
                              code('#| fig-alt: A dot that moves\nplay()', player)))
    assert '![A white &quot;dot&quot; (1)](images/index-1-0.png){ .figure width=1 height=1' in text
    assert '<img alt="A dot that moves" src="data:' in text and 'fig-alt' not in text


# Errors of the build

failure = dict(output_type='error', ename='ZeroDivisionError', evalue='division by zero', traceback=[])

@pytest.mark.parametrize('cell,message', [
    (prose('See [there](there.ipynb).'), r'index.ipynb: broken link \[there\]\(there.ipynb\)'),
    (prose('![](images/shapes.gif)'), r'index.ipynb: no alternative text in !\[\]\(images/shapes.gif\)'),
    (code('dot()', figure), 'index-1-0.png: .* fig-alt'), (code('play()', player), 'index-1-0: .* fig-alt'),
    (code('1/0', failure), 'index.ipynb: saved ZeroDivisionError: division by zero'),
    (code('#| hide-inptu\n1'), 'index.ipynb: .* hide-inptu')],
    ids=['link', 'image', 'figure', 'player', 'error', 'directive'])
def test_problems_raise(project, cell, message):
    with pytest.raises(BuildError, match=message): index_page(project(cell))

def test_a_failing_cell_stops_the_build(project, capfd):
    path = project(code('assert 1+1 == 3'))
    with pytest.raises(BuildError, match='cell failed'): docs_build.build(path, path/'site')
    assert 'index.ipynb' in capfd.readouterr().err and not (path/'site').exists()

def test_check_finds_broken_links(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'a.png').write_bytes(b'')
    (tmp_path/'index.html').write_text('<h1 id="top">x</h1><a href="sub/b.html#in">1</a><a href="#top">2</a>'
                                       '<a href="https://host/x">3</a><img src="a.png" alt="a">')
    (tmp_path/'sub'/'b.html').write_text('<p id="in"><a href="../index.html#out">4</a><a href="c.html">5</a>'
                                         '<img src="../a.png"></p><a href="/index.html">6</a>')
    problems = ['image ../a.png has no alternative text', 'broken link ../index.html#out',
                'broken link c.html']
    assert docs_build.check(tmp_path) == [f'sub/b.html: {o}' for o in problems]


# The built site

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    pytest.importorskip('material', reason="needs mkdocs-material: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp('docs')/'site'
    command = [sys.executable, root/'docs'/'build.py', '--saved', '--out', out]
    res = subprocess.run(command, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr
    return out

@pytest.mark.slow
def test_every_public_name_is_found_by_search(built):
    docs = json.loads((built/'search'/'search_index.json').read_text(encoding='utf-8'))['docs']
    found = {}
    for o in docs:
        page,_,anchor = o['location'].partition('#')
        if anchor == o['title']: found[anchor] = page
    assert not set(public_names()) - set(found)
    for name,page in found.items(): assert f'id="{name}"' in (built/page).read_text(encoding='utf-8')

@pytest.mark.slow
@pytest.mark.parametrize('text', ['[here](#no-such-heading)', '<a href="gone.html">here</a>'],
                         ids=['anchor', 'html'])
def test_the_build_finds_broken_links(built, project, text):
    path = project(prose(text))
    with pytest.raises(BuildError, match='broken link|strict mode'):
        docs_build.build(path, path/'site', saved=True)


# In a browser

browsers = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
chromium = next(filter(None, map(shutil.which, browsers)), None)
flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
wide,phone = dict(width=1280, height=900),dict(width=390, height=844)

@pytest.fixture(scope='module')
def served(built):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason="needs playwright: pip install -e '.[docs]'")
    if chromium is None: pytest.skip('no Chromium or Chrome: install one (Debian: apt-get install chromium)')
    with api.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=chromium, args=flags)
        yield chrome
        chrome.close()

@contextmanager
def tab(browser, viewport=wide, **kwargs):
    "Open a tab; yield its page and a list of its problems: errors, failed requests, requests to the internet"
    context,problems = browser.new_context(viewport=viewport, **kwargs),[]
    page = context.new_page()
    def record(event, describe, condition=lambda o: True):
        page.on(event, lambda o: problems.append(f'{page.url}: {describe(o)}') if condition(o) else None)
    record('console', lambda m: f'{m.type} {m.text}', lambda m: m.type in ('error', 'warning'))
    record('pageerror', str)
    record('requestfailed', lambda r: f'{r.url} {r.failure}',
           lambda r: r.failure != 'net::ERR_ABORTED') # aborted: the tab went to the next page
    record('response', lambda r: f'{r.url} {r.status}', lambda r: r.status >= 400)
    record('request', lambda r: f'request to {r.url}',
           lambda r: urlsplit(r.url).hostname not in ('127.0.0.1', None))
    yield page,problems
    context.close()

inspect_page = '''() => {
  const shown = o => o.getClientRects().length && o.textContent.trim()
  return {
    ids: [...document.querySelectorAll('[id]')].map(o => o.id),
    links: [...document.querySelectorAll('a[href]')].map(o => o.href),
    images: [...document.images].filter(o => !o.naturalWidth || !o.alt.trim()).map(o => o.src.slice(0, 80)),
    small: [...document.querySelectorAll('article :is(p, li, td)')]
      .filter(o => shown(o) && parseFloat(getComputedStyle(o).fontSize) < 14)
      .map(o => o.textContent.slice(0, 40)),
    width: document.documentElement.scrollWidth}}'''

load_images = '''() => Promise.all([...document.images].map(o => {
  o.loading = 'eager'
  return o.decode().catch(() => 0)}))'''

def visit(page, url):
    "Open a page, load its images, and return its ids, links, broken images, small text and width"
    assert page.goto(url).status == 200, url
    page.evaluate(load_images)
    return page.evaluate(inspect_page)

def all_pages(built):
    return sorted(p.relative_to(built).as_posix() for p in built.rglob('*.html') if p.name != '404.html')

@pytest.mark.slow
def test_pages_load_and_links_resolve(built, served, browser):
    with tab(browser) as (page,problems): seen = {served+o: visit(page, served+o) for o in all_pages(built)}
    assert len(seen) > 40 and not problems, problems[:5]
    for url,found in seen.items():
        assert not found['images'], (url, found['images'])
        for link in found['links']:
            to,_,anchor = link.partition('#')
            if not to.startswith(served): continue
            is_anchor = to in seen and unquote(anchor) in [*seen[to]['ids'], '']
            is_file = not anchor and (built/unquote(to.removeprefix(served))).exists()
            assert is_anchor or is_file, (url, link)

@pytest.mark.slow
def test_readable_on_a_phone(built, served, browser):
    with tab(browser, phone, is_mobile=True, has_touch=True) as (page,problems):
        for o in all_pages(built):
            found = visit(page, served+o)
            assert found['width'] <= phone['width'], f'{o} is {found["width"]} pixels wide'
            assert not found['small'], (o, found['small'][:5])
    assert not problems, problems[:5]

def search_for(page, query):
    "Type a query in the search box, and return the first result"
    page.keyboard.press('/')
    page.locator('.md-search__input').press_sequentially(query)
    page.wait_for_selector('.md-search-result__item a[href*="#"]')
    return page.locator('.md-search-result__item a[href*="#"]').first

@pytest.mark.slow
@pytest.mark.parametrize('start', ['index.html','tutorials/image_sequences.html'])
def test_search_finds_an_entry(built, served, browser, start):
    with tab(browser) as (page,problems):
        page.goto(served+start)
        first = search_for(page, 'TimeDistributed')
        assert first.inner_text().startswith('TimeDistributed')
        first.click()
        page.wait_for_url(re.compile(r'/reference/models\.layers\.html.*#TimeDistributed$'))
        assert page.locator('[id="TimeDistributed"]').is_visible()
    assert not problems, problems[:5]

@pytest.mark.slow
def test_search_works_from_disk(built, browser):
    with tab(browser) as (page,problems):
        page.goto((built/'index.html').as_uri())
        url = search_for(page, 'TimeDistributed').get_attribute('href')
        assert urlsplit(url).fragment == 'TimeDistributed'
    assert not problems, problems[:5]

animation = r'<img[^>]*src="(data:image/(webp|gif)|[^"]*\.gif)'
animations = 'img[src^="data:image/webp"], img[src^="data:image/gif"], img[src$=".gif"]'

@pytest.mark.slow
def test_players_play(built, served, browser):
    "Every animation shows more than one image within three seconds"
    played = 0
    with tab(browser) as (page,problems):
        for o in all_pages(built):
            has_animation = re.search(animation, (built/o).read_text(encoding='utf-8'))
            if not has_animation: continue
            page.goto(served+o)
            for img in page.locator(animations).all():
                img.scroll_into_view_if_needed()
                first,until = img.screenshot(),time.time()+3
                while (moved := img.screenshot() != first) is False and time.time() < until: time.sleep(.1)
                assert moved, f'{o}: {img.get_attribute("alt")} does not move'
                played += 1
    assert played >= 2 and not problems, problems[:5]

@pytest.mark.slow
def test_dark_and_light(served, browser):
    "The color scheme follows the system, and a click changes it"
    with tab(browser, color_scheme='dark') as (page,problems):
        page.goto(served+'index.html')
        assert page.locator('body').get_attribute('data-md-color-scheme') == 'slate'
        page.locator('label[for=__palette_0], label[for=__palette_1]').locator('visible=true').first.click()
        assert page.locator('body').get_attribute('data-md-color-scheme') == 'default'
    assert not problems, problems[:5]
