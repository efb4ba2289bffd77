"One annotation of a video of 300 frames at 30 frames per second, in the text of each format"
import json

import numpy as np

VIDEO,FPS = 'kitchen.mp4',30
MOMENTS = [(0., 3.2, 'cut'), (3.2, 7., 'kühlen & mischen'), (8.1, 9.5, 'cut')]
FRAMES = [(0, 96, 'cut'), (96, 210, 'kühlen & mischen'), (243, 285, 'cut')]


def make_video(path, n=300):
    from vidseq.video.decode import write_video
    return write_video(path, (np.full((16,16,3), i%250, np.uint8) for i in range(n)), fps=FPS)


def lines(*rows): return '\n'.join(rows) + '\n'


def labelstudio(value): return dict(type=next(iter(value)), from_name='tags', to_name='video', value=value)


def timeline(start, end, label): return dict(ranges=[dict(start=start+1, end=end)], timelinelabels=[label])


def cvat(body, source=VIDEO):
    return lines('<?xml version="1.0" encoding="utf-8"?>', '<annotations>', '<version>1.1</version>',
                 '<meta><task><id>3</id><name>first task</name><size>300</size><mode>interpolation</mode>',
                 f'<source>{source}</source></task></meta>', body, '</annotations>')


def xml(label): return label.replace('&', '&amp;')


def box(frame, outside):
    return (f'  <box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" xtl="1" ytl="1" '
            'xbr="9" ybr="9" z_order="0"></box>')


def track(i, start, end, label):
    head = f'<track id="{i}" label="{xml(label)}" source="manual">'
    return lines(head, box(start, 0), box(end, 1), '</track>')


def tags(start, end, label):
    return ''.join(f'<tag label="{xml(label)}" frame="{i}"></tag>\n' for i in range(start, end))


def images(start, end, label):
    image = '<image id="{0}" name="frame_{0:06}" width="16" height="16"><tag label="{1}"></tag></image>\n'
    return ''.join(image.format(i, xml(label)) for i in range(start, end))


def elan_annotation(i, label):
    refs = f'TIME_SLOT_REF1="ts{2*i+1}" TIME_SLOT_REF2="ts{2*i+2}"'
    return lines(f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{i}" {refs}>',
                 f'<ANNOTATION_VALUE>{xml(label)}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>')


def elan():
    times = [round(1000*t) for o in MOMENTS for t in o[:2]]
    slots = [f'<TIME_SLOT TIME_SLOT_ID="ts{i}" TIME_VALUE="{t}"/>' for i,t in enumerate(times, 1)]
    reference = ('<TIER TIER_ID="notes" PARENT_REF="actions"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a9" '
                 'ANNOTATION_REF="a0"><ANNOTATION_VALUE>a comment</ANNOTATION_VALUE></REF_ANNOTATION>'
                 '</ANNOTATION></TIER>')
    return lines('<?xml version="1.0" encoding="UTF-8"?>',
                 '<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-01-01T00:00:00Z" FORMAT="3.0" VERSION="3.0">',
                 '<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">',
                 '<MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/other/sound.wav" MIME_TYPE="audio/x-wav"/>',
                 f'<MEDIA_DESCRIPTOR MEDIA_URL="file:///D:/films/{VIDEO}" MIME_TYPE="video/mp4"/></HEADER>',
                 '<TIME_ORDER>', *slots, '</TIME_ORDER>', '<TIER TIER_ID="actions" LINGUISTIC_TYPE_REF="x">',
                 *(elan_annotation(i, o[2]) for i,o in enumerate(MOMENTS)), '</TIER>', reference,
                 '</ANNOTATION_DOCUMENT>')


def tabular(head, row, *before):
    "Return BORIS's events; a row has time, behavior and START or STOP"
    events = [(t, label, k) for *times,label in MOMENTS for t,k in zip(times, ('START','STOP'))]
    return lines(*before, head, *(row.format(t, label, k) for t,label,k in events))


def cues(mark, head=()):
    rows = list(head)
    for i,(a,b,label) in enumerate(MOMENTS, 1):
        start,end = (f'00:00:{t:06.3f}'.replace('.', mark) for t in (a,b))
        rows += [str(i), f'{start} --> {end}', xml(label) if mark == '.' else label, '']
    return lines(*rows)


def table(names, rows, sep=','): return lines(sep.join(names), *(sep.join(map(str, o)) for o in rows))


def activitynet():
    segments = [dict(segment=[a,b], label=label) for a,b,label in MOMENTS]
    return {'kitchen': dict(subset='training', duration=10., url='https://example.org', annotations=segments)}


def tasks(values, **data):
    annotation = dict(id=1, was_cancelled=False, result=[*map(labelstudio, values)])
    return [dict(id=12, data=data, annotations=[annotation])]


def text(o): return json.dumps(o, indent=1, ensure_ascii=False)


ranges = [timeline(*o) for o in FRAMES]
seconds = [dict(start=a, end=b, channel=0, labels=[label]) for a,b,label in MOMENTS]
rows = [('kitchen.mp4',*o) for o in MOMENTS]
upload = '/data/upload/4/0a1b2c3d-kitchen.mp4'
local = f'/data/local-files/?d=films/{VIDEO}'
head = ['WEBVTT', 'Language: de', '', 'NOTE a comment', '', 'STYLE', '::cue {}', '']
aggregated = ('Observation id,Observation date,Source,Media file name,Total length,FPS,Subject,Behavior,'
              'Modifiers,Behavior type,Start (s),Stop (s),Duration (s),Comment start')
media = f'one,2024-01-01,player #1:D:\\films\\{VIDEO},{VIDEO},10.0,30.0,No focal subject'
events = [f'{media},{label},,STATE,{a:.3f},{b:.3f},{b-a:.3f},' for a,b,label in MOMENTS]

# name of the fixture -> (name of the format, text)
FIXTURES = {
    'csv': ('csv', table(['file','start','end','label'], rows)),
    'csv of frames': ('csv', table(['label','end_frame','start_frame','file'],
                                   [(label,b,a,'kitchen') for a,b,label in FRAMES])),
    'csv with decimal commas': ('csv', table(['File','Start','End','Label'], rows, ';').replace('.', ',')
                                .replace('kitchen,mp4', './kitchen.mp4')),
    'tsv': ('tsv', table(['file','start','end','label'], rows, '\t')),
    'activitynet': ('activitynet', text(dict(version='1.3', taxonomy=[], database=activitynet()))),
    'activitynet without database': ('activitynet', text(activitynet())),
    'labelstudio': ('labelstudio', text(tasks(ranges, id=4, video=upload))),
    'labelstudio local files': ('labelstudio', text(tasks(ranges, clip=local))),
    'labelstudio min': ('labelstudio', text([dict(id=12, video=upload, tags=ranges, annotator=1)])),
    'labelstudio seconds': ('labelstudio', text(tasks(seconds, video=f'https://example.org/a/{VIDEO}?key=1'))),
    'cvat': ('cvat', cvat(''.join(track(i, *o) for i,o in enumerate(FRAMES)))),
    'cvat tags': ('cvat', cvat(''.join(tags(*o) for o in FRAMES))),
    'cvat images': ('cvat', cvat(''.join(images(*o) for o in FRAMES))),
    'elan': ('elan', elan()),
    'boris aggregated': ('boris', lines(aggregated, *events)),
    'boris tabular': ('boris', tabular(
        'Observation id\tSubject\tBehavior\tModifier #1\tBehavior type\tTime\tMedia file name\tImage index',
        f'one\tNo focal subject\t{{1}}\t\t{{2}}\t{{0}}\t{VIDEO}\t1')),
    'boris tabular of older versions': ('boris', tabular(
        'Time,Media file path,Total length,FPS,Subject,Behavior,Behavioral category,Comment,Status',
        f'{{0}},D:\\films\\{VIDEO},10.0,30.0,,{{1}},,,{{2}}',
        'Observation id,one', '', 'Media file(s)', '', f'Player #1,D:\\films\\{VIDEO}', '')),
    'audacity': ('audacity', lines(*(f'{a:.6f}\t{b:.6f}\t{label}\n\\\t-1.000000\t6334.588867'
                                     for a,b,label in MOMENTS))),
    'webvtt': ('webvtt', cues('.', head)),
    'srt': ('srt', cues(',')),
}
