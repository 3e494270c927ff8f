"""Posed pictures: cameras, and folders that say where each picture was taken from.

- `cameras`: `Camera` (pinhole, OpenCV axes), `View` (a posed picture, its depth where it is known), rays,
  cameras between and around others.
- `folder.read(config) -> list[View]`: from a folder, whichever layout it has. A layout is a file here
  (`transforms`, `colmap`) that gives `layout.Posed`, and a line in `folder.LAYOUTS`.

Fields and data sources share it.
"""
