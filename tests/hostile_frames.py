"""Hostile frames and folders of frames: odd pictures, damaged files, wrong layouts, strange names."""
import contextlib
import io
import os
import struct
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fastai.callback.data import WeightedDL
from fastai.data.core import TfmdDL
from fastai.vision.core import PILImage, PILImageBW
from hostile import gives, refuses
from PIL import Image

from vidseq.data.block import VideoDataLoaders, get_action_dataloaders
from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.frame import load_frame
from vidseq.data.loader import get_clips, get_instances
from vidseq.video.frame_folder import frame_files, frame_names


# Pictures

def first_value(frame): return int(np.asarray(frame).flat[0])


def save(folder, img, name, **kwargs):
    "Save an array or an image to `folder` and return its path"
    img = img if isinstance(img, Image.Image) else Image.fromarray(img)
    img.save(folder/name, **kwargs)
    return folder/name


def filled(value, dtype): return np.full((24,32), value, dtype)


def png_of_size(w, h):
    "Return the start of a png that declares a size"
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


def jpg_of_size(w, h):
    "Return a jpg whose header declares another size"
    buf = io.BytesIO()
    Image.new('RGB', (16,16)).save(buf, 'jpeg')
    data = bytearray(buf.getvalue())
    i = data.index(b'\xff\xc0')
    data[i+5:i+9] = struct.pack('>HH', h, w)
    return bytes(data)


def write(folder, name, data):
    (folder/name).write_bytes(data)
    return folder/name


depths = { # name -> array, value in 8 bits
    '16.png': (filled(25000, '<u2'), 97), '16.tif': (filled(25000, '<u2'), 97),
    '16be.tif': (filled(25000, '>u2'), 97), '16.jp2': (filled(25000, '<u2'), 97),
    '16.pgm': (filled(25000, '<u2'), 97), 'dark.pgm': (filled(200, '<u2'), 0),
    '32.tif': (filled(25000, np.int32), 97), 'float.tif': (filled(.5, np.float32), 128),
    'white.tif': (filled(1, np.float32), 255), 'black.tif': (filled(0, np.float32), 0),
    '8.png': (filled(97, np.uint8), 97), 'bits.png': (filled(True, bool), 255),
    'bits.tif': (filled(True, bool), 255)}
for name,(arr,value) in depths.items():
    for cls in (PILImage, PILImageBW):
        for size in (None, 12):
            gives(f'picture: {name} as {cls.__name__} of size {size}',
                  lambda p, n=name, a=arr, c=cls, s=size: first_value(load_frame(save(p, a, n), s, c)), value)

rgb = Image.new('RGB', (32,24), (100,150,200))


def load_as(folder, mode, ext):
    frame = load_frame(save(folder, rgb.convert(mode), f'0.{ext}'))
    return frame.mode, frame.size, np.asarray(frame).shape


modes = dict(P='png tif gif webp', LA='png tif gif webp', RGBA='png tif gif webp', CMYK='tif jpg webp',
             L='png tif jpg gif webp')
for mode,extensions in modes.items():
    for ext in extensions.split():
        gives(f'picture: mode {mode} in a {ext}', lambda p, m=mode, e=ext: load_as(p, m, e),
              ('RGB', (32,24), (24,32,3)))


def transparent(folder):
    img = Image.new('P', (32,24))
    img.putpalette([10,20,30]*256)
    return first_value(load_frame(save(folder, img, '0.png', transparency=bytes(256))))


gives('picture: a transparent palette', transparent, 10)
gives('picture: a transparent color',
      lambda p: first_value(load_frame(save(p, rgb.convert('RGBA'), '0.png'))), 100)
gives('picture: an array of 16 bits', lambda p: first_value(ImageTuple.create([filled(25000, '<u2')])[0]), 97)
gives('picture: a gray array', lambda p: np.asarray(ImageTuple.create([filled(9, 'u1')])[0]).shape, (24,32,3))
for name,value in dict(negative=-1., large=300., nan=np.nan, infinite=np.inf).items():
    refuses(f'picture: {name} floats', lambda p, v=value: load_frame(save(p, filled(v, np.float32), 'f.tif')),
            'f.tif: values from', 'instead of 0 to 1', '8 or 16 bits')
for name,value in dict(negative=-1, large=2**20).items():
    refuses(f'picture: {name} integers', lambda p, v=value: load_frame(save(p, filled(v, np.int32), 'i.tif')),
            'i.tif: values from', '65535', '8 or 16 bits')
refuses('picture: integers of unknown range', lambda p: load_frame(save(p, filled(200, np.int32), 'i.tif')),
        'i.tif: integers of 32 bits up to 200')

damaged = {
    'empty.jpg': b'', 'empty.png': b'', 'text.jpg': b'text', 'text.png': b'text'*99, 'zeros.jpg': bytes(999),
    'short.jpg': b'\xff\xd8', 'short.png': b'\x89PNG\r\n\x1a\n', 'endless.jpg': b'\xff\xd8'+b'\xff'*999,
    'svg.svg': b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', 'html.gif': b'<html>404 Not Found</html>'}
for name,data in damaged.items():
    refuses(f'picture: damaged {name}', lambda p, n=name, d=data: load_frame(write(p, n, d)),
            f'{name}: not readable')
for name in ('cut.jpg', 'cut.png', 'cut.tif', 'cut.webp', 'cut.gif'):
    def cut(folder, name=name):
        file = save(folder, Image.effect_noise((64,64), 50), name)
        return load_frame(write(folder, name, file.read_bytes()[:file.stat().st_size//2]))
    refuses(f'picture: {name}', cut, f'{name}: not readable')
refuses('picture: missing', lambda p: load_frame(p/'0.jpg'), '0.jpg: no such file')
refuses('picture: a dangling link', lambda p: (os.symlink('nowhere', p/'0.png'), load_frame(p/'0.png')),
        '0.png: no such file')
refuses('picture: a folder', lambda p: ((p/'0.jpg').mkdir(), load_frame(p/'0.jpg')), '0.jpg: not a file')
eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'
refuses('picture: PostScript', lambda p: load_frame(write(p, '0.png', eps)),
        '0.png: a PostScript program', 'Convert')
if hasattr(os, 'mkfifo'):
    for name in ('pipe.jpg', 'pipe.png'):
        refuses(f'picture: named {name}', lambda p, n=name: (os.mkfifo(p/n), load_frame(p/n)),
                'not a file', 'Remove it')
for names in ('a.png a.jpg', 'a.jpg a.png', 'a.webp a.JPEG', 'a.bmp a.jpg', 'a.gif a.tif'):
    name,renamed = names.split()
    gives(f'picture: {name} renamed to {renamed}',
          lambda p, a=name, b=renamed: load_frame(save(p, rgb, a).rename(p/b)).size, (32,24))
gives('picture: bytes after the end of a jpg',
      lambda p: load_frame(write(p, 'b.jpg', save(p, rgb, 'a.jpg').read_bytes()+b'\0more')).size, (32,24))
for name,data in {'a.jpg': jpg_of_size(60000, 60000), 'a.png': png_of_size(10000, 10000),
                  'b.png': png_of_size(100_000, 100_000)}.items():
    refuses(f'picture: bomb of {len(data)} bytes in {name}',
            lambda p, n=name, d=data: load_frame(write(p, n, d), 64),
            f'{name}: frames of', 'pixels', 'limit of 67108864', 'VIDSEQ_MAX_PIXELS')
for cls in (PILImage, PILImageBW):
    for ext in ('jpg', 'png'):
        def limited(folder, cls=cls, ext=ext):
            file = save(folder, rgb, f'a.{ext}')
            with patch.dict(os.environ, VIDSEQ_MAX_PIXELS='700'): return load_frame(file, 8, cls)
        refuses(f'picture: {ext} above a limit as {cls.__name__}', limited,
                f'a.{ext}: frames of 32x24 pixels', 'limit of 700', 'VIDSEQ_MAX_PIXELS=768')


# Orientation

def turned(folder, ext, orientation):
    "Save an upright picture, dark at the top left, as a camera does that was held in `orientation`"
    upright = np.full((24,32,3), 200, np.uint8)
    upright[:12,:16] = 0
    img = Image.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation) # `Image.Transpose`
    if inverse is not None: img = img.transpose(inverse)
    exif = Image.Exif()
    exif[0x112] = orientation
    return save(folder, img, f'0.{ext}', exif=exif, **(dict(quality=100) if ext != 'png' else {}))


def corners(frame):
    "Return whether the corners are bright, and whether the frame is wide"
    w,h = frame.size
    gray = frame.convert('L')
    return [gray.getpixel(o) > 100 for o in ((1,1), (w-2,1), (1,h-2), (w-2,h-2))], w > h


for ext in ('jpg', 'png', 'webp', 'tif'):
    for orientation in range(1, 9):
        for cls in (PILImage, PILImageBW):
            for size in (None, 12):
                def load_turned(folder, ext=ext, orientation=orientation, cls=cls, size=size):
                    return corners(load_frame(turned(folder, ext, orientation), size, cls))
                gives(f'orientation: {orientation} of a {ext} as {cls.__name__} of size {size}', load_turned,
                      ([False,True,True,True], True))
gives('orientation: of a clip', lambda p: corners(ImageTupleTfm(2)(turned(p, 'jpg', 6).parent)[0])[1], True)
for value in (0, 9, 65535):
    gives(f'orientation: {value}', lambda p, v=value: load_frame(turned(p, 'jpg', v)).size, (32,24))


def damaged_exif(folder, data):
    jpg = save(folder, rgb, '0.jpg').read_bytes()
    segment = b'\xff\xe1' + struct.pack('>H', len(data)+2) + data
    return load_frame(write(folder, '0.jpg', jpg[:2]+segment+jpg[2:])).size


exif_segments = (b'', b'Exif\0\0', b'Exif\0\0MM', b'Exif\0\0MM\0*\0\0\xff\xff', b'Exif\0\0'+b'\xff'*99,
                 b'http://ns.adobe.com/xap/1.0/\0<x')
for i,data in enumerate(exif_segments):
    gives(f'orientation: damaged EXIF data {i}', lambda p, d=data: damaged_exif(p, d), (32,24))


# The order of frames

def folder_of(folder, names):
    "Create empty files, in an order that is not the right one"
    for o in sorted(names, key=hash): (folder/o).touch()
    return folder


orders = dict(
    numbers=[f'{i}.jpg' for i in range(12)],
    from_one=[f'{i}.jpg' for i in range(1, 13)],
    padded=[f'frame_{i:04d}.jpg' for i in range(12)],
    not_padded=[f'frame{i}.PNG' for i in range(12)],
    every_tenth=[f'{i}.jpg' for i in range(0, 2000, 10)],
    equal_numbers=['0.jpg', '01.jpg', '1.jpg', '2.jpg'],
    powers=[f'{10**k}.jpg' for k in range(0, 60, 3)],
    long=['1'*200+'.jpg', '2'*200+'.jpg'],
    one=['one.png'],
    two_suffixes=['0.jpg', '1.JPG', '2.jpeg'],
    mixed_case=['IMG_1.jpg', 'img_2.jpg', 'Img_10.jpg'],
    one_camera=[f'cam1_{i:04d}.jpg' for i in range(12)],
    views=['view1.jpg', 'view2.jpg', 'view10.jpg'],
    camera_last=[f'frame_{i:04d}_cam1.jpg' for i in range(3)],
    shots=[f'shot{s}_{i}.jpg' for s in (1, 2) for i in range(12)],
    clip_name=[f'v_Run_g01_c01_{i}.jpg' for i in range(12)],
    milliseconds=[f'{i*.04:.3f}.png' for i in range(300)],
    seconds=[f'{i*.25}.png' for i in range(60)],
    short_seconds=[f'{i*.25:g}.png' for i in range(60)],
    named_seconds=[f't={i*.25}.png' for i in range(60)],
    comma=[f'{i},{j}.jpg' for i in range(2) for j in ('0', '25', '5', '75')],
    tiny_seconds=[f'{i*1e-05}.png' for i in range(1, 14)],
    two_counters=[f'{v}.{i}.jpg' for v in (1, 2) for i in range(1, 21)],
    after_point=[f'x.{i}.jpg' for i in range(12)],
    dash=[f'frame-{i}.jpg' for i in range(20)],
    only_dashes=[f'-{i}.jpg' for i in range(1, 12)],
    dash_in_id=[f'a_-{i:02d}.jpg' for i in range(12)],
    negative=[f'{i}.jpg' for i in range(-5, 6)],
    named_negative=[f't_{i}.jpg' for i in range(-5, 6)],
    negative_seconds=[f't={i/4}.jpg' for i in range(-5, 6)],
    parentheses=[f'frame ({i}).jpg' for i in range(20)],
    hexadecimal=[f'{i:04x}.jpg' for i in range(40)],
    named_hexadecimal=[f'frame_{i:x}.jpg' for i in range(16, 64)],
    dates=[f'2024-01-{d:02d}T10.15.{s:02d}.png' for d in (1, 2) for s in range(3)],
    minutes=[f'{i//3:02d}m{i%3}s.jpg' for i in range(12)],
    arabic=['١.jpg', '٢.jpg', '١٠.jpg'],
    superscript=[f'm²_{i}.jpg' for i in range(12)],
    newline=[f'a\n{i}.jpg' for i in range(12)],
    brackets=[f'[{i}].jpg' for i in range(12)],
    not_utf8=[os.fsdecode(b'\xff_')+f'{i}.jpg' for i in range(12)])
for name,ordered in orders.items():
    gives(f'order: {name}', lambda p, o=ordered: list(frame_names(folder_of(p, o))), ordered)
gives('order: gifs', lambda p: list(frame_names(folder_of(p, ['0.gif', '1.gif']))), ['0.gif', '1.gif'])
gives('order: a gif beside frames', lambda p: list(frame_names(folder_of(p, ['0.png', '1.png', 'all.gif']))),
      ['0.png', '1.png'])
gives('order: a folder named like a frame',
      lambda p: ((p/'1.jpg').mkdir(), list(frame_names(folder_of(p, ['0.jpg']))))[1], ['0.jpg'])
gives('order: other files',
      lambda p: list(frame_names(folder_of(p, '0.jpg Thumbs.db ._0.jpg a.txt'.split()))), ['0.jpg'])


# Several kinds of images in one folder

def counted(template, n=4): return [template.format(i) for i in range(n)]


mixed = dict(
    flow=(counted('flow_x_{:05d}.jpg')+counted('flow_y_{:05d}.jpg')+counted('img_{:05d}.jpg', 5),
          'img_*.jpg'),
    depth=(counted('depth_{}.png')+counted('rgb_{}.png'), 'rgb_*.png'),
    depth_last=(counted('{}_depth.png')+counted('{}_rgb.png'), '*_rgb.png'),
    stereo=(counted('left{}.png')+counted('right{}.png'), 'left*.png'),
    letters=(counted('frame{}l.png')+counted('frame{}r.png'), 'frame*l.png'),
    suffixes=(counted('{}.png')+counted('{}.jpg', 5), '*.jpg'),
    cover=([*counted('{}.jpg'), 'cover.jpg'], '[0-9]*.jpg'),
    masks=(counted('{}.png')+counted('{}_mask.png'), '*[0-9].png'),
    thumb=([*counted('img_{}.jpg'), 'img_0_thumb.jpg'], 'img_*[0-9].jpg'),
    copy=([*counted('{}.jpg'), '0 (1).jpg'], '*[0-9].jpg'),
    cameras=(counted('cam1_{}.jpg')+counted('cam2_{}.jpg'), 'cam1_*.jpg'),
    cameras_last=(counted('{:03d}_camera 1.jpg')+counted('{:03d}_camera 2.jpg'), '*_camera 1.jpg'),
    special=([*counted('[a]*{}.jpg'), 'b.jpg'], '[[]a][*]*.jpg'),
    pair=(['depth.png', 'rgb.png'], 'rgb.png'))
for name,(files,pattern) in mixed.items():
    refuses(f'kinds: {name}', lambda p, f=files: frame_names(folder_of(p, f)), ' kinds of images: ',
            'Choose one', f'for example pattern={pattern!r}', repr(files[0]))
    chosen = [o for o in files if fnmatchcase(o, pattern)]
    gives(f'kinds: {name} by pattern',
          lambda p, f=files, g=pattern: list(frame_names(folder_of(p, f), g)), chosen)
    assert len(chosen) < len(files)
gives('kinds: a pattern in capitals', lambda p: len(frame_files(folder_of(p, mixed['depth'][0]), 'RGB*')), 4)
gives('kinds: a pattern of all', lambda p: len(frame_files(folder_of(p, mixed['depth'][0]), '*')), 8)
for pattern in ('b*', '', '[', '*.JPG ', '0.jpg\n'):
    refuses(f'kinds: the pattern {pattern!r} without a match',
            lambda p, g=pattern: frame_files(folder_of(p, ['0.jpg']), g),
            "none of its 1 images (such as '0.jpg') matches", f'pattern={pattern!r}', 'Correct the pattern')
refuses('kinds: a pattern with a folder', lambda p: frame_files(folder_of(p, ['0.jpg']), 'rgb/*.jpg'),
        'rgb/*.jpg', 'a pattern of file names')


def flow_folder(folder):
    "Create clips with frames of value 1 and optical flow"
    for label in 'AB':
        for clip in 'abc':
            (folder/label/clip).mkdir(parents=True)
            for name in counted('flow_{}.png', 3): save(folder/label/clip, filled(200, 'u1'), name)
            for name in counted('img_{}.png', 3): save(folder/label/clip, filled(100, 'u1'), name)
    return folder


options = dict(seq_len=2, image_size=16, bs=2, num_workers=0, normalize=False, seed=0)


def values(dls): return {int(255*o.mean()+.5) for x,_ in dls.train for o in x}


refuses('kinds: loaders', lambda p: VideoDataLoaders.from_folder(flow_folder(p), **options),
        'kinds of images', "pattern='img_*.png'")
gives('kinds: loaders with a pattern',
      lambda p: values(VideoDataLoaders.from_folder(flow_folder(p), pattern='img*', **options)), {100})
gives('kinds: action loaders with a pattern',
      lambda p: values(get_action_dataloaders(get_instances(flow_folder(p)), 2, 16, 2, pattern='flow*',
                                              normalize=False, num_workers=0)), {200})
gives('kinds: a test set',
      lambda p: {int(255*o.mean()+.5) for o in VideoDataLoaders.from_folder(
          flow_folder(p), pattern='img*', **options).test_dl([p/'A'/'a']).one_batch()[0]}, {100})
gives('kinds: a clip in memory', lambda p: len(ImageTuple.create(flow_folder(p)/'A'/'a', 'img_*')), 3)


# The layout of a data set

def data_set(folder, files):
    "Create empty files, and links as `name>target`"
    for o in files:
        name,_,target = o.partition('>')
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        if target: (folder/name).symlink_to(folder/target)
        else: (folder/name).touch()
    return folder


def found(folder, files, **kwargs):
    "Return the clips and the last word of each printed line"
    data_set(folder, files)
    with contextlib.redirect_stdout(io.StringIO()) as out: clips = get_clips(folder, **kwargs)
    skipped = [o.split(': ')[-1].replace(f'{folder}{os.sep}', '') for o in out.getvalue().splitlines()]
    return [o.relative_to(folder).as_posix() for o in clips], [o.replace(os.sep, '/') for o in skipped]


frames = ['A/a/0.jpg', 'A/b/0.jpg', 'B/c/0.jpg']
videos = ['A/a.avi', 'A/b.avi', 'B/c.avi']
in_frames,in_videos = ['A/a', 'A/b', 'B/c'], ['A/a.avi', 'A/b.avi', 'B/c.avi']
split = ['train/A/a/0.jpg', 'train/B/b/0.jpg', 'val/A/c/0.jpg', 'val/B/d/0.jpg']
in_split = ['train/A/a', 'train/B/b', 'val/A/c', 'val/B/d']
long_name = 'x'*200
layouts = dict( # files, clips, what is skipped
    frames=(frames, in_frames, []),
    videos=(videos, in_videos, []),
    sets=(split, in_split, []),
    more_sets=([*split, 'Testing/A/e/0.jpg'], ['Testing/A/e', *in_split], []),
    test_without_classes=([*split, 'test/e/0.jpg'], ['test/e', *in_split], []),
    one_folder=([f'UCF-101/{o}' for o in videos], [f'UCF-101/{o}' for o in in_videos], []),
    sets_in_one_folder=([f'data/{o}' for o in split], [f'data/{o}' for o in in_split], []),
    vehicles=(['train/a.avi', 'car/b.avi'], ['car/b.avi', 'train/a.avi'], []),
    picture_in_class=([*frames, 'A/thumb.jpg'], in_frames, ['A/thumb.jpg']),
    picture_in_root=([*frames, 'cover.png'], in_frames, ['cover.png']),
    picture_in_each_class=([*frames, 'A/x.jpg', 'B/x.jpg'], in_frames, ['A/x.jpg, B/x.jpg']),
    picture_in_set=([*split, 'train/x.jpg', 'val/A/y.png'], in_split, ['train/x.jpg, val/A/y.png']),
    picture_beside_videos=([*videos, 'A/x.jpg'], in_videos, ['A']),
    thumbs_in_clip=([*frames, 'A/a/thumbs/0.jpg'], in_frames, ['A/a/thumbs']),
    thumbs_in_each_clip=([*frames, *[f'{o}/thumbs/0.jpg' for o in in_frames]], in_frames,
                         ['A/a/thumbs, A/b/thumbs, B/c/thumbs']),
    gif_beside_clips=([*frames, 'A/a.gif'], in_frames, ['A/a.gif']),
    gif_in_clip=([*frames, 'A/a/all.gif'], in_frames, ['A/a/all.gif']),
    gif_in_root=([*frames, 'demo.gif'], in_frames, ['demo.gif']),
    gif_beside_videos=([*videos, 'demo.gif'], in_videos, ['demo.gif']),
    gif_as_video=([*videos, 'A/z.gif'], ['A/a.avi', 'A/b.avi', 'A/z.gif', 'B/c.avi'], []),
    only_gifs=(['A/a.gif', 'B/b.gif'], ['A/a.gif', 'B/b.gif'], []),
    gifs_and_a_picture=(['A/a.gif', 'B/b.gif', 'A/x.jpg'], ['A/a.gif', 'B/b.gif'], ['A']),
    extracted_beside=([*videos, 'A/a/0.jpg', 'A/a/1.jpg'], in_videos, ['A/a']),
    empty_clip=([*frames, 'A/z/notes.txt'], in_frames, ['A/z']),
    hidden=([*frames, '.cache/A/a/0.jpg', 'A/.x.jpg', '__MACOSX/A/a/0.jpg', 'A/@eaDir/a/0.jpg'],
            in_frames, []),
    names=([f'A/{long_name}/0.jpg', 'B/two words/0.jpg', 'B/ü/0.jpg'],
           [f'A/{long_name}', 'B/two words', 'B/ü'], []))
if os.name == 'posix':
    layouts |= dict(
        newline=(['A/a\nb/0.jpg', 'B/c/0.jpg', 'B/d\n.gif'], ['A/a\nb', 'B/c'], [r'B/d\n.gif']),
        not_utf8=(['A/'+os.fsdecode(b'\xff')+'/0.jpg', 'B/c/0.jpg'], ['A/'+os.fsdecode(b'\xff'), 'B/c'], []),
        link_to_class=([*videos, 'C>A'], in_videos, ['C']),
        link_first=([*videos, '0>A'], in_videos, ['0']),
        link_to_root=([*videos, 'A/up>.'], in_videos, ['A/up']),
        link_to_itself=([*videos, 'A/self>A/self'], in_videos, []),
        link_to_parent=([*videos, 'A/parent>..'], in_videos, ['A/parent']),
        link_to_clip=([*frames, 'B/a>A/a'], in_frames, ['B/a']),
        link_to_video=([*videos, 'B/a.avi>A/a.avi', 'A/0.avi>A/a.avi'], in_videos, ['A/0.avi, B/a.avi']),
        link_to_hidden=(['.store/x/0.jpg', 'A/a>.store/x', 'B/b>.store/x', *frames[1:]],
                        ['A/a', 'A/b', 'B/c'], ['B/b']),
        links_to_hidden_files=(['.store/x.avi', 'A/a.avi>.store/x.avi', 'B/b.avi>.store/x.avi', *videos[1:]],
                               in_videos, ['B/b.avi']))
for name,(files,clips,skipped) in layouts.items():
    gives(f'layout: {name}', lambda p, f=files: found(p, f), (clips, skipped))
    def labels(folder, files=files):
        clips = found(folder, files)[0]
        return {Path(o).parent.name for o in clips}
    if 'test' not in name and 'names' not in name and 'gif_as' not in name and 'vehicles' not in name:
        gives(f'layout: labels of {name}', labels, {'A', 'B'})
gives('layout: own sets', lambda p: found(p, ['one/A/a.avi', 'two/A/b.avi'], sets=['one', 'two'])[0],
      ['one/A/a.avi', 'two/A/b.avi'])
gives('layout: a pattern', lambda p: found(p, ['A/a/x0.jpg', 'B/b/x0.jpg', 'B/c/y0.jpg'], pattern='x*'),
      (['A/a', 'B/b'], ['B/c']))
for name,(files,*words) in dict(
        no_folder=([], 'no videos'),
        only_text=(['A/a.txt'], 'no videos', 'subfolder of clips for each class'),
        frames_in_classes=(['A/0.jpg', 'A/1.jpg', 'B/0.jpg'], 'A, B', 'folder of frames'),
        frames_in_one_class=([*frames, 'C/0.jpg'], ': C.', 'class/clip'),
        frames_in_root=(['0.jpg', '1.jpg'], 'not in the place of a clip'),
        frames_in_sets=(['train/A/0.jpg', 'val/A/0.jpg'], f'train{os.sep}A, val{os.sep}A'),
        persons=(['A/anna/a.avi', 'B/ben/b.avi'], os.path.join('A', 'anna', 'a.avi'), 'from_path_func'),
        persons_in_sets=(['train/A/anna/a/0.jpg', 'val/A/ben/b/0.jpg'],
                         os.path.join('train', 'A', 'anna', 'a')),
        sets_in_classes=(['A/train/a.avi', 'B/val/b.avi'], os.path.join('A', 'train', 'a.avi')),
        modalities=(['rgb/A/a/0.jpg', 'depth/A/a/0.jpg'], os.path.join('depth', 'A', 'a')),
        one_person=([*videos, 'A/anna/d.avi'], os.path.join('A', 'anna', 'd.avi'), 'Move'),
        video_in_root=([*videos, 'intro.mp4'], '1 videos', 'intro.mp4'),
        video_in_set=(['train/A/a.avi', 'train/b.avi', 'val/A/c.avi'], os.path.join('train', 'b.avi')),
        only_sets=(['train/a.avi', 'val/b.avi'], os.path.join('train', 'a.avi')),
        mixed=([*videos, 'B/d/0.jpg'], '3 videos', '1 folders of frames', os.path.join('B', 'd'))).items():
    refuses(f'layout: {name}', lambda p, f=files: get_clips(data_set(p, f)), *words)
    if files: refuses(f'layout: loaders of {name}',
                      lambda p, f=files: VideoDataLoaders.from_folder(data_set(p, f), **options), *words)
refuses('layout: a pattern without a match', lambda p: get_clips(data_set(p, frames), 'x*'), "pattern='x*'",
        'none of its 3 images', 'Correct')
refuses('layout: no such folder', lambda p: get_clips(p/'nowhere'), 'nowhere: no such folder')
refuses('layout: a file', lambda p: get_clips(data_set(p, ['a'])/'a'), 'no such folder')


def unreadable(folder):
    "Return the clips and the output if a folder cannot be read"
    scandir = os.scandir
    def refuse(path):
        if Path(path).name == 'b': raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)
    with patch('os.scandir', refuse): return found(folder, frames)


gives('layout: a folder that cannot be read', unreadable, (['A/a', 'B/c'], ['A/b (Permission denied)']))


# Clips that cannot be read

def clip_folders(folder, *damaged):
    "Create 5 clips in each of 2 classes; those in `damaged` have incomplete frames, or none after a dash"
    for clip in [f'{o}/{i}' for o in 'AB' for i in range(5)]:
        (folder/clip).mkdir(parents=True)
        if f'-{clip}' in damaged: continue
        for t in range(2):
            file = save(folder/clip, filled(50 if clip[0] == 'A' else 200, 'u1'), f'{t}.png')
            if clip in damaged: file.write_bytes(file.read_bytes()[:50])
    return folder


skip = dict(bs=2, image_size=16, seq_len=2, normalize=False, skip_bad=True, num_workers=0)


def epochs(folder, val_idxs, *damaged, later=(), **kwargs):
    "Return the pairs of label and value in two epochs of both sets, and the replaced clips"
    clips = get_instances(clip_folders(folder, *damaged))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        dls = get_action_dataloaders(clips, **skip | dict(val_idxs=val_idxs) | kwargs)
        for o in later: (folder/o/'0.png').write_bytes(b'')
        batches = [*dls.train, *dls.valid, *dls.train, *dls.valid, dls.one_batch()]
        dls.show_batch(max_n=1)
        dls.train.new().one_batch()
    seen = {(dls.vocab[i], int(255*v.mean()+.5)) for x,y in batches for i,o in zip(y, x[0]) for v in [o]}
    replaced = {o.relative_to(folder).as_posix() for dl in dls.loaders for o in dl.skipped}
    assert all(str(Path(o)) in out.getvalue() for o in replaced)
    return seen, sorted(replaced)


right = {('A', 50), ('B', 200)}
for name,(val_idxs,*damaged) in dict(first_of_training=([4,9], 'A/0'), first_of_validation=([0,1,8,9], 'A/0'),
                                     both_first=([1,2,8,9], 'A/0', 'A/1'), missing=([4,9], '-A/0', '-B/3'),
                                     last=([4,9], 'B/3'), most=([4,9], 'A/0', 'A/1', 'A/2')).items():
    gives(f'skip_bad: {name}', lambda p, v=val_idxs, d=damaged: epochs(p, v, *d),
          (right, sorted(o.lstrip('-') for o in damaged)))
gives('skip_bad: a file that is damaged later', lambda p: epochs(p, [4,9], later=['A/0', 'B/0']),
      (right, ['A/0', 'B/0']))
gives('skip_bad: in a process', lambda p: epochs(p, [4,9], 'A/0', num_workers=1), (right, ['A/0']))
refuses('skip_bad: all of a class', lambda p: epochs(p, [4,9], *[f'A/{i}' for i in range(4)]),
        'No other clip', os.sep+'A'+os.sep)
refuses('skip_bad: all', lambda p: epochs(p, [4,9], *[f'{o}/{i}' for o in 'AB' for i in range(5)]),
        'None of the 8 training clips')
refuses('skip_bad: all missing', lambda p: epochs(p, [4,9], *[f'-{o}/{i}' for o in 'AB' for i in range(5)]),
        'a folder without frames')
refuses('skip_bad: not wanted', lambda p: epochs(p, [4,9], 'A/0', skip_bad=False), os.path.join('A', '0'))


def loaders(folder, *damaged):
    return get_action_dataloaders(get_instances(clip_folders(folder, *damaged)), val_idxs=[4,9], **skip)


refuses('skip_bad: a test set', lambda p: list(loaders(p, 'A/0').test_dl([p/'A'/'0'])),
        os.path.join('A', '0'))
refuses('skip_bad: another class of loaders', lambda p: epochs(p, [4,9], dl_type=WeightedDL),
        'skip_bad=True: WeightedDL cannot replace clips', 'ClipDL')
refuses('skip_bad: a new loader of another class', lambda p: loaders(p).train.new(cls=TfmdDL),
        'skip_bad=True: TfmdDL cannot replace clips', 'ClipDL')
