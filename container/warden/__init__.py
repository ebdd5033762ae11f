"""Warden's socket protocol, served on a depot: `garrison warden` (docs/warden.md).

main.py        the process: signals, drain, pidfile
server.py      connections: frames in, responses out
service.py     the requests, each with a handler
containers.py  one container: references and grace time, states, info
jobs.py        one job: linked by any number of clients, then forgotten
copies.py      CopyIn and CopyOut
extract.py     what CopyOut makes of a hostile stream
specs.py, netout.py, limits.py   what requests ask for, as values
layout.py      files where scripts look for Warden's
records.py     what the next server must know
config.py      Warden's configuration file
messages.py, stats.py, kinds.py, codec.py, frames.py, errors.py   the wire
"""
