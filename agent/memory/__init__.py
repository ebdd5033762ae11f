"""What the agent remembers over a restart: one file a record, written before what depends on it is published.

records.py   the values and their bytes, also those of former releases; no I/O
store.py     the files: read at a start, damaged ones set aside
ahead.py     keeps the files up to date, and lets a publisher wait until a record has been written
"""

from agent.memory.ahead import Memory as Memory
from agent.memory.records import SavedInstance as SavedInstance
from agent.memory.records import SavedStaging as SavedStaging
from agent.memory.store import RecordStore as RecordStore
from agent.memory.store import Remembered as Remembered
