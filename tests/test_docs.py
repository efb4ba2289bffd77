"The site of the documentation: what its pages say, what its build refuses, and, slow, how it does in a browser."
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
from pages import BuildError, Site
from reference import entries, signature, to_markdown

_spec = spec_from_file_location('docs_build', root/'docs'/'build.py')
docs_build = module_from_spec(_spec)
_spec.loader.exec_module(docs_build)

modules = [house.name_of(p, root) for p in house.sources(root) if p.stem != 'all']


def public_names():
    "What modules export, and what they patch into classes of others"
    for m in modules:
        yield from importlib.import_module(m).__all__
        for name,cls in re.findall(r'^@patch[^\n]*\ndef (\w+)\(self:\s*(\w+)', (root/f'{m.replace(".", "/")}.py').read_text(encoding='utf-8'), re.M):
            if not name.startswith('_'): yield f'{cls}.{name}'


@pytest.fixture(scope='module')
def site(): return Site(root)


@pytest.fixture
def project(tmp_path):
    "A project of one page; a function that builds it, with these cells after its title, and what it wrote"
    for o in ('settings.ini','pyproject.toml'): shutil.copy(root/o, tmp_path/o)
    (tmp_path/'nbs').mkdir()
    def write(*cells):
        cells = [dict(cell_type='markdown', id='a', metadata={}, source='# Small\n\n> One page.'), *cells]
        (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(language='python', name='python3', display_name='python3')), nbformat=4, nbformat_minor=5)))
        return tmp_path
    return write

def prose(text): return dict(cell_type='markdown', id='b', metadata={}, source=text)
def code(source, *outputs): return dict(cell_type='code', id='c', metadata={}, execution_count=None, source=source, outputs=list(outputs))

def pages_of(path):
    Site(path).write(path/'pages')
    return (path/'pages'/'index.md').read_text(encoding='utf-8')

pixel = 'R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=='
figure = dict(output_type='display_data', metadata={}, data={'image/png': pixel, 'text/plain': '<Figure>'})
player = dict(output_type='display_data', metadata={}, data={'text/html': f'<figure><img src="data:image/gif;base64,{pixel}"></figure>'})


# What pages say

def test_every_public_name_has_an_entry(site):
    assert not set(public_names()) - set(site.names)

def test_pages_are_whole(site, tmp_path):
    "No link leads nowhere, every figure is put in words, nothing shows where an object lay in memory"
    site.problems.clear()
    site.write(tmp_path)
    for page in tmp_path.rglob('*.md'): assert ' at 0x' not in page.read_text(encoding='utf-8'), page.name
    assert {'index.md','cookbook.md','limits.md','migration.md','benchmarks.md','changelog.md'} <= {p.name for p in tmp_path.glob('*.md')}

def test_entry_has_signature_docments_and_source():
    from vidseq.models import layers
    source = inspect.getsource(layers.AttentionPool)
    entry, = entries(source, layers)
    assert signature(entry) == 'class AttentionPool(n_in:int, hidden_size:int=128)'
    text = to_markdown(entry, 3, lambda o, skip: o, 'https://host/blob/main')
    line = inspect.getsourcelines(layers.AttentionPool)[1]
    for o in ('### AttentionPool {: #AttentionPool .entry data-kind=class }', '| `hidden_size` | `int` | `128` |', source.strip(), f'](https://host/blob/main/vidseq/layers.py#L{line})', '#### AttentionPool.weights {:'): assert o in text, o

def test_arguments_passed_on_are_spelled_out(site):
    found = {e.name: e for p in site.pages for e in p.all_entries()}
    methods = {m.name: m for m in found['VideoDataLoaders'].methods}
    assert 'sampler=spread_frames' in signature(methods['VideoDataLoaders.from_folder']) and 'kwargs' not in signature(methods['VideoDataLoaders.from_folder'])
    assert signature(found['ImageTuple']) == 'class ImageTuple(fastuple)'
    assert signature(found['show_batch']).startswith('def show_batch(\n    x:ImageTuple, y, samples')

def test_names_in_prose_lead_to_their_entries(site):
    page = site.pages[0]
    assert site.link_names('`moving_shapes(n_groups=2)` and `learn.explain`', page) == '[`moving_shapes(n_groups=2)`](reference/shapes.md#moving_shapes) and [`learn.explain`](reference/interpret.md#Learner.explain)'
    for o in ('`nothing`', '[`moving_shapes`](x.md)', '# `moving_shapes`', '    `moving_shapes`', '`train`'): assert site.link_names(o, page) == o # `train` is a word of many

def test_cells(project):
    text = pages_of(project(code('#| hide\nsecret = 1'), code('%time\n#a comment\n1+1', dict(output_type='execute_result', metadata={}, execution_count=1, data={'text/plain': '2'})), code('#| echo: false\nshown = 0', dict(output_type='stream', name='stdout', text='a\x1b[31mb\nc\n')),
                             code('fit()', dict(output_type='stream', name='stdout', text='d\n'), dict(output_type='display_data', metadata={}, data={'text/html': '<style>p {}</style><div><progress></progress> 100%</div>'}), dict(output_type='stream', name='stdout', text=['e'])), prose('Three:\n- one\n- two')))
    assert 'secret' not in text and 'shown' not in text and 'progress' not in text and '%time' not in text
    for o in ('``` { .python }\n#a comment\n1+1\n```', '``` { .text .output .no-copy .line }\n2\n```', '``` { .text .output .no-copy }\nab\nc\n```', '``` { .text .output .no-copy }\nd\ne\n```', 'Three:\n\n- one\n- two'): assert o in text, o

def test_alt_text(project):
    text = pages_of(project(code('#| fig-alt: A white "dot" [1]\ndot()', figure), code('#| fig-alt: A dot that moves\nplay()', player)))
    assert re.search(r'!\[A white &quot;dot&quot; \(1\)\]\(images/index-1-0\.png\)\{ \.figure width=1 height=1', text) and '<img alt="A dot that moves" src="data:' in text and 'fig-alt' not in text


# What the build refuses

@pytest.mark.parametrize('cell,says', [
    (prose('See [there](there.ipynb).'), r'index.ipynb: \[there\]\(there.ipynb\) leads nowhere'),
    (prose('![](images/shapes.gif)'), 'no words for those who do not see it'),
    (code('dot()', figure), 'fig-alt'), (code('play()', player), 'fig-alt'),
    (code('1/0', dict(output_type='error', ename='ZeroDivisionError', evalue='division by zero', traceback=[])), 'ZeroDivisionError'),
    (code('#| hide-inptu\n1'), 'hide-inptu')], ids=['link','picture','figure','player','error','directive'])
def test_refused(project, cell, says):
    with pytest.raises(BuildError, match=says): pages_of(project(cell))

def test_a_failing_cell_ends_the_build(project, capfd):
    path = project(code('assert 1+1 == 3'))
    with pytest.raises(BuildError, match='cell failed'): docs_build.build(path, path/'site')
    assert 'index.ipynb' in capfd.readouterr().err and not (path/'site').exists()

def test_check_finds_what_leads_nowhere(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top">x</h1><a href="sub/b.html#in">1</a><a href="#top">2</a><a href="https://host/x">3</a><img src="a.png" alt="a">')
    (tmp_path/'a.png').write_bytes(b'')
    (tmp_path/'sub'/'b.html').write_text('<p id="in"><a href="../index.html#out">4</a><a href="c.html">5</a><img src="../a.png"></p><a href="/index.html">6</a>')
    assert docs_build.check(tmp_path) == ['sub/b.html: no words for ../a.png', 'sub/b.html: ../index.html#out leads nowhere', 'sub/b.html: c.html leads nowhere']


# The built site

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    pytest.importorskip('material', reason="the site is made with mkdocs-material: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp('docs')/'site'
    res = subprocess.run([sys.executable, root/'docs'/'build.py', '--saved', '--out', out], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr
    return out

@pytest.mark.slow
def test_every_public_name_is_found_by_search(built):
    docs = json.loads((built/'search'/'search_index.json').read_text(encoding='utf-8'))['docs']
    found = {o['title']: o['location'] for o in docs if '#' in o['location'] and o['location'].partition('#')[2] == o['title']}
    assert not set(public_names()) - set(found)
    for name,place in found.items(): assert f'id="{name}"' in (built/place.partition('#')[0]).read_text(encoding='utf-8')

@pytest.mark.slow
@pytest.mark.parametrize('text', ['[here](#no-such-heading)', '<a href="gone.html">here</a>'], ids=['anchor','html'])
def test_the_whole_build_refuses(built, project, text):
    path = project(prose(text))
    with pytest.raises(BuildError, match='nowhere|strict mode'): docs_build.build(path, path/'site', saved=True)


# In a browser

chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome','chrome'))), None)
flags = '--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
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
    api = pytest.importorskip('playwright.sync_api', reason="the browser is driven by playwright: pip install -e '.[docs]'")
    if chromium is None: pytest.skip('no Chromium or Chrome: install one (Debian: apt-get install chromium)')
    with api.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=chromium, args=flags)
        yield chrome
        chrome.close()

@contextmanager
def tab(browser, viewport=wide, **kwargs):
    "A page, and the list of what goes wrong in it"
    context,wrong = browser.new_context(viewport=viewport, **kwargs),[]
    page = context.new_page()
    page.on('console', lambda m: wrong.append(f'{page.url}: {m.type} {m.text}') if m.type in ('error','warning') else None)
    page.on('pageerror', lambda e: wrong.append(f'{page.url}: {e}'))
    page.on('requestfailed', lambda r: wrong.append(f'{page.url}: {r.url} {r.failure}') if r.failure != 'net::ERR_ABORTED' else None) # aborted: the page was left
    page.on('response', lambda r: wrong.append(f'{page.url}: {r.url} {r.status}') if r.status >= 400 else None)
    page.on('request', lambda r: wrong.append(f'{page.url}: asks {r.url} of the net') if urlsplit(r.url).hostname not in ('127.0.0.1',None) else None)
    yield page,wrong
    context.close()

look = '''() => {
  const shown = o => o.getClientRects().length && o.textContent.trim()
  return {
    ids: [...document.querySelectorAll('[id]')].map(o => o.id),
    links: [...document.querySelectorAll('a[href]')].map(o => o.href),
    images: [...document.images].filter(o => !o.naturalWidth || !o.alt.trim()).map(o => o.src.slice(0, 80)),
    small: [...document.querySelectorAll('article :is(p, li, td)')].filter(o => shown(o) && parseFloat(getComputedStyle(o).fontSize) < 14).map(o => o.textContent.slice(0, 40)),
    width: document.documentElement.scrollWidth}}'''

def look_at(page, url):
    assert page.goto(url).status == 200, url
    page.evaluate("() => Promise.all([...document.images].map(o => { o.loading = 'eager'; return o.decode().catch(() => 0) }))")
    return page.evaluate(look)

def all_pages(built): return sorted(p.relative_to(built).as_posix() for p in built.rglob('*.html') if p.name != '404.html')

@pytest.mark.slow
def test_pages_load_and_links_resolve(built, served, browser):
    with tab(browser) as (page,wrong): seen = {served+o: look_at(page, served+o) for o in all_pages(built)}
    assert len(seen) > 40 and not wrong, wrong[:5]
    for url,found in seen.items():
        assert not found['images'], (url, found['images'])
        for link in found['links']:
            to,_,anchor = link.partition('#')
            if to.startswith(served): assert (to in seen and unquote(anchor) in [*seen[to]['ids'], ''] or not anchor and (built/unquote(to.removeprefix(served))).exists()), (url, link)

@pytest.mark.slow
def test_readable_on_a_phone(built, served, browser):
    with tab(browser, phone, is_mobile=True, has_touch=True) as (page,wrong):
        for o in all_pages(built):
            found = look_at(page, served+o)
            assert found['width'] <= phone['width'], f'{o} is {found["width"]} pixels wide'
            assert not found['small'], (o, found['small'][:5])
    assert not wrong, wrong[:5]

def search_for(page, words):
    page.keyboard.press('/')
    page.locator('.md-search__input').press_sequentially(words)
    page.wait_for_selector('.md-search-result__item a[href*="#"]')
    return page.locator('.md-search-result__item a[href*="#"]').first

@pytest.mark.slow
@pytest.mark.parametrize('start', ['index.html','tutorials/image_sequences.html'])
def test_search_finds_an_entry(built, served, browser, start):
    with tab(browser) as (page,wrong):
        page.goto(served+start)
        first = search_for(page, 'TimeDistributed')
        assert first.inner_text().startswith('TimeDistributed')
        first.click()
        page.wait_for_url(re.compile(r'/reference/layers\.html.*#TimeDistributed$'))
        assert page.locator('[id="TimeDistributed"]').is_visible()
    assert not wrong, wrong[:5]

@pytest.mark.slow
def test_search_works_from_disk(built, browser):
    with tab(browser) as (page,wrong):
        page.goto((built/'index.html').as_uri())
        assert urlsplit(search_for(page, 'TimeDistributed').get_attribute('href')).fragment == 'TimeDistributed'
    assert not wrong, wrong[:5]

@pytest.mark.slow
def test_players_play(built, served, browser):
    "Whatever moves on a page shows more than one picture within three seconds"
    played = 0
    with tab(browser) as (page,wrong):
        for o in all_pages(built):
            if not re.search(r'<img[^>]*src="(data:image/(webp|gif)|[^"]*\.gif)', (built/o).read_text(encoding='utf-8')): continue
            page.goto(served+o)
            for img in page.locator('img[src^="data:image/webp"], img[src^="data:image/gif"], img[src$=".gif"]').all():
                img.scroll_into_view_if_needed()
                first,until = img.screenshot(),time.time()+3
                while (moved := img.screenshot() != first) is False and time.time() < until: time.sleep(.1)
                assert moved, f'{o}: {img.get_attribute("alt")} stands still'
                played += 1
    assert played >= 2 and not wrong, wrong[:5]

@pytest.mark.slow
def test_dark_and_light(served, browser):
    "As the reader's system has it, and the other at a click"
    with tab(browser, color_scheme='dark') as (page,wrong):
        page.goto(served+'index.html')
        assert page.locator('body').get_attribute('data-md-color-scheme') == 'slate'
        page.locator('label[for=__palette_0], label[for=__palette_1]').locator('visible=true').first.click()
        assert page.locator('body').get_attribute('data-md-color-scheme') == 'default'
    assert not wrong, wrong[:5]
