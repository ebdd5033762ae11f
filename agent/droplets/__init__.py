"""Packages, droplets and layers: transfer over HTTP, unpack in a jail, store as layers.

    archive.py   limits on archives and names; shared by both readers
    tar.py       streaming tar reader (gzip or plain)     zip.py     zip reader
    writer.py    writes a tree with few system calls
    jail.py      namespaces, idmapped root, seccomp       unpack.py  the worker process that runs in the jail
    unpacker.py  starts, feeds and ends workers, for the agent
    layers.py    trees by checksum: fetch, publish, count users, evict       trash.py  removal in the background
    pack.py      a tar stream to gzip, checksum and layer in one pass
    transfer.py  HTTP downloads and the Cloud Controller's upload            slots.py  fair download slots

This file must import nothing, because the worker imports the package and must start fast.
"""
