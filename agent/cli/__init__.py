"""The command line: one file per command, imported when that command runs.

app.py      finds commands, suggests the nearest name, turns errors into messages and exit statuses
ui.py       output: colour, tables, sizes, ages, the progress line
reach.py    requests to the controller of `garrison up` or to an agent: HTTP without asyncio, so that commands start fast
package.py  packs a directory into the zip that staging takes; ignore.py decides which files are left out
staging.py  follows the staging of a push and prints its output
wait.py     waits until an app runs or is stopped; trouble.py finds out why an app does not run

The requests to an agent's control socket (HTTP over `base_dir/agent.sock`):

    GET  /v1/instances[?after=N&wait_s=S]
                                        a list of {instance, app (guid), name, index, state, handle or null}
    GET  /v1/apps/GUID/logs[?follow=1]  a line of JSON each: {at (epoch, s; null: unknown), index, stream, data, gap_bytes?}
    GET  /v1/staging/TASK/log[?wait_s=S]
                                        the same for a staging: {stream, data, gap_bytes?}. One that has not begun is waited
                                        for, S seconds (at most 30); then, and some time after its end, the answer is 404
    GET  /v1/instances/ID/listening     {port, listening: [{address, port}]}: its port inside the container, and the
                                        sockets on which the app listens
    GET  /v1/instances/ID/logs          the same lines, of one instance
    POST /v1/instances/ID/shell         {handle, socket, environment, argv}: the path of the container's wshd.sock, the
                                        app's variables, and the arguments that precede a command run in the app's way
    POST /v1/detach                     {}

The answer to `GET /v1/instances` has the number of changes so far in the header `X-Garrison-Changes`. A request with
`after=N&wait_s=S` is answered when that number is no longer N, or after S seconds (at most 30). A change is: an instance was added
or removed, or has another state, id, process or remark. Its use of memory and CPU does not count. The controller of `garrison up`
answers `GET /v1/apps/APP` by the same rule (agent/http/long_poll.py).

`stream` is stdout, stderr or sys. Bytes that are not UTF-8 are in `data_base64` instead of `data`. A refused request gets a
status of 400 or above with {error}.
"""
