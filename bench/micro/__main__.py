"""Runs one round of the jobs that are named `group: job`, all in this process, which imports shiftfs as its
environment says: seconds per operation as JSON.
"""

import json
import sys
import time

from . import GROUPS

taken = {}
for group, jobs in GROUPS.items():
    for job in jobs():
        if f"{group}: {job.name}" not in sys.argv[1:]:
            continue
        work = job.prepare()
        try:
            work.run()
            began = time.perf_counter()
            work.run()
            taken[f"{group}: {job.name}"] = (time.perf_counter() - began) / work.operations
        finally:
            if work.after:
                work.after()
print(json.dumps(taken))
