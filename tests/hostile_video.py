"""Hostile video files: not a video, damaged, odd names."""
from hostile import refuses

from vidseq.video.decode import VideoError
from vidseq.video.info import video_info

refuses('video: no such file', lambda p: video_info(p/'a.avi'), 'a.avi: no such file', error=VideoError)
refuses('video: a folder', lambda p: video_info(p), 'a folder, not a video file', error=VideoError)
