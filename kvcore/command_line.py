"""How a command ends: its exit code, and one clear line for a user's mistake instead of a traceback."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from kvcore.schema import GateError, Settings, UserError, nearest, parse_settings, setting_names

if TYPE_CHECKING:
    import pandas as pd

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with a clear line, not a traceback, where the cause is known.

    Exit codes: 1 where a gate failed, 2 for a mistake in the settings or in what they point at, 130 when
    interrupted. Everything else is a defect and keeps its traceback. To be used around a Hydra entry point,
    for errors of composing the configuration, and inside it, where Hydra would add lines of its own.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, always with code 1
    try:
        yield
    except UserError as error:
        _exit(USER_ERROR, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit(USER_ERROR, describe_configuration_error(error))
    except ValueError as error:
        if "Config group override" not in str(error):  # how Hydra refuses GROUP=null
            raise
        _exit(USER_ERROR, "every group needs one of its options: see --help")
    except GateError as error:
        _exit(FAILED, f"{error}. These numbers cannot be trusted; gates=warn records them all the same.")
    except KeyboardInterrupt:
        _exit(INTERRUPTED, "interrupted; run the same command again to complete the cell")


def quiet_libraries() -> None:
    """Silence progress bars and log lines of libraries: kvcore shows its own, and their errors are raised as well."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def settings_from(config: DictConfig) -> Settings:
    """Turn a composed configuration into checked settings.

    Raises:
        SettingsError: One line per fault.
    """
    values = OmegaConf.to_container(config, resolve=True)
    return parse_settings(_without_missing(values))


def collected_cells(outputs: Path) -> "pd.DataFrame":
    """Collect the cells under a folder, and say on standard error which records were not used.

    Raises:
        SettingError: There is no record.
    """
    from kvcore.results.collection import collect
    from kvcore.results.printing.cell import print_lines

    cells, problems = collect(outputs)
    print_lines(Console(stderr=True), problems)
    return cells


class DrawTransfers(Callback):
    """Draws the transfer matrices when all their cells are done; named in conf/experiment/transfer.yaml."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401 - Hydra's own signature
        """Print and draw what is there."""
        from kvcore.results.printing.grid import print_transfers
        from kvcore.results.transfer import draw_transfers, transfers

        with clear_errors():
            outputs = Path(str(config.output_root)).expanduser()
            cells = collected_cells(outputs)
            print_transfers(Console(), transfers(cells))
            for path in draw_transfers(cells, outputs / "transfer"):
                print(path)  # noqa: T201 - what the command was run for


def grid_from(arguments: Sequence[str], configuration: Path) -> list[Settings]:
    """Compose a grid as `run.py` does: every combination of comma-separated choices, those of an experiment included.

    Args:
        arguments: Overrides as on the command line; -m, which run.py needs, changes nothing.
        configuration: The folder `conf`.

    Raises:
        SettingsError: One line per fault of the first cell that has one.
    """
    parse = OverridesParser.create().parse_overrides
    overrides = parse(admit_unknown_settings([one for one in arguments if one not in ("-m", "--multirun")]))
    given = {override.get_key_element() for override in overrides}
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    with initialize_config_dir(str(configuration), version_base="1.3"):
        sweep = compose("config", fixed, return_hydra_config=True).hydra.sweeper.params or {}
    named = parse([f"{name}={values}" for name, values in sweep.items()])  # by an experiment, such as transfer
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in [*overrides, *(override for override in named if override.get_key_element() not in given)]
    ]
    return [composed_settings(cell, configuration) for cell in product(*choices)]


def composed_settings(overrides: Sequence[str], configuration: Path) -> Settings:
    """Compose one cell from overrides as on the command line.

    Args:
        overrides: GROUP=OPTION and SETTING=VALUE.
        configuration: The folder `conf`.

    Raises:
        SettingsError: One line per fault.
    """
    with initialize_config_dir(str(configuration), version_base="1.3"):
        return settings_from(compose("config", list(overrides)))


def admit_unknown_settings(arguments: Sequence[str]) -> list[str]:
    """Turn overrides of settings into additions where they are not there to be overridden.

    Hydra stops at the first setting that the chosen option has not; added ones are refused by the check of the
    settings, together with all other faults.
    """
    known = {"experiment", *(name for name in setting_names() if "." not in name)}

    def admit(argument: str) -> str:
        override = re.match(r"([A-Za-z_][\w.]*)=", argument)
        if override is None or override[1] in known or override[1].startswith(("hydra.", "model.parts.")):
            return argument
        return f"++{argument}"

    return [admit(argument) for argument in arguments]


def describe_configuration_error(error: Exception) -> str:
    """Turn an error of composing the configuration into a line that names the nearest valid names."""
    message = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} = {option!r}: there is no such option; {nearest(option, list(error.options))}"
    return message


def _without_missing(values: Any) -> Any:  # noqa: ANN401 - a nested configuration value
    """Drop values left as `???`, so that they are reported as missing together with all other faults."""
    if isinstance(values, dict):
        return {key: _without_missing(value) for key, value in values.items() if value != "???"}
    return values


def _exit(code: int, message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - the last word of a command
    raise SystemExit(code)
