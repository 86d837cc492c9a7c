"""Kernels are tried before they are trusted; on a GPU, the memory-efficient one gives the formula's numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import softprompts as sp
from softprompts.attention.selective import by_scores
from softprompts.injection.speedups import fused_kernels as fused
from softprompts.injection.speedups.fused_kernels import CpuFlash, CudaEfficient
from softprompts.injection.speedups.merged_attention import by_merging, kernel_for

QUERY = torch.zeros(1, 2, 3, 8)


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    before = dict(fused._verdicts)
    fused._verdicts.clear()
    yield
    fused._verdicts.clear()
    fused._verdicts.update(before)


class WithoutScale(CpuFlash):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float) -> Any:
        return super().forward(query, key, value, bias, 1.0)


class WrongLse(CpuFlash):
    def forward(self, *given: Any) -> Any:
        output, lse, kept = super().forward(*given)
        return output, lse + 0.5, kept


class WrongGradient(CpuFlash):
    def backward(self, *given: Any) -> Any:
        query, key, value = super().backward(*given)
        return query, key * 1.2, value


class NoBias(CpuFlash):
    def bias(self, bias: Tensor, query: Tensor) -> Tensor:
        return torch.zeros_like(bias)


class NotANumber(CpuFlash):
    def backward(self, *given: Any) -> Any:
        query, key, value = super().backward(*given)
        return query * float("nan"), key, value


class Raises(CpuFlash):
    def forward(self, *given: Any) -> Any:
        raise RuntimeError("no kernel image\nfor this device")


class Padded(CpuFlash):
    """As CUDA's: log-sum-exps padded to 32 queries, a bias with padded rows, memory in another order."""

    def bias(self, bias: Tensor, query: Tensor) -> Tensor:
        return CudaEfficient().bias(bias, query)

    def forward(self, *given: Any) -> Any:
        output, lse, _ = super().forward(*given)
        padded = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
        return output, padded[..., : lse.shape[-1]], (padded,)

    def backward(self, grad: Tensor, *given: Any) -> Any:
        *front, lse, kept, scale = given
        assert kept[0].shape[-1] % 32 == 0 and lse.shape[-1] == grad.shape[2]
        return super().backward(grad, *front, lse, (), scale)


def use(monkeypatch: pytest.MonkeyPatch, kernel: CpuFlash) -> None:
    monkeypatch.setattr("softprompts.injection.speedups.merged_attention.KERNELS", [kernel])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [CpuFlash(), Padded()])
def test_right_kernels_are_found_right(
    monkeypatch: pytest.MonkeyPatch, kernel: CpuFlash, masked: bool, dtype: torch.dtype
) -> None:
    use(monkeypatch, kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_for(QUERY.to(dtype), masked) is kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [WithoutScale(), WrongLse(), WrongGradient(), NotANumber(), Raises()])
def test_wrong_kernels_are_found_out_once(
    monkeypatch: pytest.MonkeyPatch, kernel: CpuFlash, dtype: torch.dtype
) -> None:
    use(monkeypatch, kernel)
    query = QUERY.to(dtype)
    with pytest.warns(UserWarning, match=f"slower form on cpu in {dtype}.*{type(kernel).__name__}") as said:
        assert kernel_for(query, masked=False) is None
    assert len(said) == 1 and "\n" not in str(said[0].message)
    monkeypatch.setattr(fused, "_problem", lambda *_: pytest.fail("tried twice"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_for(query, masked=False) is None


def test_a_kernel_may_be_good_for_calls_without_a_bias_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = NoBias()
    use(monkeypatch, kernel)
    assert kernel_for(QUERY, masked=False) is kernel
    with pytest.warns(UserWarning, match="is off by"):
        assert kernel_for(QUERY, masked=True) is None


def test_a_trial_leaves_no_trace() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert kernel_for(QUERY, masked=True) is not None
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel_for(QUERY, masked=False) is not None


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_models_give_the_same_with_a_right_a_padded_and_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = tiny.attached(family, "selective-prefix", "prefix-tuning")
    inputs = tiny.batch(family)
    names = ["selective-prefix", "prefix-tuning", None]
    found = []
    for kernel in (CpuFlash(), Padded(), Raises()):
        use(monkeypatch, kernel)
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tiny.loss_of(model, inputs, prompt_names=names).backward()
        found.append([p.grad.clone() for p in model.prompts.parameters() if p.grad is not None])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_what_cuda_wants_of_a_bias() -> None:
    query = torch.zeros(2, 3, 5, 8, dtype=torch.float16)
    bias = torch.zeros(2, 1, 1, 21, dtype=torch.float16)[..., 4:]
    bias[1, ..., 15:] = torch.finfo(torch.float16).min
    made = CudaEfficient().bias(bias, query)
    assert made.shape == (2, 3, 5, 17) and made.stride(-1) == 1 and made.dtype == query.dtype
    assert all(step % 16 == 0 for step in made.stride()[:-1]) and made.storage_offset() == 0
    assert torch.equal(made[1, 2, 3], bias[1, 0, 0].clamp(min=-1e4))


@pytest.mark.parametrize("masked", [False, True])
def test_cudas_operators_take_what_they_are_given(masked: bool) -> None:
    """Without a GPU, by their shapes alone: arguments, order of memory, padding of the log-sum-exps."""
    kernel = CudaEfficient()
    query, key, value, grad = (torch.zeros(2, 3, n, 8, device="meta") for n in (37, 45, 45, 37))
    bias = kernel.bias(torch.zeros(2, 1, 1, 45, device="meta"), query) if masked else None
    output, lse, kept = kernel.forward(query, key, value, bias, 0.25)
    assert output.shape == query.shape and lse.shape == query.shape[:3] and kept[0].shape[2] == 64
    gradients = kernel.backward(grad, query, key, value, bias, output, lse, kept, 0.25)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


def test_what_cuda_does_not_cover() -> None:
    kernel = CudaEfficient()
    for dtype, width in ((torch.float32, 64), (torch.float16, 64)):
        assert not kernel.covers(torch.zeros(1, 1, 1, width, dtype=dtype))  # it is on the CPU
    assert not kernel.covers(torch.zeros(1, 1, 1, 64, device="meta"))


# --- on a GPU ---------------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tensors(queries: int, dtype: torch.dtype, width: int = 64, length: int = 10) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 4, queries, width)] * 3 + [(1, 4, length, width)] * 2
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]


def padding(queries: int, dtype: torch.dtype) -> Tensor:
    hidden = torch.zeros(2, 1, 1, queries, device="cuda", dtype=dtype)
    hidden[1, ..., queries // 2 + 1 :] = torch.finfo(dtype).min
    return hidden


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [7, 32, 93])
def test_gpu_equals_the_formula(dtype: torch.dtype, masked: bool, queries: int) -> None:
    given = tensors(queries, dtype)
    kernel = kernel_for(given[0], masked)
    assert isinstance(kernel, CudaEfficient)
    bias = padding(queries, dtype) if masked else None
    output = by_merging(kernel, *given, 4.0, None if bias is None else kernel.bias(bias, given[0]), None, 0.125)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    whole = None if bias is None else F.pad(bias.double(), (10, 0))
    wanted = by_scores(*exact, 4.0, whole, 0.125)[0]
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(output.double(), wanted, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(wanted)
    (output * weights.to(dtype)).sum().backward()
    (wanted * weights.to(dtype).double()).sum().backward()
    for mine, theirs in zip(given, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        error = (mine.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
        assert float(error) < 4 * tolerance


@gpu
def test_gpu_memory_grows_with_the_length_and_not_its_square() -> None:
    def peak(queries: int) -> int:
        given = tensors(queries, torch.bfloat16)
        kernel = kernel_for(given[0], masked=True)
        assert kernel is not None
        bias = kernel.bias(padding(queries, torch.bfloat16), given[0])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        by_merging(kernel, *given, 4.0, bias, None, 0.125).float().square().sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak(256)
    assert peak(4096) < 3 * peak(2048)


@gpu
def test_gpu_models_train_alike() -> None:
    made = []
    for device in ("cpu", "cuda"):
        model = sp.attach(tiny.model("bert", torch.float32, hidden_size=32)).to(device)
        model.add_prompt("a", tiny.METHODS["selective-prefix"], seed=0)
        inputs = {name: value.to(device) for name, value in tiny.batch("bert").items()}
        model.train()
        tiny.loss_of(model, inputs, prompt_names="a").backward()
        made.append([p.grad.cpu() for p in model.prompts["a"].method.parameters() if p.grad is not None])
    for one, two in zip(*made, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)
