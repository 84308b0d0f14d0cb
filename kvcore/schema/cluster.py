"""What a cluster is asked for; nothing of this changes a number."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from kvcore.schema.fields import Group, Name, PositiveInt

Text = Annotated[str, Field(min_length=1)]


class SlurmSettings(Group):
    """What Slurm is asked for, for each cell of a grid; conf/hydra/launcher/slurm.yaml says what each means.

    None leaves a choice to Slurm.
    """

    name: Name = "kvcore"
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    exclude: Text | None = None
    comment: Text | None = None
    gpus_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt | None = None
    mem_gb: PositiveInt | None = None
    timeout_min: PositiveInt = 240
    signal_delay_s: Annotated[int, Field(ge=1, le=65535)] = 120
    max_num_timeout: Annotated[int, Field(ge=0)] = 10
    array_parallelism: PositiveInt = 64
    setup: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    additional_parameters: Mapping[str, str | int | bool] = {}
