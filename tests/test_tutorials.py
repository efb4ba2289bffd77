"Check the tutorials, the cookbook and docs/migration.md: structure, outputs, links, and names that exist."
import ast
import inspect
import json
import re
from pathlib import Path

import fastai.vision.all
import pytest

import vidseq.all

root = Path(__file__).parent.parent
tutorials = root/'nbs'/'tutorials'
first = [tutorials/'image_sequences.ipynb', tutorials/'timesformer.ipynb'] # the two original tutorials
pages = [root/'nbs'/'cookbook.ipynb', *first, *sorted(o for o in tutorials.glob('*.ipynb') if o not in first)]


def notebook(page): return json.loads(page.read_text(encoding='utf-8'))['cells']

def cells(page, kind='code'): return [c for c in notebook(page) if c['cell_type'] == kind]

def source(cell): return ''.join(cell['source'])

def hidden(cell): return source(cell).startswith('#| hide')

def is_figure(output):
    "Return whether a saved output is an image or an animated clip"
    data = output.get('data', {})
    return bool({'image/jpeg','image/png'} & set(data)) or '<img' in ''.join(data.get('text/html', ''))

def figures(cell): return [o for o in cell['outputs'] if is_figure(o)]

def python(cell):
    "Parse the code of a cell without its shell commands"
    return ast.parse('\n'.join(o for o in source(cell).splitlines() if not o.startswith('!')))

def note(name): return (root/'docs'/name).read_text(encoding='utf-8')


# The table of names

def rows():
    "Return the three columns of each row in docs/migration.md"
    lines = [o for o in note('migration.md').splitlines() if o.startswith('|')]
    lines = [o for o in lines if not re.match(r'\|(-|\s*in the tutorials)', o)]
    found = [[o.strip() for o in line.strip('|').split('|')] for line in lines]
    assert all(len(o) == 3 for o in found) and len(found) > 35
    return found

def look_up(name):
    "Return the object of vidseq or fastai that `name` or `Class.method` refers to"
    first,*more = name.split('.')
    o = getattr(vidseq.all, first, None) or getattr(fastai.vision.all, first)
    for part in more: o = getattr(o, part)
    return o

def test_every_name_in_the_table_exists():
    names = [o for _,now,_ in rows() for o in re.findall('`([^`]+)`', now)]
    assert len(names) > 45
    for name in names:
        called = re.fullmatch(r'([\w.]+)(?:\((.*)\))?', name)
        assert called, name
        o = look_up(called[1])
        given = called[2].split(', ') if called[2] else []
        if given: assert set(given) <= set(inspect.signature(o).parameters), name

def test_names_in_the_reasons_exist():
    "Check that the third column mentions these names of vidseq"
    reasons = [o for _,_,why in rows() for o in re.findall(r'`([a-z_]+)`', why)]
    ours = [o for o in reasons if hasattr(vidseq.all, o)]
    expected = {'read_frames','video_info','get_clips','window_frames','leaked_groups','small_timesformer'}
    assert expected <= set(ours)

tutorial_names = '''unrar extract_frames avi2frames get_instances ls_sorted ImageTuple ImageTupleTfm
    get_action_dataloaders show_batch TimeDistributedNaive TimeDistributedNaive2 _stack_tups TimeDistributed
    SimpleModel simple_splitter RNNModel rnnmodel_splitter show_results MyTimeSformer wget rarfile get_files
    show_images parallel path_frames parent_label Categorize Datasets RandomSplitter dataloaders create_body
    AdaptiveAvgPool2d cuda Learner to_fp16 lr_find fine_tune fit_one_cycle sigmoid typedispatch'''.split()

def test_every_name_of_the_tutorials_is_in_the_table():
    "Check that the table lists names that the tutorials define, and functions that they call in a step"
    before = ' '.join(o for o,_,_ in rows())
    for name in tutorial_names: assert re.search(rf'\b{name}\b', before), name

def test_names_that_stayed_keep_their_arguments():
    for before,now,_ in rows():
        for name,args in re.findall(r'`(\w+)\(([\w, ]+)\)`', before):
            args = args.split(', ')
            for new in re.findall(rf'`{name}\(([\w, ]+)\)`', now):
                assert new.split(', ')[:len(args)] == args, name

def test_the_code_on_the_page_uses_names_that_exist():
    code = re.search(r'```python\n(.*?)```', note('migration.md'), re.S)[1]
    nodes = list(ast.walk(ast.parse(code)))
    targets = [n.targets[0] for n in nodes if isinstance(n, ast.Assign)]
    given = {o.id for target in targets for o in ast.walk(target) if isinstance(o, ast.Name)} | {'path'}
    used = {n.id for n in nodes if isinstance(n, ast.Name)} - given
    for name in used: assert hasattr(vidseq.all, name) or hasattr(fastai.vision.all, name), name


# The notebooks

def heading_levels(cell):
    "Return the number of # of each heading in a cell, without comments in blocks of code"
    text = re.sub(r'```.*?```', '', source(cell), flags=re.S)
    return [len(o) for o in re.findall(r'^(#+) ', text, re.M)]

# calls that need no saved output, besides `test_…`
no_output = ('set_seed', 'parallel', 'my_unrar', 'my_avi2frames', 'avi2frames', 'load_state_dict',
             'write_video', 'save', 'cut', 'touch')

def needs_output(cell):
    "Return whether a cell ends in an expression with a value to show"
    last = (python(cell).body or [None])[-1]
    if hidden(cell) or 'eval: false' in source(cell) or not isinstance(last, ast.Expr): return False
    func = getattr(last.value, 'func', None)
    name = getattr(func, 'id', getattr(func, 'attr', '')) # of a function or method
    return not (name.startswith('test_') or name in no_output)

@pytest.mark.parametrize('page', pages, ids=lambda p: p.stem)
class TestPage:
    def test_begins_with_title_and_setup(self, page):
        title = source(cells(page, 'markdown')[0])
        assert re.match(r'# .+\n\n> .+\.$', title)
        code = [source(c) for c in cells(page)]
        assert re.search(r"pip install -q '?vidseq", code[0]) and '#| eval: false' in code[0]
        assert sum('set_seed(' in o for o in code) >= 1
        star = next(o for o in code if 'from vidseq.all import *' in o)
        assert star.index('from fastai.vision.all import *') < star.index('from vidseq.all import *')

    def test_imports_have_their_own_cells(self, page):
        for cell in cells(page):
            kinds = {isinstance(o, (ast.Import,ast.ImportFrom)) for o in python(cell).body}
            assert kinds != {True,False} or hidden(cell), source(cell)

    def test_headings_skip_no_level(self, page):
        levels = [o for c in cells(page, 'markdown') for o in heading_levels(c)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a+1 for a,b in zip(levels, levels[1:]))

    def test_no_errors_and_no_warnings(self, page):
        for cell in cells(page):
            for o in cell['outputs'] if not hidden(cell) else ():
                assert o['output_type'] != 'error', source(cell)
                assert o.get('name') != 'stderr' or not ''.join(o['text']).strip(), source(cell)
                assert 'Warning' not in ''.join(o.get('text', '')), source(cell)

    def test_outputs_are_saved(self, page):
        "Check that a cell that ends in an expression has a saved output"
        for cell in cells(page): assert cell['outputs'] or not needs_output(cell), source(cell)

    def test_figures_have_descriptions(self, page):
        with_figures = [c for c in cells(page) if figures(c)]
        assert with_figures
        for cell in with_figures:
            words = re.match(r'#\| fig-alt: (.{20,})\n', source(cell))
            assert words, source(cell)
            formats = [list(o['data']) for o in figures(cell)]
            assert 'image/png' not in str(formats), 'save figures as jpeg, which is smaller'
        for cell in cells(page): assert 'fig-alt' not in source(cell) or figures(cell), source(cell)

    def test_links_exist(self, page):
        for cell in cells(page, 'markdown'):
            for link in re.findall(r'\]\(([^)#]+)[^)]*\)', source(cell)):
                if not link.startswith('http'): assert (page.parent/link).exists(), link

    def test_removes_its_files(self, page):
        last = source(cells(page)[-1])
        assert hidden(cells(page)[-1]) and re.search(r'shutil\.rmtree\((tmp|work)\)', last)


def test_the_cookbook_has_recipes_with_code():
    nb = notebook(pages[0])
    recipes = [i for i,c in enumerate(nb) if re.match('### ', source(c))]
    assert len(recipes) == 27
    for i in recipes:
        assert nb[i+1]['cell_type'] == 'code' and nb[i+1]['outputs'], source(nb[i])
        assert len(re.findall(r'^### ', source(nb[i]), re.M)) == 1
        assert len(source(nb[i+1]).splitlines()) <= 15

settings = ('seq_len=5', 'image_size=64', 'bs=32', 'arch=resnet34', 'pretrained=True',
            'fine_tune(3, 1e-3, freeze_epochs=3)', 'fine_tune(5, 5e-3)', 'fit_one_cycle(12, 5e-4)')

@pytest.mark.parametrize('page', first, ids=lambda p: p.stem)
def test_a_tutorial_has_one_size_variable(page):
    code = '\n'.join(source(c) for c in cells(page))
    assert code.count('small = True') == 1 and 'if small else ucf101()' in code
    for setting in settings: assert setting in code, setting

def definitions(page):
    "Return the names of all functions and classes that a notebook defines"
    nodes = [n for c in cells(page) for n in ast.walk(python(c))]
    return {n.name for n in nodes if isinstance(n, (ast.FunctionDef,ast.ClassDef))}

own_versions = {'my_unrar', 'my_extract_frames', 'my_avi2frames', 'MyImageTuple', 'MyImageTupleTfm',
                'my_action_dataloaders', 'MySimpleModel', 'my_splitter', 'MyRNNModel', 'my_rnn_splitter',
                'MyTimeSformer'}

def test_tutorials_define_their_own_versions():
    for page in first:
        defined = definitions(page)
        assert own_versions <= defined
        overwritten = {o for o in defined if not o.startswith('_') and hasattr(vidseq.all, o)}
        assert not overwritten - {'show_batch','show_results'}, 'a tutorial overwrites a name of the library'
    time_distributed = {'TimeDistributedNaive','TimeDistributedNaive2','TimeDistributedFinal'}
    assert time_distributed | {'show_batch','show_results'} <= defined # in timesformer.ipynb

@pytest.mark.parametrize('name', ['limits.md','migration.md'])
def test_links_in_notes_exist(name):
    text = note(name)
    assert re.match(r'# .+\n\n> .+\.\n', text)
    for link in re.findall(r'\]\(([^)#]+)[^)]*\)', text): assert (root/'docs'/link).exists(), link
    for target,anchor in re.findall(r'\]\((\.\./[^)#]+\.md)#([^)]+)\)', text):
        headings = re.findall(r'^#+ (.*)', (root/'docs'/target).read_text(encoding='utf-8'), re.M)
        assert anchor in [re.sub(r'[^\w -]', '', o).lower().replace(' ', '-') for o in headings], anchor
