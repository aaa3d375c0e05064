"""The line that a command ends with."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from atconv.data.loaders import Items
from atconv.error_lines import explain


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_where_data_is_loaded_is_told_without_its_traceback(
    workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(position: int) -> int:
        raise OSError(f"{position}.jpg is damaged:\nit ends early")

    loader = DataLoader(Items(load), sampler=[7], num_workers=workers)
    with pytest.raises(OSError, match=r"7\.jpg") as caught:
        list(loader)
    with pytest.raises(SystemExit) as ended:
        explain("train", caught.value)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "atconv train: 7.jpg is damaged: it ends early\n"
