"README.md from nbs/index.ipynb (`make prep` calls this; `test_project.py` holds the two equal)."
import re
from pathlib import Path

from nbconvert import MarkdownExporter
from nbformat import reads

root = Path(__file__).parent.parent


def readme():
    "README.md's text, and its pictures as {name: bytes}"
    nb = reads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'), as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    alts = {}  # what is to be seen in the figures of a cell
    for i,c in enumerate(nb.cells):
        if found := re.match(r'#\| fig-alt: (.*)\n', c.source): alts[str(i)],c.source = found[1],c.source[found.end():]
    text,resources = MarkdownExporter().from_notebook_node(nb)
    text = text.replace('](images/', '](nbs/images/')  # the notebook lies one folder deeper
    text = re.sub(r'<style>.*?</style>', '', text, flags=re.S)
    text = re.sub(r'!\[[^\]]*\]\((output_(\d+)[^)]+)\)', lambda m: f'![{alts.get(m[2], "output")}](README_files/{m[1]})', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', resources['outputs']


if __name__ == '__main__':
    text,pictures = readme()
    (root/'README.md').write_text(text, encoding='utf-8')
    folder = root/'README_files'
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir(): old.unlink()
    for name,data in pictures.items(): (folder/name).write_bytes(data)
