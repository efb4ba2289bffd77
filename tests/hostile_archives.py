"""Hostile archives: unsafe and equal names, bombs, wrong sizes, links, damage, and other files."""
import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import tracemalloc
import warnings
import zipfile

from hostile import gives, refuses
from make_archives import (
    make_tar, make_zip, packed, packers, plain, rar, rar5, rar5_file, rar_file, tar, tar_member, zipped_link)

from vidseq.datasets.archive_formats import Limits, Member, check_limits
from vidseq.datasets.archives import class_folder, max_members, unrar

video = ('Archery/a.avi', b'video')


def extract(data, name='set.bin', **kwargs):
    "Return an action that extracts an archive: its files, or an error after which nothing is left"
    def act(folder):
        (folder/name).write_bytes(data)
        try: unrar(folder/name, folder/'out', **kwargs)
        except Exception:
            assert os.listdir(folder) == [name]
            raise
        files = (o for o in (folder/'out').rglob('*') if o.is_file())
        return sorted(o.relative_to(folder/'out').as_posix() for o in files)
    return act


def refused(problem, data, *words, **kwargs):
    "Add a case: the archive `data` raises an error that names it, with all `words`, and leaves nothing"
    refuses(f'archive: {problem}', extract(data, **kwargs), 'set.bin', *words)


def extracted(name, data, files, **kwargs):
    "Add a case: the archive `data` extracts to `files`"
    gives(f'archive: {name}', extract(data, **kwargs), files)


# Names

def each_format(name, problem, *words):
    "Refuse an archive of each format with a member `name`"
    for kind,pack in plain.items():
        refused(f'{kind} with {problem}', pack([video, (name, b'x')]), *words)


deep = 'a/'*400 + 'b.avi'
for name,problem in {
        '../up.avi': 'a parent folder', 'a/../../up.avi': 'a parent folder inside a path',
        '/abs.avi': 'an absolute path', 'C:/x.avi': 'a drive', 'C:x.avi': 'a path relative to a drive',
        '\\\\host\\share\\x': 'a network path', '..\\up.avi': 'a parent folder with backslash',
        'a/CON': 'a device', 'a/Aux.avi': 'a device with an extension', 'a/lpt¹': 'a device with superscript',
        'a/x.avi:stream': 'a stream', 'a/x.': 'a trailing dot', 'a /x': 'a trailing space', 'a/...': 'dots',
        'a/\x1b[31m.avi': 'an escape sequence', 'a/x\n.avi': 'a new line', 'a/x\x7f': 'a delete character',
        'a/\u202eiva.exe': 'reversed text', 'a/x\u2028.avi': 'a line separator',
        'é'*128 + '.avi': 'a name of 260 bytes'}.items():
    each_format(name, problem, 'points outside the archive, or is not valid on every system')
each_format(deep, '400 nested folders', '400 nested folders')
each_format('/'.join(['x'*60]*20), 'a long path', 'a path of 1219 characters')
each_format('archery/b.avi', 'folders that differ in case', "'Archery' and 'archery' have the same name")
each_format('Archery/A.AVI', 'files that differ in case', "'Archery/A.AVI' have the same name")
each_format('Archery/a.avi/b', 'a file that is a folder', "'Archery/a.avi' is both a file and a folder")
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    each_format('Archery/a.avi', 'identical members', "'Archery/a.avi' is in the archive twice")
    each_format('Archery//./a.avi', 'one path in two spellings', 'is in the archive twice')
    each_format('Archery\\a.avi', 'a path with a backslash', 'is in the archive twice')
for kind in ('zip','tar','rar5'): # RAR 3 encodes Unicode names in another way
    pack = plain[kind]
    accents = pack([('caf\u00e9/a.avi', b'x'), ('cafe\u0301/b.avi', b'x')])
    refused(f'{kind} with one accent in two encodings', accents, 'have the same name')
    extracted(f'{kind} with Unicode names', pack([('走る/ß.avi', b'x')]), ['走る/ß.avi'])
long_but_fine = '/'.join(['x'*60]*15)
for kind,pack in packers.items():
    extracted(f'{kind} with long names', pack([(long_but_fine, b'x')]), [long_but_fine])


# Sizes

def gnu_header(kind, size, name='././@LongLink'):
    "Return one header of a GNU tar"
    m,_ = tar_member(name, size=size, type=kind)
    return m.tobuf(tarfile.GNU_FORMAT)


def patched_zip(data=b'x'*1000, size=None, method=zipfile.ZIP_DEFLATED, crc=None):
    "Return a zip that claims another size, or checksum, of its member"
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', method) as z:
        z.writestr('a.avi', data)
        z.filelist[0].file_size = size or len(data)
        if crc is not None: z.filelist[0].CRC = crc
    return f.getvalue()


def overlapping_zip(n):
    "Return a zip with `n` members that share the data of the first"
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
        for i in range(n): z.writestr(f'{i}.avi', bytes(10_000))
        for o in z.filelist: o.header_offset = 0
    return f.getvalue()


zeros = make_zip([('a.avi', bytes(200_000))])
extracted('zip of zeros below the limit', zeros, ['a.avi'])
extracted('zip of zeros and its size as limit', zeros, ['a.avi'], max_bytes=200_000)
refused('zip of zeros above the limit', zeros, 'set.bin: unpacks to', 'max_bytes', max_bytes=199_999)
for claimed in (1<<30, 10**13, 1<<62):
    refused(f'zip claims {claimed} bytes', patched_zip(size=claimed), 'archive bomb', 'max_bytes')
    member = gnu_header(tarfile.REGTYPE, claimed, 'a')
    refused(f'tar claims {claimed} bytes', member+bytes(1024), 'archive bomb')
for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    name = f'zip of method {method}'
    refused(f'{name} claims more', patched_zip(size=1001, method=method), "'a.avi'", 'cannot be read')
    refused(f'{name} claims less', patched_zip(size=999, method=method), "'a.avi'", 'cannot be read')
    refused(f'{name} has another checksum', patched_zip(method=method, crc=5), "'a.avi'", 'CRC')
    extracted(f'{name} is whole', patched_zip(method=method), ['a.avi'])
def memory_of(method, size=30_000_000):
    "Return an action that tells whether a member needs little memory that has `size` zeros but claims 100"
    def act(folder):
        act = extract(patched_zip(bytes(size), 100, method))
        tracemalloc.start()
        try: act(folder)
        except ValueError: return tracemalloc.get_traced_memory()[1] < 10_000_000
        finally: tracemalloc.stop()
    return act


for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
    gives(f'archive: memory of a bomb by method {method}', memory_of(method), True)
refused('overlapping zip', overlapping_zip(9), 'overlaps another one', 'Do not trust')
refused('too many files', make_zip([(str(i), b'') for i in range(11)]), 'max_files', max_files=10)
extracted('as many files as allowed', make_zip([(str(i), b'') for i in range(3)]), ['0','1','2'], max_files=3)
refused('rar claims more than allowed', packed(('a', b'x'*1000)), 'max_bytes', max_bytes=999)
refused('rar claims a size that is not there', rar(rar_file('a.avi', b'x', size=9)), "'a.avi'")

for name,pack in {'gz': gzip.compress, 'bz2': bz2.compress, 'xz': lzma.compress}.items():
    bomb = pack(tar(tar_member('a.avi', bytes(3_000_000))))
    refused(f'{name} of zeros', bomb, 'unpacks to more than 2.9 MB', max_bytes=2_999_999)
    extracted(f'{name} of zeros below the limit', bomb, ['a.avi'])
    refused(f'{name} of zeros only', pack(bytes(100_000)), 'archive bomb', max_bytes=10, max_files=10)
    padded = make_tar([video]) + bytes(100_000)
    refused(f'{name} with zeros at the end', pack(padded), 'archive bomb', max_bytes=10, max_files=10)
    many = make_tar([(str(i), b'') for i in range(12)])
    refused(f'{name} of many empty files', pack(many), 'more than 11 members', max_files=11)
    refused(f'{name} of something else', pack(b'a video, not a tar'), 'neither a rar, zip nor tar')


def kinetics():
    "Yield the members of an archive with as many videos as Kinetics-700, 600 GB"
    return (Member('a.mp4', 'file', 900_000, None) for _ in range(650_000))


def count_allowed(folder): return sum(1 for _ in check_limits(kinetics(), Limits(100*600*10**9, max_members)))


gives('archive: the limits allow Kinetics', count_allowed, 650_000)
for limit in (0, -1, 1.5, '5', float('nan'), True):
    refuses(f'archive: max_bytes {limit!r}', extract(zeros, max_bytes=limit), 'max_bytes')
    refuses(f'archive: max_files {limit!r}', extract(zeros, max_files=limit), 'max_files')
extracted('no limits of one\'s own', zeros, ['a.avi'], max_bytes=None, max_files=None)
extracted('zip with folders in backslashes', make_zip([('a\\', b''), ('a\\b.avi', b'x')]), ['a/b.avi'])


# Headers of tars

def sparse(size):
    "Return a tar with a sparse file of `size` bytes, of which none are stored"
    fields = dict(major='1', minor='0', name='a.avi', realsize=str(size))
    headers = {f'GNU.sparse.{k}': v for k,v in fields.items()}
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w', format=tarfile.PAX_FORMAT) as t:
        t.addfile(*tar_member('sparse/a.avi', b'0\n'.ljust(512, b'\0'), pax_headers=headers))
    return f.getvalue()


def pax(**headers):
    "Return a tar with extended headers"
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w', format=tarfile.PAX_FORMAT) as t:
        t.addfile(*tar_member('a.avi', b'x', pax_headers=headers))
    return f.getvalue()


end = bytes(1024)
extracted('a small sparse file', sparse(10_000), ['a.avi'])
refused('a sparse bomb', sparse(10**13), 'archive bomb', 'max_bytes')
refused('a long extended header', pax(comment='x'*100_000), 'a header of 100352 bytes')
refused('an extended header with a negative size', pax(size='-512'))
refused('a member with a negative size', gnu_header(tarfile.REGTYPE, -512, 'a')+end)
refused('a name of 1 TB', gnu_header(tarfile.GNUTYPE_LONGNAME, 1<<40)+end)
refused('a name with a negative size', gnu_header(tarfile.GNUTYPE_LONGNAME, -512)+end)
refused('2000 headers for one member', gnu_header(tarfile.GNUTYPE_LONGNAME, 0)*2000+end)
refused('a path with a zero byte', pax(path='a\0b'))
gives('archive: a name that is not UTF-8', lambda p: len(extract(tar(tar_member('\udce9.avi', b'x')))(p)), 1)


# Links, copies and encryption

for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
    links = tar(tar_member('ok', b'1'), tar_member('link', type=kind, linkname='ok'))
    refused(f'tar with a member of type {kind.decode()}', links, "'link' is a link or device")
for mode in (0o120777, 0o020666, 0o060666, 0o010666, 0o140777):
    refused(f'zip with a member of mode {mode:o}', zipped_link(mode), "'a/link' is a link or device")
refused('rar with a link', rar(rar_file('a', b'/etc', mode=0o120777)), "'a' is a link or device")
for kind in (1, 2, 3, 4): # links of Unix, of Windows, junctions, hard links
    linked = rar5(rar5_file('a', b'1'), rar5_file('link', redirect=(kind, 'a')))
    refused(f'rar with a link of type {kind}', linked, "'link' is a link or device")
copy = rar5_file('b', size=1, redirect=(5, 'a'))
extracted('rar with a copy', rar5(rar5_file('a', b'1'), copy), ['a','b'])
refused('rar with a copy of nothing', rar5(copy, rar5_file('c', b'1')), 'b is a copy of a, which is missing')
refused('rar with a copy of a later member', rar5(copy, rar5_file('a', b'1')), 'which is missing')
refused('rar with a copy of itself', rar5(rar5_file('b', size=1, redirect=(5, 'b'))), 'which is missing')
refused('rar with a copy of another size', rar5(rar5_file('a', b'12'), copy), "'b'")
refused('an encrypted member', rar(rar_file('a', b'x', flags=4)), 'a is encrypted', 'password')
refused('an encrypted list', rar(main=0x80), 'list of files is encrypted')


# Other things than archives

def from_path(make, name='set.rar'):
    "Return an action that extracts what `make(path)` makes"
    def act(folder):
        make(folder/name)
        return unrar(folder/name, folder/'out')
    return act


refuses('archive: a missing file', lambda p: unrar(p/'no.zip', p/'out'), 'no.zip', error=OSError)
refuses('archive: a folder', from_path(lambda o: o.mkdir()), 'set.rar: a folder, not an archive')
if hasattr(os, 'mkfifo'):
    refuses('archive: a pipe', from_path(os.mkfifo), 'set.rar: a pipe or device', 'Save it to a file')
    refuses('archive: a linked device', from_path(lambda o: o.symlink_to('/dev/zero')), 'or device')
    def volume_pipe(folder):
        "Extract the first volume of a set whose second one is a pipe"
        first = rar(rar_file('a', b'x', flags=2, size=9), main=0x111, end=0x4001)
        (folder/'set.part1.rar').write_bytes(first)
        os.mkfifo(folder/'set.part2.rar')
        return unrar(folder/'set.part1.rar', folder/'out')
    refuses('archive: a volume that is a pipe', volume_pipe, 'set.part2.rar: a pipe or device')
for name,data in {'an empty file': b'', 'a web page': b'<html>not found', 'a video': b'RIFF\0\0\0\0AVI LIST',
                  'a jpg': b'\xff\xd8\xff\xe0', 'zeros': bytes(100), '7z': b"7z\xbc\xaf'\x1c"}.items():
    refused(f'{name}', data, 'set.bin: neither a rar, zip nor tar')
for name,data in {'tar of zeros': bytes(10_240), 'zip': make_zip([]), 'rar': rar(),
                  'tar of folders': tar(tar_member('a', type=tarfile.DIRTYPE)),
                  'zip of metadata': make_zip([('__MACOSX/._a', b'x'), ('.DS_Store', b'x')])}.items():
    refused(f'{name} without files', data, 'no files in it')
for magic in (b'Rar!\x1a\7\0', b'Rar!\x1a\7\1\0', b'PK\3\4', b'PK\5\6', b'\x1f\x8b\x08', b'BZh9',
              b'\xfd7zXZ\0'):
    refused(f'only the first bytes {magic.hex()}', magic)
    refused(f'noise after {magic.hex()}', magic + struct.pack('<99I', *range(7, 106)))


# Destinations

def into(make):
    "Return an action that extracts into a destination that `make(path)` makes"
    def act(folder):
        (folder/'set.zip').write_bytes(make_zip([video]))
        make(folder/'out')
        return unrar(folder/'set.zip', folder/'out')
    return act


refuses('archive: the destination is a file', into(lambda o: o.write_bytes(b'mine')), 'not a folder')
refuses('archive: the destination is a broken link', into(lambda o: o.symlink_to('no')), 'not a folder')
refuses('archive: no name for the destination', lambda p: unrar(p/'.zip'), 'gives no name', 'Pass `dest`')


def deep_class_folder(folder):
    "Return whether `class_folder` finds the classes in 1200 folders; remove the folders again"
    made = [folder/'d']
    while len(made) < 1200: made.append(made[-1]/'d')
    made += [made[-1]/'Archery', made[-1]/'Diving']
    for o in made: o.mkdir()
    (made[-2]/'a.avi').touch()
    (made[-1]/'b.avi').touch()
    try: return class_folder(folder) == made[-3]
    finally:
        (made[-2]/'a.avi').unlink()
        (made[-1]/'b.avi').unlink()
        for o in made[::-1]: o.rmdir()


def link_to_parent(folder):
    "Return whether `class_folder` ends in a folder that contains only a link to itself"
    (folder/'a').mkdir()
    (folder/'a'/'b').symlink_to(folder, target_is_directory=True)
    return class_folder(folder) in (folder, folder/'a', folder/'a'/'b')


gives('archive: classes in 1200 folders', deep_class_folder, True)
gives('archive: a folder with a link to itself', link_to_parent, True)
