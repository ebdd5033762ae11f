"""Packages, droplets and layers: over HTTP, through a jail, onto the disk.

    archive.py   what an archive may ask for: bounds, names; shared by both readers
    tar.py       streaming tar reader (gzip or plain)     zip.py     zip reader
    writer.py    the few system calls that write a tree
    jail.py      namespaces, idmapped root, seccomp       unpack.py  the worker that runs in it
    unpacker.py  the agent's end of a worker
    layers.py    trees by checksum: fetch, publish, count users, evict       trash.py  slow removal
    pack.py      a tar stream to gzip, checksum and layer in one pass
    transfer.py  HTTP downloads and the Cloud Controller's upload

This package file imports nothing: the jailed worker passes through it.
"""
