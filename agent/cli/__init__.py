"""The command line: one file per command, imported when it is asked for.

app.py    the frame: finds commands, hints at the nearest name, turns errors into words and exit statuses
ui.py     how things look: colour, tables, sizes, ages, the one moving line
reach.py  how commands reach `garrison up`, or an agent: plain HTTP without asyncio, so that they start fast
"""
