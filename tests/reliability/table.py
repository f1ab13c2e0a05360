"""The whole table of bad inputs."""

import table_config
import table_data
import table_models
import table_runs
from refusing import Case


def all_cases() -> list[Case]:
    """Returns every case; no two of one name."""
    cases = [case for table in (table_config, table_data, table_models, table_runs) for case in table.cases()]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return cases
