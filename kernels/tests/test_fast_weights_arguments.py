"""Wrong arguments of fast weights are named, with their shapes."""

import pytest
import torch

from muse_kernels import KernelRequest, debug, fast_weights, select_backend
from muse_kernels.testing.fast_weights import draw

WRONG = {
    "query": (lambda x: x[0], r"query must be \(B, N, H, K\), got \(4, 2, 5\)"),
    "key": (lambda x: x[..., :4], r"key must be \(B, N, H, K\) = \(2, 4, 2, 5\).*got \(2, 4, 2, 4\)"),
    "value": (lambda x: x[:, :3], r"value must be \(B, N, H, M\) = \(2, 4, 2, 3\).*got \(2, 3, 2, 3\)"),
    "log_decay": (lambda x: x[:1], r"log_decay must be \(B, N, H\) = \(2, 4, 2\).*got \(1, 4, 2\)"),
    "rate": (lambda x: x.half(), r"rate must be bfloat16, float32 or float64, got torch.float16"),
    "initial": (lambda x: x.mT, r"initial must be \(B, H, K, M\) = \(2, 2, 5, 3\).*got \(2, 2, 3, 5\)"),
    "resets": (lambda x: x.int(), r"resets must be bool, got torch.int32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensor_is_named(name):
    change, message = WRONG[name]
    problem = draw(4, resets=True)
    setattr(problem, name, change(getattr(problem, name)))
    with pytest.raises(ValueError, match=message):
        problem.run(fast_weights)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rule": "oja"}, "rule must be one of"),
        ({"read": "during"}, "read must be one of"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_wrong_option_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        draw(4).run(fast_weights, **option)


def test_no_token():
    with pytest.raises(ValueError, match="at least one token"):
        fast_weights(*(x[:, :0] for x in draw(4).leaves[:5]))


def test_context_parallelism_is_refused_until_it_exists():
    with pytest.raises(NotImplementedError, match="group"):
        draw(4).run(fast_weights, group=object())


def test_device_is_named():
    problem = draw(4)
    problem.rate = torch.empty_like(problem.rate, device="meta")
    with pytest.raises(ValueError, match="rate is on meta, query on cpu"):
        problem.run(fast_weights)


def test_values_are_checked_in_debug_mode_only():
    problem = draw(4)
    problem.log_decay = problem.log_decay.detach() + 1.0
    problem.run(fast_weights)
    with debug(), pytest.raises(ValueError, match="log_decay must be <= 0, its largest is"):
        problem.run(fast_weights)
    problem = draw(4)
    problem.key = problem.key.detach() * torch.nan
    with debug(), pytest.raises(ValueError, match="key holds values that are not finite"):
        problem.run(fast_weights)


def test_what_auto_takes_can_be_asked():
    sizes = {"key": 64, "value": 64}
    assert select_backend(KernelRequest("fast_weights", "cuda", "bfloat16", sizes)).backend == "triton"
    double = select_backend(KernelRequest("fast_weights", "cuda", "float64", sizes))
    assert double.backend == "torch" and "float32" in double.refusals["triton"]
    wide = select_backend(KernelRequest("fast_weights", "cuda", "bfloat16", {"key": 256, "value": 64}))
    assert wide.backend == "torch" and "128" in wide.refusals["triton"]


def test_the_choice_breaks_no_compiled_graph():
    """Also where triton is taken, which a machine without a GPU cannot run."""

    def marked(x):
        return x + (select_backend(KernelRequest("fast_weights", "cuda", "float32")).backend == "triton")

    assert torch.compile(marked, fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def test_a_named_backend_is_taken():
    problem = draw(200, dtype=torch.float32)
    exact, _ = problem.to(torch.float64).run(fast_weights, backend="reference")
    assert torch.equal(problem.run(fast_weights, backend="reference")[0], exact.float())
    assert not torch.equal(problem.run(fast_weights, backend="torch")[0], exact.float())
    problem = problem.to(torch.float64)
    with pytest.raises(ValueError, match="triton refuses: its kernels compute in float32"):
        problem.run(fast_weights, backend="triton")
