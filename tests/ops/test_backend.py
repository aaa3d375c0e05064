"""The choice between PyTorch's operators and the Triton kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from atconv import ATConv2d
from atconv.ops import backend
from atconv.ops.backend import get_backend, set_backend, use_backend, uses_triton


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def test_on_a_cpu_the_kernels_are_not_the_default() -> None:
    assert get_backend() == "auto"
    assert not uses_triton(torch.randn(1, 2, 3, 3))


def test_a_block_has_its_backend_and_gives_the_old_one_back() -> None:
    with use_backend("eager"):
        assert get_backend() == "eager"
    assert get_backend() == "auto"
    with pytest.raises(KeyError), use_backend("eager"):
        raise KeyError
    assert get_backend() == "auto"


def test_an_unknown_backend_is_rejected() -> None:
    with pytest.raises(ValueError, match="is one of auto, eager, triton, got 'cuda'"):
        set_backend("cuda")  # type: ignore[arg-type]
    assert get_backend() == "auto"


def test_where_triton_is_missing_only_its_backend_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_INSTALLED", False)
    set_backend("auto")
    with pytest.raises(ImportError, match="pip install triton"):
        set_backend("triton")
    assert get_backend() == "auto"


def test_where_triton_cannot_be_imported_mixers_run() -> None:
    code = "import sys; sys.modules['triton'] = None; import atconv, torch; "
    code += "print(tuple(atconv.ATConv2d(4)(torch.randn(1, 4, 5, 5)).shape)); "
    code += "from atconv.ops.backend import get_backend; print(get_backend())"
    done = run_python(code, ATCONV_BACKEND="eager")
    assert done.stdout.splitlines() == ["(1, 4, 5, 5)", "eager"], done.stderr


def test_a_command_says_in_one_line_that_the_environment_asks_for_an_unknown_backend() -> None:
    done = run_python("from atconv_command import main; import sys; sys.argv = ['atconv', 'models']; main()",
                      ATCONV_BACKEND="cuda")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "atconv: ATCONV_BACKEND is one of auto, eager, triton, got 'cuda'\n"


@pytest.mark.parametrize(
    ("major", "hip", "recorded", "taken"),
    [(8, None, False, True), (9, None, True, False), (7, None, False, False), (9, "6.4", False, False)],
)
def test_auto_takes_the_kernels_for_inference_on_gpus_from_ampere_on(
    major: int, hip: str | None, recorded: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_COMPILES", True)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    with torch.set_grad_enabled(recorded):
        assert backend._is_tried(torch.device("cuda")) == taken
        monkeypatch.setattr(backend, "_COMPILES", False)
        assert not backend._is_tried(torch.device("cuda"))


@pytest.mark.parametrize(
    ("environment", "taken"),
    [
        ({"PATH": "", "CC": ""}, False),  # as in slim images for deployment
        ({"PATH": "", "CC": "/opt/cc"}, True),
    ],
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_needs_a_c_compiler(environment: dict[str, str], taken: bool) -> None:
    done = run_python("from atconv.ops import backend; print(backend._COMPILES)", **environment)
    assert done.stdout.strip() == str(taken), done.stderr


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_environment_variables_are_read_as_others_read_them(value: str) -> None:
    code = "from atconv.ops import backend; print(backend._INTERPRETED, backend.get_backend())"
    done = run_python(code, TRITON_INTERPRET=value, ATCONV_BACKEND="")
    assert done.stdout.split() == ["True", "auto"], done.stderr


@pytest.mark.parametrize(
    ("shape", "stride", "fits"),
    [
        ((9, 4, 3, 3), (36, 9, 3, 1), True),
        ((1, 2, 1, 3), (2**40, 2**31 - 3, 3, 1), True),
        ((1, 2, 1, 3), (2**40, 2**31 - 2, 3, 1), False),  # a slice of a large map, or N B C tokens
        ((1, 2, 2**15, 2**15), (0, 0, 0, 0), False),  # what is written is that large
    ],
)
def test_kernels_take_maps_whose_offsets_are_32_bit_integers(
    shape: tuple[int, ...], stride: tuple[int, ...], fits: bool
) -> None:
    x = torch.empty_strided(shape, stride, device="meta")
    assert backend._fits(x) == fits
    assert (backend.addressable(x) is x) == fits


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_what_the_kernels_do_not_take_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    with use_backend("triton"):
        assert uses_triton(torch.randn(1, 2, 3, 3))
        assert not uses_triton(torch.randn(0, 2, 3, 3))
        assert not uses_triton(torch.randn(1, 2, 3, 3).to(torch.float8_e4m3fn))
        assert not uses_triton(torch.empty(1, 2, 3, 3, device="meta"))
        assert not uses_triton(torch.randn(1, 1, 1, 1).expand(1, 2, 2**15, 2**15))
        monkeypatch.setattr(backend, "_INTERPRETED", False)
        assert not uses_triton(torch.randn(1, 2, 3, 3))  # on a CPU
        assert ATConv2d(2)(torch.randn(1, 2, 3, 3)).shape == (1, 2, 3, 3)
