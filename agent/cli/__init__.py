"""The command line: one file per command, imported when it is asked for.

app.py      the frame: finds commands, hints at the nearest name, turns errors into words and exit statuses
ui.py       how things look: colour, tables, sizes, ages, the one moving line
reach.py    how commands reach `garrison up`, or an agent: plain HTTP without asyncio, so that they start fast
package.py  a directory as the zip that staging takes; ignore.py knows what is left out of it
staging.py  the staging of a push, its output live
wait.py     until an app runs or is stopped; trouble.py knows why it does not, and the hint that fits

What the commands ask of an agent's control socket (HTTP over `base_dir/agent.sock`):

    GET  /v1/instances[?after=N&wait_s=S]
                                        a list of {instance, app (guid), name, index, state, handle or null}
    GET  /v1/apps/GUID/logs[?follow=1]  a line of JSON each: {at (epoch, s; null: before), index, stream, data, gap_bytes?}
    GET  /v1/staging/TASK/log?follow=1  the same for a staging under way: {data}; 404 before it, and some time after it
    GET  /v1/instances/ID/listening     {port, listening: [{address, port}]}: its port inside, and what is listened on
    GET  /v1/instances/ID/logs          as of an app
    POST /v1/instances/ID/shell         {handle, socket, environment, argv}: the path of the container's wshd.sock,
                                        the app's variables, the words before a command that runs as the app does
    POST /v1/detach                     {}

Each answer to the first of these has the number of changes so far in the header `X-Garrison-Changes`. With the number N of an
earlier answer and S seconds (at most 30), the answer comes when the number is another one, or when the time is over. A change
is: an instance was added or removed, or has another state, id, process or remark; what an instance uses is none. The controller
of `garrison up` answers `GET /v1/apps/APP` in the same way (agent/http/long_poll.py).

`stream` is stdout, stderr or sys; bytes that are no UTF-8 come as `data_base64` instead of `data`. A refusal
is a status of 400 and above with {error}.
"""
