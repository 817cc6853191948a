"""Started by torchrun: trainings one after the other on all its ranks, of a JSON list of [folder, what to start: its
table, or null to resume], where `{rank}` in the name of a text is the rank; a refusal becomes the text of
`FOLDER.error`."""

import gc
import json
import sys
from pathlib import Path

import torch.distributed as dist

from rheobase.models.training import loop
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import ConfigError

loop.LOG_EVERY = 1
dist.init_process_group("gloo")
for folder, table in json.loads(Path(sys.argv[1]).read_text()):
    try:
        if table:
            table["data"]["text"] = table["data"]["text"].format(rank=dist.get_rank())
            loop.start(folder, RunConfig.from_table(table), quiet=True)
        else:
            loop.resume(folder, quiet=True)
    except ConfigError as error:
        if dist.get_rank() == 0:
            Path(f"{folder}.error").write_text(str(error))
    dist.barrier()  # rank 0 ends a run alone
dist.destroy_process_group()
gc.collect()  # a sharded model holds the group's threads, which abort a process that ends with them
