"""The jobs of a container. `Jobs` owns them: it starts each one, lists those on the spool, and removes forgotten ones.

records.py   how a job ended, and the file that records it; pure
spool.py     the files of a job, and how they are read
job.py       one job on the spool
pipes.py     the manager's end of a job's stream
starter.py   the three kinds of job, and `Jobs`
"""

from container.jobs.job import Job as Job
from container.jobs.job import JobHost as JobHost
from container.jobs.records import ExitStatus as ExitStatus
from container.jobs.spool import Chunk as Chunk
from container.jobs.starter import Jobs as Jobs
from container.jobs.starter import PipedJob as PipedJob
from container.jobs.starter import RunResult as RunResult
from container.jobs.starter import TerminalJob as TerminalJob
from container.jobs.starter import UnknownJob as UnknownJob
