"Test extraction of damaged, unsafe and unusual archives, and download from local servers that fail"
import bz2
import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import stat
import sys
import tarfile
import threading
import zipfile
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import rarfile
from hypothesis import given, settings
from hypothesis import strategies as st

import vidseq.datasets.download as downloads
from make_archives import (
    make_rar, make_tar, make_zip, packed, packers, plain, rar, rar_file, tar, tar_member, zipped_link)
from vidseq.datasets import archives
from vidseq.datasets import hmdb51 as hmdb51_module
from vidseq.datasets import ucf101 as ucf101_module
from vidseq.datasets.archives import _member_path, class_folder, unrar
from vidseq.datasets.download import download
from vidseq.datasets.hmdb51 import hmdb51, hmdb51_splits, hmdb_group
from vidseq.datasets.lists import read_list_names
from vidseq.datasets.ucf101 import ucf101, ucf101_splits

clips = {
    'UCF-101/Archery/a.avi': b'a'*5000,
    'UCF-101/Archery/b.avi': b'',
    'UCF-101/Diving/c.avi': bytes(range(256))*30}


# ---- Archives

@pytest.fixture
def archive(tmp_path):
    "Return a function that writes an archive; the default name does not tell its format"
    def write(data, name='set.bin'):
        (tmp_path/name).write_bytes(data)
        return tmp_path/name
    return write


def contents(path):
    "Return relative name -> bytes of all files in `path`"
    files = [o for o in path.rglob('*') if o.is_file()]
    return {o.relative_to(path).as_posix(): o.read_bytes() for o in files}


def refused(fname, *messages, error=ValueError):
    "Check that `unrar` raises `error` that contains the file name and `messages`, and leaves no files"
    before = sorted(fname.parent.rglob('*'))
    with pytest.raises(error) as e: unrar(fname, fname.parent/'out')
    for o in (fname.name, *messages): assert o in str(e.value)
    assert sorted(fname.parent.rglob('*')) == before
    return e.value


@pytest.mark.parametrize('kind', packers)
def test_every_format(kind, archive, tmp_path):
    out = unrar(archive(packers[kind](clips.items())), tmp_path/'out')
    assert out == tmp_path/'out'/'UCF-101'
    assert contents(tmp_path/'out') == clips


def test_type_is_told_by_content(archive, tmp_path):
    inner = make_zip(clips.items())
    outer = make_tar([('sets/inner.zip', inner)]) # the end of a zip is near the end of this tar
    unrar(archive(outer, 'set.rar'), tmp_path/'out')
    assert contents(tmp_path/'out') == {'sets/inner.zip': inner}


evil_names = [
    '/abs.txt', '../up.txt', 'a/../../up.txt', 'C:\\up.txt', 'C:up.txt', '..\\up.txt',
    '\\\\host\\share\\up.txt', 'a:stream', 'a/NUL', 'com1.avi', 'a/.. /b', 'a\nb']


@pytest.mark.parametrize('name', evil_names)
@pytest.mark.parametrize('kind', plain)
def test_evil_names(kind, name, archive):
    data = plain[kind]([*clips.items(), (name, b'x'), ('z', b'')])
    refused(archive(data), 'points outside', 'Nothing was extracted')


def test_links_and_devices(archive):
    link = rar_file('a/link', b'/etc', mode=stat.S_IFLNK|0o777)
    refused(archive(rar(rar_file('ok', b'1'), link, rar_file('a/link/x', b'1'))), "'a/link'")
    for mode in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO): refused(archive(zipped_link(mode)), "'a/link'")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        link = tar_member('a/link', type=kind, linkname='/etc/passwd')
        refused(archive(tar(tar_member('ok', b'1'), link)), "'a/link'")


@pytest.mark.parametrize('kind', packers)
def test_truncated(kind, archive):
    whole = packers[kind](clips.items())
    end = len(whole) if kind != 'tar' else 512*(3+10+15) # the rest of a tar is zeros
    lengths = {1, 20, 100, 513, end//2, end-300, end-20} & set(range(end))
    for n in sorted(lengths): refused(archive(whole[:n]))


def test_tar_cut_between_members(archive):
    refused(archive(make_tar([('a', b'x'*512), ('b', b'')])[:1024]), 'it ends early')


def test_damaged(archive):
    whole = bytearray(make_rar(clips.items()))
    whole[whole.index(b'aaaa')+9] ^= 1
    refused(archive(whole), "'UCF-101/Archery/a.avi'", 'CRC', 'download it again')
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, 'w') as z: z.writestr('a.avi', b'a'*100)
    refused(archive(stored.getvalue().replace(b'a'*100, b'a'*99+b'b')), "'a.avi'", 'CRC')
    for pack in (gzip.compress, bz2.compress):
        whole = bytearray(pack(make_tar([('a', os.urandom(9000))])))
        whole[5000] ^= 255
        refused(archive(whole), 'download it again')


@pytest.mark.parametrize('kind', plain)
def test_empty(kind, archive): refused(archive(plain[kind]([])), 'no files in it')


def test_no_archive(archive, tmp_path):
    refused(archive(b'<html>'), 'neither a rar, zip nor tar')
    refused(archive(b''), 'neither a rar, zip nor tar')
    refused(tmp_path/'none.rar', error=FileNotFoundError)


def test_encrypted(archive):
    refused(archive(rar(rar_file('a.avi', b'x'*16, flags=4))), 'a.avi is encrypted', 'password')
    refused(archive(rar(main=0x80)), 'list of files is encrypted')
    whole = bytearray(make_zip([('a.avi', b'x')]))
    for magic,at in ((b'PK\3\4', 6), (b'PK\1\2', 8)): whole[whole.index(magic)+at] |= 1
    refused(archive(whole), 'a.avi is encrypted')


def test_volumes(archive, tmp_path):
    data = b'0123456789'
    first = rar(rar_file('a.avi', data[:6], flags=2, size=10), main=0x111, end=0x4001)
    last = rar(rar_file('a.avi', data[6:], flags=1, size=10, crc=zlib.crc32(data)), main=0x11, end=0x4000)
    refused(archive(first, 'set.part01.rar'), 'set.part02.rar')
    refused(archive(last, 'set.part02.rar'), 'Give the first one, set.part01.rar')
    unrar(tmp_path/'set.part01.rar', tmp_path/'out')
    assert contents(tmp_path/'out') == {'a.avi': data}


# ---- Tools that unpack rar, replaced by a script that prints

print_file = '''
import sys
from pathlib import Path
fname,message = sys.argv[1:3]
sys.stdout.buffer.write(Path(fname).read_bytes())
sys.stderr.write(message)
'''


@pytest.fixture
def tool(monkeypatch, tmp_path):
    "Return a function that replaces the tool by a script that prints `data`, and `message` to its stderr"
    fname = tmp_path/'printed'
    def use(data, message=''):
        fname.write_bytes(data)
        command = [sys.executable, '-c', print_file, str(fname), message]
        setup = SimpleNamespace(get_cmdline=lambda *args, **kwargs: command)
        monkeypatch.setattr(rarfile, 'tool_setup', lambda: setup)
    return use


def test_one_run_of_the_tool(tool, archive, tmp_path):
    tool(b''.join(clips.values()))
    unrar(archive(packed(*clips.items())), tmp_path/'out')
    assert contents(tmp_path/'out') == clips


def test_tool_fails(tool, archive):
    data = b''.join(clips.values())
    fname = archive(packed(*clips.items()))
    message = 'solid archives: not supported'
    tool(data[:-1], message)
    refused(fname, 'UCF-101/Diving/c.avi', 'ends early', message, 'another tool')
    tool(b'b'+data[1:])
    refused(fname, 'UCF-101/Archery/a.avi', 'wrong checksum')
    tool(b'x'*10_000_000) # a tool that does not stop printing is stopped
    refused(fname, 'wrong checksum')


def test_no_tool(monkeypatch, archive):
    def none(): raise rarfile.RarCannotExec('no tool')
    monkeypatch.setattr(rarfile, 'tool_setup', none)
    refused(archive(packed(*clips.items())), 'apt install unar', 'brew', 'winget', error=OSError)


# ---- Contents of archives

@pytest.mark.parametrize('kind', plain)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_members_of_one_name(kind, archive):
    data = plain[kind]([('s/a', b'old'), ('s/b', b''), ('s/a', b'new')])
    refused(archive(data), "'s/a' is in the archive twice")


@pytest.mark.parametrize('kind', plain)
def test_file_and_folder(kind, archive):
    refused(archive(plain[kind]([('s/a', b'x'), ('s/a/b', b'x')])), "'s/a' is both")


def test_litter_modes_and_dots(archive, tmp_path):
    folders = [tar_member('./', type=tarfile.DIRTYPE), tar_member('./a', type=tarfile.DIRTYPE, mode=0)]
    litter = [tar_member('./__MACOSX/a/._v.avi', b'x'), tar_member('./a/.DS_Store', b'x')]
    members = [*folders, tar_member('./a/v.avi', b'x', mode=0), *litter]
    out = unrar(archive(tar(*members)), tmp_path/'out')
    assert out == tmp_path/'out' and contents(out) == {'a/v.avi': b'x'}
    assert (out/'a'/'v.avi').stat().st_mode & 0o600 == 0o600


def test_fills_an_empty_folder_and_reuses_a_full_one(archive, tmp_path):
    (tmp_path/'out').mkdir()
    fname = archive(make_zip(clips.items()))
    out = unrar(fname, tmp_path/'out')
    (out/'Archery'/'a.avi').write_bytes(b'mine')
    fname.unlink()
    assert unrar(fname, tmp_path/'out') == out
    assert (out/'Archery'/'a.avi').read_bytes() == b'mine'


def test_space(monkeypatch, archive):
    fname = archive(make_zip([('a.avi', bytes(3<<20))]))
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1<<20))
    assert refused(fname, 'Make room', error=OSError).errno == errno.ENOSPC
    monkeypatch.undo()
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(archives, '_write_member', full)
    assert refused(fname, "'a.avi'", 'No space left', error=OSError).errno == errno.ENOSPC


parts = st.text(max_size=8) | st.sampled_from(['..', '.', '', 'C:', 'a', 'NUL', 'com1.txt', '.. ', ' ', '~'])
separators = st.sampled_from(['/', '\\'])
joined_parts = st.builds(lambda sep, parts: sep.join(parts), separators, st.lists(parts, max_size=5))


@settings(deadline=None)
@given(name=joined_parts | st.text())
def test_names_stay_inside(tmp_path_factory, name):
    dest = tmp_path_factory.getbasetemp()/'dest'
    target = _member_path(dest, name)
    if target is None: return
    root = os.path.realpath(dest)
    assert os.path.commonpath([os.path.realpath(target), root]) == root
    windows = PureWindowsPath('C:/dest', *target.relative_to(dest).parts)
    assert windows.is_relative_to('C:/dest') and '..' not in windows.parts and windows.drive == 'C:'
    assert sys.version_info >= (3,13) or not windows.is_reserved()


# ---- Servers that fail

body = os.urandom(300_000)


class Server(ThreadingHTTPServer):
    def handle_error(self, *args): pass


def first_byte(requested):
    "Return the first byte of a `Range` header, 0 without a header: 'bytes=500-' -> 500"
    return int(re.match(r'bytes=(\d+)-$', requested)[1]) if requested else 0


def make_handler(reply, asked):
    "Return a request handler that appends each `Range` header to `asked` and calls `reply`"
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers['Range'])
            reply(self, len(asked), first_byte(asked[-1]))
        def log_message(self, *args): pass
    return Handler


@pytest.fixture
def serve(tmp_path, monkeypatch):
    "Return a function that starts a server, which calls `reply(handler, request_number, first_byte)`"
    pauses,servers = [],[]
    monkeypatch.setattr(downloads, 'sleep', pauses.append)
    def start(reply):
        asked = []
        server = Server(('127.0.0.1', 0), make_handler(reply, asked))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        return SimpleNamespace(url=f'http://127.0.0.1:{server.server_port}/x', asked=asked, pauses=pauses)
    yield start
    for o in servers:
        o.shutdown()
        o.server_close()


def send(handler, data, code=200, length=None, **headers):
    if length is None: length = len(data)
    handler.send_response(code)
    if length is not False: handler.send_header('Content-Length', str(length))
    for k,v in headers.items(): handler.send_header(k.replace('_', '-'), v)
    handler.end_headers()
    handler.wfile.write(data)


def resume(handler, n, start, data=body, sent=None, total=None):
    "Send `data` from byte `start` as a correct server does, but close the connection after `sent` bytes"
    partial = dict(code=206, Content_Range=f'bytes {start}-{len(data)-1}/{total or len(data)}')
    etag = f'"{sha256(data)}"'
    send(handler, data[start:][:sent], length=len(data)-start, ETag=etag, **(partial if start else {}))


def sha256(data): return hashlib.sha256(data).hexdigest()


def test_download(serve, tmp_path):
    s = serve(resume)
    fname = tmp_path/'new'/'f'
    assert download(s.url, fname, size=len(body), sha256=sha256(body)).read_bytes() == body
    assert download(s.url, fname) == fname
    assert s.asked == [None] and os.listdir(tmp_path/'new') == ['f']


def test_dropped_connections(serve, tmp_path):
    s = serve(lambda *a: resume(*a, sent=40_000))
    assert download(s.url, tmp_path/'f', tries=2).read_bytes() == body # 7 drops, each after new bytes
    assert s.asked == [None] + [f'bytes={i*40_000}-' for i in range(1, 8)]


def test_gives_up_and_goes_on(serve, tmp_path):
    s = serve(lambda h, n, start: resume(h, n, start, sent=1000 if n == 1 else 0))
    with pytest.raises(OSError, match='Call again to resume after the 1000 bytes'):
        download(s.url, tmp_path/'f', tries=4)
    assert s.pauses == [2, 4, 8] and not (tmp_path/'f').exists()
    assert download(serve(resume).url, tmp_path/'f').read_bytes() == body


def test_refused_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, 'sleep', lambda seconds: None)
    with Server(('127.0.0.1', 0), BaseHTTPRequestHandler) as server: port = server.server_port
    url = f'http://127.0.0.1:{port}/x'
    with pytest.raises(OSError, match=f'{url}: .*refused'): download(url, tmp_path/'f', tries=2)


def interrupted(fname, url, data=body[:1000], validator='"1"'):
    "Write an incomplete download of `url`"
    fname.with_name('f.part').write_bytes(data)
    note = json.dumps(dict(url=url, validator=validator))
    if validator: fname.with_name('f.part.json').write_text(note)


def test_server_that_cannot_resume(serve, tmp_path):
    s = serve(lambda h, n, start: send(h, body))
    interrupted(tmp_path/'f', s.url, body[:1000]+b'?'*400_000) # also longer than the file
    assert download(s.url, tmp_path/'f').read_bytes() == body
    assert s.asked == ['bytes=401000-']




wrong_ranges = dict(
    earlier=lambda h, n, start: resume(h, n, 500 if start else 0),
    later=lambda h, n, start: resume(h, n, start+1 if start else 0),
    no_range=lambda h, n, start: send(h, body[start:], 206 if start else 200),
    nonsense=lambda h, n, start: send(h, body, 206 if start else 200, Content_Range='bytes x-y/z'),
    other_version=lambda h, n, start: resume(h, n, start, data=os.urandom(len(body)) if start else body),
    not_satisfiable=lambda h, n, start: send(h, b'', 416) if start else send(h, body),
    other_total=lambda h, n, start: send(h, b'', 416, Content_Range='bytes */5') if start else send(h, body))


@pytest.mark.parametrize('reply', wrong_ranges.values(), ids=list(wrong_ranges))
def test_wrong_answers_to_a_range(reply, serve, tmp_path):
    s = serve(reply)
    interrupted(tmp_path/'f', s.url)
    assert download(s.url, tmp_path/'f').read_bytes() == body
    assert s.asked == ['bytes=1000-', None]


@pytest.mark.parametrize('reply', wrong_ranges.values(), ids=list(wrong_ranges))
def test_wrong_ranges_after_each_drop_end(reply, serve, tmp_path):
    def drop(h, n, start): reply(h, n, start) if start else resume(h, n, 0, sent=5000)
    s = serve(drop)
    with pytest.raises(OSError, match='f.part|start over'): download(s.url, tmp_path/'f', tries=3)
    assert len(s.asked) <= 6 and not (tmp_path/'f').exists()


def test_a_partial_answer_to_a_request_for_the_whole_file(serve, tmp_path):
    s = serve(lambda h, n, start: send(h, body[5:], 206, Content_Range=f'bytes 5-{len(body)-1}/{len(body)}'))
    with pytest.raises(OSError, match='did not send the requested range'):
        download(s.url, tmp_path/'f', tries=3)
    assert s.asked == [None]*3


other = bytes(300_000)


@pytest.mark.parametrize('known', [True, False], ids=['validator', 'no validator'])
@pytest.mark.parametrize('honest', [True, False], ids=['If-Range', 'no If-Range'])
def test_a_file_that_changes_is_not_mixed(honest, known, serve, tmp_path):
    versions = [other, body] # the first connection drops, then the file is replaced by one of the same size
    def reply(h, n, start):
        data = versions[n > 1]
        headers = dict(Last_Modified=f'Mon, 0{1+(n > 1)} Jan 2024 00:00:00 GMT') if known else {}
        same = not honest or h.headers['If-Range'] == headers.get('Last_Modified')
        start = start if same else 0
        if start: headers |= dict(code=206, Content_Range=f'bytes {start}-{len(data)-1}/{len(data)}')
        send(h, data[start:] if n > 1 else data[:1000], length=len(data)-start, **headers)
    s = serve(reply)
    assert download(s.url, tmp_path/'f', tries=3).read_bytes() == body
    assert sorted(os.listdir(tmp_path)) == ['f']


def test_a_part_of_another_url_is_not_used(serve, tmp_path):
    interrupted(tmp_path/'f', 'http://other.org/f')
    s = serve(resume)
    assert download(s.url, tmp_path/'f').read_bytes() == body
    assert s.asked == [None]


def test_a_part_of_another_file_with_a_checksum(serve, tmp_path):
    (tmp_path/'f.part').write_bytes(other[:1000])
    s = serve(resume)
    assert download(s.url, tmp_path/'f', sha256=sha256(body)).read_bytes() == body
    assert s.asked == ['bytes=1000-', None]


def test_a_part_of_this_file_with_a_checksum(serve, tmp_path):
    (tmp_path/'f.part').write_bytes(body[:1000])
    s = serve(resume)
    assert download(s.url, tmp_path/'f', sha256=sha256(body)).read_bytes() == body
    assert s.asked == ['bytes=1000-']


@pytest.mark.parametrize('note', ['', '[]', '{"url": 5', 'null', '{"url": "x"}'])
def test_a_damaged_note(note, serve, tmp_path):
    interrupted(tmp_path/'f', 'x', validator=None)
    (tmp_path/'f.part.json').write_text(note)
    assert download(serve(resume).url, tmp_path/'f').read_bytes() == body


@pytest.mark.parametrize('have', [300_000, 300_001])
def test_416(serve, tmp_path, have):
    def reply(h, n, start):
        if start < len(body): resume(h, n, start)
        else: send(h, b'', 416, Content_Range=f'bytes */{len(body)}')
    s = serve(reply)
    interrupted(tmp_path/'f', s.url, (body+b'?')[:have])
    assert download(s.url, tmp_path/'f').read_bytes() == body
    n_requests = 1 if have == len(body) else 2
    assert s.asked == [f'bytes={have}-', None][:n_requests]


def test_part_that_is_too_long(serve, tmp_path):
    (tmp_path/'f.part').write_bytes(body+b'?')
    assert download(serve(resume).url, tmp_path/'f', size=len(body)).read_bytes() == body


def test_part_that_is_whole(tmp_path):
    (tmp_path/'f.part').write_bytes(body)
    checks = dict(size=len(body), sha256=sha256(body))
    assert download('http://127.0.0.1:1/never-asked', tmp_path/'f', **checks).read_bytes() == body


@pytest.mark.parametrize('code,n', [(404, 1), (403, 1), (500, 3), (503, 3)])
def test_errors(serve, tmp_path, code, n):
    s = serve(lambda h, *a: send(h, b'no', code))
    with pytest.raises(OSError, match=f'{s.url}.* {code}.*Call again'): download(s.url, tmp_path/'f', tries=3)
    assert len(s.asked) == n and not (tmp_path/'f').exists()


def test_other_size(serve, tmp_path):
    (tmp_path/'f.part').write_bytes(body[:1000])
    for reply in (resume, lambda h, n, start: send(h, body)):
        with pytest.raises(OSError, match='the server has 300000 bytes, 300005 were expected'):
            download(serve(reply).url, tmp_path/'f', size=len(body)+5)
    assert (tmp_path/'f.part').stat().st_size == 1000 # refused before the body is read


def test_no_length(serve, tmp_path):
    s = serve(lambda h, n, start: send(h, body[:1000] if n == 1 else body, length=False))
    assert download(s.url, tmp_path/'f', size=len(body)).read_bytes() == body # the first reply is too short
    with pytest.raises(OSError, match='more than the 299999 bytes'):
        download(s.url, tmp_path/'g', size=len(body)-1)
    assert download(s.url, tmp_path/'h').read_bytes() == body


def test_wrong_checksum(serve, tmp_path):
    s = serve(resume)
    with pytest.raises(OSError, match='another file .sha256 .*removed'):
        download(s.url, tmp_path/'f', sha256='0'*64)
    assert os.listdir(tmp_path) == []
    (tmp_path/'f').write_bytes(b'mine')
    with pytest.raises(OSError, match='4 bytes, 300000 were expected.*Remove it'):
        download(s.url, tmp_path/'f', size=len(body))
    assert (tmp_path/'f').read_bytes() == b'mine'


def test_full_disk(serve, tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(downloads, '_write_body', full)
    s = serve(resume)
    with pytest.raises(OSError, match='No space left.*Call again'): download(s.url, tmp_path/'f')
    assert len(s.asked) == 1
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match='Make room'): download(s.url, tmp_path/'f')


def test_two_at_once(serve, tmp_path):
    s = serve(resume)
    got = []
    def work(): got.append(download(s.url, tmp_path/'f', sha256=sha256(body)))
    workers = [threading.Thread(target=work) for _ in range(4)]
    for o in workers: o.start()
    for o in workers: o.join(60)
    assert got == [tmp_path/'f']*4 and (tmp_path/'f').read_bytes() == body
    assert s.asked == [None] and os.listdir(tmp_path) == ['f'] # one of them downloads, the others wait


# Servers that never end

def test_a_trickle_of_bytes(serve, tmp_path, monkeypatch):
    seconds = itertools.count(0, 70) # a minute passes between two reads
    monkeypatch.setattr(downloads, 'monotonic', lambda: next(seconds))
    s = serve(lambda h, *a: send(h, body[:50_000], ETag='"1"', length=len(body)))
    with pytest.raises(OSError, match='only .* bytes in .* seconds'): download(s.url, tmp_path/'f', tries=3)
    assert 3 <= len(s.asked) <= 6


def test_headers_that_never_end(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, '_response_seconds', .1)
    ended = threading.Event()
    def trickle(h, *args):
        h.wfile.write(b'HTTP/1.1 200 OK\r\n')
        while not ended.wait(.02): h.wfile.write(b'X: y\r\n')
    s = serve(trickle)
    try:
        with pytest.raises(OSError, match='no response within'): download(s.url, tmp_path/'f', tries=2)
    finally: ended.set()


def test_one_byte_in_each_attempt(serve, tmp_path):
    s = serve(lambda h, n, start: resume(h, n, start, sent=1))
    with pytest.raises(OSError, match='resume after the 60 bytes'): download(s.url, tmp_path/'f', tries=3)
    assert len(s.asked) == 60


@pytest.mark.parametrize('location', ['/x', 'file:///etc/passwd', 'ftp://127.0.0.1/x', 'http://', 'x:y'])
def test_redirects(location, serve, tmp_path):
    s = serve(lambda h, *a: send(h, b'', 302, Location=location))
    with pytest.raises(OSError, match=s.url): download(s.url, tmp_path/'f', tries=2)
    assert len(s.asked) <= 12 and os.listdir(tmp_path) == []


def test_a_redirect_to_the_file(serve, tmp_path):
    def reply(h, n, start): resume(h, n, start) if h.path == '/y' else send(h, b'', 302, Location='/y')
    assert download(serve(reply).url, tmp_path/'f').read_bytes() == body


# Wrong headers and bodies

@pytest.mark.parametrize('length', ['x', '-5', '1e3', '5.0', '9'*30, '0x10'])
def test_bad_content_length(length, serve, tmp_path):
    s = serve(lambda h, *a: send(h, body, length=length))
    with pytest.raises(OSError, match=f'{s.url}: the server sent an invalid Content-Length'):
        download(s.url, tmp_path/'f')
    assert len(s.asked) == 1 and os.listdir(tmp_path) == []


def test_a_length_that_is_too_large(serve, tmp_path):
    s = serve(lambda h, *a: send(h, body, length=len(body)+5))
    with pytest.raises(OSError, match='300000 of 300005 bytes'): download(s.url, tmp_path/'f', tries=2)
    assert not (tmp_path/'f').exists()


def test_a_length_that_is_too_small(serve, tmp_path):
    s = serve(lambda h, *a: send(h, body, length=10))
    with pytest.raises(OSError, match='has 10 bytes, 300000 were expected'):
        download(s.url, tmp_path/'f', size=len(body))
    with pytest.raises(OSError, match='another file'): download(s.url, tmp_path/'f', sha256=sha256(body))
    assert not (tmp_path/'f').exists()


def chunked(handler, *chunks):
    handler.protocol_version = 'HTTP/1.1'
    handler.close_connection = True
    send(handler, b''.join(chunks), length=False, Transfer_Encoding='chunked')


def chunk(data): return b'%x\r\n%s\r\n' % (len(data), data)


def test_chunks(serve, tmp_path):
    whole = [chunk(body[:100_000]), chunk(body[100_000:]), chunk(b'')]
    assert download(serve(lambda h, *a: chunked(h, *whole)).url, tmp_path/'f').read_bytes() == body
    for cut in (whole[:2], [whole[0][:-9]], [b'xyz\r\n'], [b'f'*70_000]):
        s = serve(lambda h, *a, cut=cut: chunked(h, *cut))
        with pytest.raises(OSError, match=s.url): download(s.url, tmp_path/'g', tries=2)
        assert not (tmp_path/'g').exists()


def test_web_pages(serve, tmp_path):
    s = serve(lambda h, *a: send(h, b'<html>', Content_Type='text/html; charset=utf-8'))
    with pytest.raises(OSError, match='a web page. Open the URL'): download(s.url, tmp_path/'set.zip')
    assert os.listdir(tmp_path) == []
    assert download(s.url, tmp_path/'x.html').read_bytes() == b'<html>' # asked for
    assert download(s.url, tmp_path/'y.zip', sha256=sha256(b'<html>')).exists() # wrong type, right file


def test_compression_on_the_fly(serve, tmp_path):
    s = serve(lambda h, *a: send(h, body, Content_Encoding='gzip'))
    with pytest.raises(OSError, match='compressed the file with gzip'): download(s.url, tmp_path/'set.zip')
    assert download(s.url, tmp_path/'set.tar.gz').read_bytes() == body # some servers mark such files so
    assert download(s.url, tmp_path/'set.rar', sha256=sha256(body)).read_bytes() == body


def test_empty_answers(serve, tmp_path):
    s = serve(lambda h, *a: send(h, b''))
    with pytest.raises(OSError, match='an empty file'): download(s.url, tmp_path/'f')
    assert download(s.url, tmp_path/'g', size=0).read_bytes() == b''
    with pytest.raises(OSError, match='no file, but status 204'):
        download(serve(lambda h, *a: send(h, b'', 204)).url, tmp_path/'h')


# Checksums

written = [str.upper, ' {}\n'.format, 'sha256:{}'.format, 'SHA-256={}'.format,
           lambda o: ' '.join(re.findall('.{8}', o))]


@pytest.mark.parametrize('write', written)
def test_checksums_as_people_write_them(write, serve, tmp_path):
    s = serve(resume)
    for _ in range(2): assert download(s.url, tmp_path/'f', sha256=write(sha256(body))).read_bytes() == body
    assert s.asked == [None]


def test_full_disk_in_the_middle(serve, tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    s = serve(resume)
    with monkeypatch.context() as m:
        m.setattr(downloads._Pace, 'add', full) # after the first bytes
        with pytest.raises(OSError, match='No space left.*resume after the'): download(s.url, tmp_path/'f')
    assert download(s.url, tmp_path/'f').read_bytes() == body and len(s.asked) == 2


def test_a_link_as_destination(serve, tmp_path):
    (tmp_path/'drive').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'drive'/'f')
    assert download(serve(resume).url, tmp_path/'link') == tmp_path/'link'
    assert (tmp_path/'link').is_symlink() and (tmp_path/'drive'/'f').read_bytes() == body


# ---- UCF101

def split_list(videos, side, fold):
    "Return a list file of UCF101 in which the group with the number of the fold is the test set"
    names = [n.removeprefix('UCF-101/') for n in videos if (f'g{fold:02d}' in n) == (side == 'test')]
    label = ' 1' if side == 'train' else ''
    return ''.join(f'{n}{label}\r\n' for n in names).encode()


@contextmanager
def small_ucf101(monkeypatch, tmp_path):
    "Replace the archives of UCF101 with two small ones; yield their names and bytes"
    groups = product(('Archery','Diving'), (1,2,3))
    videos = {f'UCF-101/{c}/v_{c}_g{g:02d}_c01.avi': c.encode() for c,g in groups}
    splits = product(('train','test'), (1,2,3))
    lists = {f'ucfTrainTestlist/{side}list0{k}.txt': split_list(videos, side, k) for side,k in splits}
    files = {
        'UCF101TrainTestSplits-RecognitionTask.zip': make_zip(lists.items()),
        'UCF101.rar': make_rar(videos.items())}
    checks = {name: dict(size=len(data), sha256=sha256(data)) for name,data in files.items()}
    monkeypatch.setattr(ucf101_module, '_ucf101_files', checks)
    monkeypatch.setattr(ucf101_module, 'fastai_path', lambda key: tmp_path/key)
    yield files


def test_ucf101(serve, tmp_path, monkeypatch):
    with small_ucf101(monkeypatch, tmp_path) as files:
        s = serve(lambda h, n, start: resume(h, n, start, files[h.path.split('/')[-1]]))
        path = ucf101(url=s.url)
        assert path == tmp_path/'data'/'UCF101'/'UCF-101'
        assert {o.name for o in path.iterdir()} == {'Archery', 'Diving'}
        for fold in (1,2,3):
            train,valid = ucf101_splits(path, fold)
            assert [o.name for o in valid] == [f'v_{c}_g{fold:02d}_c01.avi' for c in ('Archery','Diving')]
            assert len(train) == 4 and not set(train) & set(valid) and all(o.exists() for o in train+valid)
        assert ucf101(url='http://127.0.0.1:1/never-asked') == path
        assert sorted(os.listdir(tmp_path/'archive')) == sorted(files)


def test_ucf101_fails_early(serve, tmp_path, monkeypatch):
    with small_ucf101(monkeypatch, tmp_path) as files:
        s = serve(lambda h, n, start: resume(h, n, start, files[h.path.split('/')[-1]][:-9]))
        with pytest.raises(OSError, match='were expected'): ucf101(url=s.url)
        assert len(s.asked) == 1 and not (tmp_path/'data'/'UCF101').exists()


# ---- HMDB51

titles = ('April_09', 'RATRACE', 'Movie_2', '#20_Rhythm')
def hmdb_names(c): return [f'{o}_{c}_u_nm_np1_ba_goo_{i}.avi' for i,o in enumerate(titles)]
hmdb_videos = {c: hmdb_names(c) for c in ('brush_hair','wave')}


def class_rar(name, folder=None):
    "Return the rar of one class of HMDB51, with its videos in a folder"
    if folder is None: folder = f'{name}/'
    return make_rar((folder+o, o.encode()) for o in hmdb_videos[name])


def hmdb_lists():
    "Return the rar of the lists, whose codes rotate: 1, 1, 2, 0"
    def lines(names, k): return ''.join(f'{o} {(1,1,2,0)[(i+k)%4]} \n' for i,o in enumerate(names)).encode()
    lists = {f'{c}_test_split{k}.txt': lines(names, k-1) for c,names in hmdb_videos.items() for k in (1,2,3)}
    return make_rar((f'testTrainMulti_7030_splits/{k}', v) for k,v in lists.items())


@pytest.fixture
def serve_hmdb51(serve, tmp_path, monkeypatch):
    "Return a function that starts a server with a small HMDB51"
    monkeypatch.setattr(hmdb51_module, 'fastai_path', lambda key: tmp_path/key)
    def start(videos):
        files = {'hmdb51_org.rar': videos, 'test_train_splits.rar': hmdb_lists()}
        return serve(lambda h, n, start: resume(h, n, start, files[h.path.split('/')[-1]]))
    return start


layouts = dict(
    official=[(f'{c}.rar', class_rar(c)) for c in hmdb_videos],
    in_a_folder=[(f'hmdb51_org/{c}.rar', class_rar(c)) for c in hmdb_videos],
    without_folders=[(f'{c}.rar', class_rar(c, '')) for c in hmdb_videos],
    in_deeper_folders=[(f'{c}.rar', class_rar(c, f'data/{c}/')) for c in hmdb_videos])


@pytest.mark.parametrize('layout', layouts.values(), ids=list(layouts))
def test_hmdb51(layout, serve_hmdb51, tmp_path):
    s = serve_hmdb51(make_rar(layout))
    path = hmdb51(url=s.url)
    assert path == tmp_path/'data'/'HMDB51'/'hmdb51_org'
    files = {f'{c}/{o}': o.encode() for c,names in hmdb_videos.items() for o in names}
    assert contents(path) == files
    for k in (1,2,3):
        train,valid = hmdb51_splits(path, k)
        assert len(train) == 4 and [o.name for o in valid] == [v[3-k] for v in hmdb_videos.values()]
        assert not {hmdb_group(o) for o in train} & {hmdb_group(o) for o in valid}
    assert hmdb51(url='http://127.0.0.1:1/never-asked') == path
    assert {hmdb_group(o) for o in path.glob('*/*')} == set(titles)


damaged = bytearray(class_rar('wave'))
damaged[damaged.index(b'Movie_2', 300)] ^= 1
wrong_videos = dict(
    no_rar=(make_rar([('wave/a.avi', b'x')]), 'hmdb51_org.rar: no rar files in it'),
    damaged=(make_rar([('wave.rar', bytes(damaged))]), 'wave.rar'),
    page=(b'<html>', 'hmdb51_org.rar: neither'))


@pytest.mark.parametrize('videos,message', wrong_videos.values(), ids=list(wrong_videos))
def test_wrong_archives_of_hmdb51(videos, message, serve_hmdb51, tmp_path):
    with pytest.raises(ValueError, match=message): hmdb51(url=serve_hmdb51(videos).url)
    assert os.listdir(tmp_path/'data') == []


# ---- Lists

names = st.from_regex(r'[A-Za-z]\w{0,8}/v_[\w .-]{0,8}_g\d\d_c\d\d\.avi', fullmatch=True)
line_ends = st.sampled_from(['\n', '\r\n'])
labels = st.sampled_from(['', ' 1', ' 101', '\t7 '])


@settings(deadline=None)
@given(names=st.lists(names, unique=True), end=line_ends, label=labels)
def test_lists_are_read_back(names, end, label):
    assert read_list_names(''.join(f'{n}{label}{end}' for n in names)) == names
    assert read_list_names(end.join(f'{n}{label}' for n in names)) == names


def test_class_folder_of_one_class_of_frames(tmp_path):
    for o in ('set/Archery/v1/0.jpg', 'set/Archery/v2/0.jpg', 'set/lists/train.txt', '__MACOSX/x/y/z'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).touch()
    assert class_folder(tmp_path) == class_folder(tmp_path/'set') == tmp_path/'set'
    assert isinstance(class_folder(str(tmp_path)), Path)
